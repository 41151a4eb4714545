//! A coordinator over a SQLite ledger in a folder of its own, and a client of it.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use haulage_coordinator::{Coordinator, CoordinatorConfig};
use haulage_core::lease;
use haulage_proto::v1::haulage_client::HaulageClient;
use haulage_proto::v1::{
    GetRunRequest, Run, RunEvent, RunState, SubmitRequest, SubmitResponse, WatchRequest, WatchResponse,
};
use haulage_test_support::wait_for;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing_subscriber::EnvFilter;

// Process groups belong to the whole process, so two coordinators of different tests would see each other's nodes.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// After this a test has failed.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const PIPELINE: &str = "\
pipeline: small
params:
  day: {type: date, default: 2024-01-01}
sources:
  raw: {csv: \"data.csv\", columns: {id: int, name: text}}
steps:
  clean: SELECT id, name FROM raw WHERE id > 0
loads:
  one: {from: clean, to: warehouse, table: one, mode: append}
  two: {from: clean, to: warehouse, table: two, mode: append}
";

pub(crate) type Client = HaulageClient<Channel>;

/// Held by a test as long as it runs.
pub(crate) struct Stage {
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Stage {
    pub(crate) async fn set() -> Self {
        // Shown for a test that fails, with RUST_LOG set. Only the first test installs it.
        let log = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::from_default_env())
            .with_test_writer();
        drop(log.try_init());
        Self {
            _alone: ONE_AT_A_TIME.lock().await,
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ledger.db")
    }

    pub(crate) fn ledger(&self) -> String {
        format!("sqlite:{}", self.file().display())
    }

    pub(crate) fn config(&self) -> CoordinatorConfig {
        CoordinatorConfig {
            ledger: self.ledger(),
            name: "test".to_owned(),
            advertise: "http://127.0.0.1:7400".to_owned(),
            cookie: "cookie".to_owned(),
            lease: lease::Settings {
                lease_ms: 5_000,
                heartbeat_ms: 50,
                suspect_ms: 3_000,
            },
            cluster: false,
            keep_rejects: None,
        }
    }

    pub(crate) async fn coordinator(&self) -> (Coordinator, Client) {
        self.coordinator_with(self.config()).await
    }

    pub(crate) async fn coordinator_with(&self, config: CoordinatorConfig) -> (Coordinator, Client) {
        let coordinator = haulage_coordinator::start(config)
            .await
            .expect("the coordinator starts");
        let client = HaulageClient::new(coordinator.channel());
        (coordinator, client)
    }
}

pub(crate) fn request(day: &str) -> SubmitRequest {
    SubmitRequest {
        definition: PIPELINE.to_owned(),
        file: "small.yaml".to_owned(),
        base: "/data".to_owned(),
        params: [("day".to_owned(), day.to_owned())].into(),
        rerun: false,
        destinations: [].into(),
    }
}

pub(crate) async fn submit(client: &mut Client, request: SubmitRequest) -> SubmitResponse {
    client.submit(request).await.expect("submitted").into_inner()
}

pub(crate) async fn submitted(client: &mut Client) -> String {
    submit(client, request("2024-01-01")).await.run_id
}

pub(crate) async fn watch(client: &mut Client, run: &str, after: u64) -> Streaming<WatchResponse> {
    let request = WatchRequest {
        run_id: run.to_owned(),
        after_seq: after,
    };
    client.watch(request).await.expect("watches").into_inner()
}

/// Watches a run until it is at rest: the run as it ended, and every event.
pub(crate) async fn finished(client: &mut Client, run: &str) -> (Run, Vec<RunEvent>) {
    let mut stream = watch(client, run, 0).await;
    let all = async {
        let mut last = None;
        let mut events = Vec::new();
        while let Some(message) = stream.message().await.expect("the stream ends well") {
            last = message.run;
            events.extend(message.events);
        }
        (last.expect("at least one message"), events)
    };
    within("the run to end", all).await
}

pub(crate) async fn get(client: &mut Client, run: &str) -> Result<(Run, Vec<RunEvent>), Status> {
    let response = client
        .get_run(GetRunRequest { run_id: run.to_owned() })
        .await?
        .into_inner();
    Ok((response.run.expect("a run"), response.events))
}

pub(crate) fn kinds(events: &[RunEvent]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

pub(crate) fn state(run: &Run) -> RunState {
    run.state()
}

/// The future's value, or a failed test that says what it waited for.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} for {what}"),
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(())).await;
}

/// Watches until the run says that it waits, with this part in what it says.
pub(crate) async fn until_waiting(client: &mut Client, run: &str, part: &str) {
    let mut stream = watch(client, run, 0).await;
    let waits = async {
        while let Some(message) = stream.message().await.expect("no error") {
            let mut events = message.events.iter();
            if events.any(|event| event.kind == "waiting" && event.text.contains(part)) {
                return;
            }
        }
        panic!("the stream ended without saying {part:?}");
    };
    within("the notice", waits).await;
}
