//! A cluster as an operator starts it: one coordinator or several and some nodes, each a process of the binary, on ports
//! that the system chose.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::process::{Output, PATIENCE, Service, Verb, until};

const COOKIE: &str = "a secret of this test";

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The ledger's address.
    pub(crate) ledger: String,
    /// The address of the destination `warehouse`.
    pub(crate) warehouse: String,
    /// Where checkpoints go: a folder or an `s3://` address.
    pub(crate) store: String,
    /// How many nodes.
    pub(crate) nodes: usize,
    /// For every process.
    pub(crate) envs: Vec<(String, String)>,
    /// For every node: faults to inject.
    pub(crate) faults: Option<String>,
}

/// How one node gets to what it needs.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    /// The addresses of the coordinators, separated by commas.
    pub(crate) coordinators: String,
    /// The address of the destination `warehouse`.
    pub(crate) warehouse: String,
    /// For this node alone.
    pub(crate) envs: Vec<(String, String)>,
}

/// A running cluster; every process ends when this is dropped.
pub(crate) struct Cluster {
    folder: PathBuf,
    settings: Settings,
    /// Names of the coordinators, each with its address of the ledger.
    seats: Vec<(String, String)>,
    /// Where clients find the coordinators: all their addresses, separated by commas.
    pub(crate) address: String,
    /// The coordinator's process; the one that leads first, if there are several.
    pub(crate) coordinator: Service,
    /// The others, which stand by.
    pub(crate) standbys: Vec<Service>,
    /// The nodes by name.
    pub(crate) nodes: Vec<(String, Service)>,
}

impl Cluster {
    /// Starts a cluster with its files in `folder`, and waits until every node is alive.
    pub(crate) async fn start(folder: &Path, settings: Settings) -> Result<Self> {
        Self::start_with(folder, settings, &["coordinator"]).await
    }

    /// Starts a cluster with coordinators of these names, of which the first one leads.
    pub(crate) async fn start_with(folder: &Path, settings: Settings, coordinators: &[&str]) -> Result<Self> {
        let seat = |name: &&str| ((*name).to_owned(), settings.ledger.clone());
        let seats = coordinators.iter().map(seat).collect();
        Self::start_on(folder, settings, seats).await
    }

    /// The same with an address of the ledger for each.
    pub(crate) async fn start_on(folder: &Path, settings: Settings, seats: Vec<(String, String)>) -> Result<Self> {
        let cookie = folder.join("cookie");
        std::fs::write(&cookie, format!("{COOKIE}\n"))?;
        let mut addresses = Vec::new();
        let mut services = Vec::new();
        for (name, ledger) in &seats {
            let verb = coordinator(folder, &settings, "127.0.0.1:0").args(["--name", name]);
            let verb = verb.env("HAULAGE_LEDGER", ledger);
            let mut service = verb.spawn(name)?;
            let ready = service.line_with("haulage coordinator ready").await?;
            let address = address_in(&ready).with_context(|| format!("no address in {ready:?}"))?;
            addresses.push(format!("http://{address}"));
            services.push(service);
        }
        let standbys = services.split_off(1);
        let mut cluster = Self {
            folder: folder.to_owned(),
            settings,
            seats,
            address: addresses.join(","),
            coordinator: services.pop().context("a cluster has a coordinator")?,
            standbys,
            nodes: Vec::new(),
        };
        for number in 1..=cluster.settings.nodes {
            cluster.add_node(&format!("node-{number}"))?;
        }
        cluster.until_alive(cluster.settings.nodes).await?;
        Ok(cluster)
    }

    /// Starts every node anew that has ended, under its old name; how many.
    pub(crate) fn revive_nodes(&mut self) -> Result<usize> {
        let mut ended = Vec::new();
        for (name, node) in &mut self.nodes {
            if node.has_ended()? {
                ended.push(name.clone());
            }
        }
        self.nodes.retain(|(name, _)| !ended.contains(name));
        for name in &ended {
            self.add_node(name)?;
        }
        Ok(ended.len())
    }

    /// Starts one more node.
    pub(crate) fn add_node(&mut self, name: &str) -> Result<()> {
        self.add_node_with_slots(name, 1)
    }

    /// Starts one more node that works on so many chunks at once.
    pub(crate) fn add_node_with_slots(&mut self, name: &str, slots: usize) -> Result<()> {
        let ways = Ways {
            coordinators: self.address.clone(),
            warehouse: self.settings.warehouse.clone(),
            envs: Vec::new(),
        };
        self.add_node_by(&ways, name, slots)
    }

