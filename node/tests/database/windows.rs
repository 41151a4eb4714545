//! Windows of incremental sources on both servers: no row is lost to the clock, to one that lies in the future, or to one
//! that comes under the same time as the last.

use haulage_core::failure::Class;
use haulage_core::ids::StageId;
use haulage_node::source::{Increment, Source};
use haulage_test_support::mariadb::Mariadb;
use haulage_test_support::postgres::Postgres;
use haulage_test_support::{PATIENCE, until};

use super::mysql::{database, ids};
use super::reading::{Node, read};

/// The first column of all rows of an increment, sorted.
async fn of(source: &dyn Source, increment: &Increment) -> Vec<String> {
    let mut found = Vec::new();
    for chunk in &increment.chunks {
        let rows = read(source, chunk, chunk.start).await.unwrap().rows;
        found.extend(rows.into_iter().map(|(_, row)| row[0].clone().unwrap()));
    }
    found.sort();
    found
}

async fn after(source: &dyn Source, low: Option<&str>, open: bool) -> Increment {
    source.discover_after(StageId(0), low, open).await.unwrap()
}

#[tokio::test]
async fn rows_in_the_future_cost_none_that_come_late() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    let sql = "CREATE TABLE t (id int, at timestamptz(0)); INSERT INTO t VALUES (1, now() - interval '1 day'), (2, now() + \
               interval '1 hour'), (3, now() + interval '1 year')";
    server.execute(&name, sql).await.unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    let source = node.source("{postgres: crm, table: t, incremental: at}");
    let first = after(&*source, None, false).await;
    assert_eq!((of(&*source, &first).await, first.held_back), (vec!["1".to_owned()], 2));
    // The watermark is the time of the row that was read, and not the clock's.
    server
        .execute(&name, "INSERT INTO t VALUES (4, now() - interval '1 minute')")
        .await
        .unwrap();
    let late = Node::new(&[("crm", &server.url(&name))]);
    let source = late.source("{postgres: crm, table: t, incremental: at}");
    let second = after(&*source, first.to.as_deref(), false).await;
    assert_eq!(of(&*source, &second).await, ["4"]);
    // Where rows may come twice they come at once, and the watermark waits for their time.
    let open = after(&*source, first.to.as_deref(), true).await;
    assert_eq!(
        (of(&*source, &open).await, open.held_back),
        (["2", "3", "4"].map(str::to_owned).to_vec(), 0)
    );
    assert_eq!(open.to, second.to);

    let (server, name, url) = database(
        "CREATE TABLE t (id INT PRIMARY KEY, at TIMESTAMP(6)); INSERT INTO t VALUES (1, NOW(6) - INTERVAL 1 DAY), (2, NOW(6) + \
         INTERVAL 1 HOUR), (3, NOW(6) + INTERVAL 1 MONTH)",
    )
    .await;
    let source = Node::new(&[("shop", &url)]).source("{mysql: shop, table: t, incremental: at}");
    let first = after(&*source, None, false).await;
    assert_eq!((of(&*source, &first).await, first.held_back), (vec!["1".to_owned()], 2));
    server
        .execute(&name, "INSERT INTO t VALUES (4, NOW(6) - INTERVAL 1 MINUTE)")
        .await
        .unwrap();
    let second = after(&*source, first.to.as_deref(), false).await;
    assert_eq!(of(&*source, &second).await, ["4"]);
    let open = after(&*source, first.to.as_deref(), true).await;
    assert_eq!(
        (of(&*source, &open).await, open.held_back),
        (["2", "3", "4"].map(str::to_owned).to_vec(), 0)
    );
    assert_eq!(open.to, second.to);
    // A row that changes between discovery and reading is still a row.
    server
        .execute(&name, "UPDATE t SET at = NOW(6) + INTERVAL 2 HOUR WHERE id = 4")
        .await
        .unwrap();
    assert_eq!(of(&*source, &open).await, ["2", "3", "4"]);
}

