//! How a source may drift, what its pipeline says of that, and what has to come of it.

use serde_json::{Value, json};

/// Where rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Csv,
    Json,
    Parquet,
    Postgres,
}

/// A column of a source, and its values.
#[derive(Debug, Clone)]
pub(super) struct Values {
    pub(super) name: &'static str,
    pub(super) type_name: &'static str,
    pub(super) values: Vec<Value>,
}

pub(super) fn values(name: &'static str, type_name: &'static str, values: [Value; 3]) -> Values {
    Values {
        name,
        type_name,
        values: values.into(),
    }
}

pub(super) fn id(from: i64) -> Values {
    values("id", "int", [json!(from), json!(from + 1), json!(from + 2)])
}

pub(super) fn n() -> Values {
    values("n", "int", [json!(10), json!(20), Value::Null])
}

pub(super) fn note() -> Values {
    values("note", "text", [json!("a"), json!("b"), json!("c")])
}

/// What comes of a case.
pub(super) enum Outcome {
    /// These rows are in the table beside the first run's, as `column=value` in the order of their columns, and so many
    /// are in quarantine for this reason.
    Loaded(&'static [&'static str], usize, &'static str),
    /// Plan and run refuse it, and say so.
    Refused(&'static [&'static str]),
    /// Only the values show it: the run fails on them.
    Fails(&'static [&'static str]),
    /// The pipeline can't say this of such a source.
    Unsayable,
}

use Outcome::{Fails, Loaded, Refused, Unsayable};

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) source: Vec<Values>,
    /// Settings of the source and of the load.
    pub(super) settings: (&'static str, &'static str),
    pub(super) outcome: fn(Format, bool) -> Outcome,
}

const ALL: &[&str] = &["id=4 n=10 note=a", "id=5 n=20 note=b", "id=6 n=~ note=c"];
pub(super) const WITH_EXTRA: &[&str] = &[
    "id=4 n=10 note=a extra=x",
    "id=5 n=20 note=b extra=y",
    "id=6 n=~ note=c extra=~",
];
const NO_NOTE: &[&str] = &["id=4 n=10 note=~", "id=5 n=20 note=~", "id=6 n=~ note=~"];
const REMARK: &[&str] = &[
    "id=4 n=10 note=~ remark=a",
    "id=5 n=20 note=~ remark=b",
    "id=6 n=~ note=~ remark=c",
];
const BUT_ONE: &[&str] = &["id=4 n=10 note=a", "id=6 n=~ note=c"];
const WIDE: &[&str] = &["id=4 n=10 note=a", "id=5 n=3000000000 note=b", "id=6 n=~ note=c"];

