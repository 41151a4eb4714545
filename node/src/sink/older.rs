//! Which rows of a merge are older than what stands under their keys. Such a row changes nothing: what it would have
//! brought has been overwritten already, had it come in its time.
//!
//! Two things make a row come late. A load may say by which of its columns the newer of two rows is found (`newest`). And
//! a replay brings rows of the time of the run that has read them first, its *origin*; others may have published to the
//! table since. Then a row is older where its key was written by one of those, which the table says if rows name their
//! run. Where neither is known, nobody is overwritten unseen: a key that stands already ends the publish.
//!
//! Pure; how a database is asked is its own matter.

use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::words::counted;
use haulage_plan::definition::Mode;

use super::LoadContext;

/// Runs that an error names.
const NAMED: usize = 5;

/// A run that has published to the target after the origin of a replay, and is of no replay of that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Later {
    pub(super) run: String,
    /// Whether it replaced all that was there, or what the origin had published.
    pub(super) replaced: bool,
    /// Whether every row that it wrote names it in `_haulage_run`.
    pub(super) names_rows: bool,
}

/// How a row that is older than the one under its key is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judge {
    /// There is none: nobody has published since.
    Nobody,
    /// By this column.
    Column(String),
    /// What stands names one of these runs.
    Runs(Vec<String>),
    /// It can't be found: these runs have published since, and don't say which rows are theirs.
    Unknown(Vec<String>),
}

/// How the publish of this load finds its older rows. `later` is what has published since the origin, newest first; empty
/// unless it is a replay. Permanent failure if what was replayed has been replaced.
pub(super) fn judge(load: &LoadContext, later: Vec<Later>) -> Result<Judge, Failure> {
    if let (Some(origin), Some(by)) = (&load.origin, later.iter().find(|later| later.replaced)) {
        return Err(superseded(load, origin, &by.run));
    }
    if load.mode != Mode::Merge {
        return Ok(Judge::Nobody);
    }
    if let Some(column) = &load.newest {
        return Ok(Judge::Column(column.clone()));
    }
    if later.is_empty() {
        return Ok(Judge::Nobody);
    }
    let told = load.provenance && later.iter().all(|later| later.names_rows);
    let runs = later.into_iter().map(|later| later.run).collect();
    Ok(if told { Judge::Runs(runs) } else { Judge::Unknown(runs) })
}

fn superseded(load: &LoadContext, origin: &RunId, by: &str) -> Failure {
    Failure::permanent(format!(
        "load {}: run {by} has replaced what run {origin} had published to {}, so the rows that this one rejected are \
         superseded too; replay the rejected rows of {by}",
        load.load, load.table
    ))
}

/// A row that may be older than the one under its key, and nobody can tell. `key` names it.
pub(super) fn undecided(load: &LoadContext, runs: &[String], key: &str) -> Failure {
    let named = runs
        .iter()
        .take(NAMED)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    let more = match runs.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let origin = load.origin.as_ref().map_or("", |origin| origin.as_str());
    Failure::permanent(format!(
        "load {}: {key} of the replayed rows is already in {}, and run {named}{more} has published there since run {origin} \
         read them: it isn't known which row is newer; say by which column that is found, `newest: updated_at` in the load, \
         or reject the row in a step, so that it stays rejected",
        load.load, load.table
    ))
}

/// What became of older rows, behind what a publish says of all.
pub(super) fn words(older: u64) -> String {
    match older {
        0 => String::new(),
        older => format!(
            ", {} of them older than what stands there, which stays",
            counted(older, "row")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    fn later(run: &str, replaced: bool, names_rows: bool) -> Later {
        Later {
            run: run.to_owned(),
            replaced,
            names_rows,
        }
    }

    fn replay() -> LoadContext {
        LoadContext {
            origin: Some(RunId::from("monday")),
            ..load()
        }
    }

    #[test]
    fn a_row_is_judged_by_what_is_known() {
        let tuesday = || vec![later("tuesday", false, true)];
        assert_eq!(judge(&load(), Vec::new()), Ok(Judge::Nobody));
        assert_eq!(judge(&replay(), Vec::new()), Ok(Judge::Nobody));
        assert_eq!(judge(&replay(), tuesday()), Ok(Judge::Unknown(vec!["tuesday".into()])));
        let by_run = LoadContext {
            provenance: true,
            ..replay()
        };
        assert_eq!(judge(&by_run, tuesday()), Ok(Judge::Runs(vec!["tuesday".into()])));
        let mut both = tuesday();
        both.push(later("other", false, false));
        assert_eq!(
            judge(&by_run, both),
            Ok(Judge::Unknown(vec!["tuesday".into(), "other".into()]))
        );
        let by_column = LoadContext {
            newest: Some("at".into()),
            ..by_run
        };
        assert_eq!(judge(&by_column, tuesday()), Ok(Judge::Column("at".into())));
        assert_eq!(judge(&by_column, Vec::new()), Ok(Judge::Column("at".into())));
        let appends = LoadContext {
            mode: Mode::Append,
            ..replay()
        };
        assert_eq!(judge(&appends, tuesday()), Ok(Judge::Nobody));
        let replaced = || vec![later("wednesday", false, false), later("tuesday", true, false)];
        for load in [appends, by_column, replay()] {
            let why = judge(&load, replaced()).expect_err("it is superseded").message;
            assert!(why.contains("run tuesday has replaced what run monday"), "{why}");
        }
    }

    #[test]
    fn an_undecided_row_is_named_with_what_to_do() {
        let runs: Vec<String> = (1..=7).map(|n| format!("r{n}")).collect();
        let why = undecided(&replay(), &runs, "key (id)=(17)").message;
        for part in [
            "key (id)=(17)",
            "already in t",
            "r1, r2, r3, r4, r5 and 2 more",
            "monday",
            "`newest:",
        ] {
            assert!(why.contains(part), "{part}: {why}");
        }
        assert!(!why.contains("r6"));
        assert_eq!(words(0), "");
        assert_eq!(words(1), ", 1 row of them older than what stands there, which stays");
    }
}
