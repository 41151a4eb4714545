//! One round: a run is submitted, faults come and go as the seed says, and when all of them are over the run has to come
//! to rest, with every target as the model has it. Now and then what it has published is taken back, among faults again.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::support::cluster::{events, run_of};
use super::fault::{Deck, Injected, Kind, Plan, heal, inject, line};
use super::log::{log, signs};
use super::reader::Readers;
use super::report::Report;
use super::workload::{Model, Source, TARGETS, Workload, check_counts, source};
use super::world::World;

/// What a run takes without faults, about: faults begin within it.
const SPAN: Duration = Duration::from_millis(3_200);
/// Longest from the last fault's end to the run's.
const REST: Duration = Duration::from_secs(150);
/// One of so many rounds that publish is reverted.
const REVERTED: u32 = 4;
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);

/// What goes on from round to round.
pub(crate) struct Story {
    pub(crate) world: World,
    pub(crate) readers: Readers,
    pub(crate) model: Model,
    pub(crate) deck: Deck,
    pub(crate) rng: StdRng,
    pub(crate) report: Report,
}

impl Story {
    /// Plays a round. An error is a broken promise, and says what led to it.
    pub(crate) async fn round(&mut self, workload: Workload) -> Result<()> {
        let round = self.report.rounds;
        self.report.rounds += 1;
        let plans = self.deck.plan(&mut self.rng, SPAN, self.world.disk.is_some());
        let made = source(&mut self.rng, round);
        self.world.put(&format!("in/{round}.csv"), &made.text)?;
        let file = self.world.folder.path().join(format!("{}.yaml", workload.name()));
        std::fs::write(&file, workload.pipeline())?;
        let before = self.model.clone();
        let mut after = before.clone();
        after.publish(workload, &made);
        for target in TARGETS {
            self.readers
                .allow(target, vec![self.model.sight(target), after.sight(target)]);
        }

        let begun = Instant::now();
        let round_param = format!("round={round}");
        let (run, disposition) = self.world.cluster.submit(&file, &["--param", &round_param]).await?;
        ensure!(disposition == "started", "{run} {disposition}");
        let faults = self.play(&plans, begun).await.context("injecting faults")?;
        let told = || -> String { faults.iter().map(|fault| format!("\n  {}", line(fault))).collect() };
        eprintln!("round {round} ({}), run {run}:{}", workload.name(), told());
        let shown = self.until_rest(&run).await;
        let shown = shown.with_context(|| format!("round {round} of {}:{}", workload.name(), told()))?;
        let may_fail = faults.iter().any(|fault| fault.plan.kind == Kind::DiskFull);
        let ended = self.judge(&shown, after, workload, &made, may_fail).await;
        ended.with_context(|| format!("round {round} of {}:{}\n{}", workload.name(), told(), log_of(&shown)))?;
        self.measure(&shown, &faults).await?;
        self.world
            .until_whole()
            .await
            .with_context(|| format!("after round {round}:{}", told()))?;
        eprintln!(
            "  {} after {:.1} s",
            run_of(&shown)["state"],
            begun.elapsed().as_secs_f64()
        );
        if run_of(&shown)["state"] == "published" && self.rng.random_ratio(1, REVERTED) {
            let reverted = self.take_back(&run, before).await;
            return reverted.with_context(|| format!("reverting the run of round {round} of {}", workload.name()));
        }
        Ok(())
    }

