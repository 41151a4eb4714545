//! Processes of the binary under test, and waiting without sleeping blindly.
//!
//! A verb that ends is [`Verb::output`]; a process that stays is [`Service`], which is killed when it is dropped and then
//! shows the end of its log: the test runner keeps that to itself unless the test fails.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
pub(crate) use haulage_test_support::{free_port, until};
use serde_json::Value;
use tokio::process::{Child, Command};

/// Longest that any verb may take in a test. Generous: two cores, a debug build, several tests at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The binary under test.
pub(crate) const HAULAGE: &str = env!("CARGO_BIN_EXE_haulage");

/// What a verb printed and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Output {
    /// Fails the test unless the verb succeeded.
    pub(crate) fn success(self) -> Result<Self> {
        ensure!(
            self.code == 0,
            "exit code {}\nstdout: {}\nstderr: {}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Fails the test unless the verb failed and said, on either stream, all of `parts`.
    pub(crate) fn failure(self, parts: &[&str]) -> Result<Self> {
        ensure!(
            self.code != 0,
            "succeeded, which it must not\nstdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        let said = format!("{}\n{}", self.stdout, self.stderr);
        for part in parts {
            ensure!(
                said.contains(part),
                "{part:?} is missing in\nstdout: {}\nstderr: {}",
                self.stdout,
                self.stderr
            );
        }
        let panicked = said.contains("panicked at") || said.contains("has crashed at");
        ensure!(!panicked, "a panic reached the user\n{said}");
        Ok(self)
    }

    /// The one JSON document that was printed.
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON document: {:?}", self.stdout))
    }

    /// The JSON objects that were printed, one a line.
    pub(crate) fn json_lines(&self) -> Result<Vec<Value>> {
        let parse = |line| serde_json::from_str(line).with_context(|| format!("no JSON line: {line:?}"));
        self.stdout
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(parse)
            .collect()
    }
}

/// The id of the newest run in the home of a folder.
pub(crate) async fn newest_run(folder: &Path) -> Result<String> {
    let listed = Verb::new(folder)
        .args(["runs", "--limit", "1", "--output", "json"])
        .output()
        .await?
        .success()?;
    let run = listed.json_lines()?.into_iter().next().context("no run is listed")?;
    Ok(run["run_id"].as_str().context("a run without an id")?.to_owned())
}

/// The rows in quarantine of the newest run in the home of a folder, as `rejects` lists them, and that run's id.
pub(crate) async fn newest_rejects(folder: &Path) -> Result<(String, Vec<Value>)> {
    let run = newest_run(folder).await?;
    let listed = Verb::new(folder)
        .args(["rejects", &run, "--output", "json"])
        .output()
        .await?
        .success()?;
    let rejects = listed.json_lines()?;
    Ok((run, rejects))
}

/// One call of the binary.
#[derive(Debug, Clone)]
pub(crate) struct Verb {
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    folder: PathBuf,
}

impl Verb {
    /// A call in `folder`, which is also where `.haulage/` ends up.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            args: Vec::new(),
            envs: Vec::new(),
            folder: folder.to_owned(),
        }
    }

    /// Adds arguments.
    pub(crate) fn args<I: IntoIterator<Item: Into<OsString>>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Sets several environment variables.
    pub(crate) fn envs(mut self, envs: &[(String, String)]) -> Self {
        self.envs
            .extend(envs.iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(&self.args)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        // Nothing of the machine's own settings decides a test.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["HAULAGE_", "OTEL_", "AWS_", "RUST_LOG", "PG"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        command.envs(self.envs.iter().cloned());
        command
    }

    /// Runs the verb to its end.
    pub(crate) async fn output(&self) -> Result<Output> {
        self.output_of(self.command(HAULAGE)).await
    }

    /// Runs the verb to its end under a limit of the size of each file it writes, in KiB: the disk that is full.
    pub(crate) async fn output_with_file_limit(&self, kib: u64) -> Result<Output> {
        let mut command = self.command("sh");
        let mut limited = Command::new("sh");
        // SIGXFSZ is ignored, so that a write past the limit is an error (EFBIG) and not the end of the process.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
        limited.arg("-c").arg(script).arg(HAULAGE).args(&self.args);
        limited
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for (name, value) in command.as_std_mut().get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        self.output_of(limited).await
    }

    async fn output_of(&self, mut command: Command) -> Result<Output> {
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("haulage {:?} did not end within {PATIENCE:?}", self.args))?
            .with_context(|| format!("starting {HAULAGE}"))?;
        Ok(Output {
            // A signal has no code; -1 is a failure like any other.
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts a process that stays, with its output in `NAME.out` and `NAME.err` in the folder.
    pub(crate) fn spawn(&self, name: &str) -> Result<Service> {
        let out = self.folder.join(format!("{name}.out"));
        let err = self.folder.join(format!("{name}.err"));
        let mut command = self.command(HAULAGE);
        command
            .stdout(std::fs::File::create(&out)?)
            .stderr(std::fs::File::create(&err)?);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Service {
            name: name.to_owned(),
            child,
            out,
            err,
        })
    }
}

/// A process that stays until it is killed or dropped.
pub(crate) struct Service {
    name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Service {
    /// The first line on either stream that holds `word`.
    pub(crate) async fn line_with(&mut self, word: &str) -> Result<String> {
        let (out, err, name) = (self.out.clone(), self.err.clone(), self.name.clone());
        let child = &mut self.child;
        until(
            &format!("{name} says {word:?}"),
            Duration::from_secs(60),
            async move || {
                for path in [&out, &err] {
                    let text = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
                    // Only whole lines: the last one may still be in the middle of being written.
                    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
                    if let Some(line) = whole.lines().find(|line| line.contains(word)) {
                        return Ok(Some(line.to_owned()));
                    }
                }
                if let Some(status) = child.try_wait()? {
                    bail!(
                        "{name} ended with {status}: {}",
                        String::from_utf8_lossy(&std::fs::read(&err)?)
                    );
                }
                Ok(None)
            },
        )
        .await
    }

    /// What it has printed on standard error.
    pub(crate) fn log(&self) -> String {
        std::fs::read(&self.err)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// The memory that it holds now, and the most that it has held at once, in bytes.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let pid = self.child.id().context("the process has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bytes = |what: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(what));
            let kib = line
                .and_then(|line| line.trim().strip_suffix(" kB"))
                .with_context(|| format!("no {what}"))?;
            Ok::<u64, anyhow::Error>(kib.trim().parse::<u64>()? * 1024)
        };
        Ok((bytes("VmRSS:")?, bytes("VmHWM:")?))
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }

    /// SIGINT, as Ctrl-C sends it.
    pub(crate) fn interrupt(&self) -> Result<()> {
        self.signal("INT")
    }

    /// A signal by its short name.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        haulage_test_support::signal(self.child.id().context("the process has ended")?, name)
    }

    /// Waits for its end and returns its exit code.
    pub(crate) async fn wait(&mut self) -> Result<i32> {
        let status = tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .with_context(|| format!("{} did not end within {PATIENCE:?}", self.name))??;
        Ok(status.code().unwrap_or(-1))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let log = self.log();
        let from = log.char_indices().rev().nth(4000).map_or(0, |(place, _)| place);
        eprintln!("--- the end of {}'s log ---\n{}", self.name, &log[from..]);
    }
}
