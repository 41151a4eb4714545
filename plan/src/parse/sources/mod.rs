//! The `sources` of a pipeline file. What kind a source is, is said by the key that says where its rows are: `csv`, `json`,
//! `parquet`, `postgres`, `mysql`, `sqlite`, `rest`.

mod csv;
mod database;
mod files;
mod incremental;
mod json;
mod pagination;
mod parquet;
mod query;
mod rest;

use datafusion::arrow::datatypes::DataType;
use indexmap::IndexMap;

use super::contract;
use super::draft::Gaps;
use super::fields::{self, Fields};
use super::params::Params;
use crate::ROW_COLUMN;
use crate::definition::{Column, Paths, Place, Source, SourceKind};
use crate::diagnostics::Report;
use crate::types;
use crate::yaml::{Key, Node, Value};

/// The keys that every source may have.
const COMMON: &[&str] = &[
    "columns",
    "lookup",
    "on_new_column",
    "on_missing_column",
    "on_wider_type",
    "on_bad_row",
];

/// Those that every source of files may have.
const OF_FILES: &[&str] = &["partitions"];

/// A kind of source.
struct Kind {
    /// The key that says where its rows are.
    word: &'static str,
    /// Every key that it may have, beside the common ones.
    keys: &'static [&'static str],
    read: fn(&mut Report, Declared<'_>, &mut Gaps) -> SourceKind,
    /// Whether its rows are objects, in which a column may stand at a path.
    objects: bool,
    /// Whether they are in files, whose folders may be columns.
    files: bool,
}

const KINDS: &[Kind] = &[
    Kind {
        word: "csv",
        keys: csv::KEYS,
        read: csv::read,
        objects: false,
        files: true,
    },
    Kind {
        word: "json",
        keys: json::KEYS,
        read: json::read,
        objects: true,
        files: true,
    },
    Kind {
        word: "parquet",
        keys: parquet::KEYS,
        read: parquet::read,
        objects: false,
        files: true,
    },
    Kind {
        word: "postgres",
        keys: database::POSTGRES_KEYS,
        read: database::postgres,
        objects: false,
        files: false,
    },
    Kind {
        word: "mysql",
        keys: database::MYSQL_KEYS,
        read: database::mysql,
        objects: false,
        files: false,
    },
    Kind {
        word: "sqlite",
        keys: database::SQLITE_KEYS,
        read: database::sqlite,
        objects: false,
        files: false,
    },
    Kind {
        word: "rest",
        keys: rest::KEYS,
        read: rest::read,
        objects: true,
        files: false,
    },
];

/// A source as it stands in the file, for its kind to read.
struct Declared<'a> {
    key: &'a Key,
    /// "source `raw`".
    what: String,
    fields: Fields<'a>,
    /// Of `columns`; empty if there are none.
    columns: Vec<Column>,
    /// Of those that have a `path`.
    paths: Paths,
    params: &'a Params,
}

impl Declared<'_> {
    /// The text of a key, such as a path, with parameters filled in. Noted as a gap where one of them has no value.
    fn filled(&self, report: &mut Report, gaps: &mut Gaps, key: &str, what: &str) -> Option<String> {
        let node = self.fields.get(key)?;
        let (text, place) = fields::text(report, node, &format!("{what} of {}", self.what))?;
        let filled = self.params.fill(report, text, place);
        if !filled.whole {
            gaps.pathless.insert(self.key.text.clone());
        }
        Some(filled.text)
    }
}

pub(super) fn read(report: &mut Report, node: &Node, params: &Params, gaps: &mut Gaps) -> IndexMap<String, Source> {
    let mut sources = IndexMap::new();
    for (key, node) in fields::entries(report, node, "sources").unwrap_or_default() {
        let before = report.len();
        fields::name(report, "source's name", &key.text, key.place, 63, false);
        if let Some(source) = one(report, key, node, params, gaps) {
            sources.insert(key.text.clone(), source);
        }
        if report.len() > before {
            gaps.broken.insert(key.text.clone());
        }
    }
    sources
}

fn one(report: &mut Report, key: &Key, node: &Node, params: &Params, gaps: &mut Gaps) -> Option<Source> {
    let what = format!("source `{}`", key.text);
    let kind = KINDS.iter().find(|kind| node.at(&[kind.word]).is_some());
    let known: Vec<&str> = match kind {
        Some(kind) if kind.files => kind.keys.iter().chain(OF_FILES).chain(COMMON).copied().collect(),
        Some(kind) => kind.keys.iter().chain(COMMON).copied().collect(),
        None => {
            let all = KINDS.iter().flat_map(|kind| kind.keys).chain(OF_FILES).chain(COMMON);
            all.copied().collect()
        }
    };
    let fields = Fields::read(report, node, &what, &known)?;
    let Some(kind) = kind else {
        report.help(
            key.place,
            format!("{what} doesn't say where its rows are"),
            "write `csv: \"data/*.csv\"` (or `json:`, `parquet:`), or `postgres: NAME`, `mysql: NAME` or `sqlite: \
             PATH` with `table: TABLE`, or `rest: URL`",
        );
        return None;
    };
    let (columns, paths) = fields
        .get("columns")
        .map(|node| columns(report, node, &what, kind))
        .unwrap_or_default();
    let partitions = match fields.get("partitions") {
        Some(node) => partitions(report, node, &what, &columns),
        None => Vec::new(),
    };
    let lookup = fields
        .get("lookup")
        .and_then(|node| fields::boolean(report, node, "`lookup`"))
        .unwrap_or(false);
    let settings = contract::read(report, &fields, &what);
    let declared = Declared {
        key,
        what: what.clone(),
        fields,
        columns,
        paths,
        params,
    };
    let source = Source {
        name: key.text.clone(),
        lookup,
        kind: (kind.read)(report, declared, gaps),
        partitions,
        contract: settings.contract,
        planned: None,
        place: key.place,
    };
    settings.check(report, &source, &what);
    Some(source)
}

