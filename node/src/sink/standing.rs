//! What stands of a publish, seen later: whether it still counts, who has published to the table since, and which of the
//! table's rows are the run's, as far as that can be told.
//!
//! | published by | the run's rows |
//! |---|---|
//! | append to a table with `_haulage_run`; any mode with `provenance` | those that name the run, unless merged or replaced since |
//! | replace, or a merge that made the table | the whole table, as long as nobody has published there since |
//! | append to a table without `_haulage_run` | those whose keys are kept for a revert, unless merged or replaced since |
//! | merge into a table with rows | can't be told: rows that were the same already leave no trace |
//! | any, if some were older than what stood | can't be told: those were not written |
//! | any mode, into files | those of the files that the table's newest manifest has of the run |

use haulage_core::receipt::Publisher;
use haulage_plan::PROVENANCE;

use super::LoadContext;
use super::name::{quote, same_key};
use crate::receipt::Back;

/// What a destination knows about a load of a run that has published there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What became of it.
    pub publication: Publication,
    /// Who has published to the table since, oldest first.
    pub later: Vec<Publisher>,
    /// Each of the load's columns and how it is read back; `None` if the table is gone.
    pub columns: Option<Vec<(String, Back)>>,
    /// Which rows are the run's.
    pub rows: Rows,
}

/// Whether a run's publish counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// The destination knows nothing of it.
    Unknown,
    /// It is not published, or not any more; its state in a word.
    Not(String),
    /// It is published.
    Stands,
}

/// Which rows of a table are a run's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// Those of this SELECT.
    Of {
        /// In the destination's SQL.
        query: String,
        /// Which these are, for a person.
        which: String,
    },
    /// Those of files, which the destination [reads back](super::Destination::read_back) by itself.
    InFiles {
        /// What names them now.
        manifest: String,
        /// Which these are, for a person.
        which: String,
    },
    /// It can't be told, and why.
    Untold(String),
}

/// How a load was published, as far as that says whose rows are whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Its rows are all there were.
    Whole,
    /// Its rows carry their run.
    Append,
    /// Its rows' keys are kept.
    AppendByKey,
    /// Rows were changed and added.
    Merge,
}

/// What [`rows_of`] goes by.
pub(crate) struct Facts<'a> {
    pub(crate) way: Way,
    /// Whether the publish made the table.
    pub(crate) created: bool,
    /// The table, in SQL.
    pub(crate) table: String,
    /// Where the keys of the run's rows are kept, in SQL, if they still are.
    pub(crate) keys: Option<String>,
    /// Who has published since, and how.
    pub(crate) later: &'a [(Publisher, Way)],
    /// Whether the table has a column, if it is there.
    pub(crate) has: &'a dyn Fn(&str) -> bool,
    /// How many of the run's rows were not written, since newer ones stood.
    pub(crate) older: u64,
}

/// What a load's provenance has added to a table that lacks it now, so that it isn't looked for.
pub(crate) fn origin_gone(load: &LoadContext, has: impl Fn(&str) -> bool) -> impl Iterator<Item = (String, Back)> {
    let gone = |name: &&str| load.provenance && !has(name);
    let gone: Vec<&str> = PROVENANCE.into_iter().filter(gone).collect();
    gone.into_iter()
        .map(|name| (name.to_owned(), Back::Changed("it is gone".to_owned())))
}

