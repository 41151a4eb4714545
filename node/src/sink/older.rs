//! Which rows of a merge are older than what stands under their keys. Such a row changes nothing: what it would have
//! brought has been overwritten already, had it come in its time.
//!
//! Two things make a row come late. A load may say by which of its columns the newer of two rows is found (`newest`). And
//! a replay brings rows of the time of the run that has read them first, its *origin*; others may have published to the
//! table since. Then a row is older where its key was written by one of those, which the table says if rows name their
//! run. Where neither is known, nobody is overwritten unseen: a key that stands already ends the publish.
//!
//! A file may also hold a key twice, and the run has rejected one of the rows and loaded the other. What the origin has written
//! itself, or another replay of it, is set against a replayed row by the object and the line that both say they are from; where
//! rows don't say that, what the origin has kept for its revert names the keys, and each of them ends the publish.
//!
//! The rows of one run may share a key, too: by `newest` one of them stands, and the others leave the staging area when it is
//! verified, before checks look at it. Rows that are the newest together have to be the same, since nobody knows which counts.
//!
//! Pure; how a database is asked is its own matter.

use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::words::counted;
use haulage_plan::PROVENANCE;
use haulage_plan::definition::Mode;

use super::LoadContext;
use super::name::{quote, quote_all, same_key};
use super::standing::Way;

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

/// The origin of a replay, or another replay of it, which has published to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sibling {
    pub(super) run: String,
    /// Whether every row that it wrote says its run, chunk and line.
    pub(super) names_rows: bool,
    /// Which rows it has written.
    pub(super) wrote: Wrote,
}

/// Which rows a run has written, as far as it can be told without their saying so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrote {
    /// Those with a key in these tables, in SQL, which a revert needs.
    Keys(Vec<String>),
    /// Perhaps any.
    Any,
}

impl Wrote {
    /// From how it was published, whether that made the table, and the tables of keys that are there: of rows as they were
    /// before, and of those that were added.
    pub(super) fn of(way: Way, created: bool, before: Option<String>, added: Option<String>) -> Self {
        match (way, before, added) {
            (Way::Merge, Some(before), Some(added)) if !created => Self::Keys(vec![before, added]),
            (Way::AppendByKey, _, Some(added)) => Self::Keys(vec![added]),
            (Way::Whole | Way::Append | Way::AppendByKey | Way::Merge, ..) => Self::Any,
        }
    }
}

/// How a row that is older than the one under its key is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judge {
    /// There is none: nobody has published since.
    Nobody,
    /// By this column.
    Column(String),
    /// What stands names one of `later`; or it is of the origin or a replay of it, and stood behind the row.
    Runs { later: Vec<String>, own: Own },
    /// It can't be found: these runs have published since, and don't say which rows are theirs.
    Unknown(Vec<String>),
}

/// What is known of the rows that the origin and its replays have written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Own {
    /// They name one of these runs, and chunk and line.
    Told(Vec<String>),
    /// Which of them stood behind a replayed row isn't known, just where they are.
    Untold(Vec<Wrote>),
}

/// How the publish of this load finds its older rows. `later` is what has published since the origin, newest first, and `own`
/// the origin and its replays; empty unless it is a replay. Permanent failure if what was replayed has been replaced.
pub(super) fn judge(load: &LoadContext, later: Vec<Later>, own: Vec<Sibling>) -> Result<Judge, Failure> {
    if let (Some(origin), Some(by)) = (&load.origin, later.iter().find(|later| later.replaced)) {
        return Err(superseded(load, origin, &by.run));
    }
    if load.mode != Mode::Merge {
        return Ok(Judge::Nobody);
    }
    if let Some(column) = &load.newest {
        return Ok(Judge::Column(column.clone()));
    }
    let told = later.is_empty() || (load.provenance && later.iter().all(|later| later.names_rows));
    let later: Vec<String> = later.into_iter().map(|later| later.run).collect();
    if !told {
        return Ok(Judge::Unknown(later));
    }
    if later.is_empty() && own.is_empty() {
        return Ok(Judge::Nobody);
    }
    let own = match load.provenance && own.iter().all(|own| own.names_rows) {
        true => Own::Told(own.into_iter().map(|own| own.run).collect()),
        false => Own::Untold(own.into_iter().map(|own| own.wrote).collect()),
    };
    Ok(Judge::Runs { later, own })
}