fn columns(report: &mut Report, node: &Node, what: &str, kind: &Kind) -> (Vec<Column>, Paths) {
    let (mut columns, mut paths) = (Vec::new(), Paths::new());
    let entries = fields::entries(report, node, &format!("the columns of {what}")).unwrap_or_default();
    if entries.is_empty() && matches!(node.value, Value::Map(_)) {
        report.help(
            node.place,
            format!("{what} declares no columns"),
            "leave `columns` out to take those that are there",
        );
    }
    for (key, node) in entries {
        if node.is_null() && key.text.ends_with(')') {
            continue; // The second half of an unquoted `decimal(10,2)`; the first half is reported.
        }
        check_name(report, &key.text, key.place, what);
        let (typed, path) = match node.value {
            Value::Map(_) => placed(report, key, node, kind),
            _ => (Some(node), None),
        };
        paths.extend(path.map(|path| (key.text.clone(), path)));
        columns.extend(typed.and_then(|node| column(report, key, node)));
    }
    (columns, paths)
}

/// The columns that are in the names of folders.
fn partitions(report: &mut Report, node: &Node, what: &str, columns: &[Column]) -> Vec<Column> {
    let mut partitions: Vec<Column> = Vec::new();
    for (key, node) in fields::entries(report, node, &format!("`partitions` of {what}")).unwrap_or_default() {
        if node.is_null() && key.text.ends_with(')') {
            continue; // As of `columns`.
        }
        check_name(report, &key.text, key.place, what);
        if columns.iter().any(|column| column.name == key.text) {
            let message = format!(
                "{what} has the column `{}` twice, in `columns` and in `partitions`",
                key.text
            );
            report.help(
                key.place,
                message,
                "leave it out of one: it is in the files, or in the names of their folders",
            );
        }
        partitions.extend(column(report, key, node));
    }
    partitions
}

/// A column that is written as `{type: T, path: KEYS}`: its type, and its path.
fn placed<'n>(report: &mut Report, key: &Key, node: &'n Node, kind: &Kind) -> (Option<&'n Node>, Option<Vec<String>>) {
    let here = format!("column `{}`", key.text);
    let Some(fields) = Fields::read(report, node, &here, &["type", "path"]) else {
        return (None, None);
    };
    let typed = fields.get("type");
    if typed.is_none() {
        let help = format!("write {}: {{type: text, path: customer.name}}", key.text);
        report.help(node.place, format!("{here} has no `type`"), help);
    }
    let path = fields.get("path").and_then(|node| {
        if !kind.objects {
            let help = "only JSON has objects in which a column stands deeper; take a JSON text apart in SQL: \
                        payload->>'name'";
            report.help(node.place, format!("{here} can't have a `path`"), help);
            return None;
        }
        // No keys at all lead to the whole object.
        match &node.value {
            Value::List(items) if items.is_empty() => Some(Vec::new()),
            _ => rest::path(report, node, &format!("`path` of {here}")),
        }
    });
    (typed, path)
}

fn check_name(report: &mut Report, name: &str, place: Place, what: &str) {
    if name == ROW_COLUMN {
        report.help(
            place,
            format!("`{name}` is a name that Haulage keeps for itself"),
            "rename the column in the file",
        );
    } else if name.is_empty() || name.contains('\0') {
        report.error(place, format!("{what} has a column without a usable name"));
    }
}

fn column(report: &mut Report, key: &Key, node: &Node) -> Option<Column> {
    let (text, place) = fields::text(report, node, &format!("the type of column `{}`", key.text))?;
    let (type_name, required) = match text.trim().strip_suffix('!') {
        Some(type_name) => (type_name, true),
        None => (text.trim(), false),
    };
    let data_type = match types::parse(type_name) {
        Ok(data_type) => data_type,
        Err(unknown) => {
            report.help(
                place,
                format!("{} of column `{}`", unknown.message, key.text),
                unknown.suggestion,
            );
            // The column stays, so that SQL which names it isn't reported as well.
            DataType::Utf8
        }
    };
    Some(Column {
        name: key.text.clone(),
        data_type,
        required,
    })
}