/// Which rows are the load's.
pub(crate) fn rows_of(load: &LoadContext, facts: &Facts<'_>) -> Rows {
    let table = &facts.table;
    let overwriters: Vec<String> = facts
        .later
        .iter()
        .filter(|(publisher, way)| {
            matches!(way, Way::Whole | Way::Merge) || publisher.replaces.as_ref() == Some(&load.run)
        })
        .map(|(publisher, _)| said(publisher))
        .collect();
    let overwritten = || {
        Rows::Untold(format!(
            "{} has published to {} since, and what it has changed or replaced there can't be told from what was \
             published before",
            overwriters.join(", "),
            load.table
        ))
    };
    if facts.older > 0 {
        return Rows::Untold(format!(
            "{} of its rows were older than what stood under their keys and were not written, so a checksum over all of them \
             says nothing",
            facts.older
        ));
    }
    if load.provenance || facts.way == Way::Append {
        if !overwriters.is_empty() {
            return overwritten();
        }
        if !(facts.has)(PROVENANCE[0]) {
            return Rows::Untold(without(load, PROVENANCE[0], "names the run of each row"));
        }
        let run = load.run.as_str().replace('\'', "''");
        return Rows::Of {
            query: format!("SELECT * FROM {table} WHERE _haulage_run = '{run}'"),
            which: "the rows that name the run in _haulage_run".to_owned(),
        };
    }
    match facts.way {
        Way::AppendByKey => match &facts.keys {
            _ if !overwriters.is_empty() => overwritten(),
            _ if !load.key.iter().all(|name| (facts.has)(name)) => {
                Rows::Untold(without(load, &load.key.join(", "), "is the key of its rows"))
            }
            Some(keys) => Rows::Of {
                query: format!(
                    "SELECT t.* FROM {table} t WHERE EXISTS (SELECT 1 FROM {keys} k WHERE {})",
                    same_key("t", "k", &load.key)
                ),
                which: format!("the rows with the keys that the run has added ({})", load.key.join(", ")),
            },
            None => Rows::Untold(
                "its rows carry no _haulage_run, and their keys are no longer kept (`keep_previous` says of how many runs \
                 they are); `provenance: true` on the load marks the rows of later runs"
                    .to_owned(),
            ),
        },
        Way::Merge if !facts.created => Rows::Untold(
            "it was merged into a table that had rows, and rows that were the same already leave no trace; `provenance: \
             true` on the load marks the rows of later runs"
                .to_owned(),
        ),
        Way::Whole | Way::Merge | Way::Append if facts.later.is_empty() => Rows::Of {
            query: format!("SELECT * FROM {table}"),
            which: "all rows of the table, since nobody has published there after the run".to_owned(),
        },
        Way::Whole | Way::Merge | Way::Append => {
            let runs: Vec<String> = facts.later.iter().map(|(publisher, _)| said(publisher)).collect();
            Rows::Untold(format!(
                "{} has published to {} since, and rows there don't say whose they are; `provenance: true` on the load \
                 marks the rows of later runs",
                runs.join(", "),
                load.table
            ))
        }
    }
}

fn without(load: &LoadContext, column: &str, what: &str) -> String {
    format!("table {} has no column {column} any more, which {what}", load.table)
}

fn said(publisher: &Publisher) -> String {
    format!("run {} ({}, {})", publisher.run, publisher.mode, publisher.at)
}

/// The columns to be asked by: those that are named, or for bare values the only key of the table. `Err` says what to do.
pub(crate) fn columns_of<'a>(
    table: &str,
    key: &'a [(String, String)],
    there: &[&str],
    keys: &[Vec<String>],
) -> Result<Vec<(String, &'a str)>, String> {
    let bare = key.iter().filter(|(name, _)| name.is_empty()).count();
    if bare == 0 {
        for (name, _) in key {
            if !there.contains(&name.as_str()) {
                let help = haulage_plan::did_you_mean(name, there.iter().copied());
                let help = help.unwrap_or_else(|| format!("it has: {}", there.join(", ")));
                return Err(format!("table {table} has no column {name}; {help}"));
            }
        }
        return Ok(key.iter().map(|(name, value)| (name.clone(), value.as_str())).collect());
    }
    let example = |columns: &[String]| {
        let parts = columns.iter().map(|column| format!("{column}=VALUE"));
        parts.collect::<Vec<_>>().join(" ")
    };
    if bare < key.len() {
        return Err("give either values alone or COLUMN=VALUE for each".to_owned());
    }
    match keys {
        [only] if only.len() == key.len() => Ok(only
            .iter()
            .cloned()
            .zip(key.iter().map(|(_, value)| value.as_str()))
            .collect()),
        [only] => Err(format!(
            "the key of table {table} is ({}), and {} given; write {}",
            only.join(", "),
            haulage_core::words::counted(key.len() as u64, "value"),
            example(only)
        )),
        [] => Err(format!(
            "table {table} has no key, so say which column each value is of: COLUMN=VALUE (it has: {})",
            there.join(", ")
        )),
        several => Err(format!(
            "table {table} has {} keys; say which column each value is of: {}",
            several.len(),
            example(&several[0])
        )),
    }
}

/// The columns of provenance that a table has, in order, each as SQL that gives its text or NULL.
pub(crate) fn origin_in_sql(there: &[&str], as_text: impl Fn(&str) -> String) -> (bool, Vec<String>) {
    let has = |name: &&str| there.contains(name);
    let sql = PROVENANCE.iter().map(|name| {
        if has(name) {
            as_text(&quote(name))
        } else {
            "NULL".to_owned()
        }
    });
    (PROVENANCE.iter().all(has), sql.collect())
}

#[cfg(test)]
mod tests {
    use haulage_core::ids::{LoadName, RunId};

    use super::*;
    use crate::sink::tests::load;

    fn later(run: &str, way: Way) -> (Publisher, Way) {
        let publisher = Publisher {
            run: RunId::from(run),
            load: LoadName::from("l"),
            mode: "m".into(),
            replaces: None,
            at: "now".into(),
        };
        (publisher, way)
    }