/// What the chunks of the origin and its replays have read, as JSON: a list of objects with `run`, `chunk`, `object` and
/// `start`. None of it is more than a signed number of 64 bits holds.
pub(super) fn read(load: &LoadContext) -> String {
    let mut list = Vec::new();
    for (run, chunks) in load.read.iter() {
        for (chunk, part) in chunks {
            list.push(serde_json::json!({
                "run": run.as_str(),
                "chunk": chunk.to_string(),
                "object": part.object,
                "start": i64::try_from(part.start).unwrap_or(i64::MAX),
            }));
        }
    }
    serde_json::Value::from(list).to_string()
}

/// Over `s`, a staged row, `t`, the one under its key, and `mine` and `there`, what their chunks have read: whether it is
/// known which of the two stood behind the other, and whether that is the one in the table. In the SQL of every database.
pub(super) const IS_KNOWN: &str =
    "mine.object = there.object AND (there.start, t._haulage_line) <> (mine.start, s._haulage_line)";
pub(super) const IS_OLDER: &str =
    "mine.object = there.object AND (there.start, t._haulage_line) > (mine.start, s._haulage_line)";

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

/// That the key of a staged row `s` is in one of these tables, behind other conditions, in the SQL of every database.
pub(super) fn written(tables: &[String], key: &[String]) -> String {
    let each = tables
        .iter()
        .map(|table| format!("EXISTS (SELECT 1 FROM {table} k WHERE {})", same_key("k", "s", key)));
    format!(" AND ({})", each.collect::<Vec<_>>().join(" OR "))
}

/// A replayed row whose key the origin has written itself, or another replay, and nobody can tell which of the two rows comes
/// later. `key` names it, `told` is whether rows say their lines.
pub(super) fn undecided_among(load: &LoadContext, key: &str, told: bool) -> Failure {
    let origin = load.origin.as_ref().map_or("", |origin| origin.as_str());
    let (why, more) = match told {
        true => (
            "they are not known to be of one object, where the later line counts",
            "",
        ),
        false => (
            "rows without provenance don't say where they stood",
            ", load with `provenance: true` from the first run on,",
        ),
    };
    Failure::permanent(format!(
        "load {}: {key} of the replayed rows is already in {}, where run {origin}, which has read them, or a replay of it has \
         another row: it isn't known which of the two is newer, since {why}; say by which column that is found, `newest: \
         updated_at` in the load{more} or reject the row in a step, so that it stays rejected",
        load.load, load.table
    ))
}

/// By which column one of several staged rows with a key is chosen, if one is.
pub(super) fn chooses(load: &LoadContext) -> Option<&str> {
    load.newest.as_deref().filter(|_| load.mode == Mode::Merge)
}

/// The staged keys of several rows, in SQL from FROM on. Keys without a value are said elsewhere.
pub(super) fn doubled(load: &LoadContext, stage: &str) -> String {
    let some = load.key.iter().map(|key| format!("{} IS NOT NULL", quote(key)));
    let some = some.collect::<Vec<_>>().join(" AND ");
    format!(
        "FROM {stage} WHERE {some} GROUP BY {} HAVING count(*) > 1",
        quote_all(&load.key)
    )
}

/// The columns in which rows differ: all but those that say where a row is from.
pub(super) fn content(load: &LoadContext) -> Vec<&str> {
    let names = load.schema.fields().iter().map(|field| field.name().as_str());
    names
        .filter(|name| !(load.provenance && PROVENANCE.contains(name)))
        .collect()
}

