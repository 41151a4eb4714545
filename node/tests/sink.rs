//! The conformance suite of destinations, run over PostgreSQL, SQLite and, where it makes sense of them, files in a folder
//! and in S3; what only PostgreSQL has: swaps under readers, other people's objects on the target, lost answers and crashes;
//! and what only files have.

#[path = "sink/aside.rs"]
mod aside;
#[path = "sink/contract.rs"]
mod contract;
#[path = "sink/errors.rs"]
mod errors;
#[path = "sink/evolve.rs"]
mod evolve;
#[path = "support/files.rs"]
mod files;
#[path = "sink/formats.rs"]
mod formats;
#[path = "support/inside.rs"]
mod inside;
#[path = "sink/kept.rs"]
mod kept;
#[path = "sink/lake.rs"]
mod lake;
#[path = "sink/lake_evolve.rs"]
mod lake_evolve;
#[path = "sink/later.rs"]
mod later;
#[path = "support/load.rs"]
mod load;
#[path = "sink/locks.rs"]
mod locks;
#[path = "sink/older.rs"]
mod older;
#[path = "sink/publishing.rs"]
mod publishing;
#[path = "sink/rights.rs"]
mod rights;
#[path = "sink/room.rs"]
mod room;
#[path = "sink/rounds.rs"]
mod rounds;
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

/// Runs each function over files in a folder, and over files in S3 (in a process of its own, for the credentials).
#[macro_export]
macro_rules! on_files {
    ($($test:ident),+ $(,)?) => {
        mod folder {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(&$crate::world::World::folder().await).await;
            })+
        }
        mod s3 {
            $(#[test]
            fn $test() {
                let name = concat!(module_path!(), "::", stringify!($test));
                let (_, name) = name.split_once("::").expect("a crate's name");
                if $crate::inside::is_inside(name, haulage_test_support::s3::SECRET_KEY) {
                    $crate::inside::run(async { super::$test(&$crate::world::World::s3().await).await });
                }
            })+
        }
    };
}