    fn check(provenance: bool, way: Way, created: bool, keys: bool, later: &[(Publisher, Way)], expected: &str) {
        let mut load = load();
        load.provenance = provenance;
        let facts = Facts {
            way,
            created,
            table: "t".into(),
            keys: keys.then(|| "keys".into()),
            later,
            has: &|_| true,
            older: 0,
        };
        let rows = rows_of(&load, &facts);
        let text = match &rows {
            Rows::Of { query, .. } => query,
            Rows::InFiles { manifest, .. } => manifest,
            Rows::Untold(why) => why,
        };
        assert!(text.contains(expected), "{way:?}: {text}");
        assert_eq!(matches!(rows, Rows::Of { .. }), text.starts_with("SELECT"));
    }

    #[test]
    fn rows_are_told_only_where_they_can_be() {
        let append = [later("r2", Way::Append)];
        let merge = [later("r2", Way::Merge)];
        check(false, Way::Append, false, false, &[], "WHERE _haulage_run = 'r'");
        check(false, Way::Append, false, false, &append, "WHERE _haulage_run = 'r'");
        check(
            false,
            Way::Append,
            true,
            false,
            &merge,
            "run r2 (m, now) has published to t since",
        );
        check(true, Way::Merge, false, false, &[], "WHERE _haulage_run = 'r'");
        check(true, Way::Whole, false, false, &append, "WHERE _haulage_run = 'r'");
        check(true, Way::Merge, false, false, &merge, "can't be told from");
        check(false, Way::Whole, false, false, &[], "SELECT * FROM t");
        check(false, Way::Whole, true, false, &append, "don't say whose they are");
        check(false, Way::Merge, true, false, &[], "SELECT * FROM t");
        check(false, Way::Merge, false, true, &[], "leave no trace");
        check(
            false,
            Way::AppendByKey,
            false,
            true,
            &append,
            "FROM keys k WHERE t.\"id\" = k.\"id\"",
        );
        check(false, Way::AppendByKey, false, true, &merge, "r2");
        check(false, Way::AppendByKey, false, false, &[], "no longer kept");
        let mut again = later("r2", Way::Append);
        again.0.replaces = Some(RunId::from("r"));
        check(false, Way::Append, false, false, &[again], "run r2");
    }

    #[test]
    fn a_table_that_lost_what_tells_its_rows_says_so() {
        let mut load = load();
        load.provenance = true;
        for (way, lost, told) in [
            (Way::Append, "_haulage_run", false),
            (Way::Merge, "_haulage_run", false),
            (Way::Append, "id", true),
            (Way::AppendByKey, "id", false),
        ] {
            load.provenance = way == Way::Merge;
            let facts = Facts {
                way,
                created: false,
                table: "t".into(),
                keys: Some("keys".into()),
                later: &[],
                has: &|name| name != lost,
                older: 0,
            };
            match rows_of(&load, &facts) {
                Rows::Of { .. } => assert!(told, "{way:?} without {lost}"),
                Rows::InFiles { .. } => panic!("{way:?}: a database has no files"),
                Rows::Untold(why) => assert!(!told && why.contains(&format!("no column {lost}")), "{way:?}: {why}"),
            }
        }
        load.provenance = true;
        let gone: Vec<_> = origin_gone(&load, |name| name != "_haulage_chunk").collect();
        assert!(
            matches!(&gone[..], [(name, Back::Changed(_))] if name == "_haulage_chunk"),
            "{gone:?}"
        );
    }

    #[test]
    fn rows_that_were_not_written_are_not_looked_for() {
        let mut load = load();
        load.provenance = true;
        let facts = Facts {
            way: Way::Merge,
            created: false,
            table: "t".into(),
            keys: None,
            later: &[],
            has: &|_| true,
            older: 2,
        };
        assert!(matches!(rows_of(&load, &facts), Rows::Untold(why) if why.starts_with("2 of its rows were older")));
    }

    #[test]
    fn keys_are_named_or_found() {
        let named = [("id".to_owned(), "1".to_owned())];
        let bare = [(String::new(), "1".to_owned())];
        let keys = [vec!["id".to_owned()]];
        let two = [vec!["id".to_owned(), "day".to_owned()]];
        let check = |key: &[(String, String)], keys: &[Vec<String>]| {
            columns_of("t", key, &["id", "day"], keys).map(|found| format!("{found:?}"))
        };
        assert_eq!(check(&named, &[]), Ok("[(\"id\", \"1\")]".to_owned()));
        assert_eq!(check(&bare, &keys), Ok("[(\"id\", \"1\")]".to_owned()));
        assert!(check(&bare, &two).is_err_and(|why| why.ends_with("write id=VALUE day=VALUE")));
        assert!(check(&bare, &[]).is_err_and(|why| why.contains("has no key")));
        let slip = [("idd".to_owned(), "1".to_owned())];
        assert!(check(&slip, &[]).is_err_and(|why| why.contains("has no column idd") && why.contains("id")));
        let mixed = [named[0].clone(), bare[0].clone()];
        assert!(check(&mixed, &keys).is_err_and(|why| why.contains("either")));
    }
}
