//! The first lines of a file: whether it is JSON lines at all, and which keys its first object has.

use std::collections::HashSet;

use datafusion::arrow::datatypes::DataType;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::ROW_COLUMN;
use haulage_plan::definition::{Column, Compression, Paths};
use memchr::memchr;

use super::{MAX_LINE, row};
use crate::source::contract::{Found, Own};
use crate::source::input::{self, Input};
use crate::source::object::Object;
use crate::source::{EXCERPT, excerpt};

/// The start of a file that is looked at, in plain or packed bytes; more if it holds no whole line.
const USUAL: usize = 64 << 10;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The start of a file.
pub(super) struct Head {
    address: String,
    /// Without the byte order mark.
    data: Vec<u8>,
    has_mark: bool,
    /// Whether the file ends where `data` does.
    whole: bool,
}

impl Head {
    /// Reads as much as holds a line. Permanent failure if the data is packed and nothing says so.
    pub(super) async fn read(object: &Object, compression: Compression) -> Result<Self, Failure> {
        let most = MAX_LINE + USUAL;
        let mut input = Input::open(object, compression, 0, Some(most as u64)).await?;
        let (mut data, mut whole) = (Vec::new(), false);
        while !whole && data.len() < most && (data.len() < USUAL || memchr(b'\n', data.trim_ascii_start()).is_none()) {
            whole = input.fill(&mut data, USUAL).await? == 0;
        }
        input::refuse_packed(&data, &object.address)?;
        let has_mark = data.starts_with(BOM);
        if has_mark {
            data.drain(..BOM.len());
        }
        Ok(Self {
            address: object.address.clone(),
            data,
            has_mark,
            // A plain input also ends where its range does.
            whole: whole && object.size < most as u64,
        })
    }

    /// Where the first row may start.
    pub(super) fn start(&self) -> Position {
        Position {
            offset: if self.has_mark { BOM.len() as u64 } else { 0 },
            line: 1,
        }
    }

    /// The lines that are no white space, and whole.
    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let mut lines: Vec<_> = self.data.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).collect();
        if !self.whole {
            lines.pop();
        }
        lines.into_iter().filter(|line| !line.is_empty())
    }

    /// Permanent failure if there are lines and none of them is an object.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let Some(first) = self.lines().next() else {
            return Ok(());
        };
        if self.lines().any(|line| row::keys(line).is_ok()) {
            return Ok(());
        }
        let advice = if first.starts_with(b"[") {
            "it seems to be one array: write its objects one a line, as `jq -c '.[]'` does"
        } else if first.starts_with(b"{") {
            "write every object on a line of its own, as `jq -c .` does"
        } else {
            "write one object a line, or declare the source as what the file is"
        };
        Err(Failure::permanent(format!(
            "{} is no JSON lines: none of its first lines is an object, and the first one starts: {}; {advice}",
            self.address,
            excerpt(first, EXCERPT)
        )))
    }

    /// What the first objects have, in the order in which it appears; `None` if there is no object.
    pub(super) fn found(&self, columns: &[Column], paths: &Paths) -> Option<Vec<Found>> {
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        let mut is_any = false;
        for keys in self.lines().filter_map(|line| row::found(line, columns, paths).ok()) {
            is_any = true;
            for key in keys {
                if !seen.contains(&key) {
                    found.push(Found::new(&key, Own::Text));
                    seen.insert(key);
                }
            }
        }
        is_any.then_some(found)
    }

    /// The keys of the first object, as text that may be missing; `None` if the file has no lines.
    pub(super) fn columns(&self) -> Result<Option<Vec<Column>>, Failure> {
        self.check()?;
        let Some(keys) = self.lines().find_map(|line| row::keys(line).ok()) else {
            return if self.lines().next().is_none() && !self.data.trim_ascii().is_empty() {
                Err(Failure::permanent(format!(
                    "{}: the first line does not end within {} MiB; declare the source's columns",
                    self.address,
                    MAX_LINE >> 20
                )))
            } else {
                Ok(None)
            };
        };
        named(&self.address, keys).map(Some)
    }
}

/// The keys of the first object as columns of text that may be missing.
pub(in crate::source) fn named(address: &str, keys: Vec<String>) -> Result<Vec<Column>, Failure> {
    let mut columns = Vec::with_capacity(keys.len());
    for name in keys {
        let what = match name.as_str() {
            "" => "is empty",
            ROW_COLUMN => "is a name that Haulage uses itself",
            other if other.contains('\0') => "holds a NUL",
            _ => {
                columns.push(Column {
                    name,
                    data_type: DataType::Utf8,
                    required: false,
                });
                continue;
            }
        };
        return Err(Failure::permanent(format!(
            "{}: the key \"{}\" of the first object {what}; declare the columns that you need",
            address,
            excerpt(name.as_bytes(), EXCERPT)
        )));
    }
    if columns.is_empty() {
        return Err(Failure::permanent(format!(
            "{}: the first object has no keys; declare the source's columns",
            address
        )));
    }
    Ok(columns)
}
