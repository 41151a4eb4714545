//! PostgreSQL's binary values: what is read of them is what is read of the texts that the server writes, for values at the
//! edges of every type and columns of every declared type; and what happens when a COPY ends early.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _};
use datafusion::arrow::datatypes::UInt64Type;
use datafusion::arrow::util::display::array_value_to_string;

use haulage_core::failure::Class;
use haulage_core::ids::StageId;
use haulage_node::source::{Source, Unreadable};
use haulage_test_support::postgres::Postgres;
use haulage_test_support::proxy::Proxy;
use haulage_test_support::{PATIENCE, until};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};

use super::reading::{Node, read};

/// A type of the server, values of it at its edges, and how others are made.
struct Kind {
    sql: &'static str,
    edges: &'static [&'static str],
    others: BoxedStrategy<String>,
    /// Whether its values come otherwise than as text.
    is_binary: bool,
}

fn kinds() -> Vec<Kind> {
    let kind = |sql, edges, others| Kind {
        sql,
        edges,
        others,
        is_binary: true,
    };
    let text = |sql, edges| Kind {
        sql,
        edges,
        others: Just("NULL".to_owned()).boxed(),
        is_binary: false,
    };
    // From 4714 BC to the year 5874897, mostly near what columns here hold.
    let days = || prop_oneof![4 => -800_000..3_000_000i64, 1 => -2_440_000..100_000_000i64];
    let moment = |sql: &'static str| {
        let seconds =
            prop_oneof![2 => -70_000_000_000..260_000_000_000i64, 1 => -185_000_000_000..9_000_000_000_000i64];
        // Fractions of 6, 4, 2 and no digits.
        let text = move |(seconds, micros, zeros): (i64, i64, u32)| {
            let unit = 100i64.pow(zeros);
            let micros = micros / unit * unit;
            format!("'2000-01-01'::{sql} + interval '{seconds} seconds {micros} microseconds'")
        };
        (seconds, 0..1_000_000i64, 0..4u32).prop_map(text).boxed()
    };
    vec![
        kind(
            "bool",
            &["true", "false"],
            any::<bool>().prop_map(|value| format!("'{value}'")).boxed(),
        ),
        kind(
            "int2",
            &["-32768", "32767", "0"],
            any::<i16>().prop_map(|value| format!("'{value}'")).boxed(),
        ),
        kind(
            "int4",
            &["-2147483648", "2147483647", "32768"],
            any::<i32>().prop_map(|value| format!("'{value}'")).boxed(),
        ),
        kind(
            "int8",
            &["-9223372036854775808", "9223372036854775807", "2147483648", "-1"],
            any::<i64>().prop_map(|value| format!("'{value}'")).boxed(),
        ),
        kind(
            "float4",
            &[
                "NaN",
                "Infinity",
                "-Infinity",
                "-0",
                "1e6",
                "999999",
                "1e-4",
                "1e-5",
                "3.4028235e38",
                "1e-45",
                "16777216",
            ],
            any::<u32>()
                .prop_map(f32::from_bits)
                .prop_map(|value| format!("'{value:e}'"))
                .boxed(),
        ),
        kind(
            "float8",
            &[
                "NaN",
                "Infinity",
                "-Infinity",
                "-0",
                "1e15",
                "999999999999999",
                "1e-4",
                "1e-5",
                "1.7976931348623157e308",
                "5e-324",
                "0.1",
                "3.5e38",
            ],
            any::<u64>()
                .prop_map(f64::from_bits)
                .prop_map(|value| format!("'{value:e}'"))
                .boxed(),
        ),
        kind(
            "numeric",
            &[
                "NaN",
                "0",
                "0.00",
                "-0.0001",
                "10000",
                "99999999.99",
                "100000000.00",
                "0.005",
                "1e100",
                "1e-100",
                "1e131071",
                "99999999999999999999999999999999999999",
                "100000000000000000000000000000000000000",
                "1.230",
                "-12345678.9",
            ],
            (-6..30i32, any::<i64>(), 0..20usize, any::<bool>())
                .prop_map(|(exponent, value, zeros, small)| {
                    let value = if small { value % 100_000 } else { value };
                    format!("'{value}e{}'::numeric * 1.{}", exponent - 12, "0".repeat(zeros))
                })
                .prop_map(|sql| format!("({sql})::text"))
                .boxed(),
        ),
        kind(
            "date",
            &[
                "infinity",
                "-infinity",
                "4714-11-24 BC",
                "0001-12-31 BC",
                "0001-01-01",
                "9999-12-31",
                "10000-01-01",
                "5874897-12-31",
                "2000-02-29",
                "1970-01-01",
                "1999-12-31",
            ],
            days()
                .prop_map(|days| format!("('2000-01-01'::date + {days})::text"))
                .boxed(),
        ),
        kind(
            "time",
            &["00:00", "24:00:00", "23:59:59.999999", "12:30:00.1"],
            (0..86_400i64, 0..1_000_000i64)
                .prop_map(|(s, m)| format!("('00:00'::time + interval '{s} seconds {m} microseconds')::text"))
                .boxed(),
        ),
        kind(
            "timestamp",
            &[
                "infinity",
                "-infinity",
                "4714-11-24 00:00 BC",
                "0001-12-31 23:59:59.999999 BC",
                "0001-01-01 00:00",
                "9999-12-31 23:59:59.999999",
                "10000-01-01 00:00",
                "294276-12-31 23:59:59.999999",
                "1999-12-31 23:59:59.999999",
                "2000-01-01 00:00:00.5",
                "2000-01-01 00:00:00.120",
            ],
            moment("timestamp"),
        ),
        kind(
            "timestamptz",
            &[
                "infinity",
                "-infinity",
                "4714-11-24 00:00+00 BC",
                "0001-01-01 00:00+00",
                "0001-12-31 23:59:59.999999+00 BC",
                "9999-12-31 23:59:59.999999+00",
                "10000-01-01 00:00+00",
                "294276-12-31 23:59:59.999999+00",
                "2013-03-10 03:00:00-05",
                "2000-01-01 00:00:00.5+05:30",
            ],
            moment("timestamptz"),
        ),
        kind(
            "uuid",
            &[
                "00000000-0000-0000-0000-000000000000",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ],
            any::<u128>().prop_map(|value| format!("'{value:032x}'")).boxed(),
        ),
        text(
            "text",
            &["", "\\N", "tab\tline\nend\\", "ü", "NULL", "12", "2013-01-31", "true"],
        ),
        text("varchar(9)", &["", "ü", "\\N", "1.5"]),
        text("char(4)", &["", "ab", "abcd", "12"]),
        text("name", &["a", "ü"]),
        text("\"char\"", &["a", ""]),
        text("bytea", &["", "\\x00ff"]),
        text("json", &["{\"a\":  [1, null]}", "null", "\"\\u00fc\""]),
        text("jsonb", &["{\"a\":  [1, null]}", "null", "1.50"]),
        text("interval", &["1 mon -1 day 00:00:01.5", "0"]),
        text("timetz", &["12:00:00+05:30"]),
        text("int4[]", &["{1,NULL}", "{}"]),
        text("inet", &["10.0.0.1/8", "::1"]),
        text("oid", &["4294967295"]),
        text("bit(3)", &["101"]),
        text("mood", &["sad"]),
        text("positive", &["7"]),
        text("share", &["0.25"]),
    ]
}

