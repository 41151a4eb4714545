//! The columns of Parquet files, of all together: each with a type that holds those that it has in the files. One that can't be
//! had is left out, and the others are found all the same.

use datafusion::arrow::datatypes::DataType;
use haulage_plan::definition::Column;
use haulage_plan::types::{self, holds};
use indexmap::IndexMap;

use super::LeftOut;
use crate::source::contract::{Found, Own};
use crate::source::{EXCERPT, excerpt};

/// The columns that any of the objects has, in their order, and those that are none here.
pub(super) fn of(objects: &[(String, Vec<Found>)]) -> (Vec<Column>, Vec<LeftOut>) {
    let mut columns: IndexMap<&str, Result<DataType, String>> = IndexMap::new();
    for (address, found) in objects {
        // Of one file it is clear where it is.
        let there = match objects.len() {
            1 => String::new(),
            _ => format!(" (in {})", excerpt(address.as_bytes(), EXCERPT)),
        };
        for (place, Found { name, own }) in found.iter().enumerate() {
            let own = match own {
                _ if found[..place].iter().any(|before| before.name == *name) => {
                    Err(format!("is there twice{there}; write the file with a name for each"))
                }
                Own::Text => Ok(DataType::Utf8),
                Own::Typed(own) => Ok(own.clone()),
                Own::Unusable(why) => Err(format!("{why}{there}")),
            };
            let before = columns.entry(name).or_insert_with(|| own.clone());
            if let Ok(one) = before {
                match own {
                    Ok(other) if holds(one, &other) => {}
                    Ok(other) if holds(&other, one) => *one = other,
                    Ok(other) => {
                        *before = Err(format!(
                            "is {}{there} and {} in another file, and neither holds the other; write the files alike",
                            types::name(&other),
                            types::name(one)
                        ));
                    }
                    Err(why) => *before = Err(why),
                }
            }
        }
    }
    let mut left_out = Vec::new();
    let mut column = |(name, own): (&str, Result<DataType, String>)| match own {
        Ok(data_type) => Some(Column {
            name: name.to_owned(),
            data_type,
            required: false,
        }),
        Err(why) => {
            left_out.push(LeftOut {
                name: name.to_owned(),
                why,
            });
            None
        }
    };
    let columns = columns.into_iter().filter_map(&mut column).collect();
    (columns, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_had_is_left_out_and_says_why() {
        let typed = |name: &str, type_name: &str| Found::new(name, Own::Typed(types::named(type_name).unwrap()));
        let bytes = Found::new("bin", Own::Unusable("holds bytes".to_owned()));
        let first = vec![typed("id", "int"), bytes.clone(), typed("n", "int"), typed("", "int")];
        let told = |objects: &[(String, Vec<Found>)]| {
            let (columns, left_out) = of(objects);
            let columns = columns
                .iter()
                .map(|column| format!("{}: {}", column.name, types::name(&column.data_type)));
            let left_out = left_out.iter().map(|left| format!("{} {}", left.name, left.why));
            (columns.collect::<Vec<_>>(), left_out.collect::<Vec<_>>())
        };
        let (columns, left_out) = told(&[("a".to_owned(), first.clone())]);
        assert_eq!(columns, ["id: int", "n: int"]);
        assert_eq!(left_out, ["bin holds bytes", " has a name that can't be used"]);
        let second = vec![
            typed("id", "bigint"),
            typed("bin", "int"),
            typed("n", "text"),
            typed("m", "int"),
            typed("m", "int"),
            typed("t", "date"),
        ];
        let (columns, left_out) = told(&[("a".to_owned(), first), ("b".to_owned(), second)]);
        assert_eq!(columns, ["id: bigint", "t: date"]);
        assert_eq!(
            left_out,
            [
                "bin holds bytes (in a)",
                "n is text (in b) and int in another file, and neither holds the other; write the files alike",
                " has a name that can't be used (in a)",
                "m is there twice (in b); write the file with a name for each",
            ]
        );
    }
}
