//! Checks as people get them wrong, and how those that are right are read.

use super::tests::{compiled, file};
use crate::checks::{OnFail, Rule};

/// A file with one load `l` of all columns of `raw`, and these checks; the first stands in line 13.
fn checked(checks: &str) -> String {
    file(&format!(
        "loads:\n  l: {{from: raw, to: w, table: t, mode: append}}\nchecks:\n  - {checks}\n"
    ))
}

#[test]
fn what_is_wrong_with_a_check_is_said_at_its_place() {
    let mut wrong = Vec::new();
    for (check, expected) in [
        ("{uniqe: id}", "unknown key `uniqe` in a check | did you mean `unique`?"),
        (
            "{accepted_values: {carrier: [AA]}}",
            "unknown key `accepted_values` in a check | write `accepted`",
        ),
        ("{name: x}", "the check doesn't say what must hold"),
        ("{unique: id, not_null: id}", "the check has 2 rules"),
        ("{unique: []}", "`unique` of a check names no column"),
        (
            "{unique: ide}",
            "`unique` names `ide`, which load `l` doesn't have | did you mean `id`?",
        ),
        (
            "{row_count: 1000}",
            "`row_count` of a check must be a bound, not `1000` | write a bound such as",
        ),
        (
            "{row_count: \"> 5%\"}",
            "must be a number, not a share | of the last runs",
        ),
        (
            "{row_count: {within: 20%}}",
            "`row_count` of a check needs `within` and `of_last`",
        ),
        (
            "{row_count: {within: 20, of_last: 5}}",
            "`within` of a check must be a share, not `20`",
        ),
        (
            "{row_count: {within: 20%, of_last: 0}}",
            "`of_last` of a check must be 1 to 100",
        ),
        ("{rejects: few}", "`rejects` of a check must be a bound, not `few`"),
        (
            "{accepted: [AA]}",
            "`accepted` of a check must name one column | write {carrier: [AA, UA]}",
        ),
        (
            "{accepted: {year: [2013, last]}}",
            "names `last`, which is not int | write a whole number",
        ),
        ("{range: {year: 2013}}", "`range` of a check must have two ends"),
        ("{range: {year: [null, null]}}", "`range` of a check must have two ends"),
        (
            "{range: {year: [2014, 2013]}}",
            "`range` of `year` ends before it begins | swap",
        ),
        (
            "{range: {carrier: [A, B]}}",
            "`range` is about `carrier`, which is text",
        ),
        (
            "{range: {at: [1.1.2013, null]}}",
            "names `1.1.2013`, which is not timestamp",
        ),
        (
            "{fresh: {at: soon}}",
            "`fresh` of a check must be a length of time, not `soon` | write a time such as",
        ),
        ("{fresh: {id: 2h}}", "`fresh` is about `id`, which is int"),
        (
            "{references: {carrier: airlines}}",
            "must be a table and a column, not `airlines`",
        ),
        (
            "{references: {carrier: \"a b.c\"}}",
            "`a b` of a check is not a table's name",
        ),
        ("{outliers: delay}", "`outliers` of a check must be a mapping"),
        (
            "{outliers: {column: carrier}}",
            "`outliers` is about `carrier`, which is text",
        ),
        (
            "{outliers: {column: delay, method: iq}}",
            "unknown method `iq` | did you mean `iqr`?",
        ),
        (
            "{outliers: {column: delay, beyond: -1}}",
            "`beyond` of a check must be a positive number",
        ),
        (
            "{sql: DELETE FROM staged}",
            "`sql` of a check is no query | write one SELECT",
        ),
        (
            "{sql: \"SELECT 1; DROP TABLE t\"}",
            "`sql` of a check is more than one statement",
        ),
        (
            "{sql: \"SELECT 1) AS x, (SELECT 2\"}",
            "closes a bracket that it doesn't open",
        ),
        (
            "{sql: SELECT count(*) FROM staged WHERE at > $dax}",
            "names the unknown parameter `$dax`: did you mean `day`?",
        ),
        (
            "{sql: SELECT count(*) FROM staged WHERE at > $1}",
            "names the unknown parameter `$1`: there is: day, least",
        ),
        ("{sql: \"SELECT 1; -- done\"}", "ends with a semicolon and a comment"),
        (
            "{references: {id: staged.id}}",
            "is about a table called `staged` | write it with its schema",
        ),
        ("{sql: SELECT (1}", "opens a bracket that it doesn't close"),
        ("{sql: \"SELECT 'x\"}", "`sql` of a check can't be read"),
        (
            "{sql: SELECT 1, expect: \"> 5%\"}",
            "`expect` of a check must be a number, not a share",
        ),
        ("{unique: id, expect: \"= 1\"}", "`expect` goes with `sql` alone"),
        (
            "{unique: id, on_fail: reject}",
            "unknown `on_fail: reject` | write `quarantine`",
        ),
        (
            "{row_count: \">= 1\", on_fail: quarantine}",
            "sets rows aside, and `row_count` is about a whole load and names none | write `fail` or `warn`",
        ),
        (
            "{row_count: {within: 20%, of_last: 5}, on_fail: quarantine}",
            "sets rows aside, and `row_count` is about a whole load",
        ),
        (
            "{rejects: \"< 1%\", on_fail: quarantine}",
            "sets rows aside, and `rejects` is about a whole load and names none | write `fail` or `warn`",
        ),
        (
            "{fresh: {at: 2h}, on_fail: quarantine}",
            "sets rows aside, and `fresh` is about a whole load and names none | write `fail` or `warn`",
        ),
        (
            "{sql: SELECT 1, on_fail: quarantine}",
            "sets rows aside, and `sql` is about a whole load and names none | rows that an expression names",
        ),
        (
            "{references: {carrier: carrier}, lookup: airline}",
            "the check names the lookup `airline`, which is no source | did you mean `airlines`?",
        ),
        (
            "{references: {carrier: carrier}, lookup: more}",
            "the check names `more`, which is no lookup | declare it with `lookup: true`",
        ),
        (
            "{references: {carrier: carier}, lookup: airlines}",
            "`references` names `carier`, which the lookup `airlines` doesn't have | did you mean `carrier`?",
        ),
        (
            "{references: {at: seats}, lookup: planes}",
            "`references` compares `at`, which is timestamp, with `seats` of `planes`, which is int",
        ),
        (
            "{unique: id, lookup: airlines}",
            "`lookup` goes with `references` alone",
        ),
        ("{unique: id, load: k}", "the check is about `k`, which is no load"),
        ("unique", "a check must be a mapping of names to values"),
        (
            "{unique: id}\n  - {unique: [id]}",
            "two checks of load `l` are called `unique id`",
        ),
    ] {
        match compiled(&checked(check)) {
            Ok(_) => wrong.push(format!("{check}: accepted")),
            Err(said) => {
                // What parsing says is written for a person: the help is on a line of its own.
                let flat = said.replace("\n  = help: ", " | ").replace("\n", " ");
                let (message, help) = expected.split_once(" | ").unwrap_or((expected, ""));
                let place = said.contains("13:") || said.contains("14:");
                if !place || !flat.contains(message) || !flat.contains(help) {
                    wrong.push(format!("{check}\n  expected {expected}\n  got      {said}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let two = file(
        "loads:\n  l: {from: raw, to: w, table: t, mode: append}\n  k: {from: raw, to: w, table: u, mode: append}\n\
         checks: [{unique: id}]\n",
    );
    let said = compiled(&two).expect_err("which load?");
    assert!(
        said.contains("the file has 2 loads, and the check doesn't say which"),
        "{said}"
    );
    let said = compiled(&file(
        "loads:\n  l: {from: raw, to: w, table: t, mode: append}\nchecks: {unique: id}\n",
    ));
    assert!(said.expect_err("no list").contains("`checks` must be a list"));
}

#[test]
fn checks_are_read_and_shown_in_a_plan() {
    let text = checked(
        "{unique: [id, year]}\n  - {range: {delay: [-120, 1500]}, on_fail: warn}\n  - {fresh: {at: 2 days}, name: of today}",
    );
    let compiled = compiled(&text).expect("they are right");
    let checks = &compiled.definition.checks;
    assert_eq!(checks.len(), 3);
    assert_eq!(checks[0].rule, Rule::Unique(vec!["id".into(), "year".into()]));
    assert_eq!(
        (checks[1].on_fail, checks[1].name.as_str()),
        (OnFail::Warn, "range delay -120..1500")
    );
    assert_eq!((checks[2].name.as_str(), checks[2].place.line), ("of today", 15));
    let shown = crate::render::plan(&compiled).to_string();
    for line in [
        "check unique id, year\n",
        "check range delay -120..1500  (warns)\n",
        "check of today\n",
    ] {
        assert!(shown.contains(line), "{line:?} is missing in\n{shown}");
    }
}

#[test]
fn rows_can_be_set_aside_where_a_rule_names_them_and_they_can_be_staged() {
    for rule in [
        "not_null: carrier",
        "unique: [id, year]",
        "accepted: {carrier: [AA]}",
        "range: {delay: [0, 1]}",
        "references: {carrier: public.airlines.carrier}",
        "references: {carrier: carrier}, lookup: airlines",
        "outliers: {column: delay}",
    ] {
        let compiled = compiled(&checked(&format!("{{{rule}, on_fail: quarantine}}"))).expect("it is right");
        let check = &compiled.definition.checks[0];
        assert_eq!(check.on_fail, OnFail::Quarantine, "{rule}");
        assert_eq!(check.reason(), format!("check:{}", check.name));
        let shown = crate::render::plan(&compiled).to_string();
        assert!(shown.contains("(sets rows aside)"), "{shown}");
    }
    let keyed = file(
        "loads:\n  l: {from: raw, to: w, table: t, mode: merge, key: [id]}\nchecks:\n  - {not_null: [carrier, id], on_fail: \
         quarantine}\n",
    );
    let said = compiled(&keyed).expect_err("a key column");
    assert!(
        said.contains("it is a key column of load `l`") && said.contains("reject: {no_id: id IS NULL}"),
        "{said}"
    );
}

#[test]
fn parameters_are_named_in_the_query_of_a_check() {
    let text = checked("{sql: SELECT count(*) FROM staged WHERE at > $day AND id < $least}");
    compiled(&text).expect("both are declared");
}
