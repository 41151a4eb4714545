//! The client of the public gRPC interface: how verbs reach a coordinator, in another process or in this one.
//!
//! Every request carries the current span's W3C context. Errors come back as text for a person.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, anyhow};
use haulage_proto::v1::haulage_client::HaulageClient;
use haulage_proto::v1::{CancelRequest, GetRunRequest, ResolveRequest, RevertRequest};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::exit::Usage;
use crate::ring::Ring;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a question is asked again while no coordinator leads: longer than it takes a standby to take over.
const PATIENCE: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A connection that is silent for twice this is dead: a `watch` through a firewall must notice.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// For everything but streams.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// An answer at most: a run of many chunks with all its events.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The client, as every verb uses it.
pub(crate) type Client = HaulageClient<InterceptedService<Ring, Traced>>;

/// Adds the trace context to each request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traced;

impl tonic::service::Interceptor for Traced {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        crate::telemetry::inject(request.metadata_mut());
        Ok(request)
    }
}

/// Connects to the first of these addresses that answers; the others have their turn when that one fails.
pub(crate) async fn connect(addresses: &[&str]) -> Result<Client> {
    let mut endpoints = addresses
        .iter()
        .map(|address| endpoint(address))
        .collect::<Result<Vec<_>>>()?;
    let mut last = None;
    for first in 0..endpoints.len() {
        match endpoints[first].connect().await {
            Ok(channel) => {
                endpoints.rotate_left(first);
                let others = endpoints.iter().skip(1).map(Endpoint::connect_lazy);
                return Ok(ring(std::iter::once(channel).chain(others).collect()));
            }
            Err(error) => {
                last = Some(anyhow!(
                    "can't reach the coordinator at {}: {}; is it running there?",
                    endpoints[first].uri().to_string().trim_end_matches('/'),
                    root_cause(&error)
                ));
            }
        }
    }
    Err(last.unwrap_or_else(|| Usage("--coordinator is empty; give it as http://HOST:7400".into()).into()))
}

fn endpoint(address: &str) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(normalise(address)?).map_err(|_| {
        Usage(format!(
            "{address:?} is no coordinator address, for example http://coordinator:7400"
        ))
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .user_agent(concat!("haulage/", env!("CARGO_PKG_VERSION")))?)
}

/// A client over a channel that exists already.
pub(crate) fn over(channel: Channel) -> Client {
    ring(vec![channel])
}

fn ring(channels: Vec<Channel>) -> Client {
    HaulageClient::with_interceptor(Ring::new(channels), Traced).max_decoding_message_size(ANSWER_BYTES)
}

/// Asks again for a while when a coordinator can't answer now, each time the next one. Only for what may be asked twice.
pub(crate) async fn patiently<T, F>(mut ask: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let since = crate::clock::instant();
    let mut told = false;
    loop {
        let status = match ask().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        let passes = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled);
        if !passes || crate::clock::instant().saturating_duration_since(since) >= PATIENCE {
            return Err(status);
        }
        if !std::mem::replace(&mut told, true) {
            crate::output::note(format!("{}; asking again", explain(&status)));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Asks a run to end.
pub(crate) async fn cancel(client: &Client, run_id: &str, reason: &str) -> Result<(), Status> {
    let request = CancelRequest {
        run_id: run_id.to_owned(),
        reason: reason.to_owned(),
    };
    let ask = || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.cancel(call(request)).await }
    };
    patiently(ask).await.map(drop)
}

/// The step of a run that can't be undone, or waits to be; empty if there is none.
pub(crate) async fn undoing(client: &Client, run_id: &str) -> Result<String, Status> {
    let request = GetRunRequest {
        run_id: run_id.to_owned(),
    };
    let ask = || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.get_run(call(request)).await }
    };
    Ok(patiently(ask).await?.run.unwrap_or_default().undoing)
}

/// Decides about a run that is stuck; the place in its log where that stands.
pub(crate) async fn resolve(client: &Client, request: &ResolveRequest) -> Result<u64, Status> {
    let ask = || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.resolve(call(request)).await }
    };
    Ok(patiently(ask).await?.seq)
}

