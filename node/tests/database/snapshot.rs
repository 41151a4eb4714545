//! A run reads PostgreSQL in one snapshot, on all nodes, for as long as one of them keeps it, and in no other.

use haulage_core::failure::Class;
use haulage_core::ids::StageId;
use haulage_test_support::postgres::{PASSWORD, Postgres};
use haulage_test_support::{PATIENCE, until};

use super::reading::{Node, read, values};

const TABLES: &str = "CREATE TABLE a AS SELECT id, repeat('x', 100) AS pad FROM generate_series(1, 3000) id;
    CREATE TABLE b AS SELECT id FROM a;";
const DECLARED: &str = "{postgres: crm, table: a, columns: {id: int}, chunk_size: 64KiB}";

/// What moves, adds and removes rows everywhere in both tables.
const CHURN: &str = "UPDATE a SET pad = 'moved' WHERE id % 3 = 0; DELETE FROM a WHERE id % 5 = 0;
    INSERT INTO a SELECT id, 'new' FROM generate_series(9000, 9500) id; DELETE FROM b; INSERT INTO b VALUES (-1)";

async fn come_true(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    until(what, PATIENCE, async || Ok(probe().await.then_some(())))
        .await
        .unwrap();
}

/// Sessions that keep a snapshot of this database.
async fn kept(server: &Postgres, database: &str) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE \
                 'haulage snapshot %'";
    let pool = server.pool(database).await.unwrap();
    sqlx::query_scalar(count).fetch_one(&pool).await.unwrap()
}

fn ids() -> Vec<Vec<Option<String>>> {
    let mut ids: Vec<_> = (1..=3000).map(|id| vec![Some(id.to_string())]).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn all_chunks_of_all_tables_are_of_one_moment() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, TABLES).await.unwrap();
    let url = server.url(&name);
    let (node, other) = (Node::new(&[("crm", &url)]), Node::new(&[("crm", &url)]));
    let (a, b) = (node.source(DECLARED), node.source("{postgres: crm, table: b}"));
    let chunks = a.discover(StageId(0)).await.unwrap();
    // Between the discovery of one table and that of the other.
    server.execute(&name, CHURN).await.unwrap();
    let of_b = b.discover(StageId(1)).await.unwrap();
    let mut rows = Vec::new();
    for (number, chunk) in chunks.iter().enumerate() {
        let there = if number % 2 == 0 { &node } else { &other };
        let source = there.source(DECLARED);
        rows.extend(read(&*source, chunk, chunk.start).await.unwrap().rows);
        if number % 3 == 0 {
            server.execute(&name, CHURN).await.unwrap();
        }
    }
    assert!(chunks.len() > 3);
    assert_eq!(values(rows), ids());
    assert_eq!(values(read(&*b, &of_b[0], of_b[0].start).await.unwrap().rows), ids());
}

#[tokio::test]
async fn the_snapshot_outlives_the_node_that_took_it_and_not_the_last_one() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, TABLES).await.unwrap();
    let url = server.url(&name);
    let (first, second) = (Node::new(&[("crm", &url)]), Node::new(&[("crm", &url)]));
    let chunks = first.source(DECLARED).discover(StageId(0)).await.unwrap();
    let early = read(&*second.source(DECLARED), &chunks[0], chunks[0].start)
        .await
        .unwrap();
    drop(first);
    come_true("the first node's session to end", async || {
        kept(&server, &name).await == 1
    })
    .await;
    server.execute(&name, CHURN).await.unwrap();

    // A third node finds the second one's.
    let third = Node::new(&[("crm", &url)]);
    let mut rows = early.rows;
    for chunk in &chunks[1..] {
        rows.extend(read(&*third.source(DECLARED), chunk, chunk.start).await.unwrap().rows);
    }
    assert_eq!(values(rows), ids());

    drop((second, third));
    come_true("all sessions to end", async || kept(&server, &name).await == 0).await;
    let late = Node::new(&[("crm", &url)]);
    let gone = read(&*late.source(DECLARED), &chunks[0], chunks[0].start)
        .await
        .unwrap_err();
    assert_eq!(gone.class, Class::Permanent, "{gone}");
    assert!(
        gone.message.contains("the snapshot that this run reads in is gone") && gone.message.contains("run again"),
        "{gone}"
    );
}