#[tokio::test]
async fn a_source_whose_rows_all_lie_below_its_watermark_is_told() {
    let rows = "INSERT INTO t VALUES (1, '2024-01-01'), (2, '2024-01-02'), (3, '2024-01-03')";
    let postgres = Postgres::shared().await.unwrap();
    let there = postgres.database().await.unwrap();
    let make = "CREATE TABLE t (id bigint, at timestamp); CREATE TABLE none (id bigint, at timestamp)";
    postgres.execute(&there, &format!("{make}; {rows}")).await.unwrap();
    let make = "CREATE TABLE t (id BIGINT PRIMARY KEY, at DATETIME(6)); CREATE TABLE none (id BIGINT PRIMARY KEY, at DATETIME(6))";
    let (_server, _, url) = database(&format!("{make}; {rows}")).await;
    let node = Node::new(&[("crm", &postgres.url(&there)), ("shop", &url)]);
    for (what, low, below) in [
        ("table: t, incremental: id", Some("9007199254740993"), Some("3")),
        ("table: t, incremental: id", Some("4"), Some("3")),
        ("table: t, incremental: id", Some("3"), None),
        ("table: t, incremental: id", Some("2"), None),
        ("table: t, incremental: id", None, None),
        ("table: t, incremental: {column: id, lag: 1}", Some("4"), None),
        ("table: t, incremental: {column: id, lag: 1}", Some("5"), Some("3")),
        (
            "table: t, incremental: at",
            Some("2024-01-04"),
            Some("2024-01-03 00:00:00"),
        ),
        ("table: t, incremental: at", Some("2024-01-03 00:00:00"), None),
        (
            "table: t, incremental: {column: at, lag: 1day}",
            Some("2024-01-04"),
            None,
        ),
        ("table: none, incremental: id", Some("4"), None),
        ("query: SELECT id FROM t, incremental: id", Some("4"), Some("3")),
    ] {
        for database in ["mysql: shop", "postgres: crm"] {
            let declared = format!("{{{database}, {what}}}");
            let found = after(&*node.source(&declared), low, false).await.below;
            // MySQL writes all digits of a time.
            let found = found.as_deref().map(|found| found.trim_end_matches(".000000"));
            assert_eq!(found, below, "{declared} after {low:?}");
        }
    }
}

#[tokio::test]
async fn times_without_a_zone_are_the_servers() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    let sql = format!(
        "ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'; CREATE TABLE t (id int, at timestamp); INSERT INTO t SELECT id, (now() \
         AT TIME ZONE 'Asia/Tokyo') - id * interval '1 minute' FROM generate_series(1, 3) id"
    );
    server.execute(&name, &sql).await.unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    let source = node.source("{postgres: crm, table: t, incremental: at}");
    let found = after(&*source, None, false).await;
    assert_eq!(
        (of(&*source, &found).await, found.held_back),
        (["1", "2", "3"].map(str::to_owned).to_vec(), 0)
    );

    let server = Mariadb::start().await.unwrap();
    let sql = "SET GLOBAL time_zone = '+09:00'; CREATE TABLE t (id INT PRIMARY KEY, at DATETIME(6)); INSERT INTO t SELECT seq, \
               UTC_TIMESTAMP(6) + INTERVAL 9 HOUR - INTERVAL seq MINUTE FROM seq_1_to_3; INSERT INTO t VALUES (4, \
               UTC_TIMESTAMP(6) + INTERVAL 10 HOUR)";
    server.execute("shop", sql).await.unwrap();
    let source = Node::new(&[("shop", &server.url("shop"))]).source("{mysql: shop, table: t, incremental: at}");
    let found = after(&*source, None, false).await;
    assert_eq!(
        (of(&*source, &found).await, found.held_back),
        (["1", "2", "3"].map(str::to_owned).to_vec(), 1)
    );
}

