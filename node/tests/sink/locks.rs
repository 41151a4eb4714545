//! Waiting that has to end: for locks that somebody doesn't give back, for a client that falls silent in a transaction, and
//! for a server that has gone without a word.

use std::sync::Arc;

use haulage_core::failure::{Class, Failure};
use haulage_core::ids::Attempt;
use haulage_node::sink::registry;
use haulage_plan::definition::Mode;
use haulage_test_support::proxy::{Commit, Link, Proxy};
use haulage_test_support::{PATIENCE, until};
use sqlx::{Connection, PgConnection};

use super::load::{CHUNK, batch, load, marker};
use super::world::World;

/// An administrator's transaction takes one staging table and then waits for another, whose lock a chunk of both loads
/// holds, while it waits for the first: nobody but the chunk can see that.
#[tokio::test]
async fn a_chunk_of_two_loads_gives_up_when_a_lock_goes_round_in_a_circle() {
    let world = World::postgres().await;
    let first = load("a", Mode::Append, &[]);
    let mut second = load("a", Mode::Append, &[]);
    second.load = "others".into();
    second.table = "others".to_owned();
    for load in [&first, &second] {
        world.destination.prepare(load).await.expect("prepared");
        world.destination.begin(load, CHUNK, Attempt(1)).await.expect("begun");
    }
    let url = world.server().1.to_owned();
    let mut admin = PgConnection::connect(&url).await.expect("a connection");
    let staging: Vec<String> = sqlx::query_scalar(
        "SELECT obj_description(oid, 'pg_class') || ':' || oid::regclass FROM pg_class
         WHERE relnamespace = 'haulage'::regnamespace AND relname LIKE 'stage\\_%' ORDER BY 1",
    )
    .fetch_all(&mut admin)
    .await
    .expect("both staging tables");
    let table = |load: &str| {
        let found = staging.iter().find(|line| line.contains(&format!("load {load} ")));
        let (_, table) = found.and_then(|line| line.rsplit_once(':')).expect("its staging table");
        table.to_owned()
    };
    let (one, other) = (table(first.load.as_str()), table("others"));

    let rows = [(1, Some("row"), 0.5)];
    let open = async |load| world.destination.segment(load, CHUNK, Attempt(1)).await;
    let mut held = open(&second).await.expect("a writer");
    held.write(&batch(&second, &rows)).await.expect("written");
    let mut watcher = PgConnection::connect(&url).await.expect("a connection");
    let holds = "SELECT count(*) FROM pg_locks WHERE relation = to_regclass($1)::oid AND granted = $2";
    until("the writer of the second load has its lock", PATIENCE, async || {
        let count: i64 = sqlx::query_scalar(holds)
            .bind(&other)
            .bind(true)
            .fetch_one(&mut watcher)
            .await?;
        Ok((count > 0).then_some(()))
    })
    .await
    .expect("a COPY");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "BEGIN; LOCK TABLE {one} IN ACCESS EXCLUSIVE MODE"
    )))
    .execute(&mut admin)
    .await
    .expect("nobody has it");
    let sql = format!("LOCK TABLE {other} IN ACCESS EXCLUSIVE MODE; COMMIT");
    let waiting = tokio::spawn(async move { sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut admin).await });
    until("the administrator waits for the second", PATIENCE, async || {
        let count: i64 = sqlx::query_scalar(holds)
            .bind(&other)
            .bind(false)
            .fetch_one(&mut watcher)
            .await?;
        Ok((count > 0).then_some(()))
    })
    .await
    .expect("a circle");

    let mut stuck = open(&first).await.expect("a writer");
    stuck.write(&batch(&first, &rows)).await.expect("handed over");
    let refused = tokio::time::timeout(PATIENCE, stuck.commit(marker(CHUNK, 0, Attempt(1)))).await;
    let failure = Failure::from(refused.expect("it gives up").expect_err("its table is locked"));
    assert_eq!(failure.class, Class::Transient, "{failure}");
    assert!(failure.message.contains("a lock was not free in time"), "{failure}");
    drop(held);
    waiting.await.expect("no panic").expect("the circle is open");
}

