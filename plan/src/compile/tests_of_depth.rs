//! SQL that would take the process down if it were planned: it is refused, with its place.

use super::tests::{compiled, file, step};

/// Texts that are too long or too deep, where they are refused, and a part of what is said.
fn hostile() -> Vec<(&'static str, String, (u64, u64), &'static str)> {
    let chain = |part: &str, with: &str, times: usize| vec![part; times].join(with);
    let select = |expr: String| format!("SELECT {expr} AS x FROM raw");
    let filter = |expr: String| format!("SELECT id FROM raw WHERE {expr}");
    let nested = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let ctes = (1..120).fold("WITH c0 AS (SELECT 1 AS x)".to_owned(), |sql, n| {
        format!("{sql}, c{n} AS (SELECT a.x FROM c{} a, c{} b)", n - 1, n - 1)
    });
    vec![
        (
            "plus",
            select(chain("id", " + ", 5_000)),
            (12, 12),
            "operators in a row",
        ),
        (
            "too many words",
            select(chain("id", " + ", 200_000)),
            (12, 125_010),
            "more than 50000 words",
        ),
        (
            "or",
            filter(chain("id = 1", " OR ", 10_000)),
            (12, 30),
            "IN (a, b, ...)",
        ),
        (
            "and",
            filter(chain("id <> 1", " AND ", 10_000)),
            (12, 30),
            "NOT IN (a, b, ...)",
        ),
        (
            "concat",
            select(chain("carrier", " || ", 2_000)),
            (12, 12),
            "concat(a, b, ...)",
        ),
        (
            "casts",
            select(format!("id{}", "::int".repeat(20_000))),
            (12, 12),
            "operators in a row",
        ),
        (
            "is null",
            filter(format!("id{}", " IS NULL".repeat(15_000))),
            (12, 30),
            "operators in a row",
        ),
        (
            "brackets",
            select(nested("(", "id", ")", 20_000)),
            (12, 72),
            "nested too deep",
        ),
        (
            "functions",
            select(nested("abs(", "id", ")", 10_000)),
            (12, 255),
            "nested too deep",
        ),
        (
            "case",
            select(nested("CASE WHEN id > 1 THEN ", "id", " END", 3_000)),
            (12, 452),
            "nested too deep",
        ),
        (
            "minus",
            select(format!("{} id", "- ".repeat(20_000))),
            (12, 52),
            "nested too deep",
        ),
        (
            "not",
            filter(format!("{} true", "NOT ".repeat(20_000))),
            (12, 110),
            "nested too deep",
        ),
        (
            "subqueries",
            nested("SELECT id FROM (", "raw", ")", 5_000),
            (12, 0),
            "nested too deep",
        ),
        (
            "in",
            nested("SELECT id FROM raw WHERE id IN (", "SELECT id FROM raw", ")", 5_000),
            (12, 0),
            "nested too deep",
        ),
        (
            "types",
            format!(
                "SELECT CAST(id AS {}) AS x FROM raw",
                nested("ARRAY<", "int", ">", 10_000)
            ),
            (12, 0),
            "nested too deep",
        ),
        (
            "suffixes",
            format!("SELECT CAST(id AS int{}) AS x FROM raw", "[]".repeat(10_000)),
            (12, 0),
            "nested too deep",
        ),
        (
            "lists",
            select(nested("[", "id", "]", 10_000)),
            (12, 0),
            "nested too deep",
        ),
        (
            "objects",
            select(nested("{a: ", "id", "}", 10_000)),
            (12, 0),
            "nested too deep",
        ),
        (
            "unions",
            chain("SELECT id FROM raw", " UNION ALL ", 2_000),
            (12, 5),
            "put together with UNION",
        ),
        (
            "tables",
            format!("SELECT raw.id FROM raw, {}", chain("airlines", ", ", 10_000)),
            (12, 5),
            "more than 200 tables",
        ),
        (
            "joins",
            format!(
                "SELECT raw.id FROM raw{}",
                " JOIN airlines USING (carrier)".repeat(2_000)
            ),
            (12, 5),
            "more than 200 tables",
        ),
        (
            "doubling ctes",
            format!("{ctes} SELECT raw.id FROM raw, c119"),
            (12, 5),
            "more than 200 tables",
        ),
        (
            "pipes",
            format!("FROM raw{}", " |> WHERE id > 1".repeat(5_000)),
            (12, 14),
            "",
        ),
        (
            "intervals",
            select("INTERVAL ".repeat(20_000)),
            (12, 192),
            "nested too deep",
        ),
        (
            "explain",
            format!("{} SELECT id FROM raw", "EXPLAIN ".repeat(40_000)),
            (12, 165),
            "nested too deep",
        ),
        (
            "join brackets",
            format!(
                "SELECT raw.id FROM {}",
                nested("(", "raw", " JOIN airlines USING (carrier))", 55)
            ),
            (12, 0),
            "",
        ),
        (
            "open brackets",
            format!("SELECT raw.id FROM {}", "(".repeat(55)),
            (12, 0),
            "",
        ),
        (
            "open brackets in an expression",
            format!("SELECT {}", "(".repeat(55)),
            (12, 0),
            "",
        ),
        (
            "open brackets in IN",
            format!("SELECT id FROM raw WHERE {}", "id IN (".repeat(55)),
            (12, 0),
            "",
        ),
    ]
}

