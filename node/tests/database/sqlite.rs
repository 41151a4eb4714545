//! SQLite: cutting, resuming, values of any type in any column, changes, and errors.

use std::path::Path;

use haulage_core::failure::Class;
use haulage_core::ids::StageId;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, SqliteConnection};
use tempfile::TempDir;

use super::reading::{Node, all, read, resumes_anywhere, values};

async fn connect(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    options.connect().await.unwrap()
}

async fn execute(path: &Path, sql: &str) {
    use sqlx::Connection as _;
    let mut connection = connect(path).await;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// A folder with `notes.db`, in which these statements have run, and a node whose paths are relative to it.
async fn notes(sql: &str) -> (TempDir, std::path::PathBuf, Node) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.db");
    execute(&path, sql).await;
    let mut node = Node::new(&[]);
    node.base = folder.path().to_str().unwrap().to_owned();
    (folder, path, node)
}

const MANY: &str = "CREATE TABLE many (id INTEGER PRIMARY KEY, pad TEXT);
    WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 3000)
    INSERT INTO many SELECT id * 3 - 5000, 'row ' || id || hex(zeroblob(50)) FROM n;
    CREATE VIEW seen AS SELECT pad, id FROM many;
    CREATE TABLE keyed (id INTEGER PRIMARY KEY, pad TEXT) WITHOUT ROWID;
    INSERT INTO keyed SELECT * FROM many;
    CREATE TABLE shadowed (rowid TEXT, _ROWID_ TEXT, oid TEXT, id INT, pad TEXT);
    INSERT INTO shadowed SELECT 'a', 'b', 'c', id, pad FROM many;
    CREATE TABLE renamed (id INT, pad TEXT, rowid TEXT);
    INSERT INTO renamed SELECT id, pad, 'x' FROM many;";

