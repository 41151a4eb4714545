//! The one place of the command line that reads a clock, so that formatting and rates take time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch; 0 on a machine whose clock stands before it.
#[expect(clippy::disallowed_methods, reason = "the one adapter")]
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

/// A moment on the monotonic clock, for rates and waits.
#[expect(clippy::disallowed_methods, reason = "the one adapter")]
pub(crate) fn instant() -> Instant {
    Instant::now()
}