/// Asks for what a run has published to be taken back; the place in its log where that stands.
pub(crate) async fn revert(client: &Client, request: &RevertRequest) -> Result<u64, Status> {
    let ask = || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.revert(call(request)).await }
    };
    Ok(patiently(ask).await?.seq)
}

/// A request that gives up by itself.
pub(crate) fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// An error of the interface, for a person.
pub(crate) fn explain(status: &Status) -> anyhow::Error {
    match status.code() {
        // These are written for the user by the coordinator.
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::Unimplemented
        | Code::DataLoss
        | Code::ResourceExhausted
            if !status.message().is_empty() =>
        {
            anyhow!("{}", status.message())
        }
        // Only what never came to the coordinator has a cause on this side.
        Code::Unavailable if std::error::Error::source(status).is_none() && !status.message().is_empty() => {
            anyhow!("{}", status.message())
        }
        Code::Unavailable => anyhow!("the coordinator can't be reached: {}", message(status)),
        Code::DeadlineExceeded | Code::Cancelled => {
            anyhow!(
                "the coordinator did not answer within {} s; try again",
                CALL_TIMEOUT.as_secs()
            )
        }
        code => anyhow!("the coordinator answered with an error ({code:?}): {}", message(status)),
    }
}

/// Whether the same request may succeed a moment later.
pub(crate) fn may_pass(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted
    )
}

fn message(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => root_cause(source),
        None if status.message().is_empty() => "no reason was given".to_owned(),
        None => status.message().to_owned(),
    }
}

/// The innermost error: "connection refused", not "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// An address with its scheme; `host:port` alone means http.
fn normalise(address: &str) -> Result<String> {
    let address = address.trim().trim_end_matches('/');
    if address.is_empty() {
        return Err(Usage("the coordinator's address is empty; give --coordinator http://HOST:7400".into()).into());
    }
    if address.starts_with("https://") {
        return Err(Usage(
            "this release speaks to coordinators without TLS; use an http:// address, inside a trusted network".into(),
        )
        .into());
    }
    if address.starts_with("http://") {
        return Ok(address.to_owned());
    }
    if address.contains("://") {
        return Err(Usage(format!(
            "the coordinator's address must start with http://, not {address:?}"
        ))
        .into());
    }
    Ok(format!("http://{address}"))
}

/// Adds the verb's own words to an error of the interface.
pub(crate) trait Explain<T> {
    /// The value, or the error in words.
    fn explained(self) -> Result<T>;
}

impl<T> Explain<T> for Result<T, Status> {
    fn explained(self) -> Result<T> {
        self.map_err(|status| explain(&status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_a_scheme_and_wrong_ones_a_reason() {
        assert_eq!(normalise("localhost:7400").expect("valid"), "http://localhost:7400");
        assert_eq!(normalise(" http://c:7400/ ").expect("valid"), "http://c:7400");
        for wrong in ["", "https://c:7400", "ftp://c"] {
            let error = normalise(wrong).expect_err("invalid");
            assert!(error.is::<Usage>(), "{wrong}: {error}");
        }
    }

    #[test]
    fn messages_for_the_user_come_through_unchanged() {
        let text = "pipeline.yaml:3:5: unknown key \"sourcs\"; did you mean \"sources\"?";
        assert_eq!(explain(&Status::invalid_argument(text)).to_string(), text);
        let said = "no node answered; try again";
        assert_eq!(explain(&Status::unavailable(said)).to_string(), said);
        let mut cut = Status::unavailable("transport error");
        cut.set_source(std::sync::Arc::new(std::io::Error::other("connection refused")));
        let error = explain(&cut).to_string();
        assert_eq!(error, "the coordinator can't be reached: connection refused");
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        assert!(may_pass(&Status::unavailable("")));
        assert!(!may_pass(&Status::not_found("")));
        assert!(!may_pass(&Status::failed_precondition("")));
    }
}
