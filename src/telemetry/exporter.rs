//! The OTLP exporter, with a voice: the SDK keeps failures of an export to itself, and a user who has named a collector
//! wants to know that nothing arrives there. Said once, and again after it has worked in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// See the module.
#[derive(Debug)]
pub(super) struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    failing: AtomicBool,
}

impl Exporter {
    /// An exporter as the OTEL_EXPORTER_OTLP_* variables want it. Connects when there is something to send.
    pub(super) fn from_environment() -> Result<Self> {
        for name in ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
            if std::env::var(name).is_ok_and(|address| address.trim().to_ascii_lowercase().starts_with("https:")) {
                bail!(
                    "{name} wants TLS, which this release doesn't speak to collectors; send traces to a collector \
                     nearby with http://, or switch them off with OTEL_SDK_DISABLED=true"
                );
            }
        }
        let inner = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .build()
            .context("can't set up the export of traces; look at the OTEL_EXPORTER_OTLP_* variables")?;
        Ok(Self {
            inner,
            failing: AtomicBool::new(false),
        })
    }

    fn note(&self, result: &OTelSdkResult) {
        match result {
            Ok(()) => self.failing.store(false, Ordering::Relaxed),
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!("traces don't reach the collector, look at OTEL_EXPORTER_OTLP_ENDPOINT: {error}");
                }
            }
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.inner.export(batch).await;
        self.note(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
