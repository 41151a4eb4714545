//! One request after the other to one API: paced, bounded in time and size, tried again where that may help, and told from
//! each other where it doesn't.
//!
//! Credentials go to the origin of the pipeline's URL and to no other: redirects that lead elsewhere are not followed.
//! A server that asks for a wait is not asked anything before that is over, by nobody who reads this source on the node: a
//! quota that is used up must not be met with more requests. What a server says is shown in errors as an excerpt without secrets; the query of a URL is not shown.

use std::error::Error as _;
use std::time::Duration;

use haulage_core::failure::{Class, Failure};
use haulage_plan::definition::RestSource;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, DATE, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};
use url::Url;

use super::secret::Credentials;
use super::unpack::{self, Incoming, Wrong};
use super::wait::{self, Pace, RETRIES};
use crate::source::excerpt;

/// A server that doesn't take a connection in this time is unreachable.
const CONNECT: Duration = Duration::from_secs(10);
/// Redirects in a row that are followed, within one origin.
const REDIRECTS: usize = 5;
/// What is read of an answer that is an error, and for how long: its status is what counts.
const SAID: usize = 16 << 10;
const SAYS: Duration = Duration::from_secs(5);
/// A wait that a server asks for is worth telling somebody from here on.
const LONG: Duration = Duration::from_secs(30);
/// Characters of it that are shown.
const SHOWN: usize = 200;

/// What a server is asked for.
pub(super) struct Ask {
    pub(super) url: Url,
    /// Whether 404 is an answer: that there is nothing.
    pub(super) may_miss: bool,
}

/// What a server answered.
pub(super) struct Answer {
    /// The URL that answered: the one that was asked for, or where that led to within its origin.
    pub(super) url: Url,
    /// The body; `None` if the server says that there is none (204, and 404 where that is an answer).
    pub(super) body: Option<Vec<u8>>,
    /// The values of its `Link` headers.
    pub(super) links: Vec<String>,
}

/// An API as a source reads it.
pub(super) struct Api {
    /// What errors call it: the source's name and its URL without a query.
    what: String,
    headers: HeaderMap,
    timeout: Duration,
    max_wait: Duration,
    max_response: u64,
    pace: Pace,
    /// Whether the URL is `http://`.
    is_plain: bool,
    client: OnceCell<Client>,
}

/// An answer that is none, how long the server asks to wait, and its status if it gave one.
pub(super) struct Missed {
    pub(super) failure: Failure,
    wait: Option<Duration>,
    pub(super) status: Option<StatusCode>,
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            wait: None,
            status: None,
        }
    }
}

impl Missed {
    /// With more to say.
    fn and(self, more: std::fmt::Arguments<'_>) -> Self {
        let failure = Failure {
            message: format!("{}{more}", self.failure.message),
            ..self.failure
        };
        Self { failure, ..self }
    }
}

