//! The S3 client that sources and the checkpoint store share, and what its errors mean for a person.
//!
//! Credentials and region come from where AWS tools look for them (environment, profile files, instance roles); nothing
//! of them is kept here, and no failure ever shows one. An endpoint other than AWS is spoken to as the many servers are
//! that know S3's core and not its latest checksums.

use std::error::Error;
use std::sync::{LazyLock, PoisonError, RwLock};
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls;
use haulage_core::failure::Failure;

/// Attempts of one request, the first included. The SDK waits between them with jitter.
const ATTEMPTS: u32 = 4;
/// A server that doesn't take a connection in this time is unreachable.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which a connection is given up.
const READ: Duration = Duration::from_secs(30);
/// One attempt of a request, without the body of what is read.
const ATTEMPT: Duration = Duration::from_secs(60);

/// How S3 is reached, beside what the standard AWS settings say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct S3Settings {
    /// The server's address; `None` is what `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` say, else AWS.
    pub endpoint: Option<String>,
    /// The bucket in the path instead of the host name, as most servers other than AWS want it.
    pub path_style: bool,
}

impl S3Settings {
    fn endpoint(&self) -> Option<String> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.endpoint
            .clone()
            .or_else(|| set("AWS_ENDPOINT_URL_S3"))
            .or_else(|| set("AWS_ENDPOINT_URL"))
    }

    /// The server as messages name it: without user, password and query.
    pub(crate) fn server(&self) -> String {
        let Some(endpoint) = self.endpoint() else {
            return "AWS".to_owned();
        };
        match url::Url::parse(&endpoint) {
            Ok(url) => match (url.host_str(), url.port()) {
                (Some(host), Some(port)) => format!("{}://{host}:{port}", url.scheme()),
                (Some(host), None) => format!("{}://{host}", url.scheme()),
                (None, _) => "the configured endpoint".to_owned(),
            },
            Err(_) => "the configured endpoint".to_owned(),
        }
    }
}

/// One client for each way of reaching S3, so that connections and cached credentials are shared by everything on the
/// node. A handful at most: a process has one setting, a test one for each of its servers.
static CLIENTS: LazyLock<RwLock<Vec<(S3Settings, Client)>>> = LazyLock::new(RwLock::default);

/// The client for these settings, made on first use. Touches no network.
pub async fn client(settings: &S3Settings) -> Client {
    let shared = |settings: &S3Settings| {
        let clients = CLIENTS.read().unwrap_or_else(PoisonError::into_inner);
        clients
            .iter()
            .find(|(known, _)| known == settings)
            .map(|(_, client)| client.clone())
    };
    if let Some(client) = shared(settings) {
        return client;
    }
    let made = make(settings).await;
    let mut clients = CLIENTS.write().unwrap_or_else(PoisonError::into_inner);
    // Another task may have made one meanwhile: all have to end up with the same.
    if let Some((_, client)) = clients.iter().find(|(known, _)| known == settings) {
        return client.clone();
    }
    clients.push((settings.clone(), made.clone()));
    made
}

async fn make(settings: &S3Settings) -> Client {
    let endpoint = settings.endpoint();
    let http = if endpoint.as_ref().is_some_and(|address| address.starts_with("http://")) {
        // No TLS, so that a machine without root certificates can still talk to a server of its own.
        aws_smithy_http_client::Builder::new().build_http()
    } else {
        let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        aws_smithy_http_client::Builder::new().tls_provider(ring).build_https()
    };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .read_timeout(READ)
        .operation_attempt_timeout(ATTEMPT)
        .build();
    let mut loader = aws_config::from_env()
        .http_client(http)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(timeouts);
    if let Some(endpoint) = &endpoint {
        // A server of one's own rarely has regions, and asking the instance metadata for one takes seconds off a cloud.
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(Region::from_static("us-east-1"));
        loader = loader.endpoint_url(endpoint).region(region);
    }
    let shared = loader.load().await;
    let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(settings.path_style);
    if endpoint.is_some() {
        config = config
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    }
    Client::from_conf(config.build())
}

/// Splits `s3://bucket/key`; the key may be empty. Permanent failure if there is no bucket.
pub(crate) fn split(address: &str) -> Result<(&str, &str), Failure> {
    let rest = address.strip_prefix("s3://").unwrap_or(address);
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(Failure::permanent(format!(
            "{address} names no bucket; write s3://bucket/key"
        )));
    }
    Ok((bucket, key))
}

/// What a failed request means: `verb` is what was tried (`read`, `list`, `write`), `address` the `s3://` address.
pub(crate) fn failure<E>(verb: &str, address: &str, settings: &S3Settings, error: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let server = settings.server();
    match &error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            refusal(
                verb,
                address,
                &server,
                status,
                service.err().code(),
                service.err().message(),
            )
        }
        SdkError::TimeoutError(_) => {
            Failure::transient(format!("can't {verb} {address}: {server} did not answer in time"))
        }
        SdkError::ResponseError(response) => Failure::transient(format!(
            "can't {verb} {address}: {server} gave an answer that isn't S3's (status {}); check the endpoint",
            response.raw().status().as_u16()
        )),
        SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) => unsent(verb, address, &server, &error),
        _ => Failure::transient(format!("can't {verb} {address} at {server}")),
    }
}

