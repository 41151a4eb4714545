//! What a file says about change, and every complaint about it.

use std::collections::BTreeMap;

use super::parse_and_bind;
use crate::contract::{BadRow, Contract, Evolution, MissingColumn, NewColumn, WiderType};
use crate::definition::Definition;

/// A file with this source in line 3 and this load in line 5; its definition, or the complaints.
fn read(source: &str, load: &str) -> Result<Definition, Vec<String>> {
    let text = format!(
        "pipeline: p\nsources:\n  raw: {{{source}}}\nloads:\n  l: {{from: raw, to: w, table: t, mode: append{load}}}\n"
    );
    parse_and_bind(&text, "p.yaml", &BTreeMap::new()).map_err(|found| {
        let line = |d: &crate::Diagnostic| {
            let help = d.suggestion.as_deref().unwrap_or_default();
            format!("{}:{} {} | {help}", d.place.line, d.place.column, d.message)
        };
        found.iter().map(line).collect()
    })
}

#[test]
fn what_a_file_says_is_read() {
    let contract = |source: &str| read(source, "").expect(source).sources["raw"].contract;
    assert_eq!(contract("csv: a.csv"), Contract::default());
    assert!(Contract::default().is_plain() && !Contract::default().finds_columns());
    let all = contract(
        "parquet: a.parquet, columns: {a: int}, on_new_column: add, on_missing_column: null, on_wider_type: widen, \
         on_bad_row: fail",
    );
    let expected = Contract {
        on_new_column: NewColumn::Add,
        on_missing_column: Some(MissingColumn::Null),
        on_wider_type: Some(WiderType::Widen),
        on_bad_row: BadRow::Fail,
    };
    assert_eq!(all, expected);
    assert!(!all.is_plain() && all.finds_columns());
    let other = contract(
        "postgres: crm, table: t, columns: {a: int}, on_new_column: quarantine, on_missing_column: \"null\", \
         on_wider_type: fail, on_bad_row: quarantine",
    );
    assert_eq!(other.on_new_column, NewColumn::Quarantine);
    assert_eq!(other.on_missing_column, Some(MissingColumn::Null));
    assert!(!other.is_plain() && !other.finds_columns());

    let evolution = |load: &str| {
        let definition = read("csv: a.csv", load).expect(load);
        definition.loads.values().next().expect("a load").evolution
    };
    assert_eq!(evolution(""), Evolution::default());
    assert_eq!(
        evolution(", on_new_column: add, on_wider_type: widen"),
        Evolution {
            adds_columns: true,
            on_wider_type: Some(WiderType::Widen)
        }
    );
    assert_eq!(evolution(", on_new_column: fail"), Evolution::default());
}

#[test]
fn what_makes_no_sense_is_told_with_its_place() {
    for (source, load, expected) in [
        (
            "csv: a.csv, columns: {a: int}, on_new_column: ad",
            "",
            "3:55 unknown `on_new_column` of source `raw`: `ad` | did you mean `add`?",
        ),
        (
            "csv: a.csv, columns: {a: int}, on_missing_column: ignored",
            "",
            "3:59 unknown `on_missing_column` of source `raw`: `ignored` | there is: fail, null",
        ),
        (
            "csv: a.csv, columns: {a: int}, on_bad_row: null",
            "",
            "3:52 unknown `on_bad_row` of source `raw`: `null` | there is: quarantine, fail",
        ),
        (
            "csv: a.csv, on_new_column: quarantine",
            "",
            "3:21 `on_new_column` of source `raw` says nothing: it declares no columns | declare `columns`, as `haulage \
             infer` prints them, or leave it out",
        ),
        (
            "json: a.jsonl, on_missing_column: fail",
            "",
            "3:24 `on_missing_column` of source `raw` says nothing: it declares no columns | declare `columns`, as \
             `haulage infer` prints them, or leave it out",
        ),
        (
            "csv: a.csv, header: false, columns: {a: int}, on_missing_column: null",
            "",
            "3:55 `on_missing_column` of source `raw` says nothing: it has no header | leave it out; a row with more or \
             fewer fields is `ragged`",
        ),
        (
            "csv: a.csv, columns: {a: int}, on_wider_type: widen",
            "",
            "3:40 `on_wider_type` of source `raw` says nothing: `csv` has no types of its own | leave it out; values that \
             don't fit their column go where `on_bad_row` says",
        ),
        (
            "sqlite: a.db, table: t, columns: {a: int}, on_wider_type: widen",
            "",
            "3:52 `on_wider_type` of source `raw` says nothing: `sqlite` has no types of its own | leave it out; values \
             that don't fit their column go where `on_bad_row` says",
        ),
        (
            "csv: a.csv",
            ", on_new_column: ignore",
            "5:64 unknown `on_new_column` of load `l`: `ignore` | there is: add, fail",
        ),
        (
            "csv: a.csv",
            ", on_wider_type: wide",
            "5:64 unknown `on_wider_type` of load `l`: `wide` | did you mean `widen`?",
        ),
        (
            "csv: a.csv",
            ", on_bad_row: fail",
            "5:49 unknown key `on_bad_row` in load `l` | there is: from, to, table, mode, key, newest, keep_previous, provenance, \
             on_new_column, on_wider_type, format, partition_by, compression",
        ),
    ] {
        let said = read(source, load).expect_err(source);
        assert_eq!(said, [expected], "{source}{load}");
    }
    for setting in ["on_new_column: quarantine", "on_bad_row: quarantine"] {
        let source = format!("csv: a.csv, columns: {{a: int}}, lookup: true, {setting}");
        let text = format!(
            "pipeline: p\nsources:\n  raw: {{csv: a.csv}}\n  more: {{{source}}}\nloads:\n  l: {{from: raw, to: w, table: \
             t, mode: append}}\n"
        );
        let said = parse_and_bind(&text, "p.yaml", &BTreeMap::new())
            .expect_err(setting)
            .to_string();
        assert!(
            said.contains(&format!("`{setting}` of source `more`, which is a lookup")),
            "{said}"
        );
        assert!(said.contains("p.yaml:4:55"), "{said}");
    }
}