#[tokio::test]
async fn another_snapshot_of_the_same_name_is_not_taken_for_it() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, TABLES).await.unwrap();
    let url = server.url(&name);
    let node = Node::new(&[("crm", &url)]);
    let mut chunk = node.source(DECLARED).discover(StageId(0)).await.unwrap().remove(0);
    server.execute(&name, CHURN).await.unwrap();
    let later = Node::new(&[("crm", &url)]);
    let theirs = later.source(DECLARED).discover(StageId(0)).await.unwrap().remove(0);
    // The name of the later snapshot with the transaction numbers of one that nobody keeps any more.
    let id = theirs.version.split(' ').next().unwrap().to_owned();
    let mark = chunk.version.split(' ').nth(1).unwrap().to_owned();
    chunk.version = format!("{id} {mark} ctid");
    drop(node);
    come_true("the first node's session to end", async || {
        kept(&server, &name).await == 1
    })
    .await;
    let third = Node::new(&[("crm", &url)]);
    let gone = read(&*third.source(DECLARED), &chunk, chunk.start).await.unwrap_err();
    assert!(gone.message.contains("is gone"), "{gone}");
}

#[tokio::test]
async fn what_no_snapshot_protects_from_waits_for_the_run() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, TABLES).await.unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    let source = node.source("{postgres: crm, query: SELECT id FROM a}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    for statement in ["TRUNCATE a", "ALTER TABLE a DROP COLUMN id", "DROP TABLE a"] {
        let refused = server
            .execute(&name, &format!("SET lock_timeout = '50ms'; {statement}"))
            .await
            .unwrap_err();
        assert!(
            format!("{refused:#}").contains("lock timeout"),
            "{statement}: {refused:#}"
        );
    }
    assert_eq!(values(read(&*source, &chunk, chunk.start).await.unwrap().rows), ids());
    drop((source, node));
    come_true("the lock to be free", async || {
        server
            .execute(&name, "SET lock_timeout = '50ms'; TRUNCATE a")
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_the_run_to_end_ends_it() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, TABLES).await.unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    let chunk = node.source(DECLARED).discover(StageId(0)).await.unwrap().remove(0);
    let (altering, there) = (server.clone(), name.clone());
    let alter = tokio::spawn(async move { altering.execute(&there, "ALTER TABLE a ADD COLUMN more int").await });
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'a'::regclass";
    let pool = server.pool(&name).await.unwrap();
    come_true("the ALTER to wait", async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() > 0
    })
    .await;
    let failure = read(&*node.source(DECLARED), &chunk, chunk.start).await.unwrap_err();
    assert_eq!(failure.class, Class::Permanent, "{failure}");
    for words in ["ALTER TABLE", "of user postgres", "run again"] {
        assert!(failure.message.contains(words), "{words}: {failure}");
    }
    // The end of the run lets it go on.
    drop(node);
    alter.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_query_in_another_order_is_not_resumed() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, TABLES).await.unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    let source = node.source("{postgres: crm, query: SELECT id FROM a ORDER BY random()}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let mut reader = source.open(&chunk, chunk.start).await.unwrap();
    let first = reader.next().await.unwrap().unwrap();
    drop(reader);
    let Err(refused) = source.open(&chunk, first.next).await else {
        panic!("rows in another order were taken for the same");
    };
    assert_eq!(refused.class, Class::Permanent);
    assert!(
        refused.message.contains("the first 7 rows are not those") && refused.message.contains("ORDER BY"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_discovery_that_failed_leaves_nothing_behind_for_the_next() {
    let server = Postgres::start().await.unwrap();
    server
        .execute("postgres", &format!("{TABLES} GRANT SELECT ON a TO locked"))
        .await
        .unwrap();
    let url = server.url_with_password(&PASSWORD.replace(' ', "%20"));
    let node = Node::new(&[("crm", &url)]);
    let denied = node.source("{postgres: crm, table: b}");
    let failure = denied.discover(StageId(0)).await.unwrap_err();
    assert_eq!(failure.class, Class::Permanent);
    assert!(
        failure.message.contains("permission denied") && failure.message.contains("user locked"),
        "{failure}"
    );
    assert!(!failure.message.contains("right"), "{failure}");
    let source = node.source(DECLARED);
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    read(&*source, &chunk, chunk.start).await.unwrap();
    server.execute("postgres", "GRANT SELECT ON b TO locked").await.unwrap();
    assert_eq!(denied.discover(StageId(0)).await.unwrap().len(), 1);
}