fn many() -> Vec<Vec<Option<String>>> {
    let row = |n: i64| {
        vec![
            Some((n * 3 - 5000).to_string()),
            Some(format!("row {n}{}", "00".repeat(50))),
        ]
    };
    let mut rows: Vec<_> = (1..=3000).map(row).collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn tables_views_and_queries_are_covered_once_and_resumed_anywhere() {
    let (_folder, _, mut node) = notes(MANY).await;
    node.checkpoint_rows = 100;
    for (rows, one) in [
        ("table: many", false),
        ("table: MANY", false),
        ("table: seen, columns: {id: bigint, pad: text}", true),
        ("table: keyed", true),
        ("table: shadowed, columns: {id: bigint, pad: text}", true),
        ("table: renamed, columns: {id: bigint, pad: text}", false),
        ("query: 'SELECT id, pad FROM many;'", true),
    ] {
        let declared = format!("{{sqlite: notes.db, {rows}, chunk_size: 64KiB}}");
        let (source, other) = (node.source(&declared), node.source(&declared));
        let chunks = source.discover(StageId(0)).await.unwrap().len();
        assert_eq!(chunks == 1, one, "{rows}: {chunks} chunks");
        assert_eq!(values(resumes_anywhere(&*source, &*other).await), many(), "{rows}");
    }
    // A row of a table is known by its id.
    let source = node.source("{sqlite: notes.db, table: many}");
    let (rows, _) = all(&*source).await.unwrap();
    let (line, row) = rows.last().unwrap();
    assert_eq!((*line, row[0].as_deref()), (4000, Some("4000")));
}

#[tokio::test]
async fn row_ids_at_both_ends_are_covered() {
    let sql = "CREATE TABLE ends (id INTEGER PRIMARY KEY);
        INSERT INTO ends VALUES (-9223372036854775808), (-1), (0), (9223372036854775807);
        CREATE TABLE big AS SELECT hex(zeroblob(300000)) AS x;
        CREATE TABLE none (id INTEGER)";
    let (_folder, _, mut node) = notes(sql).await;
    node.checkpoint_rows = 1;
    let declared = "{sqlite: notes.db, table: ends, chunk_size: 64KiB}";
    let (source, other) = (node.source(declared), node.source(declared));
    let rows = resumes_anywhere(&*source, &*other).await;
    let ids: Vec<_> = rows.iter().map(|(_, row)| row[0].clone().unwrap()).collect();
    assert_eq!(ids, ["-9223372036854775808", "-1", "0", "9223372036854775807"]);
    assert!(source.discover(StageId(0)).await.unwrap().len() > 4);
    let (rows, chunks) = all(&*node.source("{sqlite: notes.db, table: none}")).await.unwrap();
    assert_eq!((rows.len(), chunks), (0, 1));
}

#[tokio::test]
async fn values_arrive_as_they_are_and_what_does_not_fit_goes_to_quarantine() {
    let sql = "CREATE TABLE v (id INTEGER PRIMARY KEY, i INT, r REAL, t TEXT, b BOOLEAN, d DATE, x BLOB, n);
        INSERT INTO v VALUES (1, 9223372036854775807, 0.1, '', 1, '2013-01-31', x'00ff', 1),
            (2, -9223372036854775808, 1e308, 'ü', 0, 'never', NULL, 'text'), (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
            (4, 'seven', 5e-324, 'x', 1, NULL, x'', 2.5), (5, 1, 1, CAST(x'41ff' AS TEXT), 1, NULL, NULL, NULL),
            (6, 1, 1, 'a' || char(0) || 'b', 7, NULL, NULL, NULL)";
    let (_folder, _, mut node) = notes(sql).await;
    node.checkpoint_rows = 100;
    let source = node.source("{sqlite: notes.db, table: v}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let got = read(&*source, &chunk, chunk.start).await.unwrap();
    let texts: Vec<Vec<&str>> = got
        .rows
        .iter()
        .map(|(_, row)| row.iter().map(|value| value.as_deref().unwrap_or("NULL!")).collect())
        .collect();
    assert_eq!(
        texts,
        [
            [
                "1",
                "9223372036854775807",
                "0.1",
                "",
                "true",
                "2013-01-31",
                "\\x00ff",
                "1"
            ]
            .to_vec(),
            [
                "2",
                "-9223372036854775808",
                "1e308",
                "ü",
                "false",
                "never",
                "NULL!",
                "text"
            ]
            .to_vec(),
            [vec!["3"], vec!["NULL!"; 7]].concat(),
        ]
    );
    let reasons: Vec<_> = got
        .unreadable
        .iter()
        .map(|(why, _)| (why.row, why.column.as_deref().unwrap(), why.reason))
        .collect();
    assert_eq!(
        reasons,
        [(3, "i", "bad_int"), (4, "t", "bad_utf8"), (5, "t", "nul_byte")]
    );
    // Declared, they are dates.
    let source = node.source("{sqlite: notes.db, table: v, columns: {d: date, id: int}}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let got = read(&*source, &chunk, chunk.start).await.unwrap();
    assert_eq!(
        got.rows[0],
        (1, vec![Some("2013-01-31".to_owned()), Some("1".to_owned())])
    );
    assert_eq!(got.unreadable[0].0.reason, "bad_date");
}

#[tokio::test]
async fn parameters_are_bound() {
    let (_folder, _, node) = notes("CREATE TABLE t (id INT, name TEXT, at TEXT); INSERT INTO t VALUES (1, '$x', '2013-01-31 05:00:00'), (2, 'b', NULL)").await;
    let query =
        "{sqlite: notes.db, query: \"SELECT id, '$no' AS q FROM t WHERE name = $x AND at = $at AND id < $top\"}";
    let given = [("x", "$x"), ("at", "2013-01-31T05:00:00"), ("top", "2")];
    let source = node.source_with(query, "x: text, at: timestamp, top: int", &given);
    let (rows, _) = all(&*source).await.unwrap();
    assert_eq!(values(rows), [[Some("1".to_owned()), Some("$no".to_owned())]]);
}

/// Times are texts there, and compare as such where SQL doesn't say otherwise; README says how.
#[tokio::test]
async fn times_of_any_form_compare_by_the_functions_of_sqlite() {
    let (_folder, _, node) = notes(
        "CREATE TABLE t (id INT, at TEXT); INSERT INTO t VALUES (1, '2013-01-30'), (2, '2013-01-31'), (3, '2013-01-31 00:00:00'), \
         (4, '2013-01-31T05:00:00Z'), (5, '2013-01-31 05:00:01'), (6, '2013-02-01'), (7, '2013-01-31 05:00:00')",
    )
    .await;
    for (condition, expected) in [
        ("datetime(at) > datetime($day)", "4 5 6 7"),
        ("date(at) = $day", "2 3 4 5 7"),
        ("datetime(at) >= datetime($moment)", "4 5 6 7"),
        ("at > $moment AND length(at) = 19", "5"),
    ] {
        let query = format!("{{sqlite: notes.db, query: \"SELECT id FROM t WHERE {condition} ORDER BY id\"}}");
        let given = [("day", "2013-01-31"), ("moment", "2013-01-31T06:00:00+01:00")];
        let source = node.source_with(&query, "day: date, moment: timestamptz", &given);
        let (rows, _) = all(&*source).await.unwrap();
        let found: Vec<String> = values(rows).into_iter().flatten().flatten().collect();
        assert_eq!(found.join(" "), expected, "{condition}");
    }
}

#[tokio::test]
async fn a_file_that_has_changed_is_an_error_in_every_journal_mode() {
    for mode in ["delete", "wal"] {
        let (_folder, path, mut node) = notes(&format!("PRAGMA journal_mode = {mode}; {MANY}")).await;
        node.checkpoint_rows = 100;
        // Somebody has it open, so that a write-ahead log stays.
        let mut writer = connect(&path).await;
        sqlx::raw_sql("UPDATE many SET pad = 'a' WHERE id = 1")
            .execute(&mut writer)
            .await
            .unwrap();
        let source = node.source("{sqlite: notes.db, table: many, chunk_size: 64KiB}");
        let chunks = source.discover(StageId(0)).await.unwrap();
        assert_eq!(
            read(&*source, &chunks[1], chunks[1].start).await.unwrap(),
            read(&*source, &chunks[1], chunks[1].start).await.unwrap()
        );
        sqlx::raw_sql("UPDATE many SET pad = 'b' WHERE id = 1")
            .execute(&mut writer)
            .await
            .unwrap();
        let changed = read(&*source, &chunks[1], chunks[1].start).await.unwrap_err();
        assert_eq!(changed.class, Class::Permanent, "{mode}");
        assert!(
            changed.message.contains("has changed since it was discovered"),
            "{mode}: {changed}"
        );
    }
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let (folder, _, node) = notes("CREATE TABLE t (id INT)").await;
    std::fs::write(
        folder.path().join("text.db"),
        "no database at all, but long enough to be looked at as one".repeat(20),
    )
    .unwrap();
    execute(
        &folder.path().join("wide.db"),
        "PRAGMA encoding = 'UTF-16'; CREATE TABLE t (id INT)",
    )
    .await;
    for (declared, words) in [
        ("{sqlite: missing.db, table: t}", "correct the path"),
        ("{sqlite: ., table: t}", "it is no file"),
        ("{sqlite: text.db, table: t}", "no SQLite database"),
        ("{sqlite: wide.db, table: t}", "its text is UTF-16"),
        ("{sqlite: notes.db, table: missing}", "no such table: missing"),
        (
            "{sqlite: notes.db, table: t, columns: {ix: int}}",
            "it has no column `ix`; did you mean `id`?",
        ),
        (
            "{sqlite: notes.db, query: \"SELECT id, id FROM t\"}",
            "several columns `id`",
        ),
        ("{sqlite: notes.db, query: DELETE FROM t}", "syntax error"),
    ] {
        let source = node.source(declared);
        for failure in [
            source.check().await.expect_err(declared).failure,
            source.discover(StageId(0)).await.unwrap_err(),
        ] {
            assert_eq!(failure.class, Class::Permanent, "{declared}: {failure}");
            assert!(
                failure.message.contains(words) && failure.message.contains("source s"),
                "{declared}: {failure}"
            );
        }
    }
    assert!(!folder.path().join("missing.db").exists());
}
