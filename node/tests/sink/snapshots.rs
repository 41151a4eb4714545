//! Readers whose transaction keeps a snapshot: what a publish shows to those that are older than it.

use std::sync::Arc;

use haulage_core::ids::Attempt;
use haulage_node::sink::{Expected, LoadContext, registry};
use haulage_plan::definition::Mode;
use haulage_test_support::{PATIENCE, until};
use sqlx::{Connection, PgConnection};

use super::later::whole;
use super::load::{CHUNK, TestRow, load};
use super::world::{Kind, World};

const OLD: &[TestRow] = &[(1, Some("old"), 0.5), (2, Some("old"), 0.5)];
const FIRST: &[TestRow] = &[(2, Some("new"), 1.5), (3, Some("new"), 1.5)];
const SECOND: &[TestRow] = &[(4, Some("new"), 1.5)];
const STAGED: Expected = Expected { rows: 3, segments: 2 };

/// A database in which Haulage is a role that may do no more than it has to.
async fn humble_world() -> World {
    let world = World::postgres().await;
    world
        .run(
            "DO $$ BEGIN CREATE ROLE humble LOGIN; EXCEPTION WHEN duplicate_object THEN END $$;
             DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO humble', current_database()); END $$;
             GRANT CREATE ON SCHEMA public TO humble",
        )
        .await;
    let Kind::Postgres { url, .. } = &world.kind else {
        panic!("it is PostgreSQL");
    };
    let humble = url.replace("postgres@", "humble@");
    World {
        destination: registry::open("warehouse", &humble).await.expect("a destination"),
        kind: world.kind,
    }
}

/// A transaction that sees what is committed now, for as long as it is open.
async fn snapshot(world: &World) -> PgConnection {
    let mut reader = PgConnection::connect(world.server().1).await.expect("a connection");
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
        .execute(&mut reader)
        .await
        .expect("a snapshot");
    reader
}

async fn ids(reader: &mut PgConnection) -> Vec<i32> {
    sqlx::query_scalar("SELECT id FROM things ORDER BY id")
        .fetch_all(reader)
        .await
        .expect("a table")
}

async fn end(mut reader: PgConnection) {
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.expect("an end");
    reader.close().await.expect("a closed connection");
}

/// Two segments, with a snapshot taken between them.
async fn stage(world: &World, load: &LoadContext) -> PgConnection {
    world.destination.prepare(load).await.expect("prepared");
    world.destination.begin(load, CHUNK, Attempt(1)).await.expect("begun");
    world.segment(load, 0, Attempt(1), FIRST).await.expect("staged");
    let reader = snapshot(world).await;
    world.segment(load, 1, Attempt(1), SECOND).await.expect("staged");
    reader
}

#[tokio::test]
async fn a_snapshot_from_the_middle_of_a_load_sees_no_part_of_it() {
    for existing in [true, false] {
        for mode in [Mode::Replace, Mode::Append, Mode::Merge] {
            let world = humble_world().await;
            if existing {
                // Appended keys must be new.
                let (how, rows) = match mode {
                    Mode::Append => (Mode::Append, &OLD[..1]),
                    Mode::Replace | Mode::Merge => (Mode::Replace, OLD),
                };
                let old = load("r0", how, &["id"]);
                world.publish(&old, rows).await.expect("published");
                world.destination.cleanup(&old).await.expect("cleaned");
            }
            let before = world.rows("things").await;
            let load = load("r1", mode, &["id"]);
            let mut reader = stage(&world, &load).await;
            world.destination.verify(&load, STAGED).await.expect("verified");
            let report = world.destination.publish(&load, STAGED).await.expect("published");
            let kept: &[i32] = match (existing, mode) {
                (false, _) => &[],
                (true, Mode::Append) => &[1],
                (true, Mode::Replace | Mode::Merge) => &[1, 2],
            };
            assert_eq!(ids(&mut reader).await, kept, "{mode:?}, existing: {existing}");
            let told = report.detail.contains("INSERT, because");
            assert_eq!(told, mode == Mode::Replace, "{mode:?}: {}", report.detail);
            end(reader).await;

            let mut all = vec![2, 3, 4];
            if existing && mode != Mode::Replace {
                all.insert(0, 1);
            }
            let mut later = snapshot(&world).await;
            assert_eq!(ids(&mut later).await, all, "{mode:?}, existing: {existing}");
            end(later).await;
            world.destination.revert(&load).await.expect("reverted");
            world.destination.discard(&load).await.expect("discarded");
            assert_eq!(world.rows("things").await, before, "{mode:?}, existing: {existing}");
            assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
        }
    }
}