/// The types that a pipeline file can declare, and whether values that come as text are read as them too.
const DECLARED: [(&str, bool); 14] = [
    ("smallint", false),
    ("int", true),
    ("bigint!", false),
    ("float", false),
    ("double", false),
    ("bool", false),
    ("date", false),
    ("timestamp", false),
    ("timestamptz", true),
    ("decimal(10,2)", false),
    ("decimal(38,10)", false),
    ("decimal(5,0)!", false),
    ("text", true),
    ("text!", false),
];

const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE DOMAIN share AS numeric(6,3); SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET extra_float_digits = 3;";

/// A table with a column for each type, and rows of values.
fn filled(kinds: &[Kind], rows: usize, runner: &mut TestRunner) -> String {
    let columns: Vec<String> = kinds
        .iter()
        .enumerate()
        .map(|(at, kind)| format!("c{at} {}", kind.sql))
        .collect();
    let mut sql = format!("{TYPES} CREATE TABLE t (id int PRIMARY KEY, {});", columns.join(", "));
    for row in 0..rows {
        let value = |kind: &Kind| match kind.edges.get(row) {
            Some(edge) => format!("'{}'::text::{}", edge.replace('\'', "''"), kind.sql),
            None => {
                let made = kind.others.new_tree(runner).unwrap().current();
                match row % 5 {
                    0 => format!("NULL::{}", kind.sql),
                    _ => format!("({made})::text::{}", kind.sql.replace("NULL", "")),
                }
            }
        };
        let values: Vec<String> = kinds.iter().map(value).collect();
        writeln!(sql, "INSERT INTO t VALUES ({row}, {});", values.join(", ")).unwrap();
    }
    sql
}

