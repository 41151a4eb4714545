//! What a pipeline says about change: `on_new_column`, `on_missing_column`, `on_wider_type` and `on_bad_row` of a source,
//! and `on_new_column` and `on_wider_type` of a load. What a kind of source can't keep is refused here, and so is what
//! would say nothing.

use super::fields::{self, Fields};
use crate::contract::{BadRow, Contract, Evolution, MissingColumn, NewColumn, WiderType};
use crate::definition::{DatabaseKind, Place, Source, SourceKind};
use crate::diagnostics::{Report, did_you_mean};
use crate::yaml::Value;

/// A source's settings, and where each stands that the file has.
pub(super) struct Settings {
    pub(super) contract: Contract,
    new_column: Option<Place>,
    missing_column: Option<Place>,
    wider_type: Option<Place>,
    bad_row: Option<Place>,
}

/// One of these words, and the place of the setting.
fn one_of<T: Copy>(
    report: &mut Report,
    fields: &Fields<'_>,
    setting: &str,
    what: &str,
    words: &[(&str, T)],
) -> Option<(T, Place)> {
    let node = fields.get(setting)?;
    let (text, place) = match &node.value {
        // YAML's null is a word here.
        Value::Scalar { text, content, .. } if text == "null" => (text.as_str(), *content),
        _ => fields::text(report, node, &format!("`{setting}` of {what}"))?,
    };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Some((*value, fields.key(setting)?.place));
    }
    let message = format!("unknown `{setting}` of {what}: `{text}`");
    report.maybe(place, message, did_you_mean(text, words.iter().map(|(word, _)| *word)));
    None
}

const WIDER: [(&str, WiderType); 2] = [("widen", WiderType::Widen), ("fail", WiderType::Fail)];

/// The settings of a source.
pub(super) fn read(report: &mut Report, fields: &Fields<'_>, what: &str) -> Settings {
    let new_column = one_of(
        report,
        fields,
        "on_new_column",
        what,
        &[
            ("add", NewColumn::Add),
            ("ignore", NewColumn::Ignore),
            ("quarantine", NewColumn::Quarantine),
            ("fail", NewColumn::Fail),
        ],
    );
    let missing = [("fail", MissingColumn::Fail), ("null", MissingColumn::Null)];
    let missing_column = one_of(report, fields, "on_missing_column", what, &missing);
    let wider_type = one_of(report, fields, "on_wider_type", what, &WIDER);
    let bad = [("quarantine", BadRow::Quarantine), ("fail", BadRow::Fail)];
    let bad_row = one_of(report, fields, "on_bad_row", what, &bad);
    Settings {
        contract: Contract {
            on_new_column: new_column.map_or_else(NewColumn::default, |(value, _)| value),
            on_missing_column: missing_column.map(|(value, _)| value),
            on_wider_type: wider_type.map(|(value, _)| value),
            on_bad_row: bad_row.map_or_else(BadRow::default, |(value, _)| value),
        },
        new_column: new_column.map(|(_, place)| place),
        missing_column: missing_column.map(|(_, place)| place),
        wider_type: wider_type.map(|(_, place)| place),
        bad_row: bad_row.map(|(_, place)| place),
    }
}

impl Settings {
    /// Reports what makes no sense of this source, at the setting's place.
    pub(super) fn check(&self, report: &mut Report, source: &Source, what: &str) {
        let columns = [
            ("on_new_column", self.new_column),
            ("on_missing_column", self.missing_column),
            ("on_wider_type", self.wider_type),
        ];
        let word = source.kind.word();
        for (setting, place) in columns {
            let Some(place) = place else { continue };
            if source.kind.columns().is_empty() {
                let help = "declare `columns`, as `haulage infer` prints them, or leave it out";
                let message = format!("`{setting}` of {what} says nothing: it declares no columns");
                report.help(place, message, help);
            } else if setting == "on_wider_type" && !has_types(&source.kind) {
                let help = "leave it out; values that don't fit their column go where `on_bad_row` says";
                let message = format!("`on_wider_type` of {what} says nothing: `{word}` has no types of its own");
                report.help(place, message, help);
            } else if setting != "on_wider_type" && matches!(&source.kind, SourceKind::Csv(csv) if !csv.header) {
                let help = "leave it out; a row with more or fewer fields is `ragged`";
                report.help(
                    place,
                    format!("`{setting}` of {what} says nothing: it has no header"),
                    help,
                );
            }
        }
        if !source.lookup {
            return;
        }
        let help = "a lookup is read whole, so that a row which can't be read always ends the run: leave it out";
        let quarantines = [
            (
                "on_new_column",
                self.new_column,
                self.contract.on_new_column == NewColumn::Quarantine,
            ),
            (
                "on_bad_row",
                self.bad_row,
                self.contract.on_bad_row == BadRow::Quarantine,
            ),
        ];
        for (setting, place, quarantines) in quarantines {
            if let (Some(place), true) = (place, quarantines) {
                report.help(
                    place,
                    format!("`{setting}: quarantine` of {what}, which is a lookup"),
                    help,
                );
            }
        }
    }
}

/// Whether objects of this kind say of what types their columns are.
fn has_types(kind: &SourceKind) -> bool {
    match kind {
        SourceKind::Database(database) => database.kind != DatabaseKind::Sqlite,
        SourceKind::Csv(_) | SourceKind::Json(_) | SourceKind::Rest(_) => false,
        _ => true,
    }
}

/// The settings of a load.
pub(super) fn evolution(report: &mut Report, fields: &Fields<'_>, what: &str) -> Evolution {
    let new_column = one_of(report, fields, "on_new_column", what, &[("add", true), ("fail", false)]);
    Evolution {
        adds_columns: new_column.is_some_and(|(adds, _)| adds),
        on_wider_type: one_of(report, fields, "on_wider_type", what, &WIDER).map(|(value, _)| value),
    }
}