#[test]
fn what_is_too_deep_is_refused_before_it_is_planned() {
    let mut wrong = Vec::new();
    for (name, sql, (line, column), part) in hostile() {
        eprintln!("{name}");
        match compiled(&step(&sql)) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(error) => {
                let there = column == 0 || error.starts_with(&format!("{line}:{column} "));
                if !there || !error.contains(part) || error.lines().count() != 1 {
                    let shown: String = error.chars().take(300).collect();
                    wrong.push(format!("{name}: expected {line}:{column} {part}\n  got {shown}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Steps, each reading the one before, and a load of the last.
fn steps(count: usize, sql: &str, last: &str) -> String {
    let mut body = "steps:\n  s0: SELECT * FROM raw\n".to_owned();
    for number in 1..count {
        body += &format!("  s{number}: {}\n", sql.replace("$before", &format!("s{}", number - 1)));
    }
    body += &format!("  last: {}\n", last.replace("$before", &format!("s{}", count - 1)));
    file(&format!(
        "{body}loads:\n  l: {{from: last, to: w, table: t, mode: append}}\n"
    ))
}

#[test]
fn what_becomes_too_large_by_putting_steps_into_one_another_is_refused() {
    let plus = "SELECT id + id AS id FROM $before";
    let one = "SELECT id + 1 AS id FROM $before";
    let wide = "SELECT a.x FROM $before a, $before b";
    let cases = [
        (
            "thousands of steps",
            steps(900, "SELECT id FROM $before WHERE id > 1", "SELECT id FROM $before"),
            "levels deep",
        ),
        ("too many steps", steps(1_500, one, one), "has 1501 steps"),
        (
            "doubling",
            steps(40, plus, "SELECT id FROM $before WHERE id > 5"),
            "terms",
        ),
        ("doubling without a condition", steps(40, plus, plus), "terms"),
        (
            "long sums",
            steps(
                9,
                &format!("SELECT {} AS id FROM $before", vec!["id"; 150].join(" + ")),
                one,
            ),
            "terms",
        ),
    ];
    for (name, text, part) in cases {
        let error = compiled(&text).map(|_| ()).expect_err(name).replace(" | ", "; ");
        assert!(error.contains(part), "{name}: {error}");
        // Of what comes after, nothing is known, and nothing is said.
        assert_eq!(error.matches("error:").count().max(1), 1, "{name}: {error}");
    }
    let lookups = (1..30).fold("  t0: SELECT seats AS x FROM planes\n".to_owned(), |body, number| {
        format!(
            "{body}  t{number}: {}\n",
            wide.replace("$before", &format!("t{}", number - 1))
        )
    });
    let text = file(&format!(
        "steps:\n{lookups}  last: SELECT raw.id FROM raw, t29\nloads:\n  l: {{from: last, to: w, table: t, mode: append}}\n"
    ));
    let error = compiled(&text).map(|_| ()).expect_err("doubling tables");
    assert!(error.contains("is a plan of"), "{error}");
}

#[test]
fn what_a_person_may_write_is_not_too_deep() {
    let list: Vec<String> = (0..5_000).map(|n| n.to_string()).collect();
    let cases: Vec<String> = (0..1_000).map(|n| format!("WHEN {n} THEN {}", n + 1)).collect();
    let columns: Vec<String> = (0..300)
        .map(|n| format!("CAST(nullif(id, {n}) AS bigint) AS c{n}"))
        .collect();
    for sql in [
        format!("SELECT id FROM raw WHERE id IN ({})", list.join(", ")),
        format!("SELECT CASE id {} END AS x FROM raw", cases.join(" ")),
        format!("SELECT {} FROM raw", columns.join(", ")),
        format!("SELECT id FROM raw WHERE {}", vec!["id = delay"; 95].join(" OR ")),
        format!("SELECT {} AS x FROM raw", vec!["id"; 190].join(" + ")),
        format!("SELECT {}id{} AS x FROM raw", "(".repeat(20), ")".repeat(20)),
        vec!["SELECT id FROM raw"; 150].join(" UNION ALL "),
    ] {
        compiled(&step(&sql)).unwrap_or_else(|error| panic!("{sql:.60}\n{error}"));
    }
    compiled(&steps(
        60,
        "SELECT id + 1 AS id, carrier FROM $before WHERE id > 1",
        "SELECT id FROM $before",
    ))
    .expect("sixty steps");
}
