//! By which column the newer of two rows is found: it has to be there, to have an order, and to be of use.

use std::collections::BTreeMap;

use crate::{Draft, Sound};

/// A file whose load says this.
fn check(load: &str) -> Result<Sound, Vec<String>> {
    let text = format!(
        "pipeline: p\nsources:\n  raw: {{csv: a.csv, columns: {{id: int!, at: timestamptz, day: date, note: text, much: double}}}}\n\
         loads:\n  l: {{from: raw, to: w, table: t, {load}}}\n"
    );
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
fn a_column_with_an_order_is_taken() {
    for column in ["id", "at", "day"] {
        let sound = check(&format!("mode: merge, key: [id], newest: {column}")).expect(column);
        let load = sound.definition.loads.values().next().expect("a load");
        assert_eq!(load.newest.as_deref(), Some(column));
    }
    let plain = check("mode: merge, key: [id]").expect("sound");
    assert!(plain.definition.loads.values().all(|load| load.newest.is_none()));
    // What is replaced is added to by a replay.
    check("mode: replace, key: [id], newest: at").expect("sound");
}

#[test]
fn what_is_of_no_use_is_refused() {
    for (load, expected) in [
        (
            "mode: merge, key: [id], newest: att",
            "5:67 `newest` of load `l` names `att`, which `raw` doesn't have | did you mean `at`?",
        ),
        (
            "mode: merge, key: [id], newest: note",
            "5:67 load `l` goes by `note` to find the newer of two rows, which is text | name an integer, a date or a time \
             whose values only grow",
        ),
        (
            "mode: merge, key: [id], newest: much",
            "5:67 load `l` goes by `much` to find the newer of two rows, which is double | name an integer, a date or a time \
             whose values only grow",
        ),
        (
            "mode: append, key: [id], newest: at",
            "5:60 load `l` says which of two rows with one key is newer, and doesn't update rows by a key | write `mode: \
             merge` and a `key`, or leave `newest` out",
        ),
        (
            "mode: replace, newest: at",
            "5:50 load `l` says which of two rows with one key is newer, and doesn't update rows by a key | write `mode: \
             merge` and a `key`, or leave `newest` out",
        ),
    ] {
        let said = check(load).expect_err(load);
        assert_eq!(said, [expected], "{load}");
    }
}
