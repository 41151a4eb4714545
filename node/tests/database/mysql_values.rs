//! MySQL and MariaDB: values of every type, hostile names, and parameters.

use haulage_core::ids::StageId;
use haulage_test_support::mariadb::Mariadb;

use super::mysql::{database, filled, first_column, ids};
use super::reading::{Node, all, read};

const TYPES: &str = r#"
    SET sql_mode = '';
    CREATE TABLE types (
        id INT PRIMARY KEY, ok TINYINT(1), t TINYINT UNSIGNED, s SMALLINT UNSIGNED, m MEDIUMINT, u INT UNSIGNED, b BIGINT,
        bu BIGINT UNSIGNED, f FLOAT, d DOUBLE, n DECIMAL(20,4), n2 DECIMAL(65,30), day DATE, at DATETIME(6), ts TIMESTAMP(3) NULL,
        tm TIME(6), y YEAR, c CHAR(5), v VARCHAR(50), l LONGTEXT CHARACTER SET latin1, bin VARCHAR(20) COLLATE utf8mb4_bin,
        j JSON, e ENUM('sad', 'glad'), st SET('a', 'b'), vb VARBINARY(4), bl BLOB, bt BIT(1), bits BIT(12), uu UUID);
    INSERT INTO types VALUES
    (1, 1, 255, 65535, -8388608, 4294967295, -9223372036854775808, 18446744073709551615, 1.17549435e-38, 5e-324,
     -0.0001, 0.1, '0001-01-01', '0001-01-01', '2013-03-10 03:00:00.5', '-838:59:59', 1901, 'ab', '', 'é', 'B',
     '{"a": [1, null]}', 'sad', 'a,b', x'00ff', '', b'1', b'101000000001', '00000000-0000-0000-0000-000000000001'),
    (2, 0, 0, 0, 8388607, 0, 9223372036854775807, 0, 3.4028235e38, 1.7976931348623157e308, 9999999999999999.9999, -3,
     '9999-12-31', '9999-12-31 23:59:59.999999', '1970-01-01 00:00:01', '00:00:00.000001', 2155, '', 'tab\tline\n😀\\N', 'ÿ', '\\N',
     '"x"', 'glad', '', '', 'AZ', b'0', b'0', '00000000-0000-0000-0000-000000000002'),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);"#;

#[tokio::test]
async fn values_of_every_type_arrive_as_they_are() {
    let (server, name, url) = database(TYPES).await;
    // Sessions of a run are in UTC, whatever the server is set to.
    server
        .execute(&name, "SET GLOBAL time_zone = '-05:00', GLOBAL sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH,NO_ZERO_DATE,NO_ZERO_IN_DATE', GLOBAL sql_select_limit = 2")
        .await
        .unwrap();
    let node = Node::new(&[("shop", &url)]);
    let (rows, _) = all(&*node.source("{mysql: shop, table: types}")).await.unwrap();
    let by_query = all(&*node.source("{mysql: shop, query: SELECT * FROM types ORDER BY id}"))
        .await
        .unwrap()
        .0;
    server
        .execute(
            &name,
            "SET GLOBAL time_zone = 'SYSTEM', GLOBAL sql_mode = DEFAULT, GLOBAL sql_select_limit = DEFAULT",
        )
        .await
        .unwrap();
    let texts: Vec<Vec<&str>> = rows
        .iter()
        .map(|(_, row)| row.iter().map(|value| value.as_deref().unwrap_or("NULL!")).collect())
        .collect();
    assert_eq!(
        texts[0],
        [
            "1",
            "true",
            "255",
            "65535",
            "-8388608",
            "4294967295",
            "-9223372036854775808",
            "18446744073709551615",
            "1.1754944e-38",
            "5e-324",
            "-0.0001",
            "0.100000000000000000000000000000",
            "0001-01-01",
            "0001-01-01T00:00:00",
            "2013-03-10T03:00:00.500Z",
            "-838:59:59",
            "1901",
            "ab",
            "",
            "é",
            "B",
            "{\"a\": [1, null]}",
            "sad",
            "a,b",
            "\\x00ff",
            "\\x",
            "true",
            "2561",
            "00000000-0000-0000-0000-000000000001",
        ]
    );
    assert_eq!(
        texts[1],
        [
            "2",
            "false",
            "0",
            "0",
            "8388607",
            "0",
            "9223372036854775807",
            "0",
            "3.4028235e38",
            "1.7976931348623157e308",
            "9999999999999999.9999",
            "-3.000000000000000000000000000000",
            "9999-12-31",
            "9999-12-31T23:59:59.999999",
            "1970-01-01T00:00:01Z",
            "00:00:00.000001",
            "2155",
            "",
            "tab\tline\n😀\\N",
            "ÿ",
            "\\N",
            "\"x\"",
            "glad",
            "",
            "\\x",
            "\\x415a",
            "false",
            "0",
            "00000000-0000-0000-0000-000000000002",
        ]
    );
    assert_eq!(texts[2], [vec!["3"], vec!["NULL!"; 28]].concat());
    // Of a query, a bit is a number and a decimal a text.
    let row: Vec<&str> = by_query[0].1.iter().map(|value| value.as_deref().unwrap()).collect();
    assert_eq!(
        (row[10], row[14], row[26], by_query.len()),
        ("-0.0001", texts[0][14], "1", 3)
    );
}

