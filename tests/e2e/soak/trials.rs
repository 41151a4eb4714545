//! How long it takes to notice that a node, a leader or a chunk actor has died, and until its work goes on: many trials of
//! each, on a cluster at work, and the median and the maximum of all.

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Duration, sleep};

use super::chaos::fault::now;
use super::chaos::log::{Entry, log};
use super::chaos::report::p50_and_max;
use super::chaos::workload::{Model, Target, Workload, source};
use super::chaos::world::{NODES, World, name_of};
use super::support::cluster::{check_state, events, run_of};
use super::support::process::until;

/// Every segment takes so long, in ms: a chunk of three is under way for some six seconds.
const SLOW: u64 = 2_000;
/// Of each node: enough for all chunks of a run, so that those of a dead node find room on any other at once.
const SLOTS: usize = 12;
/// Chunks that are under way when something dies.
const UNDER_WAY: usize = 6;
/// Every node panics once in its life, here.
const PANIC: &str = "panic@chunk:0.1:segment:1";
/// Longest that a run may take.
const REST: Duration = Duration::from_secs(120);

/// Milliseconds to the sign that a death was noticed, and to work that goes on.
#[derive(Default)]
struct Times {
    noticed: Vec<u64>,
    went_on: Vec<u64>,
}

impl Times {
    fn add(&mut self, died: u64, noticed: u64, went_on: u64) {
        self.noticed.push(noticed.saturating_sub(died));
        self.went_on.push(went_on.saturating_sub(died));
    }

    /// Holds the slowest trial against what is promised, in milliseconds.
    fn check(&self, what: &str, noticed: u64, went_on: u64) -> Result<()> {
        let kept = |times: &[u64], most: u64| times.iter().all(|time| *time <= most);
        ensure!(
            kept(&self.noticed, noticed) && kept(&self.went_on, went_on),
            "{what} was missed for longer than is promised"
        );
        Ok(())
    }

    fn line(&self, what: &str, sign: &str) -> String {
        let (noticed, latest) = p50_and_max(&self.noticed);
        let (went_on, last) = p50_and_max(&self.went_on);
        let trials = self.noticed.len();
        format!("| {what} | {trials} | {noticed} | {latest} | {went_on} | {last} | {sign} |")
    }
}

/// One run after the other on one cluster.
struct Trials {
    world: World,
    rng: StdRng,
    model: Model,
    runs: u64,
}

impl Trials {
    /// Submits a run, and waits until its chunks are under way.
    async fn loading(&mut self) -> Result<String> {
        let made = source(&mut self.rng, self.runs);
        self.world.put(&format!("in/{}.csv", self.runs), &made.text)?;
        let file = self.world.folder.path().join("append.yaml");
        std::fs::write(&file, Workload::Append.pipeline())?;
        self.model.publish(Workload::Append, &made);
        let round = format!("round={}", self.runs);
        self.runs += 1;
        let (run, disposition) = self.world.cluster.submit(&file, &["--param", &round]).await?;
        ensure!(disposition == "started", "{run} {disposition}");
        let under_way = |shown: &serde_json::Value| {
            let assigned = events(shown, "assigned");
            let chunks = assigned
                .iter()
                .filter(|event| event["event"]["work"]["chunk"].is_object());
            chunks.count() >= UNDER_WAY
        };
        self.world
            .cluster
            .until_run(&run, "chunks are under way", REST, under_way)
            .await?;
        // Anywhere between two heartbeats.
        sleep(Duration::from_millis(self.rng.random_range(0..1_000))).await;
        Ok(run)
    }

    /// Waits for the end of a run, and holds the target against the model.
    async fn exact(&self, run: &str) -> Result<()> {
        let shown = until("the run is at rest", REST, async || {
            let shown = self.world.try_show(run).await?;
            Ok(shown.filter(|shown| run_of(shown)["finished_at"].is_u64()))
        })
        .await?;
        check_state(&shown, "published")?;
        let difference = self.model.compare(Target::Log, &self.world).await?;
        ensure!(difference == Default::default(), "after run {run}: {difference:?}");
        Ok(())
    }

    /// Kills a node that works on a chunk.
    async fn node(&mut self, times: &mut Times) -> Result<()> {
        let run = self.loading().await?;
        let open = open_chunks(&log(&self.world, &run).await?);
        ensure!(!open.is_empty(), "no chunk is worked on");
        let victim = open[self.rng.random_range(0..open.len())].clone();
        let node = (0..NODES).find(|node| name_of(*node) == victim).context("a node")?;
        let died = now();
        self.world.cluster.kill(&victim).await?;
        self.exact(&run).await?;
        let log = log(&self.world, &run).await?;
        let later = || log.iter().filter(|entry| entry.at >= died);
        let failed: Vec<&Entry> = later()
            .filter(|entry| entry.kind == "attempt_failed" && entry.body["node"] == victim.as_str())
            .collect();
        // The last of its chunks counts.
        let mut on = 0;
        for failed in &failed {
            let again = later().find(|entry| {
                entry.kind == "assigned" && entry.at >= failed.at && entry.body["work"] == failed.body["work"]
            });
            on = on.max(again.context("its work was never given to another")?.at);
        }
        if let Some(first) = failed.first() {
            times.add(died, first.at, on);
        }
        // Otherwise it had just reported its last chunk, and nothing had to be noticed.
        self.world.start_node(node)?;
        self.world.until_whole().await
    }

