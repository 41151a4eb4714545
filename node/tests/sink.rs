//! The conformance suite of destinations, run over PostgreSQL and SQLite, and what only PostgreSQL has: swaps under
//! readers, other people's objects on the target, lost answers and crashes.

#[path = "sink/contract.rs"]
mod contract;
#[path = "sink/errors.rs"]
mod errors;
#[path = "sink/evolve.rs"]
mod evolve;
#[path = "sink/kept.rs"]
mod kept;
#[path = "sink/later.rs"]
mod later;
#[path = "support/load.rs"]
mod load;
#[path = "sink/locks.rs"]
mod locks;
#[path = "sink/publishing.rs"]
mod publishing;
#[path = "sink/room.rs"]
mod room;
#[path = "sink/server.rs"]
mod server;
#[path = "sink/snapshots.rs"]
mod snapshots;
#[path = "sink/targets.rs"]
mod targets;
#[path = "sink/types.rs"]
mod types;
#[path = "sink/watermarks.rs"]
mod watermarks;
#[path = "support/world.rs"]
mod world;

/// Runs each function over every destination.
#[macro_export]
macro_rules! on_all {
    ($($test:ident),+ $(,)?) => {
        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                super::$test(&$crate::world::World::postgres().await).await;
            })+
        }
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(&$crate::world::World::sqlite().await).await;
            })+
        }
    };
}
