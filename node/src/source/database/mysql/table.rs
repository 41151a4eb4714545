//! What a table says about itself: its columns, how large it is, and the key by which it is cut and read.
//!
//! A key is the primary key, or else a unique index without NULLs: its order is one in which each row has one place. How it
//! is cut depends on its first column.
//!
//! * The only column, an integer: chunks are ranges of equal width between the least and the greatest.
//! * Texts, bytes, decimals, dates and times, and integers that others stand behind: chunks are ranges between values
//!   that are looked for, each so many rows behind the one before. Each look goes on along the index where the last one
//!   ended, so that all of them pass over it once, and only what is found leaves the server.
//! * Anything else: one chunk, in the key's order.
//!
//! A value that bounds a range is kept as text, of texts and bytes as the hex digits of what is stored, and put back by the
//! server into what it was, with the column's own character set and collation: only the server compares keys.

use haulage_core::failure::Failure;
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;

use super::server::{Server, Session};
use super::values::{Bind, bound, named};

/// More chunks of looked-up ranges than this cost too much looking, and their bounds too much of the ledger.
const MAX_RANGES: u64 = 1_000;
/// A longer bound, in characters as it is kept, ends the cutting.
const MAX_BOUND: usize = 1_024;

/// A table or view.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub(super) columns: Vec<Described>,
    /// Whether it is a table and no view.
    pub(super) is_base: bool,
    /// `None` of a view, and of a table without one.
    pub(super) key: Option<Key>,
    /// As the server estimates.
    pub(super) bytes: u64,
    /// As the server estimates.
    pub(super) rows: u64,
}

/// A column as `information_schema` describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) name: String,
    /// `decimal`.
    pub(super) data_type: String,
    /// `decimal(10,2) unsigned`.
    pub(super) column_type: String,
    pub(super) precision: Option<u8>,
    pub(super) scale: Option<u8>,
    charset: Option<String>,
    collation: Option<String>,
    pub(super) nullable: bool,
}

/// A unique index without NULLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: String,
    /// Its columns, in its order.
    pub(super) columns: Vec<String>,
    pub(super) cut: Cut,
}

/// How a table is cut along its key. Kept in the version of each chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cut {
    /// Not at all.
    Whole,
    /// By the integer that the key is; the place of a row is made of it.
    Places {
        /// Whether it is unsigned.
        unsigned: bool,
    },
    /// By values of its first column.
    Ranges(Kind),
}

/// A kind of values between which ranges are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Signed,
    Unsigned,
    Decimal(u8, u8),
    Date,
    Datetime,
    Time,
    Bytes,
    Text {
        /// The column's character set.
        charset: String,
        /// And its collation.
        collation: String,
    },
}

impl Kind {
    /// `None` of what can't be put back as it was (floats), or isn't compared in the order in which it is sorted (enums).
    pub(super) fn of(column: &Described) -> Option<Self> {
        let unsigned = column.column_type.contains("unsigned");
        Some(match column.data_type.as_str() {
            "tinyint" | "smallint" | "mediumint" | "int" | "integer" | "bigint" if unsigned => Self::Unsigned,
            "tinyint" | "smallint" | "mediumint" | "int" | "integer" | "bigint" => Self::Signed,
            "decimal" | "numeric" => Self::Decimal(column.precision?, column.scale?),
            "date" => Self::Date,
            "datetime" | "timestamp" => Self::Datetime,
            "time" => Self::Time,
            "binary" | "varbinary" => Self::Bytes,
            "char" | "varchar" => {
                let (charset, collation) = (column.charset.clone()?, column.collation.clone()?);
                let word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                if !word(&charset) || !word(&collation) {
                    return None;
                }
                Self::Text { charset, collation }
            }
            _ => return None,
        })
    }

    /// The text of a value, in SQL.
    pub(super) fn kept(&self, column: &str) -> String {
        match self {
            Self::Bytes | Self::Text { .. } => format!("HEX({column})"),
            Self::Signed | Self::Unsigned | Self::Decimal(..) | Self::Date | Self::Datetime | Self::Time => {
                format!("CAST({column} AS CHAR)")
            }
        }
    }

    /// The value of a text, in SQL.
    pub(super) fn put_back(&self, text: &str) -> String {
        match self {
            Self::Signed => format!("CAST({text} AS SIGNED)"),
            Self::Unsigned => format!("CAST({text} AS UNSIGNED)"),
            Self::Decimal(precision, scale) => format!("CAST({text} AS DECIMAL({precision},{scale}))"),
            Self::Date => format!("CAST({text} AS DATE)"),
            Self::Datetime => format!("CAST({text} AS DATETIME(6))"),
            Self::Time => format!("CAST({text} AS TIME(6))"),
            Self::Bytes => format!("UNHEX({text})"),
            Self::Text { charset, collation } => {
                format!("CONVERT(UNHEX({text}) USING {charset}) COLLATE {collation}")
            }
        }
    }
}

