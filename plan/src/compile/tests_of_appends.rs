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
