//! What SQL is accepted, what is refused and where, and what becomes of it.

use std::collections::BTreeMap;

use super::*;
use crate::{Draft, parse_and_bind};

/// Flights, a second chunked source, and two lookups. `body` is the rest of the file, from line 10.
pub(super) fn file(body: &str) -> String {
    format!(
        "pipeline: p\nparams:\n  day: {{type: date, default: 2013-01-01}}\n  least: {{type: int, default: 5}}\nsources:\n  \
         raw: {{csv: f.csv, columns: {{id: int!, year: int!, carrier: text, tailnum: text, delay: int, at: timestamp}}}}\n  \
         more: {{csv: m.csv, columns: {{id: int, x: double, \"Upper\": text}}}}\n  \
         airlines: {{csv: a.csv, lookup: true, columns: {{carrier: text!, name: text}}}}\n  \
         planes: {{csv: p.csv, lookup: true, columns: {{tailnum: text!, seats: int}}}}\n{body}"
    )
}

/// One step `s` with this SQL, and a load of it.
pub(super) fn step(sql: &str) -> String {
    file(&format!(
        "steps:\n  s: |\n    {}\nloads:\n  l: {{from: s, to: w, table: t, mode: append}}\n",
        sql.replace('\n', "\n    ")
    ))
}

pub(super) fn compiled(text: &str) -> Result<Compiled, String> {
    let definition = parse_and_bind(text, "p.yaml", &BTreeMap::new()).map_err(|e| format!("parse: {e}"))?;
    compile(&definition, &BTreeMap::new()).map_err(|found| {
        let line = |d: &crate::Diagnostic| {
            let help = d
                .suggestion
                .as_deref()
                .map(|help| format!(" | {help}"))
                .unwrap_or_default();
            format!("{}:{} {}{help}", d.place.line, d.place.column, d.message)
        };
        found.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// SQL that is refused where a `^` stands in it (which is no part of it), with a part of what is said.
#[track_caller]
pub(super) fn refused(cases: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (marked, part) in cases {
        let (before, after) = marked.split_once('^').expect("a place in the SQL");
        // Line 12, column 5 is where the SQL starts, and each of its lines stands in column 5.
        let line = 12 + before.matches('\n').count();
        let column = 5 + before.rsplit('\n').next().unwrap_or_default().chars().count();
        match compiled(&step(&format!("{before}{after}"))) {
            Ok(_) => wrong.push(format!("{marked}: accepted")),
            Err(error) => {
                let there = error.starts_with(&format!("{line}:{column} "));
                if !there || !error.contains(part) || error.lines().count() != 1 {
                    wrong.push(format!(
                        "{marked}\n  expected {line}:{column} {part}\n  got      {error}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// SQL that is fine in itself, but not for the load of it.
#[track_caller]
fn not_loaded(sql: &str, place: &str, part: &str) {
    let error = compiled(&step(sql)).expect_err(sql);
    assert!(
        error.starts_with(place) && error.contains(part),
        "{sql}\nexpected {place} {part}, got\n{error}"
    );
}

#[track_caller]
fn accepted(sql: &str) {
    let compiled = compiled(&step(sql)).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let plan = &compiled.loads[0].plan;
    let columns: Vec<&str> = plan.schema().fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(columns.last(), Some(&ROW_COLUMN), "{sql}");
    assert_eq!(columns.len(), compiled.loads[0].schema.fields().len() + 1, "{sql}");
    assert_eq!(columns.iter().filter(|c| **c == ROW_COLUMN).count(), 1, "{sql}");
}

#[test]
fn what_one_row_can_answer_is_accepted() {
    for sql in [
        "SELECT * FROM raw",
        "SELECT id, upper(carrier) AS carrier FROM raw WHERE delay > 5 AND year = 2013",
        "SELECT id, round(delay / 60.0, 2) AS hours, coalesce(carrier, '?') AS c FROM raw",
        "SELECT r.*, a.name FROM raw r JOIN airlines a ON a.carrier = r.carrier",
        "SELECT r.*, a.name FROM raw r JOIN airlines a USING (carrier)",
        "SELECT r.id, a.name, p.seats FROM raw r LEFT JOIN airlines a ON a.carrier = r.carrier LEFT JOIN planes p ON p.tailnum = r.tailnum",
        "SELECT r.id, a.name FROM airlines a RIGHT JOIN raw r ON a.carrier = r.carrier",
        "SELECT r.id, a.name FROM raw r, airlines a WHERE a.carrier = r.carrier",
        "SELECT r.id, a.name FROM raw r CROSS JOIN airlines a",
        "SELECT r.id FROM raw r LEFT SEMI JOIN airlines a ON a.carrier = r.carrier",
        "SELECT id FROM raw WHERE carrier IN (SELECT carrier FROM airlines)",
        "SELECT id FROM raw WHERE carrier NOT IN (SELECT carrier FROM airlines)",
        "SELECT id FROM raw r WHERE EXISTS (SELECT 1 FROM airlines a WHERE a.carrier = r.carrier)",
        "SELECT id, (SELECT max(seats) FROM planes) AS most FROM raw",
        "SELECT id, (SELECT max(seats) FROM planes p WHERE p.tailnum = r.tailnum) AS seats FROM raw r",
        "SELECT r.id, c.n FROM raw r JOIN (SELECT carrier, count(*) AS n FROM airlines GROUP BY carrier) c ON c.carrier = r.carrier",
        "WITH big AS (SELECT DISTINCT tailnum FROM planes WHERE seats > 100 ORDER BY tailnum LIMIT 5) SELECT r.id FROM raw r JOIN big ON big.tailnum = r.tailnum",
        "SELECT id, delay AS d FROM raw UNION ALL SELECT id, year FROM raw WHERE delay IS NULL",
        "SELECT u.id FROM (SELECT carrier, id FROM raw UNION ALL SELECT a.name, r.id FROM airlines a JOIN raw r ON r.carrier = a.carrier) u",
        "SELECT id FROM raw WHERE at >= $day AND delay > $least",
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT raw.id, n.i FROM raw CROSS JOIN n",
        "SELECT id, CASE WHEN delay > 0 THEN 'late' END AS how FROM raw",
        "SELECT id, now() AS loaded_at, date_trunc('month', $day) AS m FROM raw",
        "SELECT id, \"Upper\" AS u FROM more",
        "SELECT id, carrier->>'name' AS name, carrier->'lines'->0->>'sku' AS sku FROM raw WHERE json_contains(carrier, 'name')",
        "SELECT id, json_get_int(carrier, 'n') AS n, json_length(carrier) AS long, (carrier->>'x')::double AS x FROM raw",
    ] {
        accepted(sql);
    }
}

#[test]
fn what_needs_all_rows_is_refused() {
    refused(&[
        (
            "SELECT carrier, count(*) AS n FROM raw ^GROUP BY carrier",
            "step `s`: a GROUP BY or an aggregate needs all rows of `raw`",
        ),
        ("SELECT\n  ^count(*) AS n\nFROM raw", "an aggregate"),
        ("SELECT ^DISTINCT carrier FROM raw", "DISTINCT needs all rows of `raw`"),
        ("SELECT id FROM raw ^UNION SELECT year FROM raw", "DISTINCT"),
        ("SELECT id FROM raw ^INTERSECT SELECT id FROM raw", "needs all rows"),
        (
            "SELECT id, row_number() ^OVER (PARTITION BY carrier ORDER BY id) AS n FROM raw",
            "a window function",
        ),
        ("SELECT id FROM raw ^ORDER BY delay", "ORDER BY needs all rows"),
        ("SELECT id FROM raw ^LIMIT 10", "LIMIT"),
        (
            "SELECT a.id FROM raw a ^JOIN raw b ON a.id = b.id",
            "a join of `raw` with itself",
        ),
        (
            "SELECT a.id FROM raw a\nLEFT ^JOIN more b ON a.id = b.id",
            "a join of `raw` with `more`",
        ),
        (
            "SELECT a.id ^FROM raw a, more b WHERE a.id = b.id",
            "a join of `raw` with `more`",
        ),
        (
            "SELECT r.id, a.name FROM raw r RIGHT ^JOIN airlines a ON a.carrier = r.carrier",
            "this RIGHT JOIN keeps rows of the lookup",
        ),
        (
            "SELECT r.id, a.name FROM raw r FULL ^JOIN airlines a ON a.carrier = r.carrier",
            "this FULL JOIN",
        ),
        (
            "SELECT r.id, a.name FROM airlines a LEFT ^JOIN raw r ON a.carrier = r.carrier",
            "this LEFT JOIN",
        ),
        (
            "SELECT a.name FROM airlines a LEFT SEMI ^JOIN raw r ON a.carrier = r.carrier",
            "JOIN",
        ),
        (
            "SELECT r.id FROM raw r JOIN planes p ON p.tailnum = r.tailnum\nRIGHT ^JOIN airlines a ON a.carrier = r.carrier",
            "this RIGHT JOIN",
        ),
        (
            "SELECT carrier FROM raw ^UNION ALL SELECT carrier FROM airlines",
            "adds rows of a lookup",
        ),
        (
            "SELECT id FROM raw ^UNION ALL SELECT id FROM more",
            "the chunked sources `more` and `raw`",
        ),
        (
            "SELECT id FROM raw WHERE delay > (SELECT ^avg(x) FROM more)",
            "aggregate",
        ),
        (
            "SELECT id FROM raw WHERE id IN (^SELECT id FROM more)",
            "a subquery over `more`",
        ),
        (
            "SELECT carrier FROM airlines a WHERE EXISTS (^SELECT 1 FROM raw r WHERE r.carrier = a.carrier)",
            "a subquery over `raw`",
        ),
        ("SELECT ^uuid() AS u FROM raw", "gives another answer each time"),
        (
            "SELECT id FROM raw WHERE ^random() < 0.1",
            "gives another answer each time",
        ),
    ]);
}

#[test]
fn errors_in_sql_stand_where_they_are() {
    refused(&[
        (
            "SELECT id\nFROM raw\nWHERE ^dlay > 5",
            "unknown column `dlay` | did you mean `delay`?",
        ),
        (
            "SELECT id, ^r.carier FROM raw r",
            "unknown column `carier` of `r` | did you mean `carrier`?",
        ),
        (
            "SELECT id FROM ^rw",
            "step `s` reads `rw`, which is neither a source nor a step | did you mean `raw`?",
        ),
        ("SELECT id FROM public.^raw", "`public.raw` names a schema"),
        (
            "SELECT ^Upper AS u FROM more",
            "names without quotes are read in lower case: write `\"Upper\"`",
        ),
        (
            "SELECT ^carrier FROM raw r JOIN airlines a ON a.carrier = r.carrier",
            "the column `carrier` is in more than one table",
        ),
        (
            "SELECT ^uper(carrier) AS c FROM raw",
            "unknown function `uper` | did you mean `upper`?",
        ),
        ("^SELEC id FROM raw", "the SQL can't be read"),
        ("SELECT id FROM raw\nWHERE (dela^y", "the SQL can't be read"),
        ("SELECT id FROM raw;^ SELECT 1 AS a", "a step is one SELECT"),
        (
            "^DELETE FROM raw",
            "a step is one SELECT, and this is another kind of statement",
        ),
        ("^CREATE TABLE x AS SELECT * FROM raw", "a step is one SELECT"),
        (
            "SELECT id, ^EXISTS (SELECT 1 FROM airlines a WHERE a.carrier = r.carrier) AS known FROM raw r",
            "EXISTS with a subquery can't be used in this place | use it in WHERE",
        ),
        (
            "SELECT id, ^delay + 1 FROM raw",
            "column 2 of the step has no name | write `delay + 1 AS name`",
        ),
        (
            "SELECT id FROM raw WHERE at > ^$dya",
            "unknown parameter `$dya` | did you mean `day`?",
        ),
        ("SELECT id FROM raw WHERE at > ^$1", "unknown parameter `$1`"),
        ("SELECT id, ^carrier + at AS x FROM raw", "CAST"),
        ("SELECT id FROM raw WHERE ^delay = at", "CAST"),
        (
            "^SELECT r.*, a.* FROM raw r JOIN airlines a ON a.carrier = r.carrier",
            "step `s` has two columns called `carrier`",
        ),
        (
            "^SELECT id AS __haulage_row FROM raw",
            "is a name that Haulage keeps for itself",
        ),
        (
            "SELECT id FROM raw WHERE ^upper(carrier)",
            "WHERE needs a condition, and `upper(raw.carrier)` is of type text | compare it with something",
        ),
        (
            "SELECT * FROM ^generate_series(1, 3)",
            "step `s` reads `generate_series`, which is neither",
        ),
    ]);
}

#[test]
fn loads_are_held_against_their_rows() {
    not_loaded(
        "SELECT id, NULL AS x FROM raw",
        "14:13",
        "of type null, which can't be loaded | in `s`, say which type its NULL has: `CAST(NULL AS text) AS x`",
    );
    not_loaded("SELECT id, at - at AS x FROM raw", "14:13", "which can't be loaded");
    not_loaded(
        "SELECT id, id AS \"ID\" FROM raw",
        "14:13",
        "columns `id` and `ID`, which a table can't tell apart",
    );
    not_loaded(
        "SELECT carrier FROM airlines",
        "14:3",
        "load `l` is fed by lookups alone",
    );
    let key = step("SELECT id, year FROM raw").replace("mode: append", "mode: merge, key: [id, yaer]");
    assert_eq!(
        compiled(&key).expect_err("no such column"),
        "14:56 the key of load `l` names `yaer`, which `s` doesn't have | did you mean `year`?"
    );
    let compiled = compiled(&step(
        "SELECT id, carrier, arrow_cast(carrier, 'Utf8View') AS v, CAST(delay AS decimal(9,2)) AS d FROM raw",
    ))
    .expect("types that can be loaded");
    let schema = &compiled.loads[0].schema;
    let types: Vec<String> = schema
        .fields()
        .iter()
        .map(|f| format!("{}{}", f.data_type(), f.is_nullable()))
        .collect();
    assert_eq!(types, ["Int32false", "Utf8true", "Utf8true", "Decimal128(9, 2)true"]);
}

#[test]
fn steps_are_put_in_order_and_circles_are_named() {
    let body = "steps:\n  c: SELECT * FROM b\n  b: {from: a, reject: {late: delay > 100}}\n  a: SELECT * FROM raw WHERE id > 0\n  \
                unused: SELECT * FROM airlines\nloads:\n  l: {from: c, to: w, table: t, mode: append}\n  \
                m: {from: more, to: w, table: m, mode: append}\n";
    let compiled = compiled(&file(body)).expect("any order");
    assert_eq!(compiled.steps.keys().collect::<Vec<_>>(), ["a", "b", "c", "unused"]);
    assert_eq!(compiled.stages.len(), 2);
    assert_eq!(
        (compiled.stages[0].source.as_str(), compiled.stages[0].id),
        ("raw", StageId(0))
    );
    assert_eq!(compiled.stages[0].steps, ["a", "b", "c"]);
    assert_eq!(compiled.stages[1].loads, [LoadName::from("m")]);
    assert_eq!(compiled.loads[0].rejects, BTreeSet::from(["b".to_owned()]));
    assert!(compiled.loads[1].rejects.is_empty() && compiled.loads[1].stage == StageId(1));
    assert_eq!(compiled.chunk_schema("more").expect("a source").fields().len(), 4);

    let circle = file(
        "steps:\n  a: SELECT * FROM b\n  b: SELECT * FROM\n     c\n  c: SELECT * FROM a\n  d: SELECT * FROM c\nloads:\n  l: {from: d, to: w, table: t, mode: append}\n",
    );
    assert_eq!(
        super::tests::compiled(&circle).expect_err("a circle"),
        "14:20 steps read each other in a circle: a reads b reads c reads a | take what both need into a step of its own"
    );
    let own = file("steps:\n  a: SELECT * FROM a\nloads:\n  l: {from: a, to: w, table: t, mode: append}\n");
    assert!(
        super::tests::compiled(&own)
            .expect_err("a circle")
            .starts_with("11:20 steps read each other in a circle: a reads a")
    );
}

#[test]
fn reject_rules_are_conditions_over_their_own_step() {
    let with = |rule: &str| {
        let rule = rule.replace('"', "\\\"");
        compiled(&file(&format!(
            "steps:\n  s:\n    from: raw\n    reject:\n      bad: \"{rule}\"\nloads:\n  l: {{from: s, to: w, table: t, mode: append}}\n"
        )))
    };
    for rule in [
        "delay > $least",
        "carrier IS NULL",
        "delay NOT BETWEEN -120 AND 1500",
        "s.carrier = 'x'",
        "NULL",
        "length(tailnum) <> 6",
    ] {
        let compiled = with(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
        let plan = &compiled.rejects["s"];
        assert_eq!(plan.rules.len(), 1);
        assert_eq!(
            plan.input.schema().fields().last().map(|f| f.name().as_str()),
            Some(ROW_COLUMN)
        );
    }
    for (rule, expected) in [
        ("dlay > 5", "14:13 unknown column `dlay` | did you mean `delay`?"),
        (
            "delay",
            "14:13 the rule `bad` is no condition: it is of type int | write what is true of a row to reject: `delay > 1000`",
        ),
        ("count(*) > 1", "14:13 the rule `bad` needs more than its own row"),
        ("carrier NOT IN (SELECT carrier FROM airlines)", "14:"),
        ("delay >", "14:"),
        ("delay > 5 extra", "14:"),
        ("random() > 0.5", "14:13 `random()` gives another answer"),
        (
            "delay > $lest",
            "14:21 unknown parameter `$lest` | did you mean `least`?",
        ),
    ] {
        let error = with(rule).expect_err(rule);
        assert!(error.starts_with(expected), "{rule}: {error}");
    }
}

#[test]
fn one_error_is_reported_once_and_all_are_reported() {
    let body = "steps:\n  a: SELECT dlay FROM raw\n  b: SELECT dlay FROM a\n  c: SELECT count(*) AS n FROM raw\n  d: SELECT n, nn FROM c\nloads:\n  \
                l: {from: b, to: w, table: t, mode: append}\n  m: {from: d, to: w, table: u, mode: append}\n";
    let error = compiled(&file(body)).expect_err("three errors");
    let places: Vec<&str> = error
        .lines()
        .map(|line| line.split(' ').next().unwrap_or_default())
        .collect();
    assert_eq!(places, ["11:13", "13:13", "14:16"], "{error}");
}

#[test]
fn without_declared_columns_only_what_needs_none_is_checked() {
    let text = |sql: &str| {
        format!(
            "pipeline: p\nsources: {{raw: {{csv: f.csv}}}}\nsteps:\n  s: {sql}\nloads: {{l: {{from: s, to: w, table: t, mode: append}}}}\n"
        )
    };
    let definition = |sql: &str| parse_and_bind(&text(sql), "p.yaml", &BTreeMap::new()).expect("a right file");
    let check = |sql: &str| Draft::of(&text(sql), "p.yaml", &BTreeMap::new()).check(&BTreeMap::new());
    assert_eq!(check("SELECT x FROM raw").expect("nothing to say").unchecked, ["raw"]);
    let wrong = check("SELEC x FROM raw").expect_err("no SQL").to_string();
    assert!(wrong.contains("p.yaml:4:6: error"), "{wrong}");
    assert!(check("SELECT x FROM rw").is_err());
    let columns = vec![Column {
        name: "x".into(),
        data_type: datafusion::arrow::datatypes::DataType::Utf8,
        required: false,
    }];
    let found = BTreeMap::from([("raw".to_owned(), columns)]);
    assert!(compile(&definition("SELECT x FROM raw"), &found).is_ok());
    let error = compile(&definition("SELECT x FROM raw"), &BTreeMap::new()).expect_err("no columns");
    assert!(
        error.to_string().contains("the columns of source `raw` are not known"),
        "{error}"
    );
    assert_eq!(error.len(), 1);
}

#[test]
fn the_plan_can_be_shown() {
    let text = step("SELECT r.id, a.name FROM raw r JOIN airlines a ON a.carrier = r.carrier");
    let plan = crate::render::plan(&compiled(&text).expect("a right file"));
    let shown = plan.to_string();
    assert!(shown.contains("stage 0: one pass over every chunk of raw"), "{shown}");
    assert!(shown.contains("lookup airlines  csv a.csv  (2 columns)"), "{shown}");
    assert!(shown.contains("step s <- raw, airlines  (2 columns)"), "{shown}");
    assert!(
        shown.contains("load l <- s  => w t  append\n      id int not null\n      name text\n"),
        "{shown}"
    );
    let json = serde_json::to_value(&plan).expect("serializes");
    assert_eq!(json["loads"][0]["columns"][0]["type"], "int");
    assert_eq!(json["stages"][0]["lookups"][0], "airlines");
}