#[tokio::test]
async fn what_no_type_holds_goes_to_quarantine_and_what_has_no_text_is_refused() {
    let (_server, _, url) = database(
        "SET sql_mode = ''; CREATE TABLE odd (id INT PRIMARY KEY, day DATE NOT NULL, at DATETIME, ts TIMESTAMP NULL, ok BOOL);
         INSERT INTO odd VALUES (1, '0000-00-00', NULL, NULL, 1), (2, '2013-00-00', NULL, NULL, 1),
            (3, '2013-01-31', '0000-00-00', NULL, 1), (4, '2013-01-31', NULL, '0000-00-00', 1),
            (5, '2013-01-31', NULL, NULL, 7), (6, '2013-01-31', NULL, NULL, NULL);
         CREATE TABLE places (id INT PRIMARY KEY, at POINT); INSERT INTO places VALUES (1, POINT(1, 2))",
    )
    .await;
    let mut node = Node::new(&[("shop", &url)]);
    node.checkpoint_rows = 100;
    let source = node.source("{mysql: shop, table: odd}");
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let got = read(&*source, &chunk, chunk.start).await.unwrap();
    assert_eq!(first_column(&got.rows), ["6"]);
    let reasons: Vec<_> = got
        .unreadable
        .iter()
        .map(|(why, raw)| (why.column.as_deref().unwrap(), why.reason, raw.as_str()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("day", "bad_date", "1\t0000-00-00\t\\N\t\\N\t1"),
            ("day", "bad_date", "2\t2013-00-00\t\\N\t\\N\t1"),
            ("at", "bad_timestamp", "3\t2013-01-31\t0000-00-00 00:00:00\t\\N\t1"),
            ("ts", "bad_timestamp", "4\t2013-01-31\t\\N\t0000-00-00 00:00:00\t1"),
            ("ok", "bad_bool", "5\t2013-01-31\t\\N\t\\N\t7"),
        ]
    );
    let refused = node.source("{mysql: shop, table: places}").check().await.unwrap_err();
    assert!(
        refused.failure.message.contains("`at` is a geometry") && refused.column.as_deref() == Some("at"),
        "{refused}"
    );
    let (rows, _) = all(&*node.source("{mysql: shop, table: places, columns: {id: int}}"))
        .await
        .unwrap();
    assert_eq!(first_column(&rows), ["1"]);
    let (rows, _) = all(&*node.source("{mysql: shop, query: SELECT ST_AsText(at) AS at FROM places}"))
        .await
        .unwrap();
    assert_eq!(first_column(&rows), ["POINT(1 2)"]);
}

#[tokio::test]
async fn hostile_names_are_names() {
    let (_server, name, url) = database(
        "CREATE TABLE `a``b\"c'd.e; --x` (`id``\"'` INT PRIMARY KEY, `; DROP TABLE x` VARCHAR(9), `$p` INT, `?` INT);
         INSERT INTO `a``b\"c'd.e; --x` VALUES (1, 'x', 2, 3), (2, NULL, 4, 5);
         CREATE TABLE `Case` (id INT PRIMARY KEY, big INT); CREATE TABLE `case` (id VARCHAR(9) PRIMARY KEY, small INT)",
    )
    .await;
    let node = Node::new(&[("shop", &url)]);
    let declared = format!("{{mysql: shop, table: '{name}.\"a`b\"\"c''d.e; --x\"'}}");
    let (rows, _) = all(&*node.source(&declared)).await.unwrap();
    let some = |values: &[&str]| values.iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>();
    assert_eq!(rows[0].1, some(&["1", "x", "2", "3"]));
    assert_eq!(rows[1].1[1], None);
    for (table, column) in [("Case", "big"), ("case", "small")] {
        let columns = node
            .source(&format!("{{mysql: shop, table: {table}}}"))
            .columns()
            .await
            .unwrap();
        assert_eq!(columns[1].name, column);
    }
}

