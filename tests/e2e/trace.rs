//! A run is one trace, over the client that submitted it, the coordinator, and every node that worked on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cluster::{BASE, World};
use super::support::cluster::{Cluster, Settings, run_of};
use super::support::flights;
use super::support::otlp::{Receiver, Span};
use super::support::process::until;

/// The spans that a run must have.
const NAMES: [&str; 11] = [
    "submit",
    "plan",
    "discover",
    "chunk",
    "read",
    "transform",
    "stage",
    "step prepare",
    "step verify",
    "step publish",
    "step cleanup",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_one_trace_over_client_coordinator_and_nodes() -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let mut settings = world.settings(2);
    settings.envs.extend(receiver.envs());
    let cluster = Cluster::start(world.folder.path(), Settings { ..settings }).await?;

    let (run, _) = cluster.submit(&flights::pipeline(), &["--base", BASE]).await?;
    cluster.watch(&run).await?.success()?;
    let shown = cluster.show(&run).await?;
    let trace = run_of(&shown)["trace_id"]
        .as_str()
        .context("the run has no trace id")?
        .to_owned();
    let spans = until("every span has arrived", Duration::from_secs(30), async || {
        let spans = receiver.trace(&trace)?;
        let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
        let named = NAMES.iter().all(|name| spans.iter().any(|span| span.name == *name));
        let whole = spans
            .iter()
            .filter(|span| !span.parent.is_empty())
            .all(|span| ids.contains(span.parent.as_str()));
        Ok((named && whole).then_some(spans))
    })
    .await
    .with_context(|| format!("arrived: {}", outline(&receiver.trace(&trace).unwrap_or_default())))?;
    check(&spans).with_context(|| outline(&spans))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_attempt_is_an_error_in_the_trace() -> Result<()> {
    let world = World::new().await?;
    let receiver = Receiver::start().await?;
    let mut settings = world.settings(1);
    settings.envs.extend(receiver.envs());
    let cluster = Cluster::start(world.folder.path(), Settings { ..settings }).await?;

    let (run, _) = cluster
        .submit(&flights::pipeline(), &["--base", "/no/such/folder"])
        .await?;
    cluster.watch(&run).await?;
    let shown = cluster.show(&run).await?;
    let trace = run_of(&shown)["trace_id"]
        .as_str()
        .context("the run has no trace id")?
        .to_owned();
    let span = until(
        "the failed discovery has arrived",
        Duration::from_secs(30),
        async || Ok(receiver.trace(&trace)?.into_iter().find(|span| span.name == "discover")),
    )
    .await?;
    let message = span.error.context("the span of a failed attempt has no error status")?;
    ensure!(message.contains("/no/such/folder"), "{message}");
    Ok(())
}

fn check(spans: &[Span]) -> Result<()> {
    let by_id: HashMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let parent = |span: &Span| by_id.get(span.parent.as_str()).copied();
    let roots: Vec<&Span> = spans.iter().filter(|span| span.parent.is_empty()).collect();
    ensure!(roots.len() == 1, "{} roots", roots.len());

    for span in spans {
        let above = parent(span);
        ensure!(span.error.is_none(), "an error in a run that went well: {span:?}");
        match span.name.as_str() {
            "read" | "transform" | "stage" => {
                let above = above.context("a part of a chunk has no parent")?;
                ensure!(above.name == "chunk", "{} is under {}", span.name, above.name);
                ensure!(
                    above.resource == span.resource,
                    "{} is in another process than its chunk",
                    span.name
                );
            }
            "chunk" => {
                for attribute in ["run", "stage", "chunk", "attempt", "node"] {
                    ensure!(
                        span.attributes.contains_key(attribute),
                        "a chunk span lacks {attribute}: {span:?}"
                    );
                }
            }
            _ => {}
        }
        if NAMES.contains(&span.name.as_str()) && span.name != "submit" {
            let mut at = *span_ref(&by_id, span)?;
            while at.name != "submit" {
                at = parent(at).with_context(|| format!("{} doesn't lie under submit", span.name))?;
            }
        }
    }
    let processes: BTreeSet<_> = spans
        .iter()
        .map(|span| {
            (
                span.resource.get("service.name"),
                span.resource.get("service.instance.id"),
            )
        })
        .collect();
    ensure!(
        processes.len() >= 3,
        "spans of {} processes only: {processes:?}",
        processes.len()
    );
    let services: BTreeSet<&str> = spans
        .iter()
        .filter_map(|span| span.resource.get("service.name"))
        .map(String::as_str)
        .collect();
    for service in ["haulage-client", "haulage-coordinator", "haulage-node"] {
        ensure!(services.contains(service), "no span of {service}: {services:?}");
    }
    Ok(())
}

fn span_ref<'a>(by_id: &'a HashMap<&str, &'a Span>, span: &Span) -> Result<&'a &'a Span> {
    by_id.get(span.id.as_str()).context("a span without an id")
}

/// The names of spans with their parents' names, counted: what one wants to see when the test fails.
fn outline(spans: &[Span]) -> String {
    let names: HashMap<&str, &str> = spans
        .iter()
        .map(|span| (span.id.as_str(), span.name.as_str()))
        .collect();
    let mut lines = BTreeMap::<String, usize>::new();
    for span in spans {
        let above = names
            .get(span.parent.as_str())
            .copied()
            .unwrap_or(if span.parent.is_empty() { "-" } else { "?" });
        let service = span.resource.get("service.name").map_or("?", String::as_str);
        *lines.entry(format!("{} < {above} ({service})", span.name)).or_default() += 1;
    }
    lines
        .into_iter()
        .map(|(line, count)| format!("\n{count} x {line}"))
        .collect()
}
