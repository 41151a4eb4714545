//! SQL as people get it wrong, and what is said of it: in the words of a pipeline file, and at its place.

use super::tests::{compiled, refused, step};

#[test]
fn mistakes_are_said_in_our_own_words_and_at_their_place() {
    refused(&[
        (
            "SELECT ^unnest(carrier) AS u FROM raw",
            "`unnest` can't be used in a step",
        ),
        (
            "SELECT * FROM raw, ^unnest(tailnum) AS u",
            "`unnest` can't be used in a step",
        ),
        (
            "SELECT id, ^id FROM raw",
            "two columns are called `id` | leave one out, or give it another name: `AS id_2`",
        ),
        ("SELECT id, delay AS ^ID FROM raw", "two columns are called `id`"),
        ("SELECT *, ^id FROM raw", "two columns are called `id`"),
        ("^SELECT *, * FROM raw", "`*` stands here twice"),
        ("^SELECT r.*, R.* FROM raw r", "`r.*` stands here twice"),
        (
            "SELECT a.id FROM (SELECT id, year AS ^id FROM raw) a",
            "two columns are called `id`",
        ),
        (
            "SELECT ^upper(id, carrier) AS x FROM raw",
            "`upper` can't be called like this: it takes 1 argument, and is given 2 |",
        ),
        ("SELECT ^upper() AS x FROM raw", "`upper` is called with nothing"),
        (
            "SELECT ^abs(carrier) AS x FROM raw",
            "`abs` can't be called like this: it takes a number, and is given text |",
        ),
        (
            "SELECT ^substr(carrier, 'x') AS x FROM raw",
            "it takes bigint, and is given text",
        ),
        (
            "SELECT ^coalesce(at, carrier) AS x FROM raw",
            "the types of its arguments don't go together | make the types equal",
        ),
        (
            "SELECT ^row_number() AS n FROM raw",
            "`row_number` is a window function: it needs all rows",
        ),
        (
            "SELECT ^id",
            "unknown column `id` | there is no FROM: write `SELECT ... FROM table`",
        ),
        (
            "SELECT ^carrier, max(delay) AS m FROM raw",
            "`raw.carrier` stands beside an aggregate and is not in GROUP BY",
        ),
        (
            "^SELECT tailnum FROM planes WHERE max(seats) > 3",
            "WHERE looks at one row, and an aggregate at many",
        ),
        ("^INSERT INTO raw VALUES (1)", "a step is one SELECT"),
        ("^UPDATE raw SET id = 1", "a step is one SELECT"),
        ("^EXPLAIN SELECT id FROM raw", "a step is one SELECT"),
        ("SELECT ^x.id FROM raw r", "unknown column `id` of `x` | there is: r"),
        ("SELECT ^id FROM raw, more", "the column `id` is in more than one table"),
        (
            "SELECT id FROM raw WHERE at > DATE ^'2013-13-01'",
            "'2013-13-01' is no date | write it as '2013-01-31'",
        ),
        (
            "SELECT id FROM raw WHERE at > ^'2013-13-01'",
            "'2013-13-01' is no timestamp | write it as '2013-01-31 12:30:00'",
        ),
        ("SELECT CAST(^'abc' AS int) AS x FROM raw", "'abc' is no int"),
        (
            "SELECT CAST(^300 AS tinyint) AS x FROM raw",
            "'300' doesn't fit into tinyint",
        ),
        (
            "SELECT CAST(carrier AS ^itn) AS x FROM raw",
            "there is no type `itn` here | did you mean `int`?",
        ),
        (
            "SELECT at - INTERVAL ^'1 fortnight' AS x FROM raw",
            "'1 fortnight' is no interval",
        ),
        ("SELECT id / ^0 AS x FROM raw", "this divides by zero"),
        (
            "SELECT id FROM raw WHERE carrier = ^'UA",
            "the text that starts here is never closed | close it with a single quote",
        ),
        (
            "SELECT id FROM raw WHERE ^\"carrier = 'UA'",
            "the name that starts here is never closed",
        ),
        (
            "SELECT id FROM raw WHERE carrier = ^\"UA\"",
            "unknown column `UA` | text stands in single quotes: 'UA'",
        ),
        ("SELECT id FROM raw WHERE id = ^'abc'", "'abc' is no int"),
        ("SELECT id FROM raw WHERE id IN (^'a', 2)", "'a' is no bigint"),
        (
            "^SELECT id FROM raw WHERE true = 5",
            "bool and bigint can't be compared | make the types equal",
        ),
        (
            "SELECT id FROM raw WHERE carrier ^LIKE 5",
            "`LIKE` needs two texts, and is given text and bigint",
        ),
        (
            "^SELECT id FROM raw WHERE carrier ~ '['",
            "a regular expression can't be read: unclosed character class",
        ),
        ("SELECT id FROM raw ^FETCH FIRST 5 ROWS ONLY", "FETCH needs all rows"),
        ("SELECT ^TOP 5 id FROM raw", "TOP needs all rows"),
        (
            "SELECT ^DISTINCT ON (carrier) id, carrier FROM raw",
            "DISTINCT ON needs all rows",
        ),
        (
            "SELECT * FROM raw ^PIVOT (sum(delay) FOR carrier IN ('UA', 'AA'))",
            "PIVOT can't be used in a step",
        ),
        (
            "SELECT * FROM raw ^UNPIVOT (v FOR k IN (delay, year))",
            "UNPIVOT can't be used in a step",
        ),
        (
            "SELECT id FROM raw ^TABLESAMPLE (10)",
            "TABLESAMPLE takes other rows each time",
        ),
        (
            "^SELECT [1, id] AS arr FROM raw",
            "an ARRAY can't be used in a step | every column holds single values",
        ),
        ("^SELECT MAP {'a': id} AS m FROM raw", "MAP can't be used in a step"),
        ("FROM raw ^|> WHERE id > 1", "`|>` can't be used in a step"),
        (
            "SELECT id FROM raw WHERE id = ^?",
            "unknown parameter `?` | parameters have names",
        ),
        (
            "SELECT id FROM raw WHERE at > ^:day",
            "unknown parameter `:day` | write `$day`",
        ),
        (
            "SELECT id FROM raw WHERE at > ^@day",
            "unknown parameter `@day` | write `$day`",
        ),
        (
            "SELECT id FROM raw WHERE at > {^{ day }}",
            "found: { | parameters are written `$name`",
        ),
        ("SELECT ^größe FROM raw", "unknown column `größe` | there is: id"),
        (
            "SELECT id carrier ^year FROM raw",
            "the SQL can't be read: expected: end of statement, found: year",
        ),
        (
            "SELECT id FROM raw WHER^E",
            "it ends too early: an expression is missing",
        ),
        (
            "SELECT id FROM raw WHERE id IN (SELECT ^carrier, name FROM airlines)",
            "a subquery gives 2 columns where one value is needed",
        ),
        (
            "^SELECT id FROM raw UNION ALL SELECT id, year FROM raw",
            "the parts of this `UNION` have different numbers of columns",
        ),
        (
            "SELECT at FROM raw UNION ALL SELECT ^delay FROM raw",
            "the column `delay` of this UNION is int here and timestamp before",
        ),
        (
            "^SELECT id + INTERVAL '1 day' AS x FROM raw",
            "int and interval can't be used together",
        ),
        (
            "^SELECT id FROM raw ORDER BY 7",
            "ORDER BY 7 names a column that is not there",
        ),
        (
            "SELECT r.id FROM raw r JOIN airlines a USING (^carier)",
            "unknown column `carier` | did you mean `carrier`?",
        ),
        ("SELECT * EXCEPT (^nope) FROM raw", "unknown column `nope`"),
        (
            "^SELECT id FROM raw AS r(a, b)",
            "the table has 6 columns, and its alias names 2",
        ),
        (
            "SELECT -^carrier AS x FROM raw",
            "unary operator '-' only supports signed numeric",
        ),
    ]);
}

