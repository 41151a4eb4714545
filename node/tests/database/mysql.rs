//! MySQL and MariaDB: cutting by keys, resuming, and rows that change meanwhile.

use std::sync::Arc;

use haulage_core::failure::Class;
use haulage_core::ids::StageId;
use haulage_test_support::mariadb::Mariadb;

use super::reading::{Node, Row, all, read, read_at, resumes_anywhere};

/// A database with these statements run, and its address.
pub(crate) async fn database(sql: &str) -> (Arc<Mariadb>, String, String) {
    let server = Mariadb::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, sql).await.unwrap();
    let url = server.url(&name);
    (server, name, url)
}

/// A text of 100 characters, so that a few thousand rows are several chunks.
pub(crate) const PAD: &str = "repeat('x', 100)";

/// Rows 1 to `count` of one table from the numbers in `n`, counted by the server that they are for.
pub(crate) fn filled(table: &str, select: &str, count: u32) -> String {
    format!("INSERT INTO {table} SELECT {select} FROM seq_1_to_{count}; ANALYZE TABLE {table};")
}

/// The first column, as what the query of the same server says is all of it.
pub(crate) async fn ids(server: &Mariadb, name: &str, sql: &str) -> Vec<String> {
    let pool = server.pool(name).await.unwrap();
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned()))
        .fetch_all(&pool)
        .await
        .unwrap()
}

pub(crate) fn first_column(rows: &[Row]) -> Vec<String> {
    rows.iter().map(|(_, row)| row[0].clone().unwrap()).collect()
}

#[tokio::test]
async fn tables_are_cut_by_their_keys_and_resumed_anywhere() {
    let select = format!("CAST(seq AS SIGNED) * 6 - 5000, {PAD}");
    let sql = [
        "CREATE TABLE many (id INT PRIMARY KEY, pad TEXT);".to_owned(),
        filled("many", &select, 1500),
        "CREATE TABLE big (pad TEXT, id BIGINT UNSIGNED PRIMARY KEY);".to_owned(),
        filled(
            "big",
            &format!("{PAD}, 18446744073709551615 - (seq - 1) * 12297829382473034"),
            1500,
        ),
        "CREATE TABLE uniq (id BIGINT NOT NULL UNIQUE, pad TEXT, other INT UNIQUE);".to_owned(),
        filled("uniq", &format!("{select}, seq"), 1500),
        "CREATE TABLE pair (a INT NOT NULL, b VARCHAR(20) NOT NULL, pad TEXT, PRIMARY KEY (a, b));".to_owned(),
        filled("pair", &format!("seq DIV 7, seq, {PAD}"), 1500),
        "CREATE TABLE word (w VARCHAR(40) COLLATE utf8mb4_german2_ci PRIMARY KEY, pad TEXT);".to_owned(),
        filled(
            "word",
            &format!("CONCAT(ELT(1 + seq % 6, 'ä', 'AE', 'Z', 'z', 'ß', '😀'), seq), {PAD}"),
            1500,
        ),
        "CREATE TABLE old (w CHAR(20) CHARACTER SET latin1 PRIMARY KEY, pad TEXT);".to_owned(),
        filled(
            "old",
            &format!("CONCAT(ELT(1 + seq % 3, 'é', 'E', 'ü'), seq), {PAD}"),
            1500,
        ),
        "CREATE TABLE hash (h BINARY(16) PRIMARY KEY, pad TEXT);".to_owned(),
        filled("hash", &format!("UNHEX(MD5(seq)), {PAD}"), 1500),
        "CREATE TABLE money (m DECIMAL(12,4) PRIMARY KEY, pad TEXT);".to_owned(),
        filled("money", &format!("seq * 1.0001 - 1000, {PAD}"), 1500),
        "CREATE TABLE stamp (at DATETIME(6) PRIMARY KEY, pad TEXT);".to_owned(),
        filled(
            "stamp",
            &format!("'2013-01-31 05:00:00' + INTERVAL seq * 7000001 MICROSECOND, {PAD}"),
            1500,
        ),
        "CREATE TABLE zero (day DATE, n INT, pad TEXT, PRIMARY KEY (day, n)); SET sql_mode = '';".to_owned(),
        filled(
            "zero",
            &format!("IF(seq < 1450, '0000-00-00', '2013-01-31'), seq, {PAD}"),
            1500,
        ),
    ];
    let (server, name, url) = database(&sql.concat()).await;
    let (mut node, mut other) = (Node::new(&[("shop", &url)]), Node::new(&[("shop", &url)]));
    (node.checkpoint_rows, other.checkpoint_rows) = (250, 250);
    for (table, key, columns) in [
        ("many", "CAST(id AS CHAR)", "id: text"),
        ("big", "CAST(id AS CHAR)", "id: text"),
        ("uniq", "CAST(id AS CHAR)", "id: text"),
        ("pair", "b", "b: text, a: int"),
        ("word", "w", "w: text"),
        ("old", "CONVERT(w USING utf8mb4)", "w: text"),
        ("hash", "CONCAT('\\\\x', LOWER(HEX(h)))", "h: text"),
        ("money", "CAST(m AS CHAR)", "m: text"),
        ("stamp", "REPLACE(CAST(at AS CHAR), '.000000', '')", "at: text"),
        ("zero", "CAST(n AS CHAR)", "n: text, day: text"),
    ] {
        let mut expected = ids(&server, &name, &format!("SELECT {key} FROM {table}")).await;
        expected.sort();
        assert_eq!(expected.len(), 1500);
        for size in ["64KiB", "1GiB"] {
            let declared = format!("{{mysql: shop, table: {table}, columns: {{{columns}}}, chunk_size: {size}}}");
            let (source, elsewhere) = (node.source(&declared), other.source(&declared));
            let chunks = source.discover(StageId(0)).await.unwrap();
            match (size, table) {
                ("1GiB", _) => assert_eq!(chunks.len(), 1),
                // One day has most of the rows, and a range ends between days.
                (_, "zero") => assert!(chunks.len() > 1, "{}", chunks.len()),
                _ => assert!(chunks.len() > 2, "{table}: {} chunks", chunks.len()),
            }
            let rows = resumes_anywhere(&*source, &*elsewhere).await;
            let mut found = first_column(&rows);
            found.sort();
            assert_eq!(found, expected, "{table} in chunks of {size}");
        }
    }
    // A row is known by its key, and a chunk by its range.
    let source = node.source("{mysql: shop, table: many, chunk_size: 64KiB}");
    let chunks = source.discover(StageId(0)).await.unwrap();
    assert!(
        chunks[0].object.starts_with("shop: many, id to -") && chunks[1].object.contains("shop: many, id from "),
        "{} | {}",
        chunks[0].object,
        chunks[1].object
    );
    let (rows, _) = all(&*source).await.unwrap();
    assert_eq!(
        rows.last().map(|(line, row)| (*line, row[0].as_deref())),
        Some((4000, Some("4000")))
    );
}

