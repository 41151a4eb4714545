//! MySQL and MariaDB: cut connections, servers that die, and errors.

use haulage_core::failure::{Class, Failure};
use haulage_core::ids::StageId;
use haulage_node::source::Source;
use haulage_test_support::mariadb::{Mariadb, PASSWORD};
use haulage_test_support::proxy::Proxy;
use haulage_test_support::{PATIENCE, until};

use super::mysql::{PAD, database, filled, ids};
use super::reading::{Node, all, read};

/// What reading a whole chunk fails with.
async fn broken(source: &dyn Source) -> Failure {
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    read(source, &chunk, chunk.start).await.unwrap_err()
}

#[tokio::test]
async fn a_connection_that_is_cut_and_a_server_that_dies_are_transient() {
    let server = Mariadb::start().await.unwrap();
    server
        .execute(
            "shop",
            &format!(
                "CREATE TABLE many (id INT PRIMARY KEY, pad TEXT); {}",
                filled("many", &format!("seq, {PAD}"), 60_000)
            ),
        )
        .await
        .unwrap();
    let proxy = Proxy::start(server.port()).await.unwrap();
    let through = format!("mysql://root@127.0.0.1:{}/shop?ssl-mode=disabled", proxy.port());
    let declared = "{mysql: shop, table: many, chunk_size: 1GiB}";
    let node = Node::new(&[("shop", &through)]);
    let source = node.source(declared);
    source.discover(StageId(0)).await.unwrap();
    proxy.cut_answers_after(2 << 20);
    let cut = broken(&*source).await;
    assert_eq!(cut.class, Class::Transient, "{cut}");
    assert!(
        cut.message.contains("source s: connection shop (MySQL at") && proxy.cuts() > 0,
        "{cut}"
    );

    let node = Node::new(&[("shop", &server.url("shop"))]);
    let source = node.source(declared);
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let mut reader = source.open(&chunk, chunk.start).await.unwrap();
    let first = reader.next().await.unwrap().unwrap();
    server.stop();
    let dead = loop {
        match reader.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a part of the rows was taken for all"),
            Err(failure) => break failure,
        }
    };
    assert_eq!(dead.class, Class::Transient, "{dead}");
    let Err(away) = source.open(&chunk, first.next).await else {
        panic!("nobody answers there");
    };
    assert!(
        away.class == Class::Transient && away.message.contains("connection refused"),
        "{away}"
    );

    // Back again, it goes on.
    server.start_again().await.unwrap();
    let rest = read(&*source, &chunk, first.next).await.unwrap();
    assert_eq!(rest.rows.len() as u64, 60_000 - first.rows);

    // A session that somebody ends is one more that may come back.
    let pool = server.pool("shop").await.unwrap();
    let mut reader = source.open(&chunk, chunk.start).await.unwrap();
    reader.next().await.unwrap().unwrap();
    let sql = "SELECT id FROM information_schema.PROCESSLIST WHERE info LIKE 'SELECT `id`%' AND command = 'Execute'";
    let reading: Vec<i64> = sqlx::query_scalar(sql).fetch_all(&pool).await.unwrap();
    assert_eq!(reading.len(), 1);
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("KILL {}", reading[0])))
        .execute(&pool)
        .await
        .unwrap();
    let killed = loop {
        match reader.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a part of the rows was taken for all"),
            Err(failure) => break failure,
        }
    };
    assert_eq!(killed.class, Class::Transient, "{killed}");

    // Who doesn't read on leaves nothing behind: a chunk that is cancelled drops its reader.
    let mut reader = source.open(&chunk, chunk.start).await.unwrap();
    reader.next().await.unwrap().unwrap();
    drop(reader);
    until("the session to end", PATIENCE, async || {
        let reading: Vec<i64> = sqlx::query_scalar(sql).fetch_all(&pool).await?;
        Ok(reading.is_empty().then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_no_secret() {
    let (server, name, url) =
        database("CREATE TABLE t (id INT PRIMARY KEY, ID2 INT); CREATE TABLE hidden (id INT)").await;
    server
        .execute(&name, &format!("GRANT SELECT ON {name}.t TO locked@'%'"))
        .await
        .unwrap();
    let free = haulage_test_support::free_port().unwrap();
    let away = format!("mysql://u:hunter2@127.0.0.1:{free}/db");
    let node = Node::new(&[
        ("shop", &url),
        ("away", &away),
        ("wrong", &server.url_with_password("hunter2", &name)),
        ("right", &server.url_with_password(PASSWORD, &name)),
        ("odd", "postgres://u:hunter2@h/d"),
        ("none", &server.url("no_such_database")),
        ("bare", &format!("mysql://root@127.0.0.1:{}", server.port())),
        ("tls", &format!("{url}?ssl-mode=required")),
    ]);
    let (rows, _) = all(&*node.source("{mysql: right, table: t}")).await.unwrap();
    assert!(rows.is_empty());
    for (declared, class, words) in [
        ("{mysql: shop, table: missing}", Class::Permanent, "correct the `table`"),
        ("{mysql: shop, table: nowhere.t}", Class::Permanent, "nowhere"),
        (
            "{mysql: shop, table: t, columns: {ib: int}}",
            Class::Permanent,
            "it has no column `ib`; did you mean `id`?",
        ),
        (
            "{mysql: shop, query: SELECT nope FROM t}",
            Class::Permanent,
            "Unknown column 'nope'",
        ),
        (
            "{mysql: shop, query: SELECT 1 AS a; DROP TABLE t}",
            Class::Permanent,
            "syntax",
        ),
        (
            "{mysql: shop, query: \"SELECT id, id FROM t\"}",
            Class::Permanent,
            "several columns `id`",
        ),
        (
            "{mysql: shop, query: DELETE FROM t}",
            Class::Permanent,
            "write a SELECT",
        ),
        (
            "{mysql: shop, query: DROP TABLE t}",
            Class::Permanent,
            "it has no columns",
        ),
        (
            "{mysql: shop, query: SELECT id FROM t WHERE id = ?}",
            Class::Permanent,
            "name each as $name",
        ),
        ("{mysql: away, table: t}", Class::Transient, "connection refused"),
        ("{mysql: wrong, table: t}", Class::Permanent, "wrong password"),
        ("{mysql: right, table: hidden}", Class::Permanent, "permission denied"),
        (
            "{mysql: none, table: t}",
            Class::Permanent,
            "the database does not exist",
        ),
        ("{mysql: bare, table: t}", Class::Permanent, "no database is named"),
        ("{mysql: tls, table: t}", Class::Permanent, "check ssl-mode"),
        ("{mysql: odd, table: t}", Class::Permanent, "none of a MySQL"),
        ("{mysql: unknown, table: t}", Class::Permanent, "HAULAGE_SOURCE_UNKNOWN"),
    ] {
        let source = node.source(declared);
        for failure in [
            source.check().await.expect_err(declared).failure,
            source.discover(StageId(0)).await.unwrap_err(),
        ] {
            assert_eq!(failure.class, class, "{declared}: {failure}");
            assert!(
                failure.message.contains(words) && failure.message.contains("source s"),
                "{declared}: {failure}"
            );
            assert!(
                !failure.message.contains("hunter2") && !failure.message.contains(PASSWORD),
                "{failure}"
            );
        }
    }
    // What writes and has columns is refused, too.
    let source = node.source("{mysql: shop, query: 'INSERT INTO t VALUES (1, 1) RETURNING id'}");
    let written = source.discover(StageId(0)).await.unwrap_err();
    assert!(
        written.class == Class::Permanent && written.message.contains("write a SELECT"),
        "{written}"
    );
    assert!(ids(&server, &name, "SELECT CAST(id AS CHAR) FROM t").await.is_empty());
}