#[test]
fn no_message_shows_the_plumbing() {
    let plumbing = [
        "DataFusion error",
        "likely caused by a bug",
        "Internal error",
        "Arrow error",
        "Cast error",
        "External error",
        "Error during planning",
        "Candidate functions",
        "panicked",
        "Utf8",
        "Int64",
        "ast node",
        "DataFusion feature",
        "ExprPlanner",
        "Span(",
    ];
    for sql in [
        "SELECT round(id, carrier) AS d FROM raw",
        "SELECT sha256(id) AS d FROM raw",
        "SELECT arrow_cast(id, 'Nope') AS d FROM raw",
        "SELECT grouping(id) AS d FROM raw",
        "SELECT NOT id AS d FROM raw",
        "SELECT at + 1 AS x FROM raw",
        "SELECT id FROM raw WHERE id BETWEEN 'a' AND 5",
        "SELECT CAST(id AS decimal(80, 2)) AS x FROM raw",
        "SELECT CAST(carrier AS json) AS x FROM raw",
        "SELECT nullif(id, 'x') AS d FROM raw",
        "SELECT id FROM raw MATCH_RECOGNIZE (PATTERN (a) DEFINE a AS true)",
        "SELECT id FROM raw, JSON_TABLE('[]', '$[*]' COLUMNS(a INT PATH '$.a')) t",
        "TABLE raw",
        "COPY raw TO 'x'",
        "SELECT id /* open FROM raw",
        "SELECT [1] AS a FROM raw",
        "SELECT carrier[1:] AS a FROM raw",
    ] {
        let said = compiled(&step(sql)).map(drop).expect_err(sql);
        assert!(!plumbing.iter().any(|word| said.contains(word)), "{sql}\n{said}");
        // Never line 0: everything here has a place in the file.
        assert!(said.starts_with("12:"), "{sql}\n{said}");
    }
}