#[tokio::test]
async fn keys_at_both_ends_are_covered() {
    let (_server, name, url) = database(&format!(
        "CREATE TABLE ends (id BIGINT PRIMARY KEY, pad MEDIUMTEXT);
         INSERT INTO ends VALUES (-9223372036854775808, {PAD}), (-1, repeat('y', 200000)), (0, {PAD}),
            (9223372036854775807, {PAD});
         CREATE TABLE top (id BIGINT UNSIGNED PRIMARY KEY, pad MEDIUMTEXT);
         INSERT INTO top VALUES (0, {PAD}), (1, repeat('y', 200000)), (18446744073709551615, {PAD});
         ANALYZE TABLE ends, top; CREATE TABLE none (id INT PRIMARY KEY); CREATE TABLE empty (t VARCHAR(3) PRIMARY KEY)"
    ))
    .await;
    let mut node = Node::new(&[("shop", &url)]);
    node.checkpoint_rows = 1;
    for (table, expected) in [
        ("ends", vec!["-9223372036854775808", "-1", "0", "9223372036854775807"]),
        ("top", vec!["0", "1", "18446744073709551615"]),
    ] {
        let declared = format!("{{mysql: shop, table: {name}.{table}, chunk_size: 64KiB}}");
        let (source, other) = (node.source(&declared), node.source(&declared));
        let rows = resumes_anywhere(&*source, &*other).await;
        assert_eq!(first_column(&rows), expected);
        assert!(source.discover(StageId(0)).await.unwrap().len() > 1, "{table}");
    }
    for table in ["none", "empty"] {
        let (rows, chunks) = all(&*node.source(&format!("{{mysql: shop, table: {table}}}")))
            .await
            .unwrap();
        assert_eq!((rows.len(), chunks), (0, 1));
    }
}