/// Everything there is to know of a row.
#[derive(Debug, PartialEq)]
struct Told {
    raw: String,
    /// The values, where the text doesn't tell them.
    odd: Option<Vec<Option<String>>>,
    /// What was read, or why nothing.
    read: Result<Vec<Option<String>>, Unreadable>,
}

/// What comes of a source that is one chunk.
async fn told(source: &dyn Source) -> Vec<Told> {
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let mut reader = source.open(&chunk, chunk.start).await.unwrap();
    let mut all = Vec::new();
    while let Some(segment) = reader.next().await.unwrap() {
        let mut read = BTreeMap::new();
        for batch in &segment.batches {
            let (places, columns) = batch.columns().split_last().unwrap();
            for (at, row) in places.as_primitive::<UInt64Type>().values().iter().enumerate() {
                let value =
                    |column: &ArrayRef| (!column.is_null(at)).then(|| array_value_to_string(column, at).unwrap());
                read.insert(*row, Ok(columns.iter().map(value).collect()));
            }
        }
        read.extend(segment.unreadable.iter().map(|bad| (bad.row, Err(bad.clone()))));
        assert_eq!(read.len() as u64, segment.rows);
        for (row, read) in read {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let odd = segment.raw.values(row);
            all.push(Told {
                raw: text(segment.raw.row(row).unwrap().1),
                odd: odd.map(|values| values.into_iter().map(|value| value.map(text)).collect()),
                read,
            });
        }
    }
    all
}

fn assert_same(what: &str, binary: &[Told], texts: &[Told]) {
    assert_eq!(binary.len(), texts.len(), "{what}");
    for (mine, theirs) in binary.iter().zip(texts) {
        assert_eq!(mine, theirs, "{what}");
    }
}

#[test]
fn binary_values_are_what_their_texts_are() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Config::default());
    let kinds = kinds();
    runtime.block_on(async {
        let server = Postgres::shared().await.unwrap();
        let name = server.database().await.unwrap();
        server.execute(&name, &filled(&kinds, 160, &mut runner)).await.unwrap();
        let url = server.url(&name);
        let mut node = Node::new(&[("crm", &url)]);
        node.checkpoint_rows = 61;
        for (declared, is_for_all) in DECLARED {
            for (at, kind) in kinds
                .iter()
                .enumerate()
                .filter(|(_, kind)| is_for_all || kind.is_binary)
            {
                let columns = format!("columns: {{c{at}: \"{declared}\"}}");
                let text = format!("c{at}::text");
                let query = |value: String| {
                    node.source(&format!(
                        "{{postgres: crm, query: \"SELECT {value} AS c{at} FROM t ORDER BY id\", {columns}}}"
                    ))
                };
                let binary = told(&*query(format!("c{at}"))).await;
                let texts = told(&*query(text)).await;
                assert_same(&format!("{} as {declared}", kind.sql), &binary, &texts);
            }
        }
        // All of them in rows, by places, and resumed.
        let all = node.source("{postgres: crm, table: t}");
        let texts: Vec<String> = (0..kinds.len()).map(|at| format!("c{at}::text")).collect();
        let texts = node.source(&format!(
            "{{postgres: crm, query: \"SELECT id::text, {} FROM t ORDER BY t.id\"}}",
            texts.join(", ")
        ));
        let (all, texts) = (told(&*all).await, told(&*texts).await);
        let raw = |row: &Told| (row.raw.clone(), row.odd.clone());
        assert_eq!(all.len(), texts.len());
        assert!(all.iter().zip(&texts).all(|(mine, theirs)| raw(mine) == raw(theirs)));
        assert!(all.iter().any(|row| row.odd.is_some()), "some hold tabs");
    });
}