impl Api {
    /// Touches nothing. Permanent failure if a header can't be sent.
    pub(super) fn new(name: &str, declared: &RestSource) -> Result<Self, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        for (name, value) in &declared.headers {
            let unsound = |_| Failure::permanent(format!("the header `{name}` can't be sent as it is written"));
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unsound(()))?;
            headers.insert(header, HeaderValue::from_str(value).map_err(|_| unsound(()))?);
        }
        Ok(Self {
            what: format!("source {name}: {}", declared.location),
            headers,
            timeout: declared.timeout,
            max_wait: declared.max_wait,
            max_response: declared.max_response,
            pace: Pace::new(declared.pause),
            is_plain: declared.url.starts_with("http://"),
            client: OnceCell::new(),
        })
    }

    /// A failure that will repeat, of this API.
    pub(super) fn permanent(&self, what: impl std::fmt::Display) -> Failure {
        Failure::permanent(format!("{}: {what}", self.what))
    }

    /// A failure that may pass, of this API.
    pub(super) fn transient(&self, what: impl std::fmt::Display) -> Failure {
        Failure::transient(format!("{}: {what}", self.what))
    }

    /// An answer with 2xx, read whole, after several tries if need be. `read` makes of it what is wanted, and may ask for
    /// another try with a transient failure. Of the waits that a server asks for none is longer than `patience`: then the
    /// failure is transient, and permanent if it is longer than `max_wait`.
    pub(super) async fn get<T>(
        &self,
        ask: &Ask,
        who: &Credentials,
        patience: Duration,
        read: impl Fn(Answer) -> Result<T, Failure>,
    ) -> Result<T, Missed> {
        let mut steps = wait::steps();
        loop {
            let span = info_span!("request", status = Empty, bytes = Empty, error = Empty);
            let answer = async {
                self.pace.turn().await;
                let answer = self.once(ask, who).await;
                let read = answer.and_then(|answer| read(answer).map_err(Missed::from));
                if let Err(missed) = &read {
                    Span::current().record("error", missed.failure.message.as_str());
                }
                read
            };
            let missed = match answer.instrument(span).await {
                Ok(read) => return Ok(read),
                Err(missed) => missed,
            };
            if missed.failure.class != Class::Transient {
                return Err(missed);
            }
            if let Some(wait) = missed.wait {
                let asks = wait.as_secs();
                if wait > self.max_wait {
                    let most = self.max_wait.as_secs();
                    let mut missed = missed.and(format_args!(
                        "; it asks for a wait of {asks} s, longer than `max_wait` ({most} s): run again after that, or raise it"
                    ));
                    missed.failure.class = Class::Permanent;
                    return Err(missed);
                }
                // Also for those who try again when this one has given up.
                self.pace.hold(wait);
                if wait > patience {
                    return Err(missed.and(format_args!("; it asks for a wait of {asks} s")));
                }
                if wait > LONG {
                    tracing::info!(source = %self.what, "waits {asks} s, as the server asks: {}", missed.failure);
                }
            }
            let Some(step) = steps.next() else {
                return Err(missed.and(format_args!(" ({} tries)", RETRIES + 1)));
            };
            tracing::debug!(failure = %missed.failure, wait = ?missed.wait, ?step, "asking again");
            tokio::time::sleep(step).await;
        }
    }

    fn late(&self) -> Failure {
        self.transient(format!(
            "no whole answer within {} s; raise `timeout`, or ask for smaller pages",
            self.timeout.as_secs_f64()
        ))
    }

    async fn once(&self, ask: &Ask, who: &Credentials) -> Result<Answer, Missed> {
        let end = Instant::now() + self.timeout;
        let mut request = self.client().await?.get(ask.url.clone()).headers(self.headers.clone());
        if let Some((name, value)) = who.header() {
            request = request.header(name, value);
        }
        let response = timeout_at(end, request.send()).await.map_err(|_| self.late())?;
        let response = response.map_err(|error| self.unanswered(error, who))?;
        let status = response.status();
        Span::current().record("status", status.as_u16());
        let is_missing = ask.may_miss && status == StatusCode::NOT_FOUND;
        if !status.is_success() && !is_missing {
            return Err(self.refused(response, who, end).await);
        }
        let links = response.headers().get_all(LINK).iter();
        let links = links
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        let answered = response.url().clone();
        if is_missing || status == StatusCode::NO_CONTENT {
            return Ok(Answer {
                url: answered,
                body: None,
                links,
            });
        }
        let body = timeout_at(end, self.body(response, who)).await;
        let body = body.map_err(|_| self.late())??;
        Span::current().record("bytes", body.len() as u64);
        Ok(Answer {
            url: answered,
            body: Some(body),
            links,
        })
    }

    /// The body, unpacked, as far as it may go: what its length is said to be is no more than a word.
    async fn body(&self, mut response: Response, who: &Credentials) -> Result<Vec<u8>, Failure> {
        let is_packed = unpack::is_packed(response.headers()).map_err(|how| {
            let how = excerpt(who.blot(&how).as_bytes(), SHOWN);
            self.permanent(format!("the answer is packed ({how}), and gzip alone was asked for"))
        })?;
        let wrong = |wrong: Wrong| match wrong {
            Wrong::TooLong => self.permanent(format!(
                "an answer is longer than `max_response` ({} bytes); ask for smaller pages, or raise it",
                self.max_response
            )),
            Wrong::Damaged(why) => self.transient(format!("the answer can't be unpacked: {why}")),
        };
        if response
            .content_length()
            .is_some_and(|length| length > self.max_response)
        {
            return Err(wrong(Wrong::TooLong));
        }
        let mut body = Incoming::new(self.max_response, is_packed);
        let mut bytes = 0;
        loop {
            match response.chunk().await {
                Ok(Some(part)) => {
                    bytes += part.len();
                    body = body.take(&part).map_err(|(_, why)| wrong(why))?;
                }
                Ok(None) => return body.end().map_err(wrong),
                Err(error) => {
                    return Err(self.transient(format!(
                        "the answer broke off after {bytes} bytes: {}",
                        who.blot(&why(error))
                    )));
                }
            }
        }
    }

    fn unanswered(&self, error: reqwest::Error, who: &Credentials) -> Failure {
        if error.is_builder() {
            return self.permanent(format!("the request can't be made: {}", who.blot(&why(error))));
        }
        if is_untrusted(&error) {
            return self.permanent(format!(
                "its certificate is not trusted: {}; correct the URL, or name the certificates to trust in SSL_CERT_FILE",
                who.blot(&why(error))
            ));
        }
        let what = if error.is_connect() {
            "it can't be reached"
        } else {
            "no answer"
        };
        self.transient(format!("{what}: {}", who.blot(&why(error))))
    }

    /// What an answer that is none means: by its status, whatever becomes of its body.
    async fn refused(&self, mut response: Response, who: &Credentials, end: Instant) -> Missed {
        let status = response.status();
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let date = text(DATE.as_str());
        let is_used_up = text("x-ratelimit-remaining").is_some_and(|left| left.trim() == "0");
        let wait = match text(RETRY_AFTER.as_str()) {
            Some(after) => wait::asked(after, date),
            None if is_used_up => text("x-ratelimit-reset").and_then(|at| wait::until(at, date)),
            None => None,
        };
        // 403 is also said to who asks too often.
        let is_limit = status == StatusCode::FORBIDDEN && (is_used_up || wait.is_some());
        let location = text(LOCATION.as_str()).map(|location| location.to_owned());
        let is_packed = unpack::is_packed(response.headers()).unwrap_or(false);
        let mut said = Incoming::new(SAID as u64, is_packed);
        let end = end.min(Instant::now() + SAYS);
        while let Ok(Ok(Some(part))) = timeout_at(end, response.chunk()).await {
            match said.take(&part) {
                Ok(more) => said = more,
                Err((so_far, _)) => {
                    said = so_far;
                    break;
                }
            }
        }
        let said = said.so_far();
        // Blotted before it is cut: half a secret would not be known as one.
        let said = who.blot(&String::from_utf8_lossy(&said));
        let said = excerpt(said.trim().as_bytes(), SHOWN);
        let said = if said.is_empty() {
            String::new()
        } else {
            format!(": {said}")
        };
        let status = format!("it answers {status}{said}");
        let failure = match response.status() {
            code if code.is_redirection() => {
                let to = location.and_then(|location| response.url().join(&location).ok());
                return self.permanent(astray(response.url(), to.as_ref(), who)).into();
            }
            StatusCode::FORBIDDEN if is_limit => self.transient(format!("{status}; its rate limit is reached")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.permanent(format!("{status}; {}", who.advice())),
            StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => self.permanent(status),
            code if code.is_server_error() => self.transient(status),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => {
                self.transient(status)
            }
            _ => self.permanent(format!("{status}; correct the URL, its query or the headers")),
        };
        Missed {
            failure,
            wait,
            status: Some(response.status()),
        }
    }

    async fn client(&self) -> Result<&Client, Failure> {
        self.client
            .get_or_try_init(|| async {
                // Of the providers that are linked in, the one that databases and S3 use. An error means that the process
                // has chosen one already.
                drop(rustls::crypto::ring::default_provider().install_default());
                let mut client = Client::builder()
                    .user_agent(concat!("haulage/", env!("CARGO_PKG_VERSION")))
                    .connect_timeout(CONNECT)
                    .pool_max_idle_per_host(1)
                    .redirect(redirect::Policy::custom(follow))
                    .referer(false)
                    .no_proxy();
                if self.is_plain {
                    // It goes nowhere else, so a system without certificates is no hindrance.
                    client = client.tls_certs_only([]);
                }
                client.build().map_err(|error| {
                    self.permanent(format!(
                        "no HTTP client can be made: {}; https needs the system's certificates (ca-certificates), or those \
                         that SSL_CERT_FILE names",
                        why(error)
                    ))
                })
            })
            .await
    }
}

/// Follows a redirect within its origin.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let from = attempt.previous().last();
    let stays = from.is_some_and(|from| from.origin() == attempt.url().origin());
    if stays && attempt.previous().len() <= REDIRECTS {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

/// What is said of a redirect that was not followed.
fn astray(from: &Url, to: Option<&Url>, who: &Credentials) -> String {
    let Some(to) = to else {
        return "it redirects to nowhere".to_owned();
    };
    if from.origin() == to.origin() {
        return format!("it redirects more than {REDIRECTS} times in a row");
    }
    format!(
        "it redirects to another server, {}, which is not followed: credentials go to the pipeline's URL alone; correct \
         the URL if that is the right one",
        who.blot(&origin(to))
    )
}

/// An origin as a person knows it.
pub(super) fn origin(url: &Url) -> String {
    excerpt(url.origin().ascii_serialization().as_bytes(), SHOWN)
}

/// Whether a server's certificate is why there is no connection.
fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // What an IO error was made from is not among its causes, and may be one itself.
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| is_untrusted(inner)) || error.source().is_some_and(is_untrusted)
}

/// The causes of an error, without the URL, of which the query may be private.
fn why(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