impl Table {
    /// What the server says about a table or view of this name, which is there.
    pub(super) async fn describe(
        server: &Server,
        session: &mut Session,
        schema: Option<&str>,
        table: &str,
    ) -> Result<Self, Failure> {
        let mut about = Vec::new();
        for of in ["TABLES", "COLUMNS", "STATISTICS"] {
            about.push(rows(server, session, of, schema, table).await?);
        }
        let [tables, columns, statistics] = about.as_slice() else {
            return Ok(Self::default());
        };
        let columns: Vec<Described> = columns.iter().map(described).collect();
        let number = |name| tables.first().and_then(|table| table.number(name)).unwrap_or(0);
        Ok(Self {
            key: key(&columns, statistics),
            columns,
            is_base: tables.first().and_then(|table| table.text("table_type")) == Some("BASE TABLE"),
            bytes: number("data_length"),
            rows: number("table_rows"),
        })
    }
}

/// A row of `information_schema`: values by name.
struct Said(Vec<(String, Option<String>)>);

impl Said {
    fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(column, _)| column == name)?;
        found.1.as_deref()
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }
}

async fn rows(
    server: &Server,
    session: &mut Session,
    of: &str,
    schema: Option<&str>,
    table: &str,
) -> Result<Vec<Said>, Failure> {
    let sql = format!(
        "SELECT * FROM information_schema.{of} WHERE TABLE_SCHEMA = coalesce(?, DATABASE()) AND TABLE_NAME = ?"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
    let query = query.bind(schema.map(str::to_owned)).bind(table.to_owned());
    let asking = query.fetch_all(&mut session.connection);
    let found = server.soon("looking at the table", asking).await?;
    let mut found: Vec<Said> = found.iter().map(|row| Said(named(row))).collect();
    // Names there may be compared without regard to case, and tables be told apart by it.
    let exact = |said: &Said| said.text("table_name") == Some(table);
    if found.iter().any(exact) {
        found.retain(exact);
    }
    Ok(found)
}

fn described(said: &Said) -> Described {
    let text = |name| said.text(name).map(str::to_owned);
    Described {
        name: text("column_name").unwrap_or_default(),
        data_type: text("data_type").unwrap_or_default().to_lowercase(),
        column_type: text("column_type").unwrap_or_default().to_lowercase(),
        precision: said.number("numeric_precision"),
        scale: said.number("numeric_scale"),
        charset: text("character_set_name"),
        collation: text("collation_name"),
        nullable: said.text("is_nullable") != Some("NO"),
    }
}

/// The primary key, or the best of the other unique indexes: one of an integer, or the first by name.
fn key(columns: &[Described], statistics: &[Said]) -> Option<Key> {
    let mut names: Vec<&str> = statistics.iter().filter_map(|said| said.text("index_name")).collect();
    names.sort_unstable();
    names.dedup();
    let mut keys: Vec<Key> = Vec::new();
    for name in names {
        let mut parts: Vec<&Said> = Vec::new();
        parts.extend(statistics.iter().filter(|said| said.text("index_name") == Some(name)));
        parts.sort_by_key(|said| said.number::<u32>("seq_in_index"));
        keys.extend(one_key(name, columns, &parts));
    }
    let rank = |key: &Key| match (key.index.as_str(), &key.cut) {
        ("PRIMARY", _) => 0,
        (_, Cut::Places { .. }) => 1,
        (_, Cut::Ranges(_)) => 2,
        (_, Cut::Whole) => 3,
    };
    keys.into_iter().min_by_key(rank)
}

/// The index, if each row has one place in it, and its order is that of its columns' values.
fn one_key(name: &str, columns: &[Described], parts: &[&Said]) -> Option<Key> {
    let mut found = Vec::new();
    for part in parts {
        let unique = part.text("non_unique") == Some("0");
        let whole = part.text("sub_part").is_none();
        let sorted = part.text("index_type") == Some("BTREE");
        // MySQL says the one, MariaDB the other.
        let used = part.text("is_visible") != Some("NO") && part.text("ignored") != Some("YES");
        // An expression has no name.
        let column = part.text("column_name")?;
        let column = columns.iter().find(|described| described.name == column)?;
        if !(unique && whole && sorted && used) || column.nullable {
            return None;
        }
        found.push(column);
    }
    let first = found.first()?;
    let cut = match Kind::of(first) {
        Some(Kind::Signed) if found.len() == 1 => Cut::Places { unsigned: false },
        Some(Kind::Unsigned) if found.len() == 1 => Cut::Places { unsigned: true },
        Some(kind) => Cut::Ranges(kind),
        None => Cut::Whole,
    };
    Some(Key {
        index: name.to_owned(),
        columns: found.iter().map(|column| column.name.clone()).collect(),
        cut,
    })
}

/// Values of the key's first column, as they are kept, in its order: each as many rows behind the one before as make `parts`
/// chunks. `from` is the table in SQL, with its index.
pub(super) async fn bounds(
    server: &Server,
    session: &mut Session,
    from: &str,
    column: &str,
    kind: &Kind,
    (rows, parts): (u64, u64),
) -> Result<Vec<String>, Failure> {
    let mut bounds: Vec<String> = Vec::new();
    let parts = parts.clamp(1, MAX_RANGES);
    if parts == 1 {
        return Ok(bounds);
    }
    let step = (rows / parts).max(1);
    let kept = kind.kept(column);
    let same = kind.put_back(&kept);
    let after = kind.put_back("?");
    // The number of rows is an estimate, and there may be more.
    while (bounds.len() as u64) < MAX_RANGES {
        let (which, skip) = match bounds.last() {
            Some(_) => (format!(" WHERE {column} > {after}"), step - 1),
            None => (String::new(), step),
        };
        let sql = format!(
            "SELECT {kept} AS bound, {column} <=> {same} AS same FROM {from}{which} ORDER BY {column} LIMIT 1 OFFSET {skip}"
        );
        let last: Vec<Bind> = bounds.last().cloned().map(Bind::Text).into_iter().collect();
        let query = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), &last);
        let asking = query.fetch_optional(&mut session.connection);
        let found = server.patiently(session.id, "looking where to cut", asking).await?;
        let Some(found) = found.map(|row| Said(named(&row))) else {
            break;
        };
        // What doesn't come back as it was would bound another range.
        match found.text("bound").filter(|bound| bound.len() <= MAX_BOUND) {
            Some(bound) if found.text("same") == Some("1") => bounds.push(bound.to_owned()),
            _ => break,
        }
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, column_type: &str, nullable: bool) -> Described {
        Described {
            name: name.into(),
            data_type: column_type.split(['(', ' ']).next().unwrap_or_default().into(),
            column_type: column_type.into(),
            precision: Some(10),
            scale: Some(2),
            charset: Some("utf8mb4".into()),
            collation: Some("utf8mb4_bin".into()),
            nullable,
        }
    }

    /// Index, number in it, column, and what else is said.
    fn part(index: &str, number: u32, column: &str, more: &[(&str, &str)]) -> Said {
        let number = number.to_string();
        let mut said: Vec<(String, Option<String>)> = Vec::new();
        for (name, value) in [
            ("index_name", index),
            ("seq_in_index", &number),
            ("column_name", column),
            ("non_unique", "0"),
            ("index_type", "BTREE"),
        ] {
            let value = more
                .iter()
                .find(|(other, _)| *other == name)
                .map_or(value, |(_, value)| value);
            said.push((name.into(), Some(value.into())));
        }
        for (name, value) in more {
            said.push(((*name).into(), Some((*value).into())));
        }
        Said(said)
    }

    #[test]
    fn the_key_is_one_in_which_each_row_has_one_place() {
        let columns = [
            column("id", "bigint unsigned", false),
            column("n", "int", false),
            column("maybe", "int", true),
            column("name", "varchar(10)", false),
            column("kind", "enum('a')", false),
        ];
        let check = |parts: &[Said], expected: Option<(&str, Cut)>| {
            let found = key(&columns, parts).map(|key| (key.index, key.cut));
            assert_eq!(found, expected.map(|(index, cut)| (index.to_owned(), cut)));
        };
        let text = Cut::Ranges(Kind::of(&columns[3]).unwrap());
        check(&[], None);
        check(
            &[part("PRIMARY", 1, "id", &[])],
            Some(("PRIMARY", Cut::Places { unsigned: true })),
        );
        check(
            &[part("PRIMARY", 2, "id", &[]), part("PRIMARY", 1, "n", &[])],
            Some(("PRIMARY", Cut::Ranges(Kind::Signed))),
        );
        check(
            &[
                part("a", 1, "name", &[]),
                part("b", 1, "n", &[]),
                part("c", 1, "kind", &[]),
            ],
            Some(("b", Cut::Places { unsigned: false })),
        );
        check(
            &[part("c", 1, "kind", &[]), part("d", 1, "name", &[])],
            Some(("d", text)),
        );
        check(&[part("c", 1, "kind", &[])], Some(("c", Cut::Whole)));
        for unfit in [
            part("u", 1, "maybe", &[]),
            part("u", 1, "n", &[("non_unique", "1")]),
            part("u", 1, "n", &[("index_type", "HASH")]),
            part("u", 1, "name", &[("sub_part", "3")]),
            part("u", 1, "n", &[("is_visible", "NO")]),
            part("u", 1, "n", &[("ignored", "YES")]),
            part("u", 1, "gone", &[]),
        ] {
            check(&[unfit], None);
        }
    }
}
