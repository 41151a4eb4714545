//! Waiting on a condition with a deadline. There is no other waiting in tests: a sleep is either too short for a busy
//! machine or too long for all others.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Long enough for a machine that is busy with other tests; who waits longer has found a mistake.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asked again at once, a probe would take the processor from what it waits for.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks `probe` again and again until it answers `Some`. An error of it is final.
pub async fn until<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = interval(PAUSE);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pause.tick().await;
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {limit:?}");
    }
}

/// What `look` finds in the end; the test fails if that is not within [`PATIENCE`].
pub async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    match until(what, PATIENCE, async || Ok(look())).await {
        Ok(found) => found,
        Err(error) => panic!("{error:#}"),
    }
}