/// Floats beside which the middle to the next is a decimal of few digits: `q * 5^k` times a power of two is the middle, and
/// odd. And many others of that size.
const FLOATS: &str = "CREATE TABLE t AS
    WITH odd AS (
        SELECT bits, k, p, size * 5::numeric ^ k AS odd
        FROM (VALUES (25, 10), (54, 23)) AS types (bits, deepest), generate_series(1, deepest) AS k,
            generate_series(0, 4) AS p,
            LATERAL (SELECT trunc(2::numeric ^ (bits - 1) / 5::numeric ^ k) AS least) AS bounds,
            LATERAL (SELECT trunc(least * (1 + i / 40.0)) + j AS size FROM generate_series(0, 40) AS i, generate_series(0, 1) AS j)
                AS sizes
    ), floats AS (
        SELECT bits, ((odd + side) / 2) * 2::numeric ^ (k + p + 1) AS value
        FROM odd, (VALUES (-1), (1)) AS sides (side)
        WHERE odd % 2 = 1 AND odd BETWEEN 2::numeric ^ (bits - 1) AND 2::numeric ^ bits
        UNION ALL
        SELECT 54, trunc(sin(i)::numeric * 1e20) FROM generate_series(1, 4000) AS i
    )
    SELECT row_number() OVER () AS id, value::float4 AS single, value::float8 AS double FROM floats";

#[tokio::test]
async fn floats_have_the_digits_of_the_server_where_others_would_do() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server.execute(&name, FLOATS).await.unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    let read = |columns: &str| {
        node.source(&format!(
            "{{postgres: crm, query: \"SELECT id, {columns} FROM t ORDER BY id\"}}"
        ))
    };
    let binary = told(&*read("single, double")).await;
    let texts = told(&*read("single::text, double::text")).await;
    assert!(binary.len() > 6_000, "{}", binary.len());
    for (mine, theirs) in binary.iter().zip(&texts) {
        assert_eq!(mine.raw, theirs.raw);
    }
    assert_eq!(binary.len(), texts.len());
}

#[tokio::test]
async fn a_column_that_becomes_another_type_is_read_as_what_it_is() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server
        .execute(&name, "CREATE TABLE t AS SELECT 7 AS a, 1.5::float8 AS b")
        .await
        .unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    let source = node.source("{postgres: crm, table: t, lookup: true}");
    assert_eq!(source.columns().await.unwrap().len(), 2);
    // Both have the same width as before.
    server
        .execute(
            &name,
            "ALTER TABLE t ALTER a TYPE real USING 8, ALTER b TYPE bigint USING 3",
        )
        .await
        .unwrap();
    let rows = source.read_all().await.unwrap();
    let shown = datafusion::arrow::util::pretty::pretty_format_batches(&rows)
        .unwrap()
        .to_string();
    assert!(shown.contains("| 8 | 3.0 | 0"), "{shown}");
}