    /// Starts one more node that gets to everything else in ways of its own.
    pub(crate) fn add_node_by(&mut self, ways: &Ways, name: &str, slots: usize) -> Result<()> {
        let slots = slots.to_string();
        let settings = &self.settings;
        let mut verb = Verb::new(&self.folder)
            .envs(&settings.envs)
            .envs(&ways.envs)
            .args([
                "node",
                "--coordinator",
                &ways.coordinators,
                "--name",
                name,
                "--slots",
                &slots,
            ])
            .args(["--store", &settings.store])
            .args(["--cookie-file".into(), self.folder.join("cookie").into_os_string()])
            // By the environment, so that no password stands in a list of processes.
            .env("HAULAGE_DESTINATION_WAREHOUSE", &ways.warehouse);
        if let Some(fault) = &settings.faults {
            verb = verb.env("HAULAGE_FAULT", fault);
        }
        self.nodes.push((name.to_owned(), verb.spawn(name)?));
        Ok(())
    }

    /// The address of one coordinator, by its place in the list of names.
    pub(crate) fn address_of(&self, place: usize) -> Result<&str> {
        self.address.split(',').nth(place).context("no such coordinator")
    }

    /// The process of one coordinator, by its place.
    pub(crate) fn coordinator_at(&mut self, place: usize) -> Result<&mut Service> {
        match place.checked_sub(1) {
            None => Ok(&mut self.coordinator),
            Some(place) => self.standbys.get_mut(place).context("no such coordinator"),
        }
    }

    /// Starts a coordinator that has ended again, on the same port, and waits until it is ready.
    pub(crate) async fn revive_coordinator(&mut self, place: usize) -> Result<()> {
        let listen = self.address_of(place)?.trim_start_matches("http://").to_owned();
        let (name, ledger) = self.seats.get(place).context("no such coordinator")?;
        let verb = coordinator(&self.folder, &self.settings, &listen).args(["--name", name]);
        let service = verb.env("HAULAGE_LEDGER", ledger).spawn(name)?;
        let seat = self.coordinator_at(place)?;
        *seat = service;
        seat.line_with("127.0.0.1:").await?;
        Ok(())
    }

    /// A call of the binary as a client of one coordinator alone.
    pub(crate) fn client_of(&self, place: usize) -> Result<Verb> {
        Ok(self.client().env("HAULAGE_COORDINATOR", self.address_of(place)?))
    }

    /// A call of the binary as a client of this cluster.
    pub(crate) fn client(&self) -> Verb {
        Verb::new(&self.folder)
            .envs(&self.settings.envs)
            .env("HAULAGE_COORDINATOR", &self.address)
    }

    /// Submits a pipeline and returns the run's id and what became of the submission.
    pub(crate) async fn submit(&self, pipeline: &Path, more: &[&str]) -> Result<(String, String)> {
        Self::submit_as(self.client(), pipeline, more).await
    }

    /// Submits as this client.
    pub(crate) async fn submit_as(client: Verb, pipeline: &Path, more: &[&str]) -> Result<(String, String)> {
        let args: [OsString; 2] = ["submit".into(), pipeline.into()];
        let output = client
            .args(args)
            .args(["--output", "json"])
            .args(more)
            .output()
            .await?
            .success()?;
        // What is already published is summed up in a second line.
        let answer = output
            .json_lines()?
            .into_iter()
            .next()
            .context("submit printed nothing")?;
        let text = |name: &str| {
            answer[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {name}: {answer}"))
        };
        Ok((text("run_id")?, text("disposition")?))
    }

    /// Waits until a run is at rest; the output of `watch`.
    pub(crate) async fn watch(&self, run: &str) -> Result<Output> {
        self.client().args(["watch", run, "--output", "json"]).output().await
    }

    /// A run with its events, as `show --output json` has it.
    pub(crate) async fn show(&self, run: &str) -> Result<Value> {
        self.client()
            .args(["show", run, "--output", "json"])
            .output()
            .await?
            .success()?
            .json()
    }

    /// What `show` says to a person.
    pub(crate) async fn show_to_people(&self, run: &str) -> Result<String> {
        Ok(self.client().args(["show", run]).output().await?.success()?.stdout)
    }

    /// Waits until a run is at rest, also over a coordinator that is away for a while.
    pub(crate) async fn until_rest(&self, run: &str) -> Result<Value> {
        let rests = |shown: &Value| run_of(shown)["finished_at"].is_u64();
        self.until_run(run, "the run is at rest", PATIENCE, rests).await
    }

    /// Waits until `show` says something about a run.
    pub(crate) async fn until_run(
        &self,
        run: &str,
        what: &str,
        limit: Duration,
        mut seen: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        until(what, limit, async || {
            let shown = self.show(run).await?;
            Ok(seen(&shown).then_some(shown))
        })
        .await
    }

    /// Gives every process that starts from now on a variable.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.settings.envs.push((name.to_owned(), value.to_owned()));
    }

