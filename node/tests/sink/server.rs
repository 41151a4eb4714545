//! What only a server has: readers during a publish, other people's objects on the target, lost answers, crashes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use haulage_core::failure::{Class, Failure};
use haulage_core::ids::Attempt;
use haulage_node::sink::{Expected, registry};
use haulage_plan::definition::Mode;
use haulage_test_support::postgres::Postgres;
use haulage_test_support::proxy::{Commit, Proxy};
use haulage_test_support::{PATIENCE, until};
use sqlx::{Connection, PgConnection};

use super::later::whole;
use super::load::{CHUNK, TestRow, batch, load, marker};
use super::world::World;

fn rows(from: i32, count: i32) -> Vec<TestRow> {
    (from..from + count).map(|id| (id, Some("row"), 0.5)).collect()
}

fn url(world: &World) -> String {
    world.server().1.to_owned()
}

/// Counts the target over and over, in both protocols, and keeps every count that it saw.
async fn poll(url: String, until: Arc<AtomicBool>) -> Vec<i64> {
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    let mut seen = Vec::new();
    while !until.load(Ordering::Relaxed) {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM things")
            .fetch_one(&mut connection)
            .await
            .expect("a reader never sees an error");
        seen.push(count);
        sqlx::raw_sql("SELECT count(*), sum(id) FROM things")
            .execute(&mut connection)
            .await
            .expect("nor here");
    }
    seen.dedup();
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_see_the_old_rows_or_the_new_ones() {
    let world = World::postgres().await;
    whole(&world, &load("r0", Mode::Replace, &["id"]), &rows(0, 10)).await;
    // The second half with a view on the table, where a swap would break it.
    for swap in [true, false] {
        let done = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|_| tokio::spawn(poll(url(&world), Arc::clone(&done))))
            .collect();
        let kind = if swap { "swap" } else { "rewrite" };
        for n in 1..=6 {
            let load = load(&format!("{kind}{n}"), Mode::Replace, &["id"]);
            let report = world
                .publish(&load, &rows(0, 10 + 10 * (n % 2)))
                .await
                .expect("published");
            assert_eq!(report.detail.contains("swap"), swap, "{}", report.detail);
            world.destination.cleanup(&load).await.expect("cleaned");
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            let seen = reader.await.expect("a reader that ended well");
            assert!(seen.iter().all(|count| [10, 20].contains(count)), "{kind}: {seen:?}");
        }
        if swap {
            world.run("CREATE VIEW dependent AS SELECT id FROM things").await;
        }
    }
}