#[tokio::test]
async fn rows_of_the_same_second_come_once_each() {
    let postgres = Postgres::shared().await.unwrap();
    let there = postgres.database().await.unwrap();
    postgres
        .execute(&there, "CREATE TABLE t (id int, at timestamptz)")
        .await
        .unwrap();
    let (mariadb, shop, url) = database("CREATE TABLE t (id INT PRIMARY KEY, at TIMESTAMP NOT NULL)").await;
    let (mut low, mut mysql_low) = (None, None);
    let (mut found, mut mysql_found) = (Vec::new(), Vec::new());
    // Each is of a whole second, and most of the same one as the row before.
    for id in 1..=12 {
        let sql = format!("INSERT INTO t VALUES ({id}, date_trunc('second', clock_timestamp()))");
        postgres.execute(&there, &sql).await.unwrap();
        let node = Node::new(&[("crm", &postgres.url(&there))]);
        let source = node.source("{postgres: crm, table: t, incremental: at}");
        let increment = after(&*source, low.as_deref(), false).await;
        found.extend(of(&*source, &increment).await);
        low = increment.to;

        mariadb
            .execute(&shop, &format!("INSERT INTO t VALUES ({id}, NOW())"))
            .await
            .unwrap();
        let source = Node::new(&[("shop", &url)]).source("{mysql: shop, table: t, incremental: at}");
        let increment = after(&*source, mysql_low.as_deref(), false).await;
        mysql_found.extend(of(&*source, &increment).await);
        mysql_low = increment.to;
    }
    // Once the second is over, all of them are there.
    let pool = postgres.pool(&there).await.unwrap();
    until("the second to pass", PATIENCE, async || {
        let sql = "SELECT max(at) + interval '1 second' < now() FROM t";
        let over: bool = sqlx::query_scalar(sql).fetch_one(&pool).await?;
        Ok(over.then_some(()))
    })
    .await
    .unwrap();
    until("the second to pass there", PATIENCE, async || {
        let over = ids(
            &mariadb,
            &shop,
            "SELECT CAST(max(at) + INTERVAL 1 SECOND < NOW(6) AS CHAR) FROM t",
        )
        .await;
        Ok((over == ["1"]).then_some(()))
    })
    .await
    .unwrap();
    let node = Node::new(&[("crm", &postgres.url(&there)), ("shop", &url)]);
    for (found, declared, low) in [
        (&mut found, "{postgres: crm, table: t, incremental: at}", low),
        (&mut mysql_found, "{mysql: shop, table: t, incremental: at}", mysql_low),
    ] {
        let source = node.source(declared);
        let increment = after(&*source, low.as_deref(), false).await;
        found.extend(of(&*source, &increment).await);
        found.sort_by_key(|id| id.parse::<u32>().unwrap());
        let all: Vec<String> = (1..=12).map(|id: u32| id.to_string()).collect();
        assert_eq!(*found, all, "{declared}");
    }
}

#[tokio::test]
async fn a_watermark_that_is_none_is_refused_and_not_read_as_another() {
    let (_server, _, url) = database(
        "CREATE TABLE t (id INT PRIMARY KEY, at DATETIME, ts TIMESTAMP NULL, day DATE); INSERT INTO t VALUES (1, '2024-01-01', \
         '2024-01-01 00:00:00', '2024-01-01')",
    )
    .await;
    let postgres = Postgres::shared().await.unwrap();
    let name = postgres.database().await.unwrap();
    let sql = "CREATE TABLE t (id int, at timestamp, ts timestamptz, day date); INSERT INTO t VALUES (1, '2024-01-01', \
               '2024-01-01', '2024-01-01')";
    postgres.execute(&name, sql).await.unwrap();
    let node = Node::new(&[("shop", &url), ("crm", &postgres.url(&name))]);
    for (column, low, words) in [
        ("at", "2026-13-45", "that there is"),
        ("at", "2026-01-01 00:00:00+02", "leave the offset out"),
        ("id", "2013-01-31", "is an integer"),
        ("ts", "7", "is a time"),
    ] {
        for database in ["mysql: shop", "postgres: crm"] {
            let source = node.source(&format!("{{{database}, table: t, incremental: {column}}}"));
            let refused = source.discover_after(StageId(0), Some(low), true).await.unwrap_err();
            assert_eq!(refused.class, Class::Permanent);
            assert!(
                refused.message.contains(words) && refused.message.contains("haulage state set"),
                "{database} {column} {low}: {refused}"
            );
        }
    }
    // An offset is one, and MySQL's own reading of it isn't asked for.
    for (low, rows) in [("2024-01-01 02:00:00+02", 0), ("2024-01-01 01:59:59+02", 1)] {
        for database in ["mysql: shop", "postgres: crm"] {
            let source = node.source(&format!("{{{database}, table: t, incremental: ts}}"));
            let increment = after(&*source, Some(low), false).await;
            let found = of(&*source, &increment).await;
            assert_eq!(found.len(), rows, "{database} {low}");
        }
    }
}
