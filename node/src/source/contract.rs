//! A source's columns held against what an object has: which are read, which are without a value there, and which nobody
//! declared. Pure; `held` reads by what comes out.
//!
//! The columns of a run are settled once, from all objects that discovery found; what an object lacks of them has no value
//! in its rows. Nothing that an object has beside them is dropped unless the contract says so.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_plan::ROW_COLUMN;
use haulage_plan::contract::{Contract, MissingColumn, NewColumn, WiderType};
use haulage_plan::definition::{Column, Paths};
use haulage_plan::types::{self, holds};
use serde::Serialize;

use super::files::suggestion;
use super::held::{Held, New};
use super::{EXCERPT, Misdeclared, excerpt};

/// The reason of a row with a column that is not declared.
pub(crate) const NEW_COLUMN: &str = "new_column";
/// Names that an error lists.
const LISTED: usize = 10;

/// Of a source whose columns stand at their own names.
pub(super) static NO_PATHS: Paths = Paths::new();

/// What an object says of a column's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Own {
    /// Nothing: its values are texts, from which any type may be read.
    Text,
    /// It has this type.
    Typed(DataType),
    /// It can't be a column here; why, in words that follow its name.
    Unusable(String),
}

/// A column that an object has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) own: Own,
}

impl Found {
    pub(super) fn new(name: &str, own: Own) -> Self {
        let usable = !name.is_empty() && name != ROW_COLUMN && !name.contains('\0');
        Self {
            name: name.to_owned(),
            own: if usable {
                own
            } else {
                Own::Unusable("has a name that can't be used".to_owned())
            },
        }
    }

    /// It as a column to be read; `None` if it can't be one.
    fn column(&self) -> Option<Column> {
        let data_type = match &self.own {
            Own::Text => DataType::Utf8,
            Own::Typed(own) => own.clone(),
            Own::Unusable(_) => return None,
        };
        Some(Column {
            name: self.name.clone(),
            data_type,
            required: false,
        })
    }
}

/// What a source declares, and what it says about change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) declared: &'a [Column],
    pub(super) contract: Contract,
    /// Where declared columns are that don't stand at their own name.
    pub(super) paths: &'a Paths,
    /// Whether every row names its columns, so that it is for the reader to judge them one by one.
    pub(super) by_row: bool,
}

/// A difference between what a source declares and what is there, for a person and a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The first object that has it.
    pub object: String,
    /// Of how many objects it is.
    pub objects: u64,
    /// The column.
    pub column: String,
    /// What becomes of it: `added`, `ignored`, `quarantined`, `missing`, `widened`; `retyped` if values that
    /// don't fit go to quarantine.
    pub change: &'static str,
    /// Its type as it is declared.
    pub declared: Option<String>,
    /// The type that it has, as far as it has one.
    pub found: Option<String>,
}

/// Permanent failure if a declared column's name is a path to what stands in an object's key: such a name is only a name.
pub(super) fn misplaced(columns: &[Column], found: &[Found], address: &str) -> Result<(), Misdeclared> {
    let has = |name: &str| found.iter().any(|found| found.name == name);
    let Some((column, help)) = columns.iter().find_map(|column| Some((column, as_path(column, has)?))) else {
        return Ok(());
    };
    Err(Misdeclared {
        failure: Failure::permanent(format!(
            "{address}: column \"{}\" is a key of none of its first objects; {help}",
            excerpt(column.name.as_bytes(), EXCERPT)
        )),
        column: Some(column.name.clone()),
    })
}

/// What to write for a column that isn't there, if its name begins with a key that is.
fn as_path(column: &Column, has: impl Fn(&str) -> bool) -> Option<String> {
    let (outer, _) = column.name.split_once('.')?;
    (has(outer) && !has(&column.name)).then(|| {
        format!(
            "for what stands in the object \"{}\", write {}: {{type: \"{}{}\", path: {}}}",
            excerpt(outer.as_bytes(), EXCERPT),
            column.name.replace('.', "_"),
            types::name(&column.data_type),
            if column.required { "!" } else { "" },
            column.name
        )
    })
}