pub(super) fn cases() -> Vec<Case> {
    let extra = || values("extra", "text", [json!("x"), json!("y"), Value::Null]);
    let wide = || values("n", "bigint", [json!(10), json!(3_000_000_000_i64), Value::Null]);
    let odd = || values("n", "text", [json!("10"), json!("abc"), Value::Null]);
    let remark = || Values {
        name: "remark",
        ..note()
    };
    let case = |name, source: Vec<Values>, settings, outcome| Case {
        name,
        source,
        settings,
        outcome,
    };
    let added = || vec![id(4), n(), extra(), note()];
    vec![
        case("added_ignored", added(), ("", ""), |_, _| Loaded(ALL, 0, "")),
        case(
            "added_added",
            added(),
            ("on_new_column: add", "on_new_column: add"),
            |_, _| Loaded(WITH_EXTRA, 0, ""),
        ),
        case("added_not_there", added(), ("on_new_column: add", ""), |_, _| {
            Refused(&["column extra (text) is not in", "`on_new_column: add` for load drifted"])
        }),
        case("added_fails", added(), ("on_new_column: fail", ""), |_, _| {
            Refused(&[
                "\"extra\", which is not declared",
                "`on_new_column: add`",
                ":3:3: error",
            ])
        }),
        case("added_set_aside", added(), ("on_new_column: quarantine", ""), |_, _| {
            Loaded(&[], 3, "new_column")
        }),
        case("removed", vec![id(4), n()], ("", ""), |format, _| match format {
            Format::Json => Loaded(NO_NOTE, 0, ""),
            Format::Csv | Format::Parquet => Refused(&["no column note", "on_missing_column: null", ":9:7: error"]),
            Format::Postgres => Refused(&["no column `note`", ":9:7: error"]),
        }),
        case(
            "removed_null",
            vec![id(4), n()],
            ("on_missing_column: null", ""),
            |_, _| Loaded(NO_NOTE, 0, ""),
        ),
        case(
            "removed_fails",
            vec![id(4), n()],
            ("on_missing_column: fail", ""),
            |_, _| Refused(&["note", ":9:7: error"]),
        ),
        case(
            "removed_needed",
            vec![n(), note()],
            ("on_missing_column: null", ""),
            |format, _| match format {
                Format::Json => Loaded(&[], 3, "null_in_required"),
                Format::Csv | Format::Parquet | Format::Postgres => Refused(&["no column", ":7:7: error"]),
            },
        ),
        case("reordered", vec![note(), id(4), n()], ("", ""), |_, _| {
            Loaded(ALL, 0, "")
        }),
        case(
            "renamed",
            vec![id(4), n(), remark()],
            ("", ""),
            |format, _| match format {
                Format::Json => Loaded(NO_NOTE, 0, ""),
                Format::Csv | Format::Parquet | Format::Postgres => Refused(&["no column", "note", ":9:7: error"]),
            },
        ),
        case(
            "renamed_added",
            vec![id(4), n(), remark()],
            ("on_new_column: add, on_missing_column: null", "on_new_column: add"),
            |_, _| Loaded(REMARK, 0, ""),
        ),
        case(
            "widened",
            vec![id(4), wide(), note()],
            ("", ""),
            |format, _| match format {
                Format::Parquet => Refused(&["\"n\" is bigint in the file", "on_wider_type: widen", ":8:7: error"]),
                Format::Csv | Format::Json | Format::Postgres => Loaded(BUT_ONE, 1, "out_of_range"),
            },
        ),
        case(
            "widened_fails",
            vec![id(4), wide(), note()],
            ("on_wider_type: fail", ""),
            |format, _| match format {
                Format::Parquet | Format::Postgres => Refused(&["bigint", "on_wider_type: widen", ":8:7: error"]),
                Format::Csv | Format::Json => Unsayable,
            },
        ),
        case(
            "widened_widened",
            vec![id(4), wide(), note()],
            ("on_wider_type: widen", "on_wider_type: widen"),
            |format, _| match format {
                Format::Parquet | Format::Postgres => Loaded(WIDE, 0, ""),
                Format::Csv | Format::Json => Unsayable,
            },
        ),
        case(
            "widened_no_room",
            vec![id(4), wide(), note()],
            ("on_wider_type: widen", ""),
            |format, to_postgres| match format {
                // Every integer of SQLite has 64 bits.
                Format::Parquet | Format::Postgres if !to_postgres => Loaded(WIDE, 0, ""),
                Format::Parquet | Format::Postgres => Fails(&["3000000000"]),
                Format::Csv | Format::Json => Unsayable,
            },
        ),
        case(
            "widened_refused",
            vec![id(4), wide(), note()],
            ("on_wider_type: widen", "on_wider_type: fail"),
            |format, to_postgres| match format {
                Format::Parquet | Format::Postgres if !to_postgres => Loaded(WIDE, 0, ""),
                Format::Parquet | Format::Postgres => Refused(&[
                    "column n is bigint in the load and integer",
                    "`on_wider_type: widen` for load",
                ]),
                Format::Csv | Format::Json => Unsayable,
            },
        ),
        case(
            "narrowed",
            vec![
                id(4),
                Values {
                    type_name: "smallint",
                    ..n()
                },
                note(),
            ],
            ("", ""),
            |_, _| Loaded(ALL, 0, ""),
        ),
        case(
            "changed",
            vec![id(4), odd(), note()],
            ("", ""),
            |format, _| match format {
                Format::Parquet => Refused(&["\"n\" is text in the file", ":8:7: error"]),
                // What is a text there is none of its numbers.
                Format::Json => Loaded(&["id=6 n=~ note=c"], 2, "bad_int"),
                Format::Csv | Format::Postgres => Loaded(BUT_ONE, 1, "bad_int"),
            },
        ),
        case(
            "changed_fails",
            vec![id(4), odd(), note()],
            ("on_bad_row: fail", ""),
            |format, _| match format {
                Format::Parquet => Refused(&["\"n\" is text in the file", ":8:7: error"]),
                Format::Json => Fails(&["line 1, column n: bad_int", "\"10\"", "on_bad_row: fail", ":8:7: error"]),
                Format::Csv => Fails(&[
                    "line 3, column n: bad_int",
                    "\"abc\"",
                    "on_bad_row: fail",
                    ":8:7: error",
                ]),
                Format::Postgres => Fails(&["column n: bad_int", "\"abc\"", "on_bad_row: fail", ":8:7: error"]),
            },
        ),
    ]
}
