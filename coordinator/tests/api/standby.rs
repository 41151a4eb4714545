//! Two coordinators over one PostgreSQL ledger: what a standby answers itself, what it passes on, and how the lead goes
//! from one to the other. How long that takes when a process is killed is measured end to end.

use std::time::Duration;

use haulage_coordinator::{Coordinator, CoordinatorConfig, Standing};
use haulage_proto::v1::haulage_client::HaulageClient;
use haulage_proto::v1::{CancelRequest, ListNodesRequest, ListRunsRequest, RunState};
use haulage_test_support::postgres::Postgres;
use haulage_test_support::proxy::{Commit, Proxy};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::agent::{FakeNode, Manner};
use super::fixture::*;
use super::runs::holding_chunks;

/// A coordinator with a port.
struct Served {
    client: Client,
    address: String,
    standing: Standing,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Coordinator>,
}

impl Served {
    async fn start(stage: &Stage, ledger: &str, name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let coordinator = haulage_coordinator::start(CoordinatorConfig {
            ledger: ledger.to_owned(),
            name: name.to_owned(),
            advertise: address.clone(),
            ..stage.config()
        })
        .await
        .expect("it starts");
        let standing = coordinator.standing();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let served = coordinator.serve(listener, async { drop(stopped.await) }).await;
            served.expect("serves to its end");
            coordinator
        });
        let endpoint = Endpoint::from_shared(address.clone()).expect("an address");
        Self {
            client: HaulageClient::new(endpoint.connect().await.expect("connects")),
            address,
            standing,
            stop,
            served,
        }
    }

    async fn serves_lead(&self) -> bool {
        let endpoint = Endpoint::from_shared(self.address.clone()).expect("an address");
        let mut health = HealthClient::new(endpoint.connect().await.expect("connects"));
        let mut status = async |service: &str| {
            let service = service.to_owned();
            let answer = health.check(HealthCheckRequest { service }).await.expect("an answer");
            answer.into_inner().status()
        };
        assert_eq!(status("").await, ServingStatus::Serving, "it serves in any case");
        status("haulage.v1.Leader").await == ServingStatus::Serving
    }
}

