//! Rows of a table behind a key: a checkpoint keeps the key of the last row, and reading goes on with the first one above
//! it, whatever has become of the rows before. So a chunk goes on though somebody writes to its table.
//!
//! Keys that are one integer are places and need no text. Keys of which the server doesn't get the same value back from its
//! text (floats), or sorts it otherwise than it compares it (enums), are passed over: such rows are counted.

use super::quote;
use super::table::{Kind, Table};
use super::values::Bind;

/// A key's columns as SQL quotes them, in its order, with their kinds.
pub(super) struct Keyset(Vec<(String, Kind)>);

impl Keyset {
    /// `None` if a table has no key, or one that can't be put back.
    pub(super) fn of(table: &Table) -> Option<Self> {
        let columns = table.key.as_ref()?.columns.iter();
        let kinds = columns.map(|name| {
            let described = table.columns.iter().find(|described| described.name == *name)?;
            Some((quote(name), Kind::of(described)?))
        });
        kinds.collect::<Option<Vec<_>>>().map(Self)
    }

    /// What is selected in front of a row's values: the key's as texts, and whether all of them come back as they are.
    pub(super) fn selected(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.iter().map(|(column, kind)| kind.kept(column)).collect();
        let same = self
            .0
            .iter()
            .map(|(column, kind)| format!("{column} <=> {}", kind.put_back(&kind.kept(column))));
        let same: Vec<String> = same.collect();
        names.push(format!("CAST({} AS CHAR)", same.join(" AND ")));
        names
    }

    /// The condition for the rows behind a key, as a checkpoint has it. `None` if it is that of another one.
    pub(super) fn behind(&self, cursor: &str) -> Option<(String, Vec<Bind>)> {
        let values: Vec<String> = serde_json::from_str(cursor).ok()?;
        if values.len() != self.0.len() {
            return None;
        }
        let bind = |value: &String| Bind::Text(value.clone());
        let mut binds: Vec<Bind> = values.first().map(bind).into_iter().collect();
        let (mut ways, mut equal) = (Vec::new(), Vec::new());
        for (number, (column, kind)) in self.0.iter().enumerate() {
            let value = kind.put_back("?");
            let above = format!("{column} > {value}");
            ways.push([equal.as_slice(), &[above]].concat().join(" AND "));
            binds.extend(values.iter().take(number + 1).map(bind));
            equal.push(format!("{column} = {value}"));
        }
        // By the first column alone the server finds where to begin.
        let (column, kind) = self.0.first()?;
        let sql = format!("{column} >= {} AND (({}))", kind.put_back("?"), ways.join(") OR ("));
        Some((sql, binds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_behind_a_key_are_those_above_it_in_its_order() {
        let keys = Keyset(vec![("`a`".to_owned(), Kind::Signed), ("`b`".to_owned(), Kind::Bytes)]);
        let (sql, binds) = keys.behind(r#"["7","00ff"]"#).unwrap();
        assert_eq!(
            sql,
            "`a` >= CAST(? AS SIGNED) AND ((`a` > CAST(? AS SIGNED)) OR (`a` = CAST(? AS SIGNED) AND `b` > UNHEX(?)))"
        );
        let (seven, hex) = (Bind::Text("7".to_owned()), Bind::Text("00ff".to_owned()));
        assert_eq!(binds, [seven.clone(), seven.clone(), seven, hex]);
        for other in ["", "x", "[]", r#"["7"]"#, r#"["7","00","1"]"#] {
            assert!(keys.behind(other).is_none(), "{other}");
        }
    }
}
