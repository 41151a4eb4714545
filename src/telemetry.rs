//! Logs on stderr, and traces over OTLP when the standard OTEL_* variables ask for them.
//!
//! Traces are on when OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, and neither
//! OTEL_SDK_DISABLED=true nor OTEL_TRACES_EXPORTER=none says otherwise. Sampling, batching, headers, timeouts and resource
//! attributes follow their own standard variables, which the SDK reads itself. Metrics and logs are not exported.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

mod exporter;

/// A collector that doesn't answer must not hold up the end of a command for longer.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// What this process is, for the trace's resource and the level of its logs.
#[derive(Debug, Clone)]
pub(crate) struct Role {
    /// `run`, `client`, `coordinator` or `node`.
    pub(crate) name: &'static str,
    /// Distinguishes processes of one role; hostname and pid where nothing better is known.
    pub(crate) instance: Option<String>,
    /// Whether it is a daemon, whose logs are its voice, and not a command, whose output is.
    pub(crate) daemon: bool,
}

/// Keeps the exporter; give it back with [`Telemetry::flush`], also after errors.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Sets up logs and traces for the whole process. Must be called inside the runtime: the exporter's connection lives there.
pub(crate) fn start(role: &Role, verbose: u8, format: LogFormat) -> Result<Telemetry> {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = if wanted(|name| std::env::var(name).ok()) {
        Some(provider(role)?)
    } else {
        None
    };

    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.trim().is_empty() => {
            EnvFilter::try_new(&text).map_err(|error| anyhow!("RUST_LOG can't be read: {error}"))?
        }
        _ => EnvFilter::new(default_filter(role.daemon, verbose)),
    };
    let log = fmt::layer()
        .with_writer(AboveBars)
        .with_ansi(crate::progress::stderr_is_terminal() && crate::output::colors_wanted());
    let log = match (format, role.daemon) {
        (LogFormat::Json, _) => log.json().flatten_event(true).boxed(),
        (LogFormat::Text, true) => log.boxed(),
        // A command's warnings stand among its own lines: time and module are noise there.
        (LogFormat::Text, false) => log.without_time().with_target(verbose > 0).boxed(),
    };
    // Only our own spans: those of the gRPC client that exports them would export themselves for ever.
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("haulage"))
            .with_location(false)
            .with_threads(false)
            .with_filter(Targets::new().with_target("haulage", LevelFilter::INFO))
    });
    tracing_subscriber::registry()
        .with(traces)
        .with(log.with_filter(filter))
        .try_init()
        .context("can't set up logging")?;
    Ok(Telemetry { provider })
}

impl Telemetry {
    /// Sends what is still waiting. Blocks for at most a few seconds; call it outside async code, while the runtime lives.
    pub(crate) fn flush(self) {
        let Some(provider) = self.provider else { return };
        if let Err(error) = provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!("traces could not be exported, look at OTEL_EXPORTER_OTLP_ENDPOINT: {error}");
        }
    }
}

/// Whether the environment asks for traces.
fn wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    let says = |name: &str, word: &str| variable(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(word));
    let endpoint = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        .iter()
        .any(|name| variable(name).is_some_and(|value| !value.trim().is_empty()));
    endpoint && !says("OTEL_SDK_DISABLED", "true") && !says("OTEL_TRACES_EXPORTER", "none")
}

fn provider(role: &Role) -> Result<SdkTracerProvider> {
    let exporter = exporter::Exporter::from_environment()?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource(role))
        .build())
}

fn resource(role: &Role) -> Resource {
    let instance = role.instance.clone().unwrap_or_else(|| {
        format!(
            "{}:{}",
            gethostname::gethostname().to_string_lossy(),
            std::process::id()
        )
    });
    let mut attributes = vec![
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance),
    ];
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty());
    let in_resource = std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|text| text.contains("service.name="));
    if !named && !in_resource {
        attributes.push(KeyValue::new("service.name", format!("haulage-{}", role.name)));
    }
    Resource::builder().with_attributes(attributes).build()
}

/// Levels without RUST_LOG. Libraries stay quiet: what concerns a user is said by Haulage itself.
fn default_filter(daemon: bool, verbose: u8) -> String {
    let ours = match (daemon, verbose) {
        (false, 0) => "warn",
        (true, 0) | (false, 1) => "info",
        (true, 1) | (false, 2) => "debug",
        _ => "trace",
    };
    let theirs = if verbose >= 3 { "info" } else { "error" };
    format!(
        "{theirs},haulage={ours},haulage_coordinator={ours},haulage_node={ours},haulage_proto={ours},haulage_plan={ours}"
    )
}

/// Writes log lines above the progress bars instead of through them.
#[derive(Debug, Clone, Copy)]
struct AboveBars;

impl io::Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        crate::progress::stderr(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// Adds the current span's W3C context to the metadata of a gRPC request, so that the coordinator's spans, and through
/// it every node's, belong to the same trace.
pub(crate) fn inject(metadata: &mut tonic::metadata::MetadataMap) {
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;
    let context = tracing::Span::current().context();
    if context.span().span_context().is_valid() {
        opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Metadata(metadata));
        });
    }
}

/// Makes the span a child of the context in TRACEPARENT and TRACESTATE, if whoever started this process set them
/// (schedulers and CI systems do).
pub(crate) fn continue_from_environment(span: &tracing::Span) {
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;
    let context = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Environment));
    if context.span().span_context().is_valid() && span.set_parent(context).is_err() {
        tracing::debug!("TRACEPARENT is set, but this process exports no traces");
    }
}

struct Metadata<'a>(&'a mut tonic::metadata::MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (
            tonic::metadata::MetadataKey::from_bytes(key.as_bytes()),
            tonic::metadata::MetadataValue::try_from(value),
        ) {
            self.0.insert(key, value);
        }
    }
}

struct Environment;

impl Extractor for Environment {
    fn get(&self, key: &str) -> Option<&str> {
        // The trait lends text, so the two variables are read once and kept.
        static TRACEPARENT: std::sync::LazyLock<Option<String>> =
            std::sync::LazyLock::new(|| std::env::var("TRACEPARENT").ok());
        static TRACESTATE: std::sync::LazyLock<Option<String>> =
            std::sync::LazyLock::new(|| std::env::var("TRACESTATE").ok());
        match key {
            "traceparent" => TRACEPARENT.as_deref(),
            "tracestate" => TRACESTATE.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_need_an_endpoint_and_no_veto() {
        let check = |variables: &[(&str, &str)], expected: bool| {
            let found = wanted(|name| {
                variables
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            });
            assert_eq!(found, expected, "{variables:?}");
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317");
        check(&[], false);
        check(&[endpoint], true);
        check(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:4317")], true);
        check(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], false);
        check(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")], false);
        check(&[endpoint, ("OTEL_SDK_DISABLED", "false")], true);
        check(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], false);
    }

    #[test]
    fn default_filters_can_be_read_and_quiet_the_libraries() {
        for daemon in [false, true] {
            for verbose in 0..5 {
                let text = default_filter(daemon, verbose);
                EnvFilter::try_new(&text).expect("readable");
            }
        }
        assert!(default_filter(false, 0).starts_with("error,haulage=warn"));
        assert!(default_filter(true, 0).contains("haulage_node=info"));
    }

    #[test]
    fn without_a_trace_no_metadata_is_sent() {
        let mut metadata = tonic::metadata::MetadataMap::new();
        inject(&mut metadata);
        assert!(metadata.is_empty());
    }
}
