//! Checksums of rows that hang neither on their order nor on how they are split up: what two parts come to is the sum of
//! what each comes to.
//!
//! Each row is one number of 64 bits, made from all its values, and a checksum is the sum of these numbers. A sum, and
//! no XOR: of two equal rows an XOR keeps nothing. Beside it stands one sum for each column, of its values alone: rows that
//! differ change the sum over rows, and the sums over columns say where. Two values that have changed places between
//! rows change no column, and so only the sum over rows.
//!
//! Here is only how sums are added and written. How a value becomes a number is known to whoever has the values, and never
//! changes for sums that are in a ledger.

use std::collections::BTreeMap;
use std::ops::{AddAssign, SubAssign};

use serde::{Deserialize, Serialize};

/// The checksum of some rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Checksum {
    /// How many rows it is about.
    pub rows: u64,
    /// The sum over the rows, modulo 2^128.
    pub sum: u128,
    /// The sum over each column's values, modulo 2^64.
    pub columns: BTreeMap<String, u64>,
}

impl Checksum {
    /// The sum over the rows in hex, as people compare it.
    pub fn text(&self) -> String {
        format!("{:032x}", self.sum)
    }

    /// The columns whose sums differ, or that only one of the two has.
    pub fn columns_that_differ<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let mut names: Vec<&str> = self
            .columns
            .keys()
            .chain(other.columns.keys())
            .filter(|name| self.columns.get(*name) != other.columns.get(*name))
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl SubAssign<&Checksum> for Checksum {
    /// Takes away rows that are among its own.
    fn sub_assign(&mut self, other: &Checksum) {
        self.rows = self.rows.saturating_sub(other.rows);
        self.sum = self.sum.wrapping_sub(other.sum);
        for (column, sum) in &other.columns {
            let mine = self.columns.entry(column.clone()).or_default();
            *mine = mine.wrapping_sub(*sum);
        }
    }
}

impl AddAssign<&Checksum> for Checksum {
    fn add_assign(&mut self, other: &Checksum) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
        for (column, sum) in &other.columns {
            let mine = self.columns.entry(column.clone()).or_default();
            *mine = mine.wrapping_add(*sum);
        }
    }
}

/// As it stands in the ledger: sums in hex, since JSON's numbers end at 2^53 for many readers.
#[derive(Serialize, Deserialize)]
struct Written {
    rows: u64,
    sum: String,
    columns: BTreeMap<String, String>,
}

impl From<Checksum> for Written {
    fn from(checksum: Checksum) -> Self {
        let columns = checksum.columns.iter();
        Self {
            rows: checksum.rows,
            sum: checksum.text(),
            columns: columns
                .map(|(name, sum)| (name.clone(), format!("{sum:016x}")))
                .collect(),
        }
    }
}

impl TryFrom<Written> for Checksum {
    type Error = std::num::ParseIntError;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let mut columns = BTreeMap::new();
        for (name, sum) in written.columns {
            columns.insert(name, u64::from_str_radix(&sum, 16)?);
        }
        Ok(Self {
            rows: written.rows,
            sum: u128::from_str_radix(&written.sum, 16)?,
            columns,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: u64, sum: u128, a: u64) -> Checksum {
        Checksum {
            rows,
            sum,
            columns: [("a".to_owned(), a)].into(),
        }
    }

    #[test]
    fn sums_wrap_round_and_add_up_in_any_order() {
        let parts = [of(1, u128::MAX, u64::MAX), of(2, 5, 7), of(3, 1 << 100, 1)];
        let mut forwards = Checksum::default();
        let mut backwards = Checksum::default();
        for part in &parts {
            forwards += part;
        }
        for part in parts.iter().rev() {
            backwards += part;
        }
        assert_eq!(forwards, backwards);
        assert_eq!(forwards, of(6, (1 << 100) + 4, 7));
    }

    #[test]
    fn what_is_written_is_read() {
        let sum = of(3, u128::MAX - 1, 255);
        let json = serde_json::to_string(&sum).expect("plain data");
        assert_eq!(
            json,
            r#"{"rows":3,"sum":"fffffffffffffffffffffffffffffffe","columns":{"a":"00000000000000ff"}}"#
        );
        assert_eq!(serde_json::from_str::<Checksum>(&json).expect("ours"), sum);
        assert!(serde_json::from_str::<Checksum>(&json.replace("ffe", "xyz")).is_err());
    }

    #[test]
    fn columns_that_differ_are_named_also_if_one_side_lacks_them() {
        let mut other = of(1, 1, 2);
        other.columns.insert("b".into(), 0);
        assert_eq!(of(1, 1, 1).columns_that_differ(&other), ["a", "b"]);
        assert!(of(1, 1, 1).columns_that_differ(&of(9, 9, 1)).is_empty());
    }
}