fn listed(names: &[&str]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(LISTED)
        .map(|name| format!("\"{}\"", excerpt(name.as_bytes(), EXCERPT)))
        .collect();
    let more = if names.len() > LISTED { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

impl Terms<'_> {
    /// The columns of a run over these objects, each with its address: those declared, as wide as they have to be, and
    /// those that are new. Permanent failure naming object and column if a new one can't be read.
    pub(super) fn settle(&self, objects: &[(String, Vec<Found>)]) -> Result<Vec<Column>, Failure> {
        let mut columns = self.declared.to_vec();
        let widens = self.contract.on_wider_type == Some(WiderType::Widen);
        for (address, found) in objects {
            for found in found {
                let place = columns.iter().position(|column| column.name == found.name);
                let typed = match &found.own {
                    Own::Typed(data_type) => Some(data_type),
                    Own::Text | Own::Unusable(_) => None,
                };
                let shown = excerpt(found.name.as_bytes(), EXCERPT);
                match place {
                    Some(place) => {
                        let is_new = place >= self.declared.len();
                        let data_type = &mut columns[place].data_type;
                        match typed {
                            Some(typed) if (is_new || widens) && !holds(data_type, typed) => {
                                if holds(typed, data_type) {
                                    *data_type = typed.clone();
                                } else if is_new {
                                    return Err(Failure::permanent(format!(
                                        "{address}: the new column \"{shown}\" is {} here and {} in another object, and \
                                         neither holds the other; declare it as what it should be",
                                        types::name(typed),
                                        types::name(data_type)
                                    )));
                                }
                            }
                            Some(_) | None => {}
                        }
                    }
                    None if self.contract.on_new_column == NewColumn::Add => {
                        if let Own::Unusable(why) = &found.own {
                            return Err(Failure::permanent(format!(
                                "{address}: the new column \"{shown}\" {why}, so `on_new_column: add` can't add it; write \
                                 `on_new_column: ignore`"
                            )));
                        }
                        columns.push(Column {
                            name: found.name.clone(),
                            data_type: typed.cloned().unwrap_or(DataType::Utf8),
                            required: false,
                        });
                    }
                    None => {}
                }
            }
        }
        Ok(columns)
    }

    fn is_declared(&self, name: &str) -> bool {
        self.declared.iter().any(|column| column.name == name)
    }

    /// Whether a column that an object lacks is without a value there.
    fn may_lack(&self, column: &Column) -> bool {
        let nullable = self.contract.on_missing_column == Some(MissingColumn::Null) && !column.required;
        nullable || !self.is_declared(&column.name)
    }

    /// What of the run's columns is read of an object. Permanent failure naming the object, the columns and the setting
    /// that would let them be.
    pub(super) fn hold(&self, columns: &[Column], found: &[Found], address: &str) -> Result<Held, Misdeclared> {
        let has = |name: &str| found.iter().any(|found| found.name == name);
        let new: Vec<&str> = found
            .iter()
            .map(|found| found.name.as_str())
            .filter(|name| !columns.iter().any(|column| column.name == *name))
            .collect();
        if !new.is_empty() && self.contract.on_new_column == NewColumn::Fail {
            let (columns, are) = if new.len() == 1 {
                ("column", "is")
            } else {
                ("columns", "are")
            };
            return Err(Failure::permanent(format!(
                "{address} has the {columns} {}, which {are} not declared; declare {}, or write `on_new_column: add`, \
                 `ignore` or `quarantine`",
                listed(&new),
                if new.len() == 1 { "it" } else { "them" },
            ))
            .into());
        }
        for column in columns {
            let wrong = |what: String| Misdeclared {
                failure: Failure::permanent(format!(
                    "{address}: column \"{}\" {what}",
                    excerpt(column.name.as_bytes(), EXCERPT)
                )),
                column: Some(column.name.clone()),
            };
            let there = found.iter().find(|found| found.name == column.name);
            if let (
                Some(Found {
                    own: Own::Typed(own), ..
                }),
                Some(WiderType::Fail),
            ) = (there, self.contract.on_wider_type)
                && !holds(&column.data_type, own)
                && holds(own, &column.data_type)
            {
                return Err(wrong(format!(
                    "is {0} there, wider than {1}; declare it {0}, or write `on_wider_type: widen`",
                    types::name(own),
                    types::name(&column.data_type)
                )));
            }
            if there.is_none() && self.by_row && self.contract.on_missing_column == Some(MissingColumn::Fail) {
                let names: Vec<String> = found.iter().map(|found| found.name.clone()).collect();
                let advice = match as_path(column, has) {
                    Some(path) => path,
                    None => format!(
                        "{}, or write `on_missing_column: null`",
                        suggestion(&column.name, &names)
                    ),
                };
                return Err(wrong(match self.paths.get(&column.name) {
                    Some(path) => format!("is in none of its first objects at {}; {advice}", path.join(".")),
                    None => format!("is a key of none of its first objects; {advice}"),
                }));
            }
        }
        if self.by_row {
            return Ok(Held::whole(columns));
        }
        let mut held = Held {
            present: Vec::new(),
            places: Vec::new(),
            new: None,
        };
        for column in columns {
            // One that is missing and may not be is left to whoever reads, who has the words for it.
            let lacks = !has(&column.name) && self.may_lack(column);
            held.places.push((!lacks).then_some(held.present.len()));
            if !lacks {
                held.present.push(column.clone());
            }
        }
        if held.present.is_empty() {
            return Err(Failure::permanent(format!(
                "{address} has none of the declared columns; correct the path, or declare the columns that are there"
            ))
            .into());
        }
        if matches!(self.contract.on_new_column, NewColumn::Quarantine | NewColumn::Add) && !new.is_empty() {
            held.new = Some(New {
                column: excerpt(new[0].as_bytes(), EXCERPT),
                detail: format!("{address} has {}, which nobody declared", listed(&new)),
                columns: found
                    .iter()
                    .filter(|found| new.contains(&found.name.as_str()))
                    .filter_map(Found::column)
                    .collect(),
            });
        }
        Ok(held)
    }

    /// What is there and isn't as declared, over all objects, and what becomes of it.
    pub(super) fn drifts(&self, columns: &[Column], objects: &[(String, Vec<Found>)]) -> Vec<Drift> {
        let mut all: Vec<Drift> = Vec::new();
        let mut note = |object: &str, column: &str, change, declared: Option<&DataType>, found: Option<&DataType>| {
            let same = all
                .iter_mut()
                .find(|drift| drift.column == column && drift.change == change);
            match same {
                Some(drift) => drift.objects += 1,
                None => all.push(Drift {
                    object: object.to_owned(),
                    objects: 1,
                    column: column.to_owned(),
                    change,
                    declared: declared.map(types::name),
                    found: found.map(types::name),
                }),
            }
        };
        for (address, found) in objects {
            for found in found {
                let own = match &found.own {
                    Own::Typed(own) => Some(own),
                    Own::Text | Own::Unusable(_) => None,
                };
                let declared = self.declared.iter().find(|column| column.name == found.name);
                let planned = columns.iter().find(|column| column.name == found.name);
                match (declared, planned) {
                    // Any value is a text.
                    (Some(declared), _) if declared.data_type == DataType::Utf8 => {}
                    (Some(declared), Some(planned)) => {
                        let takes = |own: &&DataType| !holds(&declared.data_type, own);
                        if let Some(own) = own.filter(takes) {
                            let widened = holds(&planned.data_type, own);
                            let change = if widened { "widened" } else { "retyped" };
                            note(address, &found.name, change, Some(&declared.data_type), Some(own));
                        }
                    }
                    (Some(_), None) => {}
                    (None, Some(planned)) => note(address, &found.name, "added", None, Some(&planned.data_type)),
                    (None, None) if self.contract.on_new_column == NewColumn::Ignore => {
                        note(address, &found.name, "ignored", None, own);
                    }
                    (None, None) => note(address, &found.name, "quarantined", None, own),
                }
            }
            for column in self.declared {
                if !found.iter().any(|found| found.name == column.name) {
                    note(address, &column.name, "missing", Some(&column.data_type), None);
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_name: &str, required: bool) -> Column {
        Column {
            name: name.to_owned(),
            data_type: types::named(type_name).unwrap(),
            required,
        }
    }

    fn typed(name: &str, type_name: &str) -> Found {
        Found::new(name, Own::Typed(types::named(type_name).unwrap()))
    }

    fn text(name: &str) -> Found {
        Found::new(name, Own::Text)
    }

    fn told(columns: &[Column]) -> Vec<String> {
        let line = |column: &Column| format!("{} {}", column.name, types::name(&column.data_type));
        columns.iter().map(line).collect()
    }

    const ADD: Contract = Contract {
        on_new_column: NewColumn::Add,
        on_missing_column: None,
        on_wider_type: None,
        on_bad_row: haulage_plan::contract::BadRow::Quarantine,
    };

    #[test]
    fn the_columns_of_a_run_are_all_that_any_object_has_in_their_order() {
        let declared = [column("id", "int", true), column("n", "int", false)];
        let terms = |contract| Terms {
            paths: &NO_PATHS,
            declared: &declared,
            contract,
            by_row: false,
        };
        let objects = [
            (
                "a".to_owned(),
                vec![typed("n", "bigint"), typed("id", "int"), typed("x", "int")],
            ),
            (
                "b".to_owned(),
                vec![typed("y", "text"), typed("x", "bigint"), typed("id", "smallint")],
            ),
        ];
        let settled = terms(ADD).settle(&objects).unwrap();
        assert_eq!(told(&settled), ["id int", "n int", "x bigint", "y text"]);
        let widening = Contract {
            on_wider_type: Some(WiderType::Widen),
            ..ADD
        };
        let settled = terms(widening).settle(&objects).unwrap();
        assert_eq!(told(&settled), ["id int", "n bigint", "x bigint", "y text"]);
        let plain = Contract::default();
        assert_eq!(terms(plain).settle(&objects).unwrap(), declared);

        // Of two types that don't hold each other none can be taken, and what no type holds can't be added.
        let odd = |own| {
            [
                ("a".to_owned(), vec![typed("x", "int")]),
                ("b".to_owned(), vec![Found::new("x", own)]),
            ]
        };
        let clash = terms(ADD).settle(&odd(Own::Typed(DataType::Utf8))).unwrap_err();
        assert!(
            clash.message.contains("b: the new column \"x\" is text here and int"),
            "{clash}"
        );
        let list = [(
            "a".to_owned(),
            vec![Found::new("l", Own::Unusable("is a list".to_owned()))],
        )];
        let list = terms(ADD).settle(&list).unwrap_err();
        assert!(
            list.message.contains("\"l\" is a list") && list.message.contains("on_new_column: ignore"),
            "{list}"
        );
    }

    #[test]
    fn an_object_is_held_against_the_columns() {
        let declared = [column("id", "int", true), column("n", "int", false)];
        let hold = |contract, by_row, found: &[Found]| {
            let terms = Terms {
                paths: &NO_PATHS,
                declared: &declared,
                contract,
                by_row,
            };
            let columns = terms.settle(&[("a".to_owned(), found.to_vec())]).unwrap();
            terms.hold(&columns, found, "a")
        };
        let with = |on_new_column, on_missing_column, on_wider_type| Contract {
            on_new_column,
            on_missing_column,
            on_wider_type,
            ..Contract::default()
        };
        let null = with(NewColumn::Ignore, Some(MissingColumn::Null), None);
        // Reordered is no matter, and what is missing and may be has no place.
        let held = hold(null, false, &[text("x"), text("id")]).unwrap();
        assert_eq!(
            (told(&held.present), held.places, held.new),
            (vec!["id int".to_owned()], vec![Some(0), None], None)
        );
        // A required one is left for the reader to miss.
        let held = hold(null, false, &[text("n")]).unwrap();
        assert_eq!(told(&held.present), ["id int", "n int"]);
        let wrong = hold(null, false, &[text("x")]).unwrap();
        assert_eq!(told(&wrong.present), ["id int"]);

        let fail = with(NewColumn::Fail, None, None);
        let wrong = hold(fail, false, &[text("id"), text("n"), text("x\n"), text("y")]).unwrap_err();
        let said = wrong.failure.message;
        assert!(
            said.contains("a has the columns \"x\\n\", \"y\"") && said.contains("on_new_column: add"),
            "{said}"
        );
        assert_eq!(
            hold(fail, false, &[text("n"), text("id")]).unwrap(),
            Held::whole(&declared)
        );
        let quarantine = with(NewColumn::Quarantine, None, None);
        let held = hold(quarantine, false, &[text("id"), text("n"), text("x")]).unwrap();
        assert_eq!(held.new.unwrap().column, "x");
        assert_eq!(
            hold(quarantine, true, &[text("id"), text("x")]).unwrap(),
            Held::whole(&declared)
        );

        let wider = with(NewColumn::Ignore, None, Some(WiderType::Fail));
        let wrong = hold(wider, false, &[text("id"), typed("n", "bigint")]).unwrap_err();
        assert_eq!(wrong.column.as_deref(), Some("n"));
        let said = wrong.failure.message;
        assert!(
            said.contains("is bigint there, wider than int") && said.contains("on_wider_type: widen"),
            "{said}"
        );
        assert!(hold(wider, false, &[text("id"), typed("n", "smallint")]).is_ok());

        let strict = with(NewColumn::Ignore, Some(MissingColumn::Fail), None);
        let wrong = hold(strict, true, &[text("id"), text("nn")]).unwrap_err();
        let said = wrong.failure.message;
        assert!(
            said.contains("\"n\" is a key of none") && said.contains("did you mean \"nn\"?"),
            "{said}"
        );
    }

    #[test]
    fn what_drifted_is_told_once_for_all_objects() {
        let declared = [column("id", "int", true), column("n", "int", false)];
        let terms = Terms {
            paths: &NO_PATHS,
            declared: &declared,
            contract: Contract {
                on_wider_type: Some(WiderType::Widen),
                ..ADD
            },
            by_row: false,
        };
        let objects = [
            ("a".to_owned(), vec![typed("id", "int"), typed("x", "text")]),
            (
                "b".to_owned(),
                vec![typed("id", "int"), typed("n", "bigint"), typed("x", "text")],
            ),
        ];
        let columns = terms.settle(&objects).unwrap();
        let told: Vec<String> = terms
            .drifts(&columns, &objects)
            .into_iter()
            .map(|drift| {
                let word = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
                let (declared, found) = (word(drift.declared), word(drift.found));
                format!(
                    "{} {} {} {declared} {found} {}",
                    drift.object, drift.column, drift.change, drift.objects
                )
            })
            .collect();
        assert_eq!(
            told,
            ["a x added - text 2", "a n missing int - 1", "b n widened int bigint 1"]
        );
    }
}