    /// Kills the leader.
    async fn leader(&mut self, times: &mut Times) -> Result<()> {
        let run = self.loading().await?;
        let before = self.world.lead().await?;
        let died = now();
        self.world.cluster.coordinator_at(before.place)?.kill().await?;
        let after = until("somebody else leads", REST, async || {
            let lead = self.world.lead().await?;
            Ok((lead.epoch > before.epoch).then_some(lead))
        })
        .await?;
        self.exact(&run).await?;
        let log = log(&self.world, &run).await?;
        let on = log.iter().find(|entry| entry.epoch > before.epoch);
        times.add(died, after.claimed_at, on.context("the next leader wrote nothing")?.at);
        self.world.cluster.revive_coordinator(before.place).await?;
        self.world.until_whole().await
    }

    /// Lets a chunk actor panic, in the middle of a segment.
    async fn actor(&mut self, times: &mut Times) -> Result<()> {
        let run = self.loading().await?;
        self.exact(&run).await?;
        let mut seen = 0;
        for node in 0..NODES {
            let name = name_of(node);
            let service = self.world.cluster.node(&name)?;
            let log = service.log();
            let at = |words: &str| log.lines().find(|line| line.contains(words)).map(time_of).transpose();
            let Some(died) = at("has crashed at")? else { continue };
            let noticed = at("goes on from its last checkpoint")?.context("nobody noticed")?;
            times.add(
                died,
                noticed,
                at("is worked on again")?.context("it was never started again")?,
            );
            seen += 1;
            // It panics once in its life.
            service.kill().await?;
            self.world.start_node(node)?;
        }
        ensure!(seen > 0, "no chunk actor has panicked");
        self.world.until_whole().await
    }
}

/// The nodes that work on a chunk, by a run's log.
fn open_chunks(log: &[Entry]) -> Vec<String> {
    let mut open = Vec::new();
    for entry in log
        .iter()
        .filter(|entry| entry.kind == "assigned" && entry.body["work"]["chunk"].is_object())
    {
        let ended = |other: &Entry| {
            matches!(other.kind.as_str(), "chunk_staged" | "attempt_failed") && other.body["work"] == entry.body["work"]
        };
        if !log.iter().any(ended) {
            open.extend(entry.body["node"].as_str().map(str::to_owned));
        }
    }
    open
}

/// The time at the beginning of a line of a log, in milliseconds since the Unix epoch.
fn time_of(line: &str) -> Result<u64> {
    let word = line.split_whitespace().next().context("an empty line")?;
    let time = DateTime::parse_from_rfc3339(word).with_context(|| format!("no time in {line:?}"))?;
    Ok(time.timestamp_millis().try_into()?)
}

/// So many trials of each.
pub(crate) async fn run(wanted: usize, seed: u64) -> Result<()> {
    let mut trials = Trials {
        world: World::start(SLOTS, SLOW, PANIC).await?,
        rng: StdRng::seed_from_u64(seed),
        model: Model::default(),
        runs: 0,
    };
    let [mut node, mut leader, mut actor] = [Times::default(), Times::default(), Times::default()];
    while actor.noticed.len() < wanted {
        trials.actor(&mut actor).await.context("a chunk actor panics")?;
        eprintln!("{} of {wanted} chunk actors", actor.noticed.len());
    }
    while node.noticed.len() < wanted {
        trials.node(&mut node).await.context("a node is killed")?;
        eprintln!("{} of {wanted} nodes", node.noticed.len());
    }
    while leader.noticed.len() < wanted {
        trials.leader(&mut leader).await.context("the leader is killed")?;
        eprintln!("{} of {wanted} leaders", leader.noticed.len());
    }
    println!("| what dies | trials | noticed p50 | max | work goes on p50 | max | signs |");
    println!("|---|--:|--:|--:|--:|--:|---|");
    println!(
        "{}",
        node.line(
            "node (SIGKILL)",
            "its first attempt fails; the last of its chunks is given to another node"
        )
    );
    println!(
        "{}",
        leader.line(
            "leader (SIGKILL)",
            "another epoch is claimed; the run's log is written in it"
        )
    );
    println!(
        "{}",
        actor.line(
            "chunk actor (panic)",
            "its supervisor hears of it; it is worked on again"
        )
    );
    node.check("a node", 5_000, 6_000)?;
    leader.check("a leader", 10_000, 10_000)?;
    actor.check("a chunk actor", 1_000, 1_000)
}