async fn leader_of(client: &mut Client) -> Option<(String, String)> {
    let listed = client.list_nodes(ListNodesRequest {}).await.ok()?.into_inner();
    Some((listed.leader, listed.answered_by))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_answers_passes_on_and_takes_over() {
    let stage = Stage::set().await;
    let postgres = Postgres::shared().await.expect("PostgreSQL");
    let database = postgres.database().await.expect("a database");
    let ledger = postgres.url(&database);
    let mut first = Served::start(&stage, &ledger, "first").await;
    let mut second = Served::start(&stage, &ledger, "second").await;
    assert!(matches!(first.standing, Standing::Leads(_)), "{:?}", first.standing);
    let Standing::Stands(Some(led)) = &second.standing else {
        panic!("{:?}", second.standing);
    };
    assert_eq!((led.name.as_str(), &led.address), ("first", &first.address));
    assert!(first.serves_lead().await && !second.serves_lead().await);

    // Passed on, to where the node is; and read from the ledger.
    let node = FakeNode::start("n1", holding_chunks(1)).await;
    let run = submitted(&mut second.client).await;
    let said = leader_of(&mut second.client).await;
    assert_eq!(said, Some(("first".to_owned(), "second".to_owned())));
    until("the chunk", || node.chunks().len() == 1).await;
    assert_eq!(
        state(&get(&mut second.client, &run).await.expect("reads").0),
        RunState::Loading
    );
    // Not a second time.
    let mut passed_on = Request::new(ListNodesRequest {});
    passed_on
        .metadata_mut()
        .insert("haulage-passed-on", "1".parse().expect("text"));
    let status = second.client.list_nodes(passed_on).await.expect_err("one hop only");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let leader = status.metadata().get("haulage-leader").expect("who leads");
    assert_eq!(leader.to_str().expect("text"), first.address);

    // A client that watches through the standby sees the run move under one leader, and under the next.
    let mut watched = second.client.clone();
    let watching = tokio::spawn({
        let run = run.clone();
        async move { finished(&mut watched, &run).await }
    });
    first.stop.send(()).expect("it serves");
    let asked = tokio::time::Instant::now();
    let mut slowest = Duration::ZERO;
    within("the standby to lead", async {
        loop {
            let called = tokio::time::Instant::now();
            let said = leader_of(&mut second.client).await;
            slowest = slowest.max(called.elapsed());
            if said.is_some_and(|(name, _)| name == "second") {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let taken = asked.elapsed();
    assert!(
        taken < Duration::from_secs(3),
        "no lease had to run out: {taken:?}; the slowest call took {slowest:?}"
    );
    assert!(second.serves_lead().await);
    first.served.await.expect("no panic").stop().await;
    assert!(first.client.list_nodes(ListNodesRequest {}).await.is_err());

    let cancelled = CancelRequest {
        run_id: run.clone(),
        reason: "the test is over".to_owned(),
    };
    within("the cancel", async {
        while let Err(status) = second.client.cancel(cancelled.clone()).await {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
        }
    })
    .await;
    for key in node.chunks() {
        node.end(&key, Ok(super::agent::chunk_outcome()));
    }
    let (ended, events) = within("the watcher", watching).await.expect("no panic");
    assert_eq!(state(&ended), RunState::Cancelled, "{:?}", kinds(&events));
    // Notices are said to watchers and stand in no log.
    assert_eq!(
        events.iter().filter(|event| event.kind != "waiting").count(),
        get(&mut second.client, &run).await.expect("reads").1.len(),
        "no event is missing, and none came twice"
    );
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_a_standby_says_so() {
    let stage = Stage::set().await;
    let postgres = Postgres::shared().await.expect("PostgreSQL");
    let database = postgres.database().await.expect("a database");
    let ledger = postgres.url(&database);
    let first = Served::start(&stage, &ledger, "first").await;
    let mut second = Served::start(&stage, &ledger, "second").await;
    let run = submitted(&mut second.client).await;
    // As if the leader had been cut off: its lease runs on, and nothing answers at its address.
    first.served.abort();
    assert!(first.served.await.is_err_and(|error| error.is_cancelled()));
    let status = within("a refusal", async {
        loop {
            match second.client.submit(request("2024-03-03")).await {
                Err(status) => return status,
                Ok(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(get(&mut second.client, &run).await.is_ok(), "reading goes on");
    // The lease runs out, and the same submission is taken.
    let _node = FakeNode::start("n1", Manner::quick(1)).await;
    within("the standby to lead", async {
        while second.client.submit(request("2024-03-03")).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    finished(&mut second.client, &run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_that_was_won_without_hearing_of_it_is_taken() {
    let stage = Stage::set().await;
    let postgres = Postgres::shared().await.expect("PostgreSQL");
    let database = postgres.database().await.expect("a database");
    let ledger = postgres.url(&database);
    let proxy = Proxy::start(postgres.port()).await.expect("a proxy");
    let far = ledger.replace(&format!(":{}/", postgres.port()), &format!(":{}/", proxy.port()));
    let first = Served::start(&stage, &ledger, "first").await;
    let mut second = Served::start(&stage, &far, "second").await;
    // The next thing that the standby commits is its campaign.
    proxy.next_commit(Commit::LosesItsAnswer);
    first.served.abort();
    assert!(first.served.await.is_err_and(|error| error.is_cancelled()));
    within("the standby to lead", async {
        while leader_of(&mut second.client)
            .await
            .is_none_or(|(name, _)| name != "second")
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(proxy.has_happened(), "no campaign lost its answer");
    let listed = second
        .client
        .list_nodes(ListNodesRequest {})
        .await
        .expect("it leads")
        .into_inner();
    assert_eq!(
        listed.epoch, 2,
        "the lead that it won was left to run out, and won again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_connections_were_forgotten_goes_on_over_new_ones() {
    let stage = Stage::set().await;
    let postgres = Postgres::shared().await.expect("PostgreSQL");
    let database = postgres.database().await.expect("a database");
    let ledger = postgres.url(&database);
    let proxy = Proxy::start(postgres.port()).await.expect("a proxy");
    let far = ledger.replace(&format!(":{}/", postgres.port()), &format!(":{}/", proxy.port()));
    let mut leader = Served::start(&stage, &far, "first").await;
    // Connections to be forgotten: as many as it may have.
    let asked: Vec<_> = (0..16)
        .map(|_| {
            let mut client = leader.client.clone();
            tokio::spawn(async move { client.list_runs(ListRunsRequest::default()).await.map(drop) })
        })
        .collect();
    for asked in asked {
        asked.await.expect("no panic").expect("listed");
    }
    submitted(&mut leader.client).await;
    proxy.forget();
    within("a submission", async {
        while leader.client.submit(request("2024-03-03")).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