#[tokio::test]
async fn a_swap_is_taken_when_every_snapshot_is_late_enough() {
    for existing in [true, false] {
        let world = humble_world().await;
        if existing {
            let old = load("r0", Mode::Replace, &["id"]);
            whole(&world, &old, OLD).await;
        }
        let load = load("r1", Mode::Replace, &["id"]);
        end(stage(&world, &load).await).await;
        world.destination.verify(&load, STAGED).await.expect("verified");
        // Its transaction is older than the publish, and all staged rows are older than its snapshot.
        let mut reader = snapshot(&world).await;
        let staged = "SELECT relfilenode::text FROM pg_class WHERE relname LIKE 'stage\\_%'";
        let staged = world.texts(staged).await;
        let report = world.destination.publish(&load, STAGED).await.expect("published");
        assert!(!report.detail.contains("because"), "{}", report.detail);
        let published = "SELECT relfilenode::text FROM pg_class WHERE relname = 'things'";
        assert_eq!(world.texts(published).await, staged, "the staged table is the target");
        assert_eq!(ids(&mut reader).await, [2, 3, 4]);
        end(reader).await;
    }
}

#[tokio::test]
async fn a_swap_waits_for_an_older_snapshot_and_holds_up_nobody() {
    let world = humble_world().await;
    let old = load("r0", Mode::Replace, &["id"]);
    whole(&world, &old, OLD).await;
    let load = load("r1", Mode::Replace, &["id"]);
    let reader = stage(&world, &load).await;
    world.destination.verify(&load, STAGED).await.expect("verified");
    let mut watcher = PgConnection::connect(world.server().1).await.expect("a connection");
    let destination = Arc::clone(&world.destination);
    let publishing = tokio::spawn(async move { destination.publish(&load, STAGED).await });
    until("the publish looks at snapshots", PATIENCE, async || {
        let looked: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND usename = 'humble'
                            AND query LIKE '%backend_xmin%')",
        )
        .fetch_one(&mut watcher)
        .await?;
        Ok(looked.then_some(()))
    })
    .await
    .expect("a publish that waits");
    let asked: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_locks WHERE relation = 'things'::regclass AND pid <> pg_backend_pid()",
    )
    .fetch_one(&mut watcher)
    .await
    .expect("a catalog");
    assert_eq!(asked, 0, "it waits without a lock on the target");
    end(reader).await;
    let report = publishing.await.expect("no panic").expect("published");
    assert!(report.detail.contains("by a swap of tables"), "{}", report.detail);
}

#[tokio::test]
async fn a_vacuum_of_something_else_is_not_waited_for() {
    let world = humble_world().await;
    world
        .run("CREATE TABLE big WITH (autovacuum_enabled = false) AS SELECT repeat('x', 2000) FROM generate_series(1, 2000)")
        .await;
    let mut cleaner = PgConnection::connect(world.server().1).await.expect("a connection");
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut cleaner)
        .await
        .expect("a process");
    sqlx::raw_sql("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1; SET vacuum_cost_page_dirty = 10000")
        .execute(&mut cleaner)
        .await
        .expect("a slow vacuum");
    let vacuum = tokio::spawn(async move { sqlx::raw_sql("VACUUM big").execute(&mut cleaner).await.map(|_| ()) });
    let mut watcher = PgConnection::connect(world.server().1).await.expect("a connection");
    let cleans = async |watcher: &mut PgConnection| -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_progress_vacuum JOIN pg_stat_activity USING (pid)
                            WHERE pid = $1 AND backend_xmin IS NOT NULL)",
        )
        .bind(pid)
        .fetch_one(watcher)
        .await
    };
    until("the vacuum is under way", PATIENCE, async || {
        Ok(cleans(&mut watcher).await?.then_some(()))
    })
    .await
    .expect("a vacuum");
    let load = load("r1", Mode::Replace, &["id"]);
    let report = world.publish(&load, OLD).await.expect("published");
    assert!(
        cleans(&mut watcher).await.expect("a catalog"),
        "it ended too early to show anything"
    );
    assert!(!report.detail.contains("because"), "{}", report.detail);
    sqlx::query("SELECT pg_terminate_backend($1)")
        .bind(pid)
        .execute(&mut watcher)
        .await
        .expect("an end");
    vacuum.await.expect("no panic").expect_err("it was ended");
}
