//! The `haulage` command.
//!
//! Parses the command line, starts the runtime and the telemetry, runs one verb, and turns what came of it into an exit
//! code. An error is printed here, once, and nowhere else.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::cli::Cli;
use crate::exit::Exit;

mod api;
mod chance;
mod cli;
mod clock;
mod config;
mod embedded;
mod exit;
mod follow;
mod output;
mod pipeline;
mod progress;
mod ring;
mod signals;
mod telemetry;

// Arrow buffers come and go on many threads; the system's allocator would keep what they leave.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// For decisions, sessions and clients. Data work has a runtime of its own on the node.
const CONTROL_THREADS: usize = 2;
/// What still runs when a verb has ended gets so long to notice.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two providers are linked in, and where nobody has chosen one of them a certificate can't be looked at. An error means
    // that one is chosen already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("haulage-control")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return report(&anyhow::Error::new(error).context("can't start the runtime")).into(),
    };
    let telemetry = {
        let _inside = runtime.enter();
        telemetry::start(&cli.role(), cli.globals.verbose, cli.globals.log_format)
    };
    let telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(error) => return report(&error).into(),
    };
    std::panic::set_hook(Box::new(panicked));
    let exit = match runtime.block_on(cli.dispatch()) {
        Ok(exit) => exit,
        Err(error) => report(&error),
    };
    telemetry.flush();
    runtime.shutdown_timeout(STOP_TIMEOUT);
    exit.into()
}

/// Prints the error with its causes in one go, and says how the process ends.
fn report(error: &anyhow::Error) -> Exit {
    match Exit::of_error(error) {
        Some(exit) => {
            let text = output::table::visible_lines(&exit::said_once(error));
            // What is wrong with a pipeline file comes as a list, each entry with its place in front.
            let listed = text.lines().next().is_some_and(|line| line.contains(": error: "));
            output::note(if listed { text } else { format!("error: {text}") });
            exit
        }
        None => Exit::Success,
    }
}

/// A panic is a mistake in this program. Where it can be caught, an actor is restarted, so it is a line in the log and not
/// a page on the terminal; the backtrace is there for RUST_BACKTRACE=1 and -vv.
fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let what = info.payload_as_str().unwrap_or("no message");
    tracing::error!("a part of haulage has crashed at {place}: {what}");
    tracing::debug!("{}", std::backtrace::Backtrace::capture());
}
