//! What a pipeline that reads on may append: rows that every run would bring again are refused.

use std::collections::BTreeMap;

use crate::{Draft, Sound};

/// A file that reads on in `orders`, with a load of the source `from`.
fn check(from: &str, load: &str) -> Result<Sound, Vec<String>> {
    let text = format!(
        "pipeline: p\nsources:\n  orders: {{postgres: crm, table: public.orders, incremental: id, columns: {{id: int!}}}}\n  \
         raw: {{csv: a.csv, columns: {{id: int!}}}}\n  known: {{csv: b.csv, lookup: true}}\nloads:\n  o: {{from: orders, to: w, \
         table: o, mode: append}}\n  l: {{from: {from}, to: w, table: t, {load}}}\nchecks:\n  - {{references: {{id: k}}, lookup: \
         known}}\n"
    );
    let text = match text.contains("from: raw") {
        true => text.replace("lookup: known}", "lookup: known, load: l}"),
        false => text.replace("lookup: known}", "lookup: known, load: o}"),
    };
    let draft = Draft::of(&text, "p.yaml", &BTreeMap::new());
    draft.check(&BTreeMap::new()).map_err(|wrong| {
        let line = |one: &crate::Diagnostic| {
            let help = one.suggestion.as_deref().unwrap_or_default();
            format!("{}:{} {} | {help}", one.place.line, one.place.column, one.message)
        };
        wrong.iter().map(line).collect()
    })
}

#[test]
fn rows_that_every_run_would_append_are_refused() {
    assert_eq!(
        check("raw", "mode: append").err(),
        Some(vec![
            "8:3 load `l` appends the rows of `raw`, which is not `incremental` as `orders` is: every run would append them \
             again | write `mode: merge` with a `key`, or `replace`, or give it a pipeline of its own"
                .to_owned()
        ])
    );
}

/// The columns of the lookup aren't known here, so nothing is said of them.
#[test]
fn what_is_read_on_or_replaced_is_taken() {
    for (from, load) in [
        ("raw", "mode: merge, key: [id]"),
        ("raw", "mode: replace"),
        ("orders", "mode: append"),
    ] {
        check(from, load).unwrap_or_else(|wrong| panic!("{from}, {load}: {wrong:?}"));
    }
}

/// The mistakes of a source that reads on by `how`, with these loads.
fn reading(how: &str, loads: &str) -> Vec<String> {
    let text = format!(
        "pipeline: p\nsources:\n  orders: {{postgres: crm, table: orders, columns: {{id: int!, day: date, at: timestamptz, t: text}},\n    \
         incremental: {how}}}\nloads:\n{loads}"
    );
    let draft = Draft::of(&text, "p.yaml", &BTreeMap::new());
    let Err(wrong) = draft.check(&BTreeMap::new()) else {
        return Vec::new();
    };
    wrong
        .iter()
        .map(|one| format!("{}:{} {}", one.place.line, one.place.column, one.message))
        .collect()
}

#[test]
fn what_would_fail_in_every_run_is_refused() {
    let append = "  o: {from: orders, to: w, table: o, mode: append}\n";
    let merge = "  o: {from: orders, to: w, table: o, mode: merge, key: [id]}\n";
    let replace = "  r: {from: orders, to: w, table: r, mode: replace}\n";
    for (how, loads, expected) in [
        ("id", append, ""),
        ("{column: at, lag: 10m}", merge, ""),
        ("{column: day, lag: 1day}", merge, ""),
        ("{column: t, lag: 5}", merge, ""),
        (
            "{column: at, lag: 10m}",
            append,
            "4:27 source `orders` has a `lag`, which reads rows a second time, and load `o` appends",
        ),
        (
            "day",
            merge,
            "4:18 `day` of source `orders` is a date, of which rows are still to come when the day's first are read",
        ),
        (
            "{column: day, lag: 1h}",
            replace,
            "4:27 `day` of source `orders` is a date, of which",
        ),
        (
            "day",
            append,
            "4:18 `day` of source `orders` is a date, of which rows are still to come when the day's first are read",
        ),
        (
            "{column: day, lag: 1day}",
            append,
            "4:27 `day` of source `orders` is a date, of which rows are still to come when the day's first are read, and load `o` appends",
        ),
        (
            "{column: id, lag: 10m}",
            merge,
            "4:27 `id` of source `orders` is an integer, and `lag` is a time",
        ),
        (
            "{column: at, lag: 10}",
            merge,
            "4:27 `at` of source `orders` is a date or a time, and `lag` is a number",
        ),
        (
            "id",
            &format!("{replace}{append}"),
            "7:3 load `o` appends the rows of `orders` that are new, and load `r` replaces",
        ),
        (
            "id",
            &format!(
                "{append}{}",
                merge.replace("  o:", "  m:").replace("table: o", "table: m")
            ),
            "",
        ),
    ] {
        let found = reading(how, loads);
        match expected {
            "" => assert!(found.is_empty(), "{how} {loads}: {found:?}"),
            expected => assert!(
                found.iter().any(|one| one.starts_with(expected)),
                "{how} {loads}: {found:?}"
            ),
        }
    }
}