#[tokio::test]
async fn views_queries_and_tables_without_a_key_are_one_chunk_that_resumes_anywhere() {
    let sql = format!(
        "CREATE TABLE many (id INT PRIMARY KEY, pad TEXT); {}
         CREATE VIEW seen AS SELECT pad, id FROM many;
         CREATE TABLE heap AS SELECT * FROM many;
         CREATE TABLE maybe (id INT UNIQUE, pad TEXT) AS SELECT * FROM many;
         CREATE TABLE parted (id INT PRIMARY KEY, pad TEXT) PARTITION BY HASH (id) PARTITIONS 3 AS SELECT * FROM many;
         CREATE TABLE kinds (k ENUM('b', 'a'), id INT, pad TEXT, PRIMARY KEY (k, id)) AS SELECT 'a' AS k, many.* FROM many;",
        filled("many", &format!("seq, {PAD}"), 2000)
    );
    let (_server, _, url) = database(&sql).await;
    let (mut node, mut other) = (Node::new(&[("shop", &url)]), Node::new(&[("shop", &url)]));
    (node.checkpoint_rows, other.checkpoint_rows) = (100, 100);
    let mut expected: Vec<String> = (1..=2000).map(|id| id.to_string()).collect();
    expected.sort();
    for (rows, one) in [
        ("table: seen, columns: {id: int}", true),
        ("table: heap", true),
        ("table: maybe", true),
        ("table: kinds, columns: {id: int, k: text}", true),
        ("table: parted", false),
        // Only as a statement of its own does it keep its order there.
        (
            "query: 'SELECT pad, id FROM many ORDER BY pad, id DESC;', columns: {id: int}",
            true,
        ),
    ] {
        let declared = format!("{{mysql: shop, {rows}, chunk_size: 64KiB}}");
        let (source, elsewhere) = (node.source(&declared), other.source(&declared));
        let chunks = source.discover(StageId(0)).await.unwrap().len();
        assert_eq!(chunks == 1, one, "{rows}: {chunks} chunks");
        let read = resumes_anywhere(&*source, &*elsewhere).await;
        if rows.starts_with("query") {
            let ids = first_column(&read);
            assert_eq!((ids[0].as_str(), ids[1999].as_str()), ("2000", "1"));
        }
        let mut found = first_column(&read);
        found.sort();
        assert_eq!(found, expected, "{rows}");
    }
    let lookup = node
        .source("{mysql: shop, table: many, lookup: true}")
        .read_all()
        .await
        .unwrap();
    assert_eq!(lookup.iter().map(|batch| batch.num_rows()).sum::<usize>(), 2000);
}

