//! The only place of the coordinator that looks at a clock.
//!
//! Two clocks, because they answer different questions: [`wall`] is what people and the ledger see and may step,
//! [`steady`] measures silence and never does.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use haulage_core::ids::Millis;
use tokio::time::Instant;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "this is the one clock of the coordinator")]
pub(crate) fn wall() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since some moment before the first call; never steps.
pub(crate) fn steady() -> Millis {
    Millis(u64::try_from(ORIGIN.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// What the wall clock showed at a steady moment.
pub(crate) fn wall_of(moment: Millis) -> Millis {
    Millis(wall().0.saturating_sub(steady().since(moment)))
}
