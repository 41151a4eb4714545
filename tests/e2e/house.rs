//! The house keeps its shape: which crate may lean on which, where protobuf types and SQL end, and how long a file is.
//!
//! Read from `cargo metadata` and from the sources, so that a wrong arrow fails here and not in a review.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

use super::support::flights::root;

/// What tests stand on. It knows nothing of ours, and nothing of ours links it but into tests.
const TEST_SUPPORT: &str = "haulage-test-support";

/// The arrows between our own crates. What isn't here is wrong.
const ARROWS: [(&str, &[&str]); 8] = [
    (TEST_SUPPORT, &[]),
    (
        "haulage-simulation",
        &["haulage-core", "haulage-proto", "haulage-coordinator"],
    ),
    ("haulage-core", &[]),
    ("haulage-proto", &["haulage-core"]),
    ("haulage-plan", &["haulage-core"]),
    (
        "haulage-coordinator",
        &["haulage-core", "haulage-proto", "haulage-plan"],
    ),
    ("haulage-node", &["haulage-core", "haulage-proto", "haulage-plan"]),
    (
        "haulage",
        &[
            "haulage-core",
            "haulage-proto",
            "haulage-plan",
            "haulage-coordinator",
            "haulage-node",
        ],
    ),
];

/// What may never be reached from `core`: a runtime, a database, a network, a clock, randomness.
const IMPURE: [&str; 12] = [
    "tokio",
    "sqlx",
    "sqlx-core",
    "tonic",
    "ractor",
    "ractor_cluster",
    "chrono",
    "rand",
    "getrandom",
    "hyper",
    "mio",
    "uuid",
];

/// The longest a source file may be.
const LINES: usize = 600;

fn metadata() -> Result<Metadata> {
    let version = std::process::Command::new("rustc").arg("-vV").output()?;
    let version = String::from_utf8(version.stdout)?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host")?;
    let options = ["--locked", "--filter-platform", host].map(str::to_owned);
    Ok(MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(options)
        .exec()?)
}

#[test]
fn crates_lean_only_on_those_they_may() -> Result<()> {
    let metadata = metadata()?;
    let members: BTreeMap<&str, _> = metadata
        .workspace_packages()
        .into_iter()
        .map(|package| (package.name.as_str(), package))
        .collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    ensure!(
        members.keys().copied().collect::<BTreeSet<_>>() == known,
        "the workspace has {:?}",
        members.keys()
    );
    for (name, allowed) in ARROWS {
        for dependency in &members[name].dependencies {
            let target = dependency.name.as_str();
            if target == TEST_SUPPORT {
                let kind = dependency.kind;
                ensure!(
                    kind == DependencyKind::Development,
                    "{name} depends on {target} as a {kind:?} dependency; only tests may, under [dev-dependencies]"
                );
                continue;
            }
            let fine = !known.contains(target) || target == name || allowed.contains(&target);
            ensure!(fine, "{name} must not depend on {target}; allowed are {allowed:?}");
        }
    }
    Ok(())
}

#[test]
fn core_reaches_nothing_that_acts() -> Result<()> {
    let metadata = metadata()?;
    let core = metadata
        .packages
        .iter()
        .find(|package| package.name == "haulage-core")
        .context("no haulage-core")?;
    let graph = metadata.resolve.as_ref().context("no dependency graph")?;
    let nodes: BTreeMap<&PackageId, _> = graph.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut open = vec![&core.id];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let name = metadata[id].name.as_str();
        ensure!(!IMPURE.contains(&name), "haulage-core reaches {name}");
        for dependency in &nodes[id].deps {
            if dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal)
            {
                open.push(&dependency.pkg);
            }
        }
    }
    ensure!(seen.len() > 3, "the graph below haulage-core was not walked: {seen:?}");
    Ok(())
}

#[test]
fn protobuf_types_stop_at_the_edges() -> Result<()> {
    let edges = ["proto/", "coordinator/src/api/", "coordinator/tests/", "src/", "tests/"];
    let words = ["haulage_proto::v1", "proto::v1::"];
    only_in(
        &edges,
        &words,
        "uses protobuf types; convert them in proto, api/ or the link",
    )
}

#[test]
fn sql_stays_where_the_tables_are() -> Result<()> {
    let homes = [
        "coordinator/src/ledger/",
        "coordinator/tests/",
        "node/src/sink/",
        "node/src/source/",
        "node/tests/",
        "tests/",
    ];
    only_in(
        &homes,
        &["sqlx::"],
        "speaks to a database; only ledger, sources and sinks do",
    )
}

/// Fails for a file outside of these folders that has one of these words.
fn only_in(folders: &[&str], words: &[&str], complaint: &str) -> Result<()> {
    for (path, text) in sources()? {
        let place = path.display().to_string();
        let home = folders.iter().any(|folder| place.starts_with(folder));
        ensure!(
            home || !words.iter().any(|word| text.contains(word)),
            "{place} {complaint}"
        );
    }
    Ok(())
}

#[test]
fn files_say_what_they_are_and_hold_one_idea() -> Result<()> {
    for (path, text) in sources()? {
        let lines = text.lines().count();
        ensure!(
            lines <= LINES,
            "{} has {lines} lines, more than {LINES}: it holds two ideas",
            path.display()
        );
        ensure!(
            text.starts_with("//!"),
            "{} doesn't open with what it is (//!)",
            path.display()
        );
    }
    Ok(())
}

/// Every Rust file of the repository with its text, by its path from the root.
fn sources() -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["src", "core", "proto", "plan", "coordinator", "node", "tests"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path)?;
                found.push((path.strip_prefix(root()).map(Path::to_owned)?, text));
            }
        }
    }
    ensure!(found.len() > 20, "only {} source files found", found.len());
    Ok(found)
}