fn refusal(verb: &str, address: &str, server: &str, status: u16, code: Option<&str>, message: Option<&str>) -> Failure {
    let code = code.unwrap_or_default();
    let said = match (code, message.unwrap_or_default()) {
        ("", _) => format!("status {status}"),
        (code, "") => code.to_owned(),
        (code, message) => format!("{code}: {}", message.trim_end_matches('.')),
    };
    let at = format!("can't {verb} {address} at {server}");
    match (code, status) {
        ("NoSuchBucket", _) => {
            let bucket = split(address).map_or(address, |(bucket, _)| bucket);
            Failure::permanent(format!(
                "{at}: bucket {bucket} does not exist; check its name and the endpoint"
            ))
        }
        ("NoSuchKey" | "NotFound", _) | (_, 404) => {
            Failure::permanent(format!("{address} does not exist at {server}; check bucket and key"))
        }
        ("PreconditionFailed", _) | (_, 412 | 416) => changed(address),
        ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _)
        | (_, 301 | 307) => Failure::permanent(format!(
            "{at}: the bucket is in another region ({said}); set AWS_REGION to its region"
        )),
        ("ExpiredToken" | "RequestExpired", _) => {
            Failure::permanent(format!("{at}: the credentials have expired; get new ones for the node"))
        }
        ("RequestTimeTooSkewed", _) => Failure::permanent(format!("{at}: this machine's clock is wrong ({said})")),
        (_, 401 | 403) => Failure::permanent(format!(
            "{at}: access denied ({said}); check the node's AWS credentials and what they may do there"
        )),
        ("RequestTimeout" | "SlowDown" | "Throttling" | "ThrottlingException", _) | (_, 408 | 429 | 500..) => {
            Failure::transient(format!("{at}: {said}"))
        }
        _ => Failure::permanent(format!("{at}: {said}")),
    }
}

/// An object that is no longer what discovery saw: reading on would mix two versions.
pub(crate) fn changed(address: &str) -> Failure {
    Failure::permanent(format!(
        "{address} has changed since it was discovered; leave sources alone while a run reads them, and run again"
    ))
}

fn unsent(verb: &str, address: &str, server: &str, error: &(dyn Error + 'static)) -> Failure {
    // The SDK has no public variant for these, only the chain of causes. It is looked at, and never shown whole.
    let chain = DisplayErrorContext(error).to_string().to_lowercase();
    if chain.contains("credential") {
        return Failure::permanent(format!(
            "can't {verb} {address}: the node has no AWS credentials; set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, where the node runs"
        ));
    }
    if chain.contains("region") && chain.contains("missing") || chain.contains("region must be set") {
        return Failure::permanent(format!(
            "can't {verb} {address}: no region is set; set AWS_REGION for the node"
        ));
    }
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Failure::transient(format!(
        "can't {verb} {address}: {server} can't be reached ({cause}); check the endpoint and the network"
    ))
}

#[cfg(test)]
mod tests {
    use haulage_core::failure::Class;

    use super::*;

    #[test]
    fn refusals_are_classed_and_say_what_to_do() {
        let table = [
            (404, "NoSuchBucket", Class::Permanent, "bucket data does not exist"),
            (404, "", Class::Permanent, "s3://data/a.csv does not exist"),
            (404, "NoSuchKey", Class::Permanent, "s3://data/a.csv does not exist"),
            (
                403,
                "AccessDenied",
                Class::Permanent,
                "access denied (AccessDenied: said)",
            ),
            (403, "", Class::Permanent, "access denied (status 403)"),
            (
                403,
                "SignatureDoesNotMatch",
                Class::Permanent,
                "check the node's AWS credentials",
            ),
            (403, "ExpiredToken", Class::Permanent, "expired"),
            (301, "PermanentRedirect", Class::Permanent, "AWS_REGION"),
            (
                412,
                "PreconditionFailed",
                Class::Permanent,
                "has changed since it was discovered",
            ),
            (
                416,
                "InvalidRange",
                Class::Permanent,
                "has changed since it was discovered",
            ),
            (503, "SlowDown", Class::Transient, "SlowDown: said"),
            (500, "InternalError", Class::Transient, "InternalError"),
            (429, "", Class::Transient, "status 429"),
            (400, "InvalidArgument", Class::Permanent, "InvalidArgument: said"),
        ];
        for (status, code, class, part) in table {
            let code = (!code.is_empty()).then_some(code);
            let failure = refusal(
                "read",
                "s3://data/a.csv",
                "http://minio:9000",
                status,
                code,
                Some("said."),
            );
            assert_eq!(failure.class, class, "{status} {code:?}: {failure}");
            assert!(failure.message.contains(part), "{status} {code:?}: {failure}");
        }
    }

    #[test]
    fn an_endpoint_is_named_without_its_password() {
        let settings = |endpoint: &str| S3Settings {
            endpoint: Some(endpoint.to_owned()),
            path_style: true,
        };
        assert_eq!(
            settings("http://user:pw@minio:9000/x?y=z").server(),
            "http://minio:9000"
        );
        assert_eq!(settings("https://s3.example.org").server(), "https://s3.example.org");
        assert_eq!(settings("user:pw").server(), "the configured endpoint");
    }

    #[test]
    fn addresses_split_into_bucket_and_key() {
        assert_eq!(split("s3://b/a/c.csv").unwrap(), ("b", "a/c.csv"));
        assert_eq!(split("s3://b").unwrap(), ("b", ""));
        assert!(split("s3:///a").is_err());
    }
}
