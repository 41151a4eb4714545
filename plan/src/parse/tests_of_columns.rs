//! Columns that say more than their type: where in an object they stand.

use super::tests::{check, params};
use super::*;
use crate::definition::{Paths, SourceKind};

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[test]
fn a_column_of_json_may_have_a_path() {
    let text = "pipeline: p\nsources:\n  files:\n    json: x.jsonl\n    columns:\n      id: bigint!\n      \
                city: {type: text!, path: address.city}\n      total: {type: \"decimal(7,2)\", path: [sums, \"a.b\"]}\n      \
                plain: {type: int}\n  api: {rest: \"http://x.org\", columns: {n: {type: int, path: n2}}}\n\
                loads: {l: {from: files, to: w, table: t, mode: append}}\n";
    let definition = parse_and_bind(text, "p.yaml", &params(&[])).expect("a right file");
    let SourceKind::Json(files) = &definition.sources["files"].kind else {
        panic!("it is JSON")
    };
    let expected = [
        ("city".to_owned(), keys(&["address", "city"])),
        ("total".to_owned(), keys(&["sums", "a.b"])),
    ];
    assert_eq!(files.paths, Paths::from(expected));
    let columns: Vec<_> = files.columns.iter().map(|c| (c.name.as_str(), c.required)).collect();
    assert_eq!(
        columns,
        [("id", true), ("city", true), ("total", false), ("plain", false)]
    );
    let SourceKind::Rest(api) = &definition.sources["api"].kind else {
        panic!("it is an API")
    };
    assert_eq!(api.paths, Paths::from([("n".to_owned(), keys(&["n2"]))]));
}

#[test]
fn what_is_wrong_with_it_is_said_with_its_place() {
    let columns = |columns: &str| format!("sources:\n  raw: {{json: x, columns: {{{columns}}}}}");
    check(
        "b",
        &columns("a: {path: b.c}"),
        &["3:31 column `a` has no `type` | write a: {type: text, path: customer.name}"],
    );
    check(
        "b",
        &columns("a: {type: text, path: b..c}"),
        &[
            "3:50 `path` of column `a` must be a path of keys | write the keys that lead there: data.items, or [data, \
           \"with.dot\"]",
        ],
    );
    check(
        "b",
        &columns("a: {type: text, pth: b.c}"),
        &["3:44 unknown key `pth` in column `a` | did you mean `path`?"],
    );
    check(
        "b",
        "sources:\n  raw: {csv: x, columns: {a: text}, partitions: {day: dates, a: int, b: {type: int, path: c}}}",
        &[
            "3:55 unknown type `dates` of column `day` | did you mean `date`?",
            "3:62 source `raw` has the column `a` twice, in `columns` and in `partitions` | leave it out of one: it is in the \
           files, or in the names of their folders",
            "3:73 the type of column `b` must be a text, not a mapping",
        ],
    );
    check(
        "b",
        "sources:\n  raw: {sqlite: x, table: t, partitions: {day: date}}",
        &[
            "3:30 unknown key `partitions` in source `raw` | there is: sqlite, table, query, chunk_size, columns, lookup, on_new_column, \
           on_missing_column, on_wider_type, on_bad_row",
        ],
    );
    check(
        "b",
        "sources:\n  raw: {csv: x, columns: {a: {type: text, path: b.c}}}",
        &[
            "3:49 column `a` can't have a `path` | only JSON has objects in which a column stands deeper; take a JSON text \
           apart in SQL: payload->>'name'",
        ],
    );
}