#[tokio::test]
async fn a_swap_keeps_owner_grants_comment_settings_and_index_names() {
    let world = World::postgres().await;
    world
        .run(
            "DO $$ BEGIN CREATE ROLE reader; EXCEPTION WHEN duplicate_object THEN END $$;
             DO $$ BEGIN CREATE ROLE keeper; EXCEPTION WHEN duplicate_object THEN END $$;
             CREATE TABLE things (id integer, name varchar(20) DEFAULT 'none', amount double precision CHECK (amount < 100),
                 CONSTRAINT \"Things Key\" PRIMARY KEY (id), UNIQUE (name, id));
             CREATE INDEX lower_name ON things (lower(name)) WHERE amount > 0;
             COMMENT ON TABLE things IS 'it''s ours'; COMMENT ON COLUMN things.id IS 'the id';
             ALTER TABLE things SET (fillfactor = 70);
             GRANT SELECT ON things TO reader; GRANT INSERT ON things TO PUBLIC;
             GRANT CREATE ON SCHEMA public TO keeper;
             ALTER TABLE things OWNER TO keeper;
             INSERT INTO things VALUES (1, 'one', 1.5)",
        )
        .await;
    let look = "SELECT concat_ws(' | ', pg_get_userbyid(relowner),
            (SELECT string_agg(acl::text, ',' ORDER BY acl::text) FROM unnest(relacl) acl), reloptions::text,
            obj_description(oid, 'pg_class'), col_description(oid, 1),
            (SELECT string_agg(indexdef, '; ' ORDER BY indexname) FROM pg_indexes WHERE tablename = 'things'),
            (SELECT string_agg(conname || pg_get_constraintdef(oid), '; ' ORDER BY conname) FROM pg_constraint
             WHERE conrelid = pg_class.oid AND contype <> 'n'),
            (SELECT string_agg(concat_ws(' ', column_name, data_type, column_default, is_nullable), ', '
                ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = 'things'))
        FROM pg_class WHERE oid = 'things'::regclass";
    let before = world.texts(look).await.expect("a table");
    let oid = "SELECT 'things'::regclass::oid::text";
    let old = world.texts(oid).await;
    let load = load("a", Mode::Replace, &["id"]);
    world.publish(&load, &rows(5, 3)).await.expect("published");
    assert_ne!(world.texts(oid).await, old, "it is another table");
    assert_eq!(world.texts(look).await.expect("a table"), before);
    world.destination.revert(&load).await.expect("reverted");
    assert_eq!(world.texts(oid).await, old, "it is the old table");
    assert_eq!(world.texts(look).await.expect("a table"), before);
    assert_eq!(world.rows("things").await.expect("a table"), ["1 one 1.5"]);
}

#[tokio::test]
async fn what_a_swap_would_break_is_found() {
    for (name, object) in [
        ("view", "CREATE VIEW v AS SELECT id FROM things"),
        (
            "materialized view",
            "CREATE MATERIALIZED VIEW v AS SELECT id FROM things",
        ),
        (
            "foreign key",
            "CREATE TABLE other (k integer PRIMARY KEY); INSERT INTO other VALUES (1); ALTER TABLE things ADD FOREIGN KEY (ref) REFERENCES other",
        ),
        (
            "trigger",
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER t BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION f()",
        ),
        (
            "function on its rows",
            "CREATE FUNCTION g(things) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        ),
        ("publication", "CREATE PUBLICATION p FOR TABLE things"),
        ("policy", "ALTER TABLE things ENABLE ROW LEVEL SECURITY"),
        ("child", "CREATE TABLE child () INHERITS (things)"),
        ("serial", "ALTER TABLE things ADD COLUMN n serial"),
        (
            "identity",
            "ALTER TABLE things ADD COLUMN n integer GENERATED BY DEFAULT AS IDENTITY",
        ),
        ("statistics", "CREATE STATISTICS s ON id, name FROM things"),
        ("column grant", "GRANT SELECT (id) ON things TO PUBLIC"),
        (
            "column option",
            "ALTER TABLE things ALTER COLUMN id SET (n_distinct = 5)",
        ),
        ("deferrable", "ALTER TABLE things ADD UNIQUE (id, name) DEFERRABLE"),
    ] {
        let world = World::postgres().await;
        world
            .run("CREATE TABLE things (id integer PRIMARY KEY, name text, amount double precision, ref integer)")
            .await;
        world.run("INSERT INTO things VALUES (1, 'one', 1.5)").await;
        world.run(object).await;
        let load = load("a", Mode::Replace, &["id"]);
        let inspection = world.destination.inspect(&load).await.expect("an inspection");
        assert!(
            inspection.changes[0].contains("by DELETE and INSERT, because"),
            "{name}: {:?}",
            inspection.changes
        );
        world
            .publish(&load, &rows(5, 2))
            .await
            .unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(
            world.rows("things").await.expect("a table"),
            ["5 row 0.5", "6 row 0.5"],
            "{name}"
        );
        world
            .destination
            .revert(&load)
            .await
            .unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(world.rows("things").await.expect("a table"), ["1 one 1.5"], "{name}");
    }
}

#[tokio::test]
async fn a_referenced_table_is_not_emptied() {
    let world = World::postgres().await;
    world
        .run(
            "CREATE TABLE things (id integer PRIMARY KEY, name text, amount double precision);
             INSERT INTO things VALUES (1, 'one', 1.5);
             CREATE TABLE parts (thing integer REFERENCES things ON DELETE CASCADE); INSERT INTO parts VALUES (1)",
        )
        .await;
    let failure = world
        .destination
        .prepare(&load("a", Mode::Replace, &["id"]))
        .await
        .expect_err("it would cascade");
    assert!(failure.message.contains("is referenced by foreign key"), "{failure}");
    let merge = load("b", Mode::Merge, &["id"]);
    world.publish(&merge, &rows(1, 2)).await.expect("published");
    world.destination.revert(&merge).await.expect("reverted");
    assert_eq!(world.rows("things").await.expect("a table"), ["1 one 1.5"]);
    assert_eq!(
        world.texts("SELECT thing::text FROM parts").await.expect("a table"),
        ["1"]
    );
}

#[tokio::test]
async fn a_target_that_changes_under_a_run_is_not_lost() {
    let world = World::postgres().await;
    world
        .run("CREATE TABLE things (id integer PRIMARY KEY, name text, amount double precision)")
        .await;
    let load = load("a", Mode::Replace, &["id"]);
    let expected = world.stage(&load, &rows(1, 2)).await.expect("staged");
    world
        .run("ALTER TABLE things ADD COLUMN more text DEFAULT 'm'; CREATE INDEX extra ON things (more)")
        .await;
    world.destination.verify(&load, expected).await.expect("verified");
    world.run("CREATE INDEX extra2 ON things (name)").await;
    world.destination.publish(&load, expected).await.expect("published");
    assert_eq!(
        world
            .texts("SELECT id::text || more FROM things")
            .await
            .expect("a table"),
        ["1m", "2m"]
    );
    let count = "SELECT count(*)::text FROM pg_indexes WHERE tablename = 'things'";
    assert_eq!(world.texts(count).await.expect("a catalog"), ["3"]);
}

#[tokio::test]
async fn the_answer_to_a_commit_is_lost() {
    let world = World::postgres().await;
    let port = world.server().0.port();
    let cut = Proxy::start(port).await.expect("a proxy");
    let far = url(&world).replace(&format!(":{port}/"), &format!(":{}/", cut.port()));
    let far = World {
        destination: registry::open("far", &far).await.expect("a destination"),
        ..world
    };
    let load = load("a", Mode::Replace, &["id"]);
    far.destination.prepare(&load).await.expect("prepared");
    far.destination.begin(&load, CHUNK, Attempt(1)).await.expect("begun");

    let mut writer = far
        .destination
        .segment(&load, CHUNK, Attempt(1))
        .await
        .expect("a writer");
    writer.write(&batch(&load, &rows(1, 2))).await.expect("written");
    cut.next_commit(Commit::LosesItsAnswer);
    let committed = writer
        .commit(marker(CHUNK, 0, Attempt(1)))
        .await
        .expect("its marker stands");
    assert!(committed.fresh && committed.marker.rows == 2, "{committed:?}");

    let mut writer = far
        .destination
        .segment(&load, CHUNK, Attempt(1))
        .await
        .expect("a writer");
    writer.write(&batch(&load, &rows(3, 2))).await.expect("written");
    cut.next_commit(Commit::IsLost);
    let lost = writer
        .commit(marker(CHUNK, 1, Attempt(1)))
        .await
        .expect_err("it never reached the server");
    assert_eq!(Failure::from(lost.clone()).class, Class::Transient, "{lost}");
    assert_eq!(
        far.destination
            .begin(&load, CHUNK, Attempt(1))
            .await
            .expect("begun")
            .len(),
        1
    );
    far.segment(&load, 1, Attempt(1), &rows(3, 2)).await.expect("staged");

    let expected = Expected { rows: 4, segments: 2 };
    far.destination.verify(&load, expected).await.expect("verified");
    cut.next_commit(Commit::LosesItsAnswer);
    let lost = far
        .destination
        .publish(&load, expected)
        .await
        .expect_err("its answer is lost");
    assert_eq!(lost.class, Class::Transient, "{lost}");
    let report = far
        .destination
        .publish(&load, expected)
        .await
        .expect("it finds its own record");
    assert_eq!(report.rows, 4);
    assert_eq!(far.rows("things").await.expect("a table").len(), 4);
}

#[tokio::test]
async fn a_crash_of_the_server_is_noticed() {
    let cluster = Arc::new(Postgres::start().await.expect("PostgreSQL"));
    let world = World::on(Arc::clone(&cluster)).await;
    let crash = async || {
        cluster.stop();
        cluster.start_again().await.expect("PostgreSQL starts again");
    };
    let (logged, unlogged) = (load("a", Mode::Replace, &["id"]), load("b", Mode::Append, &["id"]));
    let mut other = unlogged.clone();
    other.table = "others".to_owned();
    let expected = world.stage(&logged, &rows(1, 4)).await.expect("staged");
    world.stage(&other, &rows(1, 4)).await.expect("staged");
    crash().await;
    // A marker never stands for rows that are gone.
    assert_eq!(
        world.destination.begin(&other, CHUNK, Attempt(2)).await.expect("begun"),
        []
    );
    let failure = world
        .destination
        .verify(&other, expected)
        .await
        .expect_err("staging is empty");
    assert_eq!(failure.class, Class::StagingLost);
    assert!(failure.message.contains("crash"), "{failure}");
    world.destination.discard(&other).await.expect("discarded");
    // What is to become the target survives.
    assert_eq!(
        world
            .destination
            .begin(&logged, CHUNK, Attempt(2))
            .await
            .expect("begun")
            .len(),
        2
    );
    world.destination.verify(&logged, expected).await.expect("verified");
    crash().await;
    world.destination.publish(&logged, expected).await.expect("published");
    assert_eq!(world.rows("things").await.expect("a table").len(), 4);
}

#[tokio::test]
async fn a_transaction_that_holds_the_table_is_waited_for() {
    let world = World::postgres().await;
    whole(&world, &load("r0", Mode::Replace, &["id"]), &rows(0, 1)).await;
    let load = load("r1", Mode::Replace, &["id"]);
    let expected = world.stage(&load, &rows(0, 2)).await.expect("staged");
    world.destination.verify(&load, expected).await.expect("verified");
    let mut holder = PgConnection::connect(&url(&world)).await.expect("a connection");
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM things")
        .execute(&mut holder)
        .await
        .expect("a reader");
    let destination = Arc::clone(&world.destination);
    let publishing = tokio::spawn(async move { destination.publish(&load, expected).await });
    // Once a try has ended in the lock timeout, the reader goes.
    let mut watcher = PgConnection::connect(&url(&world)).await.expect("a connection");
    until("the publish asks for the table", PATIENCE, async || {
        let waiting: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_locks WHERE relation = 'things'::regclass AND NOT granted")
                .fetch_one(&mut watcher)
                .await?;
        Ok((waiting > 0).then_some(()))
    })
    .await
    .expect("a publish that waits");
    sqlx::raw_sql("COMMIT")
        .execute(&mut holder)
        .await
        .expect("a reader that ends");
    publishing.await.expect("no panic").expect("published");
    assert_eq!(world.rows("things").await.expect("a table").len(), 2);
}

/// What a swap has put aside is a table like any other to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleanup_does_not_wait_for_an_autovacuum() {
    let cluster = Arc::new(Postgres::start().await.expect("PostgreSQL"));
    let world = World::on(Arc::clone(&cluster)).await;
    world.run("ALTER SYSTEM SET autovacuum_naptime = '1s'").await;
    world.run("SELECT pg_reload_conf()").await;
    world
        .run(
            "CREATE TABLE things (id integer PRIMARY KEY, name text, amount double precision);
             ALTER TABLE things SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,
                 autovacuum_enabled = false);
             INSERT INTO things SELECT n, 'row', 0.5 FROM generate_series(1, 30000) n",
        )
        .await;
    let mut load = load("r1", Mode::Replace, &["id"]);
    load.keep_previous = 0;
    let report = world.publish(&load, &rows(0, 2)).await.expect("published");
    assert!(report.detail.contains("swap"), "{}", report.detail);
    world
        .run(
            "DO $$ DECLARE prev regclass; BEGIN
                 SELECT oid INTO STRICT prev FROM pg_class WHERE relname LIKE 'prev\\_%' AND relkind = 'r';
                 EXECUTE format('ALTER TABLE %s RESET (autovacuum_enabled)', prev);
             END $$",
        )
        .await;
    let mut watcher = PgConnection::connect(&url(&world)).await.expect("a connection");
    until("autovacuum is at it", PATIENCE, async || {
        let at_it: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'autovacuum:%prev\\_%'")
                .fetch_one(&mut watcher)
                .await?;
        Ok((at_it > 0).then_some(()))
    })
    .await
    .expect("an autovacuum");
    world.destination.cleanup(&load).await.expect("at the first attempt");
    let left = world.left_over().await;
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn several_nodes_make_the_bookkeeping_at_once() {
    let world = World::postgres().await;
    let url = url(&world);
    let nodes = (0..8).map(|n| {
        let url = url.clone();
        tokio::spawn(async move {
            let destination = registry::open("warehouse", &url).await.expect("a destination");
            let load = load(&format!("r{n}"), Mode::Replace, &["id"]);
            destination.prepare(&load).await.expect("prepared");
            destination.discard(&load).await.expect("discarded");
        })
    });
    for node in nodes.collect::<Vec<_>>() {
        node.await.expect("no panic");
    }
    assert!(world.left_over().await.is_empty());
}