#[tokio::test]
async fn an_error_in_the_middle_of_the_rows_is_the_servers_own() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    let node = Node::new(&[("crm", &server.url(&name))]);
    for (query, class, words) in [
        (
            "SELECT 1 / (50000 - id) AS a FROM generate_series(1, 90000) id",
            Class::Permanent,
            "division by zero",
        ),
        (
            "SELECT repeat('x', 17000000) AS a UNION ALL SELECT 'y'",
            Class::Permanent,
            "a row is longer than 16 MiB; leave the large column out",
        ),
    ] {
        let source = node.source(&format!("{{postgres: crm, query: \"{query}\"}}"));
        let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
        let failure = read(&*source, &chunk, chunk.start).await.unwrap_err();
        assert_eq!(failure.class, class, "{failure}");
        assert!(
            failure.message.contains(words) && failure.message.starts_with("source s: "),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_transient_and_a_reader_that_is_dropped_leaves_no_session() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server
        .execute(
            &name,
            "CREATE TABLE t AS SELECT id, repeat('x', 100) AS pad FROM generate_series(1, 60000) id",
        )
        .await
        .unwrap();
    let proxy = Proxy::start(server.port()).await.unwrap();
    let through = server
        .url(&name)
        .replace(&server.port().to_string(), &proxy.port().to_string());
    let node = Node::new(&[("crm", &through)]);
    let source = node.source("{postgres: crm, table: t, chunk_size: 1GiB}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    proxy.cut_answers_after(2 << 20);
    let cut = read(&*source, &chunk, chunk.start).await.unwrap_err();
    assert!(cut.class == Class::Transient && proxy.cuts() > 0, "{cut}");
    assert!(cut.message.contains("source s: connection crm (PostgreSQL at"), "{cut}");

    let node = Node::new(&[("crm", &server.url(&name))]);
    let source = node.source("{postgres: crm, table: t, chunk_size: 1GiB}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let mut reader = source.open(&chunk, chunk.start).await.unwrap();
    reader.next().await.unwrap().unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY (SELECT%'";
    let pool = server.pool(&name).await.unwrap();
    let copying: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
    assert_eq!(copying, 1, "rows come by COPY");
    drop(reader);
    until("the session to end", PATIENCE, async || {
        let copying: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await?;
        Ok((copying == 0).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_segment_is_bounded_by_texts_that_are_longer_than_their_bytes() {
    let server = Postgres::shared().await.unwrap();
    let name = server.database().await.unwrap();
    server
        .execute(&name, "CREATE TABLE t AS SELECT ('1e' || 131000 + id)::numeric AS n FROM generate_series(1, 70) id, generate_series(1, 3)")
        .await
        .unwrap();
    let mut node = Node::new(&[("crm", &server.url(&name))]);
    node.checkpoint_rows = 1000;
    for declared in ["text", "decimal(38,2)"] {
        let source = node.source(&format!("{{postgres: crm, table: t, columns: {{n: \"{declared}\"}}}}"));
        let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
        let mut reader = source.open(&chunk, chunk.start).await.unwrap();
        let (mut rows, mut segments) = (0, 0);
        while let Some(segment) = reader.next().await.unwrap() {
            let texts: usize = (0..segment.rows).map(|row| segment.raw.row(row).unwrap().1.len()).sum();
            assert!(texts <= 9 << 20, "{texts} bytes");
            rows += segment.rows;
            segments += 1;
        }
        assert_eq!((rows, segments), (210, 4), "{declared}");
    }
}

#[tokio::test]
async fn only_columns_that_are_read_have_to_be_readable() {
    let server = Postgres::start().await.unwrap();
    server
        .execute(
            "postgres",
            "CREATE TABLE t AS SELECT 1 AS a, 2 AS b; GRANT SELECT (a) ON t TO locked",
        )
        .await
        .unwrap();
    let url = server.url_with_password(&haulage_test_support::postgres::PASSWORD.replace(' ', "%20"));
    let node = Node::new(&[("crm", &url)]);
    let source = node.source("{postgres: crm, query: SELECT a FROM t, columns: {a: int}}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    assert_eq!(read(&*source, &chunk, chunk.start).await.unwrap().rows.len(), 1);
}