    /// Reverts a run among faults: readers see it or what was before it, and then only that.
    async fn take_back(&mut self, run: &str, before: Model) -> Result<()> {
        // Undoing writes: on a full disk it is stuck, which is for an operator.
        let plans = self.deck.plan(&mut self.rng, SPAN, false);
        for target in TARGETS {
            self.readers
                .allow(target, vec![self.model.sight(target), before.sight(target)]);
        }
        let begun = Instant::now();
        let asked = ["revert", run, "--reason", "chaos"];
        let revert = self.world.cluster.client().args(asked);
        let asked = tokio::spawn(async move { revert.output().await });
        let faults = self.play(&plans, begun).await.context("injecting faults")?;
        asked.await??.success()?;
        let told = || -> String { faults.iter().map(|fault| format!("\n  {}", line(fault))).collect() };
        eprintln!("  to be reverted:{}", told());
        let shown = self.until_rest(run).await.with_context(told)?;
        let ended = &run_of(&shown)["state"];
        ensure!(
            ended == "reverted",
            "the run ended as {ended}:{}\n{}",
            told(),
            log_of(&shown)
        );
        self.model = before;
        self.report.reverted += 1;
        let compared = self.compare().await;
        compared.with_context(|| format!("{}\n{}", told(), log_of(&shown)))?;
        self.measure(&shown, &faults).await?;
        self.world.until_whole().await.with_context(told)?;
        eprintln!(
            "  {} after {:.1} s",
            run_of(&shown)["state"],
            begun.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Begins and ends every fault at its time.
    async fn play(&mut self, plans: &[Plan], begun: Instant) -> Result<Vec<Injected>> {
        let mut moments: Vec<(Duration, usize, bool)> = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            moments.push((plan.begins, number, true));
            moments.push((plan.ends, number, false));
        }
        moments.sort();
        let mut faults: Vec<(usize, Injected)> = Vec::new();
        for (time, number, begins) in moments {
            sleep_until(begun + time).await;
            if begins {
                faults.push((number, inject(&plans[number], &mut self.world).await?));
            } else if let Some((_, fault)) = faults.iter_mut().find(|(other, _)| *other == number) {
                heal(fault, &mut self.world).await?;
            }
        }
        Ok(faults.into_iter().map(|(_, fault)| fault).collect())
    }

    async fn until_rest(&self, run: &str) -> Result<Value> {
        let deadline = Instant::now() + REST;
        loop {
            let shown = self.world.try_show(run).await?;
            if let Some(shown) = &shown {
                let run = run_of(shown);
                if run["finished_at"].is_u64() {
                    return Ok(shown.clone());
                }
                ensure!(run["state"] != "stuck", "the run is stuck:\n{}", log_of(shown));
            }
            if Instant::now() > deadline {
                let log = shown.as_ref().map_or_else(|| "nobody answers".to_owned(), log_of);
                bail!("the run is not at rest {REST:?} after the last fault:\n{log}");
            }
            sleep(PAUSE).await;
        }
    }

    /// Holds the end of a run against what it may be.
    async fn judge(
        &mut self,
        shown: &Value,
        after: Model,
        workload: Workload,
        made: &Source,
        may_fail: bool,
    ) -> Result<()> {
        let run = run_of(shown);
        match run["state"].as_str() {
            Some("published") => {
                check_counts(run, workload, made)?;
                self.model = after;
                self.report.published += 1;
            }
            // A full disk is no passing trouble: the run gives up, and nothing of it is left. All else passes.
            Some("failed") if may_fail => self.report.rolled_back += 1,
            other => bail!("the run ended as {other:?}"),
        }
        self.report.restarts += run["restarts"].as_u64().unwrap_or_default();
        self.compare().await
    }

    /// Holds every target against the model, and the readers' looks against what they may see.
    async fn compare(&mut self) -> Result<()> {
        let mut wrong = Vec::new();
        for target in TARGETS {
            let difference = self.model.compare(target, &self.world).await?;
            self.report.lost += difference.lost;
            self.report.duplicated += difference.duplicated;
            if difference != Default::default() {
                wrong.push(format!("{}: {difference:?}", target.table()));
            }
            let sight = self.model.sight(target);
            self.report.compared += sight.map_or(0, |sight| sight.0 as u64);
        }
        let seen = self.readers.wrong();
        self.report.partial += seen.len() as u64;
        wrong.extend(seen);
        self.report.reads = self.readers.reads();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace('haulage')
             AND relname NOT IN ('loads', 'fences', 'targets', 'watermarks')",
        )
        .fetch_all(&self.world.pool)
        .await?;
        let kept = |name: &String| ["prev_", "before_", "keys_"].iter().any(|kept| name.starts_with(kept));
        let left: Vec<&String> = left.iter().filter(|name| !kept(name)).collect();
        ensure!(left.is_empty(), "left behind in the warehouse: {left:?}");
        Ok(())
    }

    /// Finds in the run's log when each fault was noticed, and when work went on.
    async fn measure(&mut self, shown: &Value, faults: &[Injected]) -> Result<()> {
        let run = run_of(shown)["run_id"].as_str().context("a run's id")?;
        let ended = run_of(shown)["finished_at"].as_u64().context("a run that has ended")?;
        let log = log(&self.world, run).await?;
        for fault in faults {
            let (noticed, went_on) = signs(&log, fault);
            let since = |at: u64| at.saturating_sub(fault.at);
            let met = fault.at < ended;
            self.report
                .count(fault.plan.kind, met, noticed.map(since), went_on.map(since));
        }
        Ok(())
    }
}

/// The run's log for a person.
fn log_of(shown: &Value) -> String {
    let run = run_of(shown);
    let mut text = format!("{} {}: {}\n", run["run_id"], run["state"], run["error"]);
    for kind in [
        "assigned",
        "attempt_failed",
        "restaged",
        "rollback_started",
        "compensated",
        "step_done",
        "stuck",
        "finished",
    ] {
        for event in events(shown, kind) {
            text.push_str(&format!("{} {} {}\n", event["at"], event["seq"], event["text"]));
        }
    }
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
