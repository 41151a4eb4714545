//! What is loaded, and what has to come of it: sources are made from a seed, and a model of the targets applies each run
//! as the pipeline says it, without asking Haulage.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use super::world::World;

/// Source rows of a run, at least and at most. The smallest chunks hold about 800 of them, segments 300.
const ROWS: (usize, usize) = (7_000, 9_000);
const CHUNK: &str = "66kB";
const SEGMENT: usize = 300;
/// Merged and replaced ids are from this range, so that runs meet each other's rows.
const IDS: i64 = 16_000;

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Workload {
    Append,
    Merge,
    Replace,
    /// Append and merge in PostgreSQL, replace in a SQLite file: one run, published together or not at all.
    TwoDestinations,
}

/// A target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    /// `log` in PostgreSQL, appended to.
    Log,
    /// `book` in PostgreSQL, merged by id.
    Book,
    /// `page` in PostgreSQL, replaced.
    Page,
    /// `side` in SQLite, replaced.
    Side,
}

pub(crate) const TARGETS: [Target; 4] = [Target::Log, Target::Book, Target::Page, Target::Side];

impl Target {
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Book => "book",
            Self::Page => "page",
            Self::Side => "side",
        }
    }

    fn load(self) -> &'static str {
        match self {
            Self::Log => "  log: {from: good, to: warehouse, table: log, mode: append}\n",
            Self::Book => "  book: {from: good, to: warehouse, table: book, mode: merge, key: [id]}\n",
            Self::Page => "  page: {from: good, to: warehouse, table: page, mode: replace, key: [id]}\n",
            Self::Side => "  side: {from: good, to: side, table: side, mode: replace, key: [id]}\n",
        }
    }
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Merge => "merge",
            Self::Replace => "replace",
            Self::TwoDestinations => "two_destinations",
        }
    }

    pub(crate) fn targets(self) -> &'static [Target] {
        match self {
            Self::Append => &[Target::Log],
            Self::Merge => &[Target::Book],
            Self::Replace => &[Target::Page],
            Self::TwoDestinations => &[Target::Log, Target::Book, Target::Side],
        }
    }

    /// The pipeline file.
    pub(crate) fn pipeline(self) -> String {
        let loads: String = self.targets().iter().map(|target| target.load()).collect();
        format!(
            "pipeline: {}
checkpoint_rows: {SEGMENT}
params: {{round: int}}
sources:
  raw: {{csv: \"s3://lake/in/{{{{ round }}}}.csv\", chunk_size: {CHUNK}, columns: {{id: bigint!, value: bigint!, note: text}}}}
steps:
  kept: {{sql: \"SELECT id, value, note FROM raw WHERE value % 10 <> 7\"}}
  good: {{from: kept, reject: {{negative: value < 0}}}}
loads:
{loads}",
            self.name()
        )
    }
}

pub(crate) type Row = (i64, i64, String);

/// A source file and what is in it.
pub(crate) struct Source {
    pub(crate) text: String,
    /// Rows that pass.
    pub(crate) rows: Vec<Row>,
    pub(crate) read: u64,
    pub(crate) filtered: u64,
    pub(crate) rejected: u64,
}

/// Makes the source of a round. Some rows are filtered, some break the step's rule, some can't be read at all.
pub(crate) fn source(rng: &mut StdRng, round: u64) -> Source {
    let mut made = Source {
        text: "id,value,note\n".to_owned(),
        rows: Vec::new(),
        read: 0,
        filtered: 0,
        rejected: 0,
    };
    let wanted = rng.random_range(ROWS.0..=ROWS.1);
    let mut id = rng.random_range(0..200);
    while made.read < wanted as u64 && id < IDS {
        made.read += 1;
        let value: i64 = rng.random_range(-40..4_000);
        let note = match rng.random_range(0..40) {
            0 => format!("round {round}, \"quoted\""),
            1 => format!("two\nlines of {round}"),
            _ => format!("round {round} row {id}, which has some words more so that chunks are small"),
        };
        let quoted = format!("\"{}\"", note.replace('"', "\"\""));
        if rng.random_range(0..500) == 0 {
            made.text.push_str(&format!("{id},no number,{quoted}\n"));
            made.rejected += 1;
        } else {
            made.text.push_str(&format!("{id},{value},{quoted}\n"));
            if value % 10 == 7 {
                made.filtered += 1;
            } else if value < 0 {
                made.rejected += 1;
            } else {
                made.rows.push((id, value, note));
            }
        }
        id += rng.random_range(1..=3);
    }
    made
}

/// What a reader can compute in one statement: rows, sum of ids, sum of values. `None` while there is no table.
pub(crate) type Sight = Option<(i64, i64, i64)>;

/// The SQL of a [`Sight`].
pub(crate) fn sight_sql(target: Target) -> String {
    format!(
        "SELECT count(*), CAST(coalesce(sum(id), 0) AS bigint), CAST(coalesce(sum(value), 0) AS bigint) FROM {}",
        target.table()
    )
}

/// All targets as they must be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    /// By target: each row, and how often it is there.
    tables: BTreeMap<Target, BTreeMap<Row, u64>>,
}

/// How a target differs from the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Rows of the model that aren't there.
    pub(crate) lost: u64,
    /// Rows that the model doesn't have, or not so often.
    pub(crate) duplicated: u64,
}

impl Model {
    /// Does what a published run does.
    pub(crate) fn publish(&mut self, workload: Workload, source: &Source) {
        for target in workload.targets() {
            let table = self.tables.entry(*target).or_default();
            match target {
                Target::Log => {}
                Target::Book => {
                    let merged: std::collections::BTreeSet<i64> = source.rows.iter().map(|row| row.0).collect();
                    table.retain(|row, _| !merged.contains(&row.0));
                }
                Target::Page | Target::Side => table.clear(),
            }
            for row in &source.rows {
                *table.entry(row.clone()).or_default() += 1;
            }
        }
    }

    /// What a reader sees of a target.
    pub(crate) fn sight(&self, target: Target) -> Sight {
        let table = self.tables.get(&target)?;
        let mut sight = (0, 0, 0);
        for ((id, value, _), times) in table {
            let times = *times as i64;
            sight = (sight.0 + times, sight.1 + id * times, sight.2 + value * times);
        }
        Some(sight)
    }

    /// Holds a target against the model, row by row.
    pub(crate) async fn compare(&self, target: Target, world: &World) -> Result<Difference> {
        let sql = format!("SELECT id, value, note FROM {}", target.table());
        let found = match target {
            Target::Side if !world.side().exists() => Ok(Vec::new()),
            Target::Side => {
                let mut connection = SqliteConnectOptions::new()
                    .filename(world.side())
                    .read_only(true)
                    .connect()
                    .await?;
                let found: Result<Vec<Row>, _> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut connection).await;
                connection.close().await?;
                found
            }
            Target::Log | Target::Book | Target::Page => {
                sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&world.pool).await
            }
        };
        let found: Vec<Row> = match (found, self.tables.contains_key(&target)) {
            (Ok(found), _) => found,
            (Err(sqlx::Error::Database(error)), false) if says_no_table(&*error) => Vec::new(),
            (Err(error), _) => return Err(error).with_context(|| format!("reading {}", target.table())),
        };
        let mut left = self.tables.get(&target).cloned().unwrap_or_default();
        let mut difference = Difference::default();
        for row in found {
            match left.get_mut(&row) {
                Some(times) if *times > 0 => *times -= 1,
                _ => difference.duplicated += 1,
            }
        }
        difference.lost = left.values().sum();
        Ok(difference)
    }
}

/// Whether a server says that a table isn't there.
pub(crate) fn says_no_table(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().as_deref() == Some("42P01") || error.message().contains("no such table")
}

/// Holds a published run's own counts against the source.
pub(crate) fn check_counts(run: &Value, workload: Workload, source: &Source) -> Result<()> {
    let counts = &run["counts"];
    let loads = workload.targets().len() as u64;
    for (name, wanted) in [
        ("read", source.read),
        ("rejected", source.rejected),
        ("filtered", source.filtered),
        ("loaded", source.rows.len() as u64),
    ] {
        let said = counts[name].as_u64().unwrap_or(u64::MAX);
        // Of several loads the total counts a row as often as it went into one.
        ensure!(
            said == wanted || said == wanted * loads,
            "the run says {name} = {said}, the source has {wanted}: {counts}"
        );
    }
    Ok(())
}