/// A node that is stopped between the fence and the commit holds the fence; another one is to go on with its chunk.
#[tokio::test]
async fn a_transaction_in_which_nothing_is_said_gives_way_to_the_next_attempt() {
    let world = World::postgres().await;
    let port = world.server().0.port();
    let proxy = Proxy::start(port).await.expect("a proxy");
    let far = world
        .server()
        .1
        .replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    let far = registry::open("far", &far).await.expect("a destination");
    let load = load("a", Mode::Replace, &["id"]);
    far.prepare(&load).await.expect("prepared");
    far.begin(&load, CHUNK, Attempt(1)).await.expect("begun");
    let mut writer = far.segment(&load, CHUNK, Attempt(1)).await.expect("a writer");
    writer
        .write(&batch(&load, &[(1, Some("row"), 0.5)]))
        .await
        .expect("written");
    proxy.next_commit(Commit::Freezes);
    let committing = tokio::spawn(writer.commit(marker(CHUNK, 0, Attempt(1))));
    proxy.frozen().await;

    let near = Arc::clone(&world.destination);
    let begun = tokio::time::timeout(PATIENCE, near.begin(&load, CHUNK, Attempt(2))).await;
    assert_eq!(begun.expect("the lock is given back").expect("begun"), []);
    proxy.thaw();
    let late = committing.await.expect("no panic").expect_err("it was rolled back");
    // Resolving what became of it, it finds the later attempt's fence.
    let late = Failure::from(late);
    assert!(matches!(late.class, Class::Fenced | Class::Transient), "{late}");
    assert_eq!(near.begin(&load, CHUNK, Attempt(2)).await.expect("begun"), []);
}

/// A half open connection: nothing comes back, and nothing ends. Short work has a deadline, long work is looked after.
#[tokio::test]
async fn a_server_that_has_gone_without_a_word_is_given_up() {
    let world = World::postgres().await;
    let port = world.server().0.port();
    let proxy = Proxy::start(port).await.expect("a proxy");
    let far = world
        .server()
        .1
        .replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    let far = registry::open("far", &far).await.expect("a destination");
    let staged = load("a", Mode::Replace, &["id"]);
    let expected = world.stage(&staged, &[(1, Some("row"), 0.5)]).await.expect("staged");
    world.destination.verify(&staged, expected).await.expect("verified");
    let mut open = load("b", Mode::Append, &[]);
    open.table = "others".to_owned();
    far.prepare(&open).await.expect("prepared");
    far.begin(&open, CHUNK, Attempt(1)).await.expect("begun");
    let mut writer = far.segment(&open, CHUNK, Attempt(1)).await.expect("a writer");
    writer
        .write(&batch(&open, &[(1, Some("row"), 0.5)]))
        .await
        .expect("written");

    proxy.link(Link::Silent);
    let (committed, published, begun) = tokio::time::timeout(2 * PATIENCE, async {
        tokio::join!(
            writer.commit(marker(CHUNK, 0, Attempt(1))),
            far.publish(&staged, expected),
            far.begin(&open, CHUNK, Attempt(2)),
        )
    })
    .await
    .expect("nothing is waited for without end");
    for failure in [
        Failure::from(committed.expect_err("no answer")),
        published.expect_err("no answer"),
        begun.expect_err("no answer"),
    ] {
        assert_eq!(failure.class, Class::Transient, "{failure}");
        assert!(failure.message.contains("answer"), "{failure}");
    }
    // With the connection back, what was cut off in the middle has left nothing that is in the way.
    proxy.link(Link::Passes);
    let report = far.publish(&staged, expected).await.expect("published");
    assert_eq!(report.rows, 1);
    assert_eq!(far.begin(&open, CHUNK, Attempt(2)).await.expect("begun"), []);
}
