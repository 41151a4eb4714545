//! An OTLP receiver in this process: it keeps every span that the binary under test exports.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// Ids in hex; an empty parent is a root.
    pub(crate) trace: String,
    /// Its own id.
    pub(crate) id: String,
    /// The id of its parent.
    pub(crate) parent: String,
    /// Its name.
    pub(crate) name: String,
    /// Attributes as text.
    pub(crate) attributes: HashMap<String, String>,
    /// What its error status says; `None` without one.
    pub(crate) error: Option<String>,
    /// Attributes of the process that sent it.
    pub(crate) resource: HashMap<String, String>,
}

/// A running receiver; it ends when this is dropped.
pub(crate) struct Receiver {
    endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
    server: JoinHandle<()>,
}

struct Service(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().map_err(|_| Status::internal("a test thread panicked"))?;
        for group in request.into_inner().resource_spans {
            let resource = texts(group.resource.map(|resource| resource.attributes).unwrap_or_default());
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span {
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    attributes: texts(span.attributes),
                    error: span
                        .status
                        .filter(|status| status.code == 2)
                        .map(|status| status.message),
                    resource: resource.clone(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

impl Receiver {
    /// Starts to listen.
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let spans = Arc::new(Mutex::new(Vec::new()));
        let service = TraceServiceServer::new(Service(spans.clone()));
        let server = tokio::spawn(async move {
            let serving = tonic::transport::Server::builder().add_service(service);
            if let Err(error) = serving.serve_with_incoming(TcpListenerStream::new(listener)).await {
                eprintln!("the OTLP receiver ended: {error}");
            }
        });
        Ok(Self {
            endpoint,
            spans,
            server,
        })
    }

    /// The environment in which the binary under test exports to this receiver, soon after a span has ended.
    pub(crate) fn envs(&self) -> Vec<(String, String)> {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// The spans of one trace so far.
    pub(crate) fn trace(&self, trace: &str) -> Result<Vec<Span>> {
        let spans = self.spans.lock().ok().context("a test thread panicked")?;
        ensure!(trace.len() == 32, "no trace id: {trace:?}");
        Ok(spans.iter().filter(|span| span.trace == trace).cloned().collect())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<opentelemetry_proto::tonic::common::v1::KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<any_value::Value>| match value {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(yes)) => yes.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .into_iter()
        .map(|pair| (pair.key, text(pair.value.and_then(|value| value.value))))
        .collect()
}