#[tokio::test]
async fn parameters_are_bound_and_never_become_sql() {
    let (server, name, url) = database(&format!(
        "CREATE TABLE many (id INT PRIMARY KEY, pad TEXT); {}
         CREATE TABLE names (name VARCHAR(60) COLLATE utf8mb4_bin PRIMARY KEY);
         INSERT INTO names VALUES ('''; DROP TABLE many; -- '), ('\\\\'), ('x')",
        filled("many", "seq, 'x'", 50)
    ))
    .await;
    let node = Node::new(&[("shop", &url)]);
    let query = "{mysql: shop, query: \"SELECT CONCAT($name, '') AS name, $day + INTERVAL 1 DAY AS day, $at AS at, $n AS n, $ok AS ok, '$name' AS q FROM many WHERE id < $top AND $name <> '' # $name\\nLIMIT $few\"}";
    let params = r#"name: text, day: date, top: int, few: bigint, at: timestamptz, n: "decimal(6,2)", ok: bool"#;
    let given = |name| {
        [
            ("name", name),
            ("day", "2013-01-31"),
            ("top", "40"),
            ("few", "3"),
            ("at", "2013-01-31T05:00:00+01:00"),
            ("n", "12.5"),
            ("ok", "true"),
        ]
    };
    for name in ["'; DROP TABLE many; -- ", "\\", "' OR '1'='1", "*/ ; -- ?", "😀"] {
        let source = node.source_with(query, params, &given(name));
        let (rows, _) = all(&*source).await.unwrap();
        assert_eq!(rows.len(), 3, "{name}");
        let row: Vec<&str> = rows[0].1.iter().map(|value| value.as_deref().unwrap()).collect();
        assert_eq!(
            row,
            [name, "2013-02-01", "2013-01-31T04:00:00", "12.50", "1", "$name"],
            "{name}"
        );
    }
    // A text takes the collation of what it is compared with.
    for (name, found) in [
        ("\\", 1),
        ("X", 0),
        ("'; DROP TABLE many; -- ", 1),
        ("x' OR name <> '", 0),
    ] {
        let query = "{mysql: shop, query: SELECT name FROM names WHERE name = $name}";
        let source = node.source_with(query, "name: text", &[("name", name)]);
        assert_eq!(all(&*source).await.unwrap().0.len(), found, "{name}");
    }
    assert_eq!(
        ids(&server, &name, "SELECT CAST(count(*) AS CHAR) FROM many").await,
        ["50"]
    );
}

#[tokio::test]
async fn a_query_means_what_it_means_on_the_server() {
    let server = Mariadb::start().await.unwrap();
    let sql = "CREATE TABLE t (id INT PRIMARY KEY, at DATETIME(6), c CHAR(5), day DATE); SET sql_mode = ''; INSERT INTO t VALUES \
               (7, '2024-01-01', '', '0000-00-00')";
    server.execute("shop", sql).await.unwrap();
    for (mode, query, expected) in [
        ("", r#"SELECT "id" AS v FROM t"#, "id"),
        ("ANSI_QUOTES", r#"SELECT "id" AS v FROM t"#, "7"),
        ("", "SELECT 'a' || 'b' AS v FROM t", "0"),
        ("PIPES_AS_CONCAT", "SELECT 'a' || 'b' AS v FROM t", "ab"),
        ("NO_BACKSLASH_ESCAPES", r"SELECT 'a\tb' AS v FROM t", r"a\tb"),
        (
            "ANSI,TRADITIONAL,NO_BACKSLASH_ESCAPES",
            r#"SELECT "day" AS v FROM t"#,
            "0000-00-00",
        ),
        (
            "ANSI,TRADITIONAL,NO_BACKSLASH_ESCAPES",
            "SELECT $p AS v FROM t",
            "it's \\ \"one\"",
        ),
    ] {
        server
            .execute("shop", &format!("SET GLOBAL sql_mode = '{mode}'"))
            .await
            .unwrap();
        let node = Node::new(&[("shop", &server.url("shop"))]);
        let declared = format!("{{mysql: shop, query: {query:?}, columns: {{v: text}}}}");
        let source = node.source_with(&declared, "p: text", &[("p", "it's \\ \"one\"")]);
        let (rows, _) = all(&*source).await.unwrap();
        assert_eq!(rows[0].1[0].as_deref(), Some(expected), "{mode}: {query}");
        // Tables and windows are read in any mode.
        let source = node.source("{mysql: shop, table: t, columns: {c: text, day: text}, incremental: at}");
        let increment = source
            .discover_after(StageId(0), Some("2023-12-31 00:00:00"), false)
            .await
            .unwrap();
        let rows = read(&*source, &increment.chunks[0], increment.chunks[0].start)
            .await
            .unwrap()
            .rows;
        assert_eq!(
            rows[0].1,
            [Some(String::new()), Some("0000-00-00".to_owned())],
            "{mode}"
        );
    }
}