    /// Kills the coordinator with SIGKILL and starts it again on the same port.
    pub(crate) async fn restart_coordinator(&mut self) -> Result<()> {
        self.coordinator.kill().await?;
        let listen = self.address.trim_start_matches("http://");
        self.coordinator = coordinator(&self.folder, &self.settings, listen).spawn("coordinator-2")?;
        self.coordinator.line_with("127.0.0.1:").await?;
        Ok(())
    }

    /// Stops the coordinator with SIGTERM and starts it again on the same port, as an upgrade does.
    pub(crate) async fn restart_coordinator_gently(&mut self) -> Result<()> {
        self.coordinator.signal("TERM")?;
        let code = self.coordinator.wait().await?;
        ensure!(
            code == 0,
            "the coordinator ended with {code}: {}",
            self.coordinator.log()
        );
        let listen = self.address.trim_start_matches("http://");
        self.coordinator = coordinator(&self.folder, &self.settings, listen).spawn("coordinator-2")?;
        self.coordinator.line_with("127.0.0.1:").await?;
        Ok(())
    }

    /// Stops a node with SIGTERM and starts it again under its name.
    pub(crate) async fn restart_node(&mut self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        node.signal("TERM")?;
        let code = node.wait().await?;
        ensure!(code == 0, "{name} ended with {code}: {}", node.log());
        self.nodes.retain(|(node, _)| node != name);
        self.add_node(name)
    }

    /// The secret that its processes share.
    pub(crate) fn cookie(&self) -> &'static str {
        COOKIE
    }

    /// Kills a node with SIGKILL.
    pub(crate) async fn kill(&mut self, name: &str) -> Result<()> {
        self.node(name)?.kill().await
    }

    /// The process of a node.
    pub(crate) fn node(&mut self, name: &str) -> Result<&mut Service> {
        let mut nodes = self.nodes.iter_mut();
        let node = nodes.find(|(node, _)| node == name);
        Ok(&mut node.with_context(|| format!("no node {name}"))?.1)
    }

    /// Waits until so many nodes are alive.
    pub(crate) async fn until_alive(&self, nodes: usize) -> Result<()> {
        until(
            &format!("{nodes} nodes are alive"),
            Duration::from_secs(60),
            async || {
                let listed = self.client().args(["nodes", "--output", "json"]).output().await?;
                Ok((listed.code == 0 && listed.stdout.matches("\"alive\"").count() == nodes).then_some(()))
            },
        )
        .await
    }
}

fn coordinator(folder: &Path, settings: &Settings, listen: &str) -> Verb {
    Verb::new(folder)
        .envs(&settings.envs)
        .args(["coordinator", "--listen", listen])
        .args(["--cookie-file".into(), folder.join("cookie").into_os_string()])
        .env("HAULAGE_LEDGER", &settings.ledger)
}

/// The events of a shown run, of one kind.
pub(crate) fn events<'a>(shown: &'a Value, kind: &str) -> Vec<&'a Value> {
    let all = shown["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(|event| event["kind"] == kind).collect()
}

/// Fails unless the run is in this state; says what the run says.
pub(crate) fn check_state(shown: &Value, state: &str) -> Result<()> {
    ensure!(run_of(shown)["state"] == state, "the run is not {state}: {shown:#}");
    Ok(())
}

/// The run itself, in what `show` prints.
pub(crate) fn run_of(shown: &Value) -> &Value {
    if shown["run"].is_object() { &shown["run"] } else { shown }
}

fn address_in(line: &str) -> Option<&str> {
    let rest = &line[line.find("127.0.0.1:")?..];
    let end = rest.find(|letter: char| !(letter.is_ascii_digit() || letter == '.' || letter == ':'));
    Some(rest[..end.unwrap_or(rest.len())].trim_end_matches(['.', ':']))
}
