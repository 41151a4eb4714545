//! Every complaint about a file, with its line and column, in one table.

use std::collections::BTreeMap;

use datafusion::arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;

use super::*;
use crate::definition::{Compression, DatabaseKind, DatabaseRows, Mode, QueryPart, SourceKind};

pub(super) fn params(given: &[(&str, &str)]) -> BTreeMap<String, String> {
    given
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Diagnostics as `line:column message | help`.
fn complaints(text: &str, given: &[(&str, &str)]) -> Vec<String> {
    match parse_and_bind(text, "p.yaml", &params(given)) {
        Ok(_) => Vec::new(),
        Err(found) => found
            .iter()
            .map(|d| {
                let help = d
                    .suggestion
                    .as_deref()
                    .map(|help| format!(" | {help}"))
                    .unwrap_or_default();
                format!("{}:{} {}{help}", d.place.line, d.place.column, d.message)
            })
            .collect(),
    }
}

/// A file that is right but for one part.
fn with(part: &str, text: &str) -> String {
    let mut parts = BTreeMap::from([
        ("a", "pipeline: p"),
        ("b", "sources: {raw: {csv: x.csv}}"),
        ("c", "steps: {s: SELECT * FROM raw}"),
        ("d", "loads: {l: {from: s, to: warehouse, table: t, mode: append}}"),
    ]);
    parts.insert(part, text);
    parts
        .into_values()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
        + "\n"
}

#[track_caller]
pub(super) fn check(part: &str, text: &str, expected: &[&str]) {
    assert_eq!(complaints(&with(part, text), &[]), expected, "{text}");
}

#[test]
fn a_whole_file_is_read() {
    let text = r#"
pipeline: flights-2013
params:
  day: {type: date, default: 2013-01-01}
  top: {type: int}
checkpoint_rows: 50_000
sources:
  raw:
    csv: "data/{{ day }}/flights-*.csv"
    null: ["NA", ""]
    columns: {year: int!, carrier: text!, fare: "decimal(10,2)", at: timestamptz}
    delimiter: "\t"
    quote: "'"
    compression: gzip
    chunk_size: 8MiB
    quoted_newlines: false
  airlines: {csv: airlines.csv, lookup: true, header: false, columns: {code: text, name: text}}
steps:
  clean: SELECT * FROM raw
  valid:
    from: clean
    reject: {no_carrier: carrier IS NULL, early: year < $top}
  named:
    sql: |
      SELECT v.*, a.name
      FROM valid v JOIN airlines a ON a.code = v.carrier
loads:
  flights: {from: named, to: warehouse, table: public.flights, mode: merge, key: [year, carrier]}
  raw: {from: raw, to: lake, table: raw, mode: replace, key: year, keep_previous: 3, provenance: true}
"#;
    let definition = parse_and_bind(text, "p.yaml", &params(&[("top", "2014")])).expect("a right file");
    assert_eq!(definition.pipeline, "flights-2013");
    assert_eq!(definition.checkpoint_rows, 50_000);
    let kept: Vec<u32> = definition.loads.values().map(|load| load.keep_previous).collect();
    assert_eq!(kept, [1, 3]);
    let provenance: Vec<bool> = definition.loads.values().map(|load| load.provenance).collect();
    assert_eq!(provenance, [false, true]);
    assert_eq!(definition.params["day"], ScalarValue::Date32(Some(15706)));
    assert_eq!(definition.params["top"], ScalarValue::Int32(Some(2014)));
    let SourceKind::Csv(raw) = &definition.sources["raw"].kind else {
        panic!("raw is CSV")
    };
    assert_eq!(raw.path, "data/2013-01-01/flights-*.csv");
    assert_eq!(raw.null, ["NA", ""]);
    assert_eq!((raw.delimiter, raw.quote, raw.header), (b'\t', b'\'', true));
    assert_eq!(
        (raw.compression, raw.chunk_bytes, raw.quoted_newlines),
        (Compression::Gzip, 8 << 20, false)
    );
    let columns: Vec<_> = raw.columns.iter().map(|c| (c.name.as_str(), c.required)).collect();
    assert_eq!(
        columns,
        [("year", true), ("carrier", true), ("fare", false), ("at", false)]
    );
    assert_eq!(raw.columns[2].data_type, DataType::Decimal128(10, 2));
    let SourceKind::Csv(airlines) = &definition.sources["airlines"].kind else {
        panic!("airlines is CSV")
    };
    assert!(definition.sources["airlines"].lookup && !airlines.header);
    assert_eq!((airlines.chunk_bytes, airlines.quoted_newlines), (16 << 20, true));
    assert_eq!(definition.steps["valid"].query.text, "SELECT * FROM \"clean\"");
    assert_eq!(
        definition.steps["valid"].reject.keys().collect::<Vec<_>>(),
        ["no_carrier", "early"]
    );
    assert_eq!(definition.steps["named"].query.place, Place { line: 25, column: 7 });
    let outline = outline(&definition);
    assert_eq!(outline[0].name.as_str(), "flights");
    assert_eq!(
        (outline[0].destination.as_str(), outline[0].table.as_str()),
        ("warehouse", "public.flights")
    );
    assert_eq!(definition.loads[1].mode, Mode::Replace);
    assert_eq!(definition.loads[1].key, ["year"]);
    assert_eq!(
        parse_and_bind(&with("e", ""), "p", &params(&[]))
            .expect("defaults")
            .checkpoint_rows,
        100_000
    );
}

#[test]
fn json_lines_are_declared_as_csv_is() {
    let text = "sources:\n  raw:\n    json: \"s3://b/{{ day }}/*.jsonl\"\n    columns: {id: bigint!, at: timestamptz}\n    \
                compression: zstd\n    chunk_size: 1MiB\n  small: {json: x, lookup: true}";
    let text = with("b", &format!("params:\n  day: date\n{text}"));
    let definition = parse_and_bind(&text, "p.yaml", &params(&[("day", "2013-01-31")])).expect("a right file");
    let SourceKind::Json(raw) = &definition.sources["raw"].kind else {
        panic!("raw is JSON")
    };
    assert_eq!(raw.path, "s3://b/2013-01-31/*.jsonl");
    assert_eq!((raw.compression, raw.chunk_bytes), (Compression::Zstd, 1 << 20));
    let columns: Vec<_> = raw.columns.iter().map(|c| (c.name.as_str(), c.required)).collect();
    assert_eq!(columns, [("id", true), ("at", false)]);
    let small = &definition.sources["small"];
    assert!(small.lookup && small.kind.columns().is_empty() && small.kind.is_local("."));
    assert_eq!((small.kind.word(), small.kind.location()), ("json", "x"));
    assert!(!definition.sources["raw"].kind.is_local("."));
}

#[test]
fn parquet_is_declared_by_its_path_alone() {
    let text = with(
        "b",
        "sources: {raw: {parquet: x/*.parquet}, small: {parquet: y, columns: {a: int!}, chunk_size: 1MiB}}",
    );
    let definition = parse_and_bind(&text, "p.yaml", &params(&[])).expect("a right file");
    let [raw, small] = ["raw", "small"].map(|name| &definition.sources[name].kind);
    assert_eq!(
        (raw.word(), raw.location(), raw.columns()),
        ("parquet", "x/*.parquet", &[][..])
    );
    assert!(raw.is_local(".") && !raw.is_local("s3://b"));
    let SourceKind::Parquet(small) = small else {
        panic!("small is Parquet")
    };
    assert_eq!((small.chunk_bytes, small.columns.len()), (1 << 20, 1));
    check(
        "b",
        "sources: {raw: {parquet: x, compression: gzip}}",
        &[
            "2:29 unknown key `compression` in source `raw` | there is: parquet, chunk_size, partitions, columns, lookup, \
           on_new_column, on_missing_column, on_wider_type, on_bad_row",
        ],
    );
}

#[test]
fn the_top_level() {
    check(
        "a",
        "",
        &["1:1 the file has no `pipeline` | give it a name: `pipeline: flights`"],
    );
    check(
        "a",
        "pipeline: Flights 1",
        &[
            "1:11 `Flights 1` can't be a pipeline's name: it starts with a letter and holds a-z, 0-9 `_` and `-` | `flights_1` would do",
        ],
    );
    check(
        "a",
        "pipeline: p\npipelin: x",
        &["2:1 unknown key `pipelin` in a pipeline file | did you mean `pipeline`?"],
    );
    check(
        "a",
        "pipeline: p\npipeline: q",
        &["2:1 the key `pipeline` stands twice in a pipeline file | keep one of the two, or rename one"],
    );
    check(
        "a",
        "pipeline: p\ncheckpoint_rows: 0",
        &["2:18 `checkpoint_rows` must be 1 to 10000000"],
    );
    check(
        "a",
        "pipeline: p\ncheckpoint_rows: many",
        &["2:18 `checkpoint_rows` must be a whole number, not `many`"],
    );
    check(
        "b",
        "sources: [raw]",
        &["2:10 sources must be a mapping of names to values, not a list"],
    );
    check("d", "loads: {}", &["4:8 `loads` is empty: there is nothing to do"]);
    assert_eq!(
        complaints("- a\n", &[]),
        ["1:1 a pipeline file must be a mapping of names to values, not a list"]
    );
    assert!(complaints("a: [\n", &[])[0].contains("not valid YAML"));
}

#[test]
fn sources_in_databases() {
    let text = r#"pipeline: p
params: {day: {type: date, default: 2013-01-31}, at: {type: timestamptz, default: "2013-01-31T05:00:00Z"}}
sources:
  orders: {postgres: crm, table: public.orders, columns: {id: bigint!}, chunk_size: 1MiB}
  recent:
    postgres: crm
    query: |
      SELECT id FROM orders
      WHERE day >= $day AND at < $at AND note <> '$day'; -- done
  notes: {sqlite: "notes-{{ day }}.db", table: notes, lookup: true}
  carts: {mysql: shop, query: "SELECT id FROM carts WHERE day >= $day # $day"}
steps: {s: SELECT * FROM orders}
loads: {l: {from: s, to: w, table: t, mode: append}}
"#;
    let definition = parse_and_bind(text, "p.yaml", &params(&[])).expect("a right file");
    let database = |name: &str| match &definition.sources[name].kind {
        SourceKind::Database(database) => database.clone(),
        SourceKind::Csv(_) | SourceKind::Json(_) | SourceKind::Parquet(_) | SourceKind::Rest(_) => {
            panic!("{name} is in a database")
        }
    };
    let orders = database("orders");
    assert_eq!(
        (orders.kind, orders.at.as_str(), orders.chunk_bytes),
        (DatabaseKind::Postgres, "crm", 1 << 20)
    );
    assert_eq!(orders.rows, DatabaseRows::Table("public.orders".into()));
    assert!(orders.columns[0].required);
    assert_eq!(definition.sources["orders"].kind.location(), "crm: public.orders");
    assert_eq!(definition.sources["orders"].kind.connection(), Some("crm"));
    let DatabaseRows::Query(parts) = database("recent").rows else {
        panic!("it is a query");
    };
    let words: Vec<String> = parts
        .iter()
        .map(|part| match part {
            QueryPart::Text(text) => text.clone(),
            QueryPart::Param { name, data_type, value } => format!("[{name} {data_type} {value}]"),
        })
        .collect();
    assert_eq!(
        words.concat(),
        "SELECT id FROM orders\nWHERE day >= [day Date32 2013-01-31] AND at < [at Timestamp(µs, \"UTC\") \
         2013-01-31T05:00:00Z] AND note <> '$day'; -- done"
    );
    let notes = database("notes");
    assert_eq!(
        (notes.kind, notes.at.as_str()),
        (DatabaseKind::Sqlite, "notes-2013-01-31.db")
    );
    assert!(definition.sources["notes"].lookup && definition.sources["notes"].kind.connection().is_none());

    let carts = database("carts");
    assert_eq!((carts.kind, carts.at.as_str()), (DatabaseKind::Mysql, "shop"));
    assert!(matches!(&carts.rows, DatabaseRows::Query(parts) if parts.len() == 3));
    let kind = &definition.sources["carts"].kind;
    assert_eq!((kind.word(), kind.connection()), ("mysql", Some("shop")));

    for (source, expected) in [
        (
            "{postgres: \"postgres://u:p@h/d\", table: t}",
            "3:20 `postgres` of source `raw` is the name of a connection, not its address | write `postgres: crm`, and \
             start nodes with `--source crm=postgres://...`",
        ),
        (
            "{mysql: \"mysql://u:p@h/d\", table: t}",
            "3:17 `mysql` of source `raw` is the name of a connection, not its address | write `mysql: crm`, and start \
             nodes with `--source crm=mysql://...`",
        ),
        (
            "{mysql: shop, table: t, delimiter: x}",
            "3:32 unknown key `delimiter` in source `raw` | there is: mysql, table, query, chunk_size, incremental, \
             columns, lookup, on_new_column, on_missing_column, on_wider_type, on_bad_row",
        ),
        (
            "{postgres: CRM, table: t}",
            "3:19 `CRM` can't be a connection's name: it starts with a letter and holds a-z, 0-9 and `_` | `crm` would do",
        ),
        (
            "{postgres: crm}",
            "3:3 source `raw` doesn't say which rows it reads | write `table: orders`, or `query: \"SELECT ...\"`",
        ),
        (
            "{sqlite: a.db, table: t, query: SELECT 1}",
            "3:40 source `raw` has a `table` and a `query` | keep one of the two",
        ),
        (
            "{sqlite: a.db, table: t, delimiter: x}",
            "3:33 unknown key `delimiter` in source `raw` | there is: sqlite, table, query, chunk_size, columns, lookup, \
             on_new_column, on_missing_column, on_wider_type, on_bad_row",
        ),
        (
            "{sqlite: \"s3://b/a.db\", table: t}",
            "3:17 source `raw` is in S3, where SQLite can't read it | name a file that nodes have on their disk",
        ),
        (
            "{postgres: crm, query: SELECT $dya}",
            "3:31 the query of source `raw` names an unknown parameter `$dya` | declare it: `params: {dya: {type: \
             text}}`, and write `$dya`",
        ),
        (
            "{postgres: crm, table: t, chunk_size: 1kB}",
            "3:46 chunks of 1000 bytes are too small | 64KiB is the least; 16MiB is usual",
        ),
    ] {
        check("b", &format!("sources:\n  raw: {source}"), &[expected]);
    }
}

#[test]
fn sources() {
    check(
        "b",
        "sources:\n  raw:\n    csv: x.csv\n    colums: {a: int}",
        &["5:5 unknown key `colums` in source `raw` | did you mean `columns`?"],
    );
    check(
        "b",
        "sources:\n  raw: {lookup: true}",
        &[
            "3:3 source `raw` doesn't say where its rows are | write `csv: \"data/*.csv\"` (or `json:`, `parquet:`), or \
             `postgres: NAME`, `mysql: NAME` or `sqlite: PATH` with `table: TABLE`, or `rest: URL`",
        ],
    );
    check(
        "b",
        "sources:\n  raw: {csv: x, columns: {a: integer, b: strin!, c: decimal(10,2)}}",
        &[
            "3:30 unknown type `integer` of column `a` | write `int`",
            "3:42 unknown type `strin` of column `b` | the types are: text, smallint, int, bigint, float, double, bool, date, timestamp, timestamptz, decimal(p,s)",
            "3:53 `decimal(10` is not a decimal type of column `c` | inside { } the comma splits it: put it in quotes, \"decimal(10,2)\"",
        ],
    );
    check(
        "b",
        "sources:\n  raw:\n    csv: x\n    columns: {a: int, a: text}",
        &["5:23 the key `a` stands twice in the columns of source `raw` | keep one of the two, or rename one"],
    );
    check(
        "b",
        "sources:\n  raw: {csv: x, header: maybe, delimiter: ab, chunk_size: 8 boxes, compression: gz}",
        &[
            "3:25 `header` of source `raw` must be true or false",
            "3:43 `delimiter` of source `raw` must be one ASCII character | write it in quotes, such as \";\" or \"\\t\"",
            "3:59 `chunk_size` of source `raw` must be a size, not `8 boxes` | write a size such as 16MiB, 500kB or 65536",
            "3:81 unknown compression `gz` of source `raw` | write `gzip`",
        ],
    );
    check(
        "b",
        "sources:\n  raw: {csv: x, header: false}",
        &[
            "3:17 source `raw` has no header and declares no columns | declare them in the order of the file: `columns: {year: int, carrier: text}`",
        ],
    );
    check(
        "b",
        "sources:\n  raw: {json: x, null: [NA], compression: zst, chunk_size: 1kB}",
        &[
            "3:18 unknown key `null` in source `raw` | there is: json, compression, chunk_size, partitions, columns, lookup, \
             on_new_column, on_missing_column, on_wider_type, on_bad_row",
            "3:43 unknown compression `zst` of source `raw` | write `zstd`",
            "3:60 chunks of 1000 bytes are too small | 64KiB is the least; 16MiB is usual",
        ],
    );
    check(
        "b",
        "sources:\n  raw: {csv: x, columns: {__haulage_row: int}}",
        &["3:27 `__haulage_row` is a name that Haulage keeps for itself | rename the column in the file"],
    );
    check(
        "b",
        "sources:\n  raw: {csv: x, columns: {a: !text int}}",
        &[
            "3:36 YAML tags (`!name`) have no meaning in a pipeline file | a required column's `!` stands after its type: `text!`",
        ],
    );
    check(
        "b",
        "sources:\n  raw: {csv: x, delimiter: '\"'}",
        &["3:28 source `raw` has the same character as delimiter and as quote"],
    );
}

#[test]
fn steps_and_loads() {
    check(
        "c",
        "steps:\n  s: {from: rwa}",
        &["4:13 step `s` reads `rwa`, which is neither a source nor a step | did you mean `raw`?"],
    );
    check(
        "c",
        "steps:\n  s: {from: SELECT * FROM raw}",
        &["4:13 `from` of step `s` is not a name | put SQL under `sql`"],
    );
    check(
        "c",
        "steps:\n  s: {from: raw, sql: SELECT 1 AS a}",
        &["4:13 step `s` has both `sql` and `from` | keep one: `from: x` is `SELECT * FROM x`"],
    );
    check(
        "c",
        "steps:\n  s: {reject: {a: b}}",
        &["4:3 step `s` has no rows to work on | write `from: STEP` or `sql: SELECT ...`"],
    );
    check(
        "c",
        "steps:\n  s: SELECT * FROM raw\n  raw: SELECT 1 AS a",
        &["5:3 the step `raw` has the name of the source in line 2 | steps and sources share their names: rename one"],
    );
    check("c", "steps:\n  s:\n", &["4:4 step `s` must be a text, not nothing"]);
    check(
        "c",
        "steps:\n  s: {from: raw, reject: {Bad Rule: a}}",
        &[
            "4:27 `Bad Rule` can't be a rule's name: it starts with a letter and holds a-z, 0-9 and `_` | `bad_rule` would do",
        ],
    );
    check(
        "d",
        "loads:\n  l: {from: x, to: warehouse, table: t, mode: upsert}",
        &[
            "5:13 load `l` takes rows from `x`, which is neither a source nor a step | there is: raw, s",
            "5:47 unknown mode `upsert` of load `l` | write `merge`",
        ],
    );
    check(
        "d",
        "loads:\n  l: {from: s, to: warehouse, table: t, mode: append, keep_previous: 101}",
        &[
            "5:70 `keep_previous` of load `l` must be 0 to 100 | each keeps what a run replaced or changed: of `replace`, a \
             whole table",
        ],
    );
    for (said, wrong) in [
        ("format: json", "5:62 unknown format `json` of load `l` | write `jsonl`"),
        (
            "compression: gz",
            "5:67 unknown compression `gz` of load `l` | write `gzip`",
        ),
        (
            "format: csv, compression: snappy",
            "5:80 `snappy` of load `l` is a compression of Parquet only | write `gzip`, `zstd` or `none`",
        ),
        (
            "partition_by: [a, a]",
            "5:72 `partition_by` of load `l` names `a` twice",
        ),
    ] {
        let load = format!("loads:\n  l: {{from: s, to: lake, table: a/b-c, mode: append, {said}}}");
        check("d", &load, &[wrong]);
    }
    for table in ["a/../b", "/a", "a//b", "a/data", "a/_haulage", "a/b c"] {
        let load = format!("loads:\n  l: {{from: s, to: lake, table: {table}, mode: append}}");
        let wrong = format!(
            "5:33 `{table}` of load `l` is no path of a table | write a path such as `sales/orders`, of letters, digits, `_` \
             and `-`, at most 63 characters each; below a table's folder, `data` and names that begin with `_haulage` are kept \
             for Haulage"
        );
        check("d", &load, &[&wrong]);
    }
    for (table, said, has) in [
        ("a/b", "", "a path as `table`"),
        ("t", ", partition_by: k", "`partition_by`"),
    ] {
        let load = format!("loads:\n  l: {{from: s, to: lake, table: {table}, mode: merge, key: k{said}}}");
        let place = 35 + table.len();
        let wrong = format!(
            "5:{place} load `l` merges, and has {has}, which only files have | files can't be merged into: write `mode: \
             append` or `mode: replace`"
        );
        check("d", &load, &[&wrong]);
    }
    check(
        "d",
        "loads:\n  l: {from: s, to: warehouse, table: t, mode: merge}",
        &["5:41 load `l` merges without a key | say which columns tell rows apart: `key: [id]`"],
    );
    check(
        "d",
        "loads:\n  l: {from: s}",
        &[
            "5:3 load `l` has no `mode` | say what happens to the rows that are there: append, replace or merge",
            "5:3 load `l` has no `table` | name the table, such as `table: public.flights`",
            "5:3 load `l` has no `to` | name the destination, such as `to: warehouse`",
        ],
    );
    check(
        "d",
        "loads:\n  l: {from: s, to: \"postgres://u:secret@h/d\", table: a.b.c, mode: append, key: [a, a]}",
        &[
            "5:21 `to` of load `l` is an address | name a destination here and give its address to the node: --destination warehouse=...",
            "5:54 `a.b.c` of load `l` is not a table's name | write `table` or `schema.table`, of letters, digits and `_`, at most 63 characters each",
            "5:84 the key of load `l` names `a` twice",
        ],
    );
    check(
        "d",
        "loads:\n  a: {from: s, to: w, table: t, mode: append}\n  b: {from: s, to: w, table: T, mode: append}",
        &[
            "6:3 the loads `a` and `b` have the same table `T` | put the rows together with UNION ALL in a step, or name another table",
        ],
    );
}

#[test]
fn parameters() {
    let text =
        |params: &str, path: &str| with("b", &format!("params: {params}\nsources: {{raw: {{csv: \"{path}\"}}}}"));
    let day = text("{day: {type: date}}", "{{ day }}.csv");
    assert_eq!(
        complaints(&day, &[]),
        ["2:10 the parameter `day` has no value | give it with `--param day=VALUE`, or declare a default",]
    );
    assert_eq!(
        complaints(&day, &[("day", "1.1.2013")]),
        ["2:10 the parameter `day` is not a date: `1.1.2013` | write a date as YYYY-MM-DD",]
    );
    assert_eq!(
        complaints(&day, &[("dya", "2013-01-01")]),
        [
            "2:9 the pipeline has no parameter `dya` | did you mean `day`?",
            "2:10 the parameter `day` has no value | give it with `--param day=VALUE`, or declare a default",
        ]
    );
    assert_eq!(
        complaints(&text("{day: {type: dat}}", "x"), &[]),
        ["2:22 unknown type `dat` | did you mean `date`?"]
    );
    assert_eq!(
        complaints(&text("{day: {default: 1}}", "x"), &[]),
        ["2:10 the parameter `day` has no type | write `{type: date}`"]
    );
    assert_eq!(
        complaints(&text("{n: {type: int, default: x}}", "x"), &[]),
        ["2:34 the default of `n` is not an int: `x` | write a whole number from -2147483648 to 2147483647",]
    );
    assert_eq!(
        complaints(
            &text("{day: {type: date, default: 2013-01-01}}", "a/{{ dya }}.csv"),
            &[]
        ),
        ["3:25 the path names an unknown parameter `dya` | did you mean `day`?",]
    );
    assert_eq!(
        complaints(&text("{day: date}", "a/{{ day"), &[("day", "2013-01-01")]),
        ["3:25 `{{` without `}}` | write `{{ name }}`",]
    );
    assert_eq!(
        complaints(&with("e", ""), &[("day", "1")]),
        ["1:1 the pipeline has no parameter `day` | declare it: `params: {day: {type: text}}`, or leave it out",]
    );
}

#[test]
fn all_errors_come_at_once() {
    let text = "pipeline: P\nsources: {raw: {cvs: x}}\nsteps: {s: {from: rw}}\nloads: {l: {from: s, to: w, table: t, mode: add}}\n";
    let places: Vec<String> = complaints(text, &[])
        .iter()
        .map(|c| c.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(places, ["1:11", "2:11", "2:17", "3:19", "4:45"]);
}