#[tokio::test]
async fn rows_that_change_are_read_at_most_once_or_not_gone_on_with() {
    let sql = format!(
        "CREATE TABLE many (id INT PRIMARY KEY, pad TEXT); {}
         CREATE TABLE pair (a INT, b INT, pad TEXT, PRIMARY KEY (a, b)); {}",
        filled("many", &format!("seq * 10, {PAD}"), 3000),
        filled("pair", &format!("seq, seq, {PAD}"), 3000)
    );
    let (server, name, url) = database(&sql).await;
    let mut node = Node::new(&[("shop", &url)]);
    node.checkpoint_rows = 100;
    let source = node.source("{mysql: shop, table: many, columns: {id: int}, chunk_size: 64KiB}");
    let chunks = source.discover(StageId(0)).await.unwrap();
    assert!(chunks.len() > 3);

    // A chunk that has begun sees nothing of what comes after.
    let mut reader = source.open(&chunks[0], chunks[0].start).await.unwrap();
    let first = reader.next().await.unwrap().unwrap();
    let churn = "DELETE FROM many WHERE id % 30 = 0; INSERT INTO many SELECT seq * 10 + 1, 'new' FROM seq_1_to_3000;
        UPDATE many SET pad = 'changed'; DELETE FROM pair WHERE a = 1";
    server.execute(&name, churn).await.unwrap();
    let mut seen = first.rows;
    let mut at = first.next;
    let mut places = vec![first.next];
    while let Some(segment) = reader.next().await.unwrap() {
        seen += segment.rows;
        at = segment.next;
        places.push(segment.next);
    }
    let (start, end) = (chunks[0].start.offset, chunks[0].end.unwrap());
    let old = (1..=3000u64)
        .filter(|n| (start..end).contains(&(n * 10 + (1 << 63))))
        .count() as u64;
    assert_eq!(seen, old);
    assert!(at.offset <= end);

    // Behind a checkpoint are the rows of now, each once, and no other checkpoint comes of them than of those before.
    let rest = read(&*source, &chunks[0], places[0]).await.unwrap();
    let ids: Vec<u64> = first_column(&rest.rows).iter().map(|id| id.parse().unwrap()).collect();
    let from = places[0].offset - (1 << 63);
    assert!(ids.is_sorted_by(|a, b| a < b) && ids[0] >= from, "{ids:?}");
    assert!(ids.iter().any(|id| id % 10 == 1) && ids.iter().all(|id| id % 30 != 0));
    let mut again = source.open(&chunks[0], chunks[0].start).await.unwrap();
    assert_ne!(again.next().await.unwrap().unwrap().next, places[0]);

    // Nor where only a value is another.
    let whole = node.source("{mysql: shop, table: many, chunk_size: 64KiB}");
    let mut checkpoints = Vec::new();
    for pad in ["old", "new"] {
        let sql = format!("UPDATE many SET pad = '{pad}' WHERE id = 11");
        server.execute(&name, &sql).await.unwrap();
        let mut reader = whole.open(&chunks[0], chunks[0].start).await.unwrap();
        checkpoints.push(reader.next().await.unwrap().unwrap().next);
    }
    assert_eq!(checkpoints[0].offset, checkpoints[1].offset);
    assert_ne!(checkpoints[0], checkpoints[1]);

    // All chunks together have every row that was there throughout, once.
    let (rows, _) = all(&*source).await.unwrap();
    let mut ids = first_column(&rows);
    let all_of_them = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), all_of_them), (5000, 5000));

    // Rows that are counted have to be the same.
    let source = node.source("{mysql: shop, table: pair, chunk_size: 64KiB}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let mut reader = source.open(&chunk, chunk.start).await.unwrap();
    let whole = read(&*source, &chunk, chunk.start).await.unwrap().rows.len();
    let first = reader.next().await.unwrap().unwrap();
    let (at, key) = (first.next, first.cursor.unwrap());
    drop(reader);
    server
        .execute(&name, "UPDATE pair SET pad = 'changed' WHERE a = 50")
        .await
        .unwrap();
    let Err(refused) = source.open(&chunk, at).await else {
        panic!("other rows were taken for the same");
    };
    assert_eq!(refused.class, Class::Permanent);
    assert!(
        refused.message.contains("the first 100 rows are not those"),
        "{refused}"
    );
    // But behind a key it goes on, whatever has become of the rows before it.
    let rest = read_at(&*source, &chunk, at, Some(&key)).await.unwrap().rows;
    assert_eq!((rest.len(), rest[0].1[0].as_deref()), (whole - 100, Some("102")));
    let Err(refused) = source.open_at(&chunk, at, Some("[\"7\"]")).await else {
        panic!("the checkpoint of another key was taken for one of this");
    };
    assert!(refused.message.contains("is one of another key"), "{refused}");

    // And so has the key.
    server
        .execute(&name, "ALTER TABLE pair DROP PRIMARY KEY, ADD PRIMARY KEY (b, a)")
        .await
        .unwrap();
    let later = node.source("{mysql: shop, table: pair, chunk_size: 64KiB}");
    let Err(refused) = later.open(&chunk, chunk.start).await else {
        panic!("another key was taken for the same");
    };
    assert!(refused.message.contains("key is another one"), "{refused}");
}

#[tokio::test]
async fn a_key_far_from_all_others_costs_one_chunk() {
    let sql = format!(
        "CREATE TABLE far (id BIGINT PRIMARY KEY, pad TEXT NOT NULL, note TEXT); {} INSERT INTO far VALUES \
         (9000000000000000000, 'far', NULL); ANALYZE TABLE far; CREATE VIEW seen AS SELECT * FROM far",
        filled("far", &format!("seq, {PAD}, NULL"), 3000)
    );
    let (_server, _, url) = database(&sql).await;
    let node = Node::new(&[("shop", &url)]);
    let source = node.source("{mysql: shop, table: far, chunk_size: 64KiB}");
    let chunks = source.discover(StageId(0)).await.unwrap();
    assert!(chunks.len() > 3, "{} chunks", chunks.len());
    let mut sizes = Vec::new();
    for chunk in &chunks {
        sizes.push(read(&*source, chunk, chunk.start).await.unwrap().rows.len());
    }
    assert_eq!(sizes.iter().sum::<usize>(), 3001);
    assert!(sizes.iter().all(|rows| *rows < 1500), "{sizes:?}");

    // What never is without a value is said of a table, and nothing of a view.
    let required = async |declared: &str| -> Vec<bool> {
        let columns = node.source(declared).described().await.unwrap();
        columns.iter().map(|column| column.required).collect()
    };
    assert_eq!(required("{mysql: shop, table: far}").await, [true, true, false]);
    assert_eq!(required("{mysql: shop, table: seen}").await, [false, false, false]);
}
