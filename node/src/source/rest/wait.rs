//! When the next request may begin: the source's rate, the steps between tries, and what a server asks for with
//! `Retry-After`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use chrono::{DateTime, FixedOffset, Utc};
use tokio::time::{Instant, sleep_until};

/// Times that a request is made again, before the chunk as a whole fails and is tried again later.
pub(super) const RETRIES: usize = 5;
/// The first step between tries; tests take smaller ones.
const FIRST: Duration = Duration::from_millis(200);
/// Larger numbers in `X-RateLimit-Reset` are moments, and smaller ones seconds from now: servers have both.
const MOMENTS: u64 = 1_000_000_000;

/// The steps between tries, each about twice the one before and spread, so that many who failed together don't try again
/// together.
pub(super) fn steps() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(if cfg!(test) { Duration::from_millis(10) } else { FIRST })
        .with_max_delay(Duration::from_secs(10))
        .with_max_times(RETRIES)
        .with_jitter()
        .build()
}

/// Lets requests begin no closer together than `pause`, whoever makes them.
pub(super) struct Pace {
    pause: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(pause: Duration) -> Self {
        Self {
            pause,
            next: Mutex::default(),
        }
    }

    /// Waits for a turn. One that is not taken, because its waiting is dropped, is lost.
    pub(super) async fn turn(&self) {
        let now = Instant::now();
        let turn = self.take(now);
        if turn > now {
            sleep_until(turn).await;
        }
    }

    /// No request begins in this time.
    pub(super) fn hold(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = Some(next.map_or(until, |next| next.max(until)));
    }

    fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used is not saved up.
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + self.pause);
        turn
    }
}

/// How long a `Retry-After` header asks to wait. A date counts from the server's own clock, as its `Date` header says it,
/// so that no clock has to be right; without one from the node's.
pub(super) fn asked(retry_after: &str, date: Option<&str>) -> Option<Duration> {
    let text = retry_after.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than there are seconds in a life are a long time, too.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let until = http_date(text)?;
    Some((until - now(date)).to_std().unwrap_or(Duration::ZERO))
}

/// The same of an `X-RateLimit-Reset` header, which is a number of seconds, or the moment in seconds since 1970.
pub(super) fn until(reset: &str, date: Option<&str>) -> Option<Duration> {
    let seconds: u64 = reset.trim().parse().ok()?;
    if seconds < MOMENTS {
        return Some(Duration::from_secs(seconds));
    }
    let now = u64::try_from(now(date).timestamp()).unwrap_or_default();
    // The second in which it ends is over.
    Some(Duration::from_secs(seconds.saturating_sub(now).saturating_add(1)))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a server that gives a moment and not its own time is asked by the node's clock"
)]
fn now(date: Option<&str>) -> DateTime<FixedOffset> {
    let said = date.and_then(|date| http_date(date.trim()));
    said.unwrap_or_else(|| Utc::now().fixed_offset())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`; the two older forms of it are no longer sent.
fn http_date(text: &str) -> Option<DateTime<FixedOffset>> {
    DateTime::parse_from_rfc2822(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_asks_for_seconds_or_for_a_date() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        for (header, date, seconds) in [
            ("0", None, Some(0)),
            (" 120 ", None, Some(120)),
            ("99999999999999999999", None, Some(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:50:07 GMT", date, Some(30)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", date, Some(0)),
            // By the node's clock, this is long past.
            ("Sun, 06 Nov 1994 08:50:07 GMT", None, Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some("today"), Some(0)),
            ("-1", date, None),
            ("1.5", date, None),
            ("", date, None),
            ("soon", date, None),
        ] {
            let found = asked(header, date).map(|wait| wait.as_secs());
            assert_eq!(found, seconds, "{header:?} {date:?}");
        }
    }

    #[test]
    fn a_limit_ends_after_some_seconds_or_at_a_moment() {
        let date = Some("Sun, 09 Sep 2001 01:46:40 GMT");
        for (header, date, seconds) in [
            ("30", date, Some(30)),
            ("1000000060", date, Some(61)),
            ("1000000000", None, Some(1)),
            ("-1", date, None),
            ("soon", date, None),
        ] {
            assert_eq!(until(header, date).map(|wait| wait.as_secs()), seconds, "{header}");
        }
        let ahead = now(None).timestamp() + 3600;
        let wait = until(&ahead.to_string(), None).map_or(0, |wait| wait.as_secs());
        assert!((3500..=3601).contains(&wait), "{wait}");
    }

    #[test]
    fn requests_keep_their_distance() {
        let pace = Pace::new(Duration::from_millis(200));
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        for (now, turn) in [
            (0, 0),
            (0, 200),
            (10, 400),
            (450, 600),
            (5_000, 5_000),
            (5_000, 5_200),
            (5_500, 5_500),
        ] {
            assert_eq!(pace.take(at(now)), at(turn), "at {now}");
        }
    }

    #[test]
    fn nobody_begins_before_a_wait_is_over() {
        for pause in [0, 200] {
            let pace = Pace::new(Duration::from_millis(pause));
            let begin = Instant::now();
            pace.hold(Duration::from_secs(3600));
            pace.hold(Duration::from_secs(60));
            let first = pace.take(begin);
            assert!(first >= begin + Duration::from_secs(3600), "the longest counts");
            assert_eq!(pace.take(begin), first + Duration::from_millis(pause));
        }
    }

    #[test]
    fn tries_end() {
        let steps: Vec<Duration> = steps().collect();
        assert_eq!(steps.len(), RETRIES);
        assert!(steps.iter().sum::<Duration>() < Duration::from_secs(20), "{steps:?}");
    }
}
