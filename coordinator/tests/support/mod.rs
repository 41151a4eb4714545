//! What the ledger's tests need: a place for a ledger in either database, and events to write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use haulage_coordinator::ledger::{self, Append, Appended, Campaign, Candidate, Error, Ledger};
use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Attempt, Epoch, Millis, NodeName, RunId, Seq, Work};
use haulage_core::submission::Submission;
use haulage_test_support::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection};
use tempfile::TempDir;

/// When everything in these tests happens.
pub(crate) const NOW: Millis = Millis(1_700_000_000_000);

/// Where a ledger may be; nothing is there yet.
pub(crate) enum Place {
    Postgres { cluster: Arc<Postgres>, database: String },
    Sqlite { folder: TempDir },
}

impl Place {
    pub(crate) async fn postgres() -> Self {
        let cluster = Postgres::shared().await.expect("PostgreSQL");
        let database = cluster.database().await.expect("a database");
        Self::Postgres { cluster, database }
    }

    pub(crate) async fn sqlite() -> Self {
        Self::Sqlite {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Postgres { cluster, database } => cluster.url(database),
            // In a folder that isn't there yet.
            Self::Sqlite { folder } => format!("sqlite:{}", folder.path().join("of/its/own/ledger.db").display()),
        }
    }

    pub(crate) async fn open(&self) -> Arc<dyn Ledger> {
        ledger::open(&self.url()).await.expect("a ledger")
    }

    pub(crate) async fn open_read_only(&self) -> Arc<dyn Ledger> {
        ledger::open_read_only(&self.url())
            .await
            .expect("a ledger to read from")
    }

    /// A ledger that leads, with another handle on it.
    pub(crate) async fn lead(&self) -> (Arc<dyn Ledger>, Arc<dyn Ledger>, Epoch) {
        let (ledger, other) = (self.open().await, self.open().await);
        let epoch = claim(&*ledger, "test").await.expect("an epoch");
        (ledger, other, epoch)
    }

    /// The name of a table of the ledger.
    pub(crate) fn table(&self, name: &str) -> String {
        match self {
            Self::Postgres { .. } => format!("haulage_ledger.{name}"),
            Self::Sqlite { .. } => name.to_owned(),
        }
    }

    /// Runs SQL past the ledger, as a person with a grudge would.
    pub(crate) async fn execute(&self, sql: String) {
        let sql = AssertSqlSafe(sql);
        match self {
            Self::Postgres { .. } => {
                let mut connection = PgConnection::connect(&self.url()).await.expect("a connection");
                connection.execute(sql).await.expect("a statement that runs");
            }
            Self::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(&self.url()).await.expect("a connection");
                connection.execute(sql).await.expect("a statement that runs");
                connection.close().await.expect("a closed connection");
            }
        }
    }
}

/// A campaign of somebody who leads for `lease` unless it renews.
pub(crate) async fn campaign(ledger: &dyn Ledger, name: &str, lease: Duration) -> Result<Campaign, Error> {
    let address = format!("http://{name}:7400");
    let candidate = Candidate {
        name,
        address: &address,
        lease,
    };
    ledger.campaign(&candidate, NOW).await
}

/// A new epoch, whose lease keeps nobody waiting.
pub(crate) async fn claim(ledger: &dyn Ledger, name: &str) -> Result<Epoch, Error> {
    match campaign(ledger, name, Duration::ZERO).await? {
        Campaign::Won(epoch) => Ok(epoch),
        Campaign::Lost(led) => panic!("{name} lost to {led:?}"),
    }
}

/// A submission; `n` tells it from others.
pub(crate) fn submission(n: u32) -> Submission {
    Submission {
        pipeline: "flights".to_owned(),
        definition: "pipeline: flights\n".to_owned(),
        file: "pipeline.yaml".to_owned(),
        base: "/data".to_owned(),
        params: BTreeMap::from([("n".to_owned(), n.to_string())]),
        loads: Vec::new(),
        places: BTreeMap::new(),
        incremental: false,
        traceparent: String::new(),
        replay: None,
    }
}

/// An event that any run may have, with text that a database could trip over.
pub(crate) fn event(n: u32) -> Event {
    Event::Assigned {
        work: Work::Discover,
        attempt: Attempt(n),
        node: NodeName::new("n'\0\"\\\u{1F69A}"),
        at: NOW,
    }
}

pub(crate) fn finished(outcome: Outcome) -> Event {
    Event::Finished {
        outcome,
        at: NOW.plus(7),
    }
}

pub(crate) fn append(run: &RunId, expected: u64, events: Vec<Event>) -> Append {
    Append {
        run: run.clone(),
        expected: Seq(expected),
        events,
    }
}

/// Submits a fresh run; its log ends at 1.
pub(crate) async fn start(ledger: &dyn Ledger, epoch: Epoch, n: u32) -> RunId {
    let submitted = ledger.submit(epoch, &submission(n), false, NOW).await.expect("a run");
    assert_eq!(submitted.disposition, ledger::Disposition::Started);
    submitted.run
}

/// Brings a run to rest.
pub(crate) async fn finish(ledger: &dyn Ledger, epoch: Epoch, run: &RunId, outcome: Outcome) {
    let last = log(ledger, run).await.len() as u64;
    let answers = ledger
        .append(epoch, &[append(run, last, vec![finished(outcome)])])
        .await
        .expect("an answer");
    assert_eq!(answers, [Appended::At(Seq(last + 1))]);
}

/// A run's whole log, which must be gapless.
pub(crate) async fn log(ledger: &dyn Ledger, run: &RunId) -> Vec<Event> {
    let events = ledger.read(run, Seq(0)).await.expect("a readable log");
    let places: Vec<u64> = events.iter().map(|(seq, _)| seq.0).collect();
    assert_eq!(places, (1..=events.len() as u64).collect::<Vec<_>>(), "{run}");
    events.into_iter().map(|(_, event)| event).collect()
}