/// Several staged rows have a key and are the newest of it, and differ.
pub(super) fn tied(load: &LoadContext, newest: &str, key: &str) -> Failure {
    Failure::permanent(format!(
        "load {}: {key} has several rows among the staged ones that differ and have the same `{newest}`, so it isn't known which \
         is the newest; name a finer column in `newest`, or reject what is double in a step",
        load.load
    ))
}

/// How many rows left the staging area, behind what a verify says of the others.
pub(super) fn left_out(older: u64) -> String {
    match older {
        0 => String::new(),
        older => format!(", {older} older than others of their keys left out"),
    }
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

    fn monday(names_rows: bool) -> Vec<Sibling> {
        vec![Sibling {
            run: "monday".into(),
            names_rows,
            wrote: Wrote::Any,
        }]
    }

    #[test]
    fn what_the_origin_has_written_itself_is_told_by_its_rows_or_not_at_all() {
        let by_run = LoadContext {
            provenance: true,
            ..replay()
        };
        let told = |later: &[&str]| {
            Ok(Judge::Runs {
                later: later.iter().map(ToString::to_string).collect(),
                own: Own::Told(vec!["monday".into()]),
            })
        };
        let untold = Ok(Judge::Runs {
            later: Vec::new(),
            own: Own::Untold(vec![Wrote::Any]),
        });
        assert_eq!(judge(&by_run, Vec::new(), monday(true)), told(&[]));
        assert_eq!(
            judge(&by_run, vec![later("tuesday", false, true)], monday(true)),
            told(&["tuesday"])
        );
        assert_eq!(judge(&by_run, Vec::new(), monday(false)), untold);
        assert_eq!(judge(&replay(), Vec::new(), monday(true)), untold);
        let by_column = LoadContext {
            newest: Some("at".into()),
            ..by_run
        };
        assert_eq!(
            judge(&by_column, Vec::new(), monday(true)),
            Ok(Judge::Column("at".into()))
        );
        let (before, added) = (|| Some("b".to_owned()), || Some("k".to_owned()));
        let keys = |tables: &[&str]| Wrote::Keys(tables.iter().map(ToString::to_string).collect());
        assert_eq!(Wrote::of(Way::Merge, false, before(), added()), keys(&["b", "k"]));
        assert_eq!(Wrote::of(Way::Merge, true, before(), added()), Wrote::Any);
        assert_eq!(Wrote::of(Way::Merge, false, None, added()), Wrote::Any);
        assert_eq!(Wrote::of(Way::AppendByKey, true, None, added()), keys(&["k"]));
        assert_eq!(Wrote::of(Way::Whole, false, before(), None), Wrote::Any);
        for (told, part) in [(true, "one object"), (false, "`provenance: true`")] {
            let why = undecided_among(&replay(), "key (id)=(5)", told).message;
            for part in [part, "key (id)=(5)", "already in t", "run monday", "`newest:"] {
                assert!(why.contains(part), "{part}: {why}");
            }
        }
    }

    #[test]
    fn a_row_is_judged_by_what_is_known() {
        let judge = |load: &LoadContext, later: Vec<Later>| super::judge(load, later, Vec::new());
        let tuesday = || vec![later("tuesday", false, true)];
        assert_eq!(judge(&load(), Vec::new()), Ok(Judge::Nobody));
        assert_eq!(judge(&replay(), Vec::new()), Ok(Judge::Nobody));
        assert_eq!(judge(&replay(), tuesday()), Ok(Judge::Unknown(vec!["tuesday".into()])));
        let by_run = LoadContext {
            provenance: true,
            ..replay()
        };
        let told = Judge::Runs {
            later: vec!["tuesday".into()],
            own: Own::Told(Vec::new()),
        };
        assert_eq!(judge(&by_run, tuesday()), Ok(told));
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
