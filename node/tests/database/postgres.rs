//! PostgreSQL: cutting, resuming, types, and errors.

use haulage_core::failure::Class;
use haulage_core::ids::StageId;
use haulage_test_support::postgres::Postgres;

use super::reading::{Node, all, read, resumes_anywhere, values};

/// A database with these statements run, and its address.
async fn database(sql: &str) -> (std::sync::Arc<Postgres>, String, String) {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, sql).await.unwrap();
    let url = server.url(&name);
    (server, name, url)
}

/// 5,000 rows on about a hundred pages, with gaps and rows that were moved.
const MANY: &str = "CREATE TABLE many AS SELECT id, repeat('x', 100) AS pad FROM generate_series(1, 5000) id;
    DELETE FROM many WHERE id % 7 = 0;
    UPDATE many SET pad = 'moved' WHERE id % 5 = 0;";

fn many() -> Vec<Vec<Option<String>>> {
    let pad = |id: i32| {
        if id % 5 == 0 {
            "moved".to_owned()
        } else {
            "x".repeat(100)
        }
    };
    let ids = (1..=5000_i32).filter(|id| id % 7 != 0);
    let mut rows: Vec<_> = ids.map(|id| vec![Some(id.to_string()), Some(pad(id))]).collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn a_table_is_cut_and_resumed_anywhere() {
    let (_server, _, url) = database(MANY).await;
    let (node, other) = (Node::new(&[("crm", &url)]), Node::new(&[("crm", &url)]));
    let declared = "{postgres: crm, table: public.many, chunk_size: 64KiB}";
    let (source, elsewhere) = (node.source(declared), other.source(declared));
    let chunks = source.discover(StageId(0)).await.unwrap();
    assert!(chunks.len() > 5, "{} chunks", chunks.len());
    assert!(
        chunks[1].object.contains("crm: public.many, pages "),
        "{}",
        chunks[1].object
    );
    assert_eq!(values(resumes_anywhere(&*source, &*elsewhere).await), many());
    let (rows, chunks) = all(&*node.source("{postgres: crm, table: many}")).await.unwrap();
    assert_eq!((values(rows), chunks), (many(), 1));
}

#[tokio::test]
async fn views_queries_and_partitions_are_one_chunk_that_resumes_anywhere() {
    let sql = format!(
        "{MANY}
        CREATE VIEW seen AS SELECT pad, id FROM many;
        CREATE TABLE parted (id int, pad text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (2000);
        CREATE TABLE high PARTITION OF parted FOR VALUES FROM (2000) TO (9000);
        INSERT INTO parted SELECT * FROM many;
        CREATE TABLE child () INHERITS (many);
        CREATE MATERIALIZED VIEW kept AS SELECT * FROM ONLY many;"
    );
    let (_server, _, url) = database(&sql).await;
    let (mut node, mut other) = (Node::new(&[("crm", &url)]), Node::new(&[("crm", &url)]));
    (node.checkpoint_rows, other.checkpoint_rows) = (500, 500);
    for (declared, one) in [
        (
            "{postgres: crm, table: seen, columns: {id: int, pad: text}, chunk_size: 64KiB}",
            true,
        ),
        ("{postgres: crm, table: parted, chunk_size: 64KiB}", true),
        ("{postgres: crm, table: many, chunk_size: 64KiB}", true),
        (
            "{postgres: crm, query: 'SELECT id, pad FROM many ORDER BY id;', chunk_size: 64KiB}",
            true,
        ),
        ("{postgres: crm, table: kept, chunk_size: 64KiB}", false),
    ] {
        let (source, elsewhere) = (node.source(declared), other.source(declared));
        let chunks = source.discover(StageId(0)).await.unwrap().len();
        assert_eq!(chunks == 1, one, "{declared}: {chunks} chunks");
        assert_eq!(
            values(resumes_anywhere(&*source, &*elsewhere).await),
            many(),
            "{declared}"
        );
    }
}

#[tokio::test]
async fn of_a_table_with_a_policy_the_user_reads_what_it_sees() {
    let (_server, _, url) = database(
        "DO $$ BEGIN CREATE ROLE tenant LOGIN; EXCEPTION WHEN duplicate_object THEN END $$;
         CREATE TABLE shared AS SELECT id, id % 2 AS whose FROM generate_series(1, 10) id;
         ALTER TABLE shared ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON shared TO tenant USING (whose = 1);
         GRANT SELECT ON shared TO tenant",
    )
    .await;
    let node = Node::new(&[("crm", &url.replace("postgres@", "tenant@"))]);
    let (rows, _) = all(&*node.source("{postgres: crm, table: shared}")).await.unwrap();
    assert_eq!(rows.len(), 5);
    let lookup = node.source("{postgres: crm, table: shared, lookup: true}");
    let batches = lookup.read_all().await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 5);
}

#[tokio::test]
async fn an_empty_table_and_a_lookup() {
    let (_server, _, url) =
        database("CREATE TABLE none (id int); CREATE TABLE few AS SELECT 1 AS id, NULL::text AS t").await;
    let node = Node::new(&[("crm", &url)]);
    let (rows, chunks) = all(&*node.source("{postgres: crm, table: none}")).await.unwrap();
    assert_eq!((rows.len(), chunks), (0, 1));
    let lookup = node
        .source("{postgres: crm, table: few, lookup: true}")
        .read_all()
        .await
        .unwrap();
    assert_eq!(lookup.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
    let strict = node.source("{postgres: crm, table: few, lookup: true, columns: {id: int, t: text!}}");
    let wrong = strict.read_all().await.unwrap_err();
    assert!(
        wrong.message.contains("crm: few row 1, column t: null_in_required"),
        "{wrong}"
    );
}

const TYPES: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE TABLE types (
        id int, s smallint, i int, b bigint, r real, d double precision, ok bool, day date, at timestamp,
        atz timestamptz, n numeric, n2 numeric(20, 4), t text, c char(3), u uuid, j jsonb, a int[], m mood, p positive,
        x bytea, "Odd ""name""" text);
    SET timezone = 'America/New_York';
    INSERT INTO types VALUES
    (1, -32768, -2147483648, -9223372036854775808, 1.17549435e-38, 5e-324, true, '0001-01-01', '0001-01-01',
     '2013-03-10 03:00:00', 0.1, -0.0001, '', 'ab', '00000000-0000-0000-0000-000000000001', '{"a": [1, null]}',
     '{1,NULL}', 'sad', 1, '\x00ff', E'tab\tline\nend\\N'),
    (2, 32767, 2147483647, 9223372036854775807, 3.4028235e38, 1.7976931348623157e308, false, '9999-12-31',
     '9999-12-31 23:59:59.999999', '1970-01-01 00:00:00+00', 123456789012345678901234567890.123456789,
     9999999999999999.9999, 'NULL', 'ü', '00000000-0000-0000-0000-000000000002', '"x"', '{}', 'glad', 7, '', '\N'),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL),
    (4, 0, 0, 0, 'nan', '-infinity', true, '2000-02-29', '2000-02-29 12:00:00.5', '2000-02-29 12:00:00.123456+05:30',
     0, 0, '$1 ''quoted''', '', '00000000-0000-0000-0000-000000000003', 'null', '{{1},{2}}', 'sad', 2, '\x41', 'x');
"#;

#[tokio::test]
async fn values_of_every_type_arrive_as_they_are() {
    let (_server, _, url) = database(TYPES).await;
    let node = Node::new(&[("crm", &url)]);
    let (rows, _) = all(&*node.source("{postgres: crm, table: types}")).await.unwrap();
    let texts: Vec<Vec<&str>> = rows
        .iter()
        .map(|(_, row)| row.iter().map(|value| value.as_deref().unwrap_or("NULL!")).collect())
        .collect();
    assert_eq!(
        texts,
        [
            [
                "1",
                "-32768",
                "-2147483648",
                "-9223372036854775808",
                "1.1754944e-38",
                "5e-324",
                "true",
                "0001-01-01",
                "0001-01-01T00:00:00",
                "2013-03-10T07:00:00Z",
                "0.1",
                "-0.0001",
                "",
                "ab",
                "00000000-0000-0000-0000-000000000001",
                "{\"a\": [1, null]}",
                "{1,NULL}",
                "sad",
                "1",
                "\\x00ff",
                "tab\tline\nend\\N",
            ]
            .to_vec(),
            [
                "2",
                "32767",
                "2147483647",
                "9223372036854775807",
                "3.4028235e38",
                "1.7976931348623157e308",
                "false",
                "9999-12-31",
                "9999-12-31T23:59:59.999999",
                "1970-01-01T00:00:00Z",
                "123456789012345678901234567890.123456789",
                "9999999999999999.9999",
                "NULL",
                "ü",
                "00000000-0000-0000-0000-000000000002",
                "\"x\"",
                "{}",
                "glad",
                "7",
                "\\x",
                "\\N",
            ]
            .to_vec(),
            [vec!["3"], vec!["NULL!"; 20]].concat(),
            [
                "4",
                "0",
                "0",
                "0",
                "NaN",
                "-inf",
                "true",
                "2000-02-29",
                "2000-02-29T12:00:00.500",
                "2000-02-29T06:30:00.123456Z",
                "0",
                "0.0000",
                "$1 'quoted'",
                "",
                "00000000-0000-0000-0000-000000000003",
                "null",
                "{{1},{2}}",
                "sad",
                "2",
                "\\x41",
                "x",
            ]
            .to_vec(),
        ]
    );
}

#[tokio::test]
async fn declared_types_are_held_to_and_misfits_go_to_quarantine() {
    let (_server, _, url) = database(TYPES).await;
    let mut node = Node::new(&[("crm", &url)]);
    node.checkpoint_rows = 100;
    let declared = "{postgres: crm, table: types, columns: {n2: \"decimal(20,4)\", b: int, id: text, day: text!}}";
    let source = node.source(declared);
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let got = read(&*source, &chunk, chunk.start).await.unwrap();
    let some = |values: &[&str]| values.iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>();
    assert_eq!(got.rows, [(4, some(&["0.0000", "0", "4", "2000-02-29"]))]);
    let reasons: Vec<_> = got
        .unreadable
        .iter()
        .map(|(why, raw)| (why.row, why.column.as_deref().unwrap(), why.reason, raw.as_str()))
        .collect();
    assert_eq!(
        reasons,
        [
            (0, "b", "out_of_range", "-0.0001\t-9223372036854775808\t1\t0001-01-01"),
            (
                1,
                "b",
                "out_of_range",
                "9999999999999999.9999\t9223372036854775807\t2\t9999-12-31"
            ),
            (2, "day", "null_in_required", "\\N\t\\N\t3\t\\N"),
        ]
    );
    // What no type of a pipeline file can hold is in quarantine, and not lost.
    let query =
        "{postgres: crm, query: \"SELECT 1 AS id, 'infinity'::timestamp AS at UNION ALL SELECT 2, '2013-01-01 BC'\"}";
    let source = node.source(query);
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let got = read(&*source, &chunk, chunk.start).await.unwrap();
    let reasons: Vec<_> = got.unreadable.iter().map(|(why, _)| why.reason).collect();
    assert_eq!((got.rows.len(), reasons), (0, vec!["bad_timestamp"; 2]));
}

#[tokio::test]
async fn parameters_are_bound_as_values_of_their_types() {
    let (_server, _, url) = database(MANY).await;
    let node = Node::new(&[("crm", &url)]);
    let query = r#"{postgres: crm, query: "SELECT $name::text AS name, $day + 1 AS day, $top AS top, $at AS at, $n AS n, $ok AS ok, '$name' AS q FROM many WHERE id < $top AND $name <> ''"}"#;
    let params = r#"name: text, day: date, top: int, at: timestamptz, n: "decimal(6,2)", ok: bool"#;
    let given = [
        ("name", "'; DROP TABLE many; --"),
        ("day", "2013-01-31"),
        ("top", "2"),
        ("at", "2013-01-31T05:00:00+01:00"),
        ("n", "12.5"),
        ("ok", "true"),
    ];
    let source = node.source_with(query, params, &given);
    let (rows, _) = all(&*source).await.unwrap();
    let row: Vec<&str> = rows[0].1.iter().map(|value| value.as_deref().unwrap()).collect();
    assert_eq!(
        row,
        [
            "'; DROP TABLE many; --",
            "2013-02-01",
            "2",
            "2013-01-31T04:00:00Z",
            "12.50",
            "true",
            "$name"
        ]
    );
    assert_eq!(rows.len(), 1);
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_no_secret() {
    let (server, _, url) = database("CREATE TABLE t (id int, ID2 int)").await;
    let free = haulage_test_support::free_port().unwrap();
    let away = format!("postgres://u:hunter2@127.0.0.1:{free}/db");
    let wrong_password = server.url_with_password("hunter2");
    let node = Node::new(&[
        ("crm", &url),
        ("away", &away),
        ("locked", &wrong_password),
        ("odd", "mysql://u:hunter2@h/d"),
        ("none", &server.url("no_such_database")),
    ]);
    for (declared, class, words) in [
        (
            "{postgres: crm, table: public.missing}",
            Class::Permanent,
            "correct the `table`",
        ),
        (
            "{postgres: crm, table: nowhere.t}",
            Class::Permanent,
            "correct the `table`",
        ),
        (
            "{postgres: crm, table: t, columns: {ib: int}}",
            Class::Permanent,
            "it has no column `ib`; did you mean `id`?",
        ),
        (
            "{postgres: crm, query: SELECT nope FROM t}",
            Class::Permanent,
            "column \"nope\" does not exist",
        ),
        (
            "{postgres: crm, query: SELECT 1 AS a; DROP TABLE t}",
            Class::Permanent,
            "syntax error",
        ),
        (
            "{postgres: crm, query: \"SELECT id, id FROM t\"}",
            Class::Permanent,
            "several columns `id`",
        ),
        (
            "{postgres: crm, query: DELETE FROM t RETURNING id}",
            Class::Permanent,
            "syntax error",
        ),
        (
            "{postgres: crm, query: SELECT FROM t}",
            Class::Permanent,
            "it has no columns",
        ),
        ("{postgres: away, table: t}", Class::Transient, "connection refused"),
        ("{postgres: locked, table: t}", Class::Permanent, "wrong password"),
        (
            "{postgres: none, table: t}",
            Class::Permanent,
            "the database does not exist",
        ),
        ("{postgres: odd, table: t}", Class::Permanent, "none of a PostgreSQL"),
        (
            "{postgres: unknown, table: t}",
            Class::Permanent,
            "HAULAGE_SOURCE_UNKNOWN",
        ),
    ] {
        let source = node.source(declared);
        for failure in [
            source.check().await.unwrap_err().failure,
            source.discover(StageId(0)).await.unwrap_err(),
        ] {
            assert_eq!(failure.class, class, "{declared}: {failure}");
            assert!(
                failure.message.contains(words) && failure.message.contains("source s"),
                "{declared}: {failure}"
            );
            assert!(!failure.message.contains("hunter2"), "{failure}");
        }
    }
}

#[tokio::test]
async fn rows_that_a_policy_finds_by_an_index_come_in_their_places() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    let sql = "CREATE ROLE seller LOGIN; ALTER ROLE seller SET enable_bitmapscan = off;
        CREATE TABLE many (id int, owner text, pad text);
        INSERT INTO many SELECT id, CASE WHEN id % 200 = 0 THEN 'seller' ELSE 'other' END, repeat('x', 100)
            FROM generate_series(1, 20000) id;
        CREATE INDEX ON many (owner, id DESC); ALTER TABLE many ENABLE ROW LEVEL SECURITY;
        CREATE POLICY own ON many USING (owner = current_user); GRANT SELECT ON many TO seller; ANALYZE many";
    server.execute(&name, sql).await.unwrap();
    let node = Node::new(&[("crm", &server.url_as("seller", &name))]);
    let (rows, _) = all(&*node.source("{postgres: crm, table: many, columns: {id: int}}"))
        .await
        .unwrap();
    let ids: Vec<u32> = rows
        .iter()
        .map(|(_, row)| row[0].as_deref().unwrap().parse().unwrap())
        .collect();
    assert_eq!(ids, (1..=100).map(|id| id * 200).collect::<Vec<u32>>());
}

#[tokio::test]
async fn what_a_table_says_of_its_columns_is_described() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    let sql = "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(10, 2) NOT NULL, free numeric, note text);
        CREATE VIEW seen AS SELECT * FROM orders";
    server.execute(&name, sql).await.unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    for (declared, expected) in [
        (
            "{postgres: crm, table: orders}",
            ["bigint!", "decimal(10,2)!", "text", "text"],
        ),
        ("{postgres: crm, table: seen}", ["bigint", "text", "text", "text"]),
    ] {
        let columns = node.source(declared).described().await.unwrap();
        let found: Vec<String> = columns
            .iter()
            .map(|column| {
                let required = if column.required { "!" } else { "" };
                format!("{}{required}", haulage_plan::types::name(&column.data_type))
            })
            .collect();
        assert_eq!(found, expected, "{declared}");
    }
}
