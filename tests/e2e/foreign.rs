//! A client that shares no code with Haulage: Python's grpcio, which learns the interface by reflection.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cluster::{BASE, World};
use super::support::cluster::{Cluster, Settings, run_of};
use super::support::flights::{self, root};

struct Python {
    program: PathBuf,
    address: String,
}

impl Python {
    fn new(cluster: &Cluster) -> Result<Self> {
        let made = root().join("target/test-tools/python/bin/python");
        let program = std::env::var_os("HAULAGE_TEST_PYTHON").map_or(made, PathBuf::from);
        ensure!(program.exists(), "{} is missing; tests/run makes it", program.display());
        Ok(Self {
            program,
            address: cluster.address.trim_start_matches("http://").to_owned(),
        })
    }

    /// The JSON lines that the client prints, and whether it succeeded.
    async fn call(&self, args: &[&str]) -> Result<(bool, Vec<Value>)> {
        let output = tokio::process::Command::new(&self.program)
            .arg(root().join("tests/foreign/client.py"))
            .arg(&self.address)
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let text = String::from_utf8(output.stdout)?;
        let lines: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        let lines = lines.with_context(|| format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(
            !lines.is_empty(),
            "{args:?} printed nothing: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((output.status.success(), lines))
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that isn't UTF-8")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submits_watches_and_is_told_what_is_wrong() -> Result<()> {
    let world = World::new().await?;
    let oracle = flights::oracle(&world.postgres, "warehouse").await?;
    let cluster = Cluster::start(world.folder.path(), world.settings(1)).await?;
    let python = Python::new(&cluster)?;

    let (_, services) = python.call(&["services"]).await?;
    for service in ["haulage.v1.Haulage", "grpc.health.v1.Health"] {
        ensure!(
            services[0]
                .as_array()
                .is_some_and(|all| all.iter().any(|name| name == service)),
            "{services:?}"
        );
    }
    let (_, health) = python.call(&["health"]).await?;
    ensure!(health[0]["status"] == "SERVING", "{health:?}");

    let pipeline = flights::pipeline();
    let (fine, submitted) = python.call(&["submit", text(&pipeline)?, BASE]).await?;
    ensure!(fine && submitted[0]["disposition"] == "STARTED", "{submitted:?}");
    let run = submitted[0]["run_id"].as_str().context("no run id")?.to_owned();
    let (fine, watched) = python.call(&["watch", &run]).await?;
    ensure!(fine, "{watched:?}");
    let last = watched.last().context("watch said nothing")?;
    ensure!(last["run"]["state"] == "PUBLISHED", "{last:#}");
    // 64-bit numbers are text in protobuf's JSON form.
    let loaded = oracle.loaded.to_string();
    ensure!(last["run"]["counts"]["loaded"] == loaded.as_str(), "{last:#}");
    let events: Vec<&Value> = watched
        .iter()
        .flat_map(|one| one["events"].as_array().into_iter().flatten())
        .collect();
    let seqs: Vec<u64> = events
        .iter()
        .filter_map(|event| event["seq"].as_str()?.parse().ok())
        .collect();
    let gapless: Vec<u64> = (1..).take(seqs.len()).collect();
    ensure!(
        !seqs.is_empty() && seqs == gapless,
        "the events of a watch have gaps: {seqs:?}"
    );

    let (_, again) = python.call(&["submit", text(&pipeline)?, BASE]).await?;
    ensure!(
        again[0]["disposition"] == "ALREADY_PUBLISHED" && again[0]["run_id"] == run.as_str(),
        "{again:?}"
    );
    let (_, got) = python.call(&["get", &run]).await?;
    ensure!(got[0]["run"]["run_id"] == run.as_str(), "{got:?}");

    let wrong = world.folder.path().join("wrong.yaml");
    std::fs::write(&wrong, "pipeline: wrong\nsorces: {}\n")?;
    let (fine, refused) = python.call(&["submit", text(&wrong)?, BASE]).await?;
    ensure!(!fine && refused[0]["error"] == "INVALID_ARGUMENT", "{refused:?}");
    ensure!(
        refused[0]["message"]
            .as_str()
            .is_some_and(|text| text.contains("wrong.yaml:2:1")),
        "{refused:?}"
    );
    let (fine, unknown) = python.call(&["get", "no-such-run"]).await?;
    ensure!(!fine && unknown[0]["error"] == "NOT_FOUND", "{unknown:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancels() -> Result<()> {
    let world = World::new().await?;
    let settings = Settings {
        faults: Some("slow@segment:20000ms".into()),
        ..world.settings(1)
    };
    let cluster = Cluster::start(world.folder.path(), settings).await?;
    let python = Python::new(&cluster)?;

    let (_, submitted) = python.call(&["submit", text(&flights::pipeline())?, BASE]).await?;
    let run = submitted[0]["run_id"].as_str().context("no run id")?.to_owned();
    let minute = Duration::from_secs(60);
    cluster
        .until_run(&run, "the run is loading", minute, |shown| {
            run_of(shown)["state"] == "loading"
        })
        .await?;
    let (fine, cancelled) = python.call(&["cancel", &run, "not needed any more"]).await?;
    ensure!(fine, "{cancelled:?}");
    let (_, watched) = python.call(&["watch", &run]).await?;
    let last = watched.last().context("watch said nothing")?;
    ensure!(last["run"]["state"] == "CANCELLED", "{last:#}");
    let (fine, again) = python.call(&["cancel", &run, "again"]).await?;
    ensure!(!fine && again[0]["error"] == "FAILED_PRECONDITION", "{again:?}");
    Ok(())
}
