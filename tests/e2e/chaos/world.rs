//! Everything as a process of its own: two coordinators, three nodes, a PostgreSQL for the ledger, one for the warehouse,
//! and an S3 server for sources and checkpoints. What connects them goes through proxies, one for each connection of each
//! node, so that every one of them can be cut, delayed or silenced alone.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, PgPool};

use super::super::support::cluster::{Cluster, Settings, Ways};
use super::super::support::disk::SmallDisk;
use super::super::support::postgres::Postgres;
use super::super::support::process::{HAULAGE, until};
use super::super::support::proxy::Proxy;
use super::super::support::s3::{self, S3Process};

pub(crate) const NODES: usize = 3;
pub(crate) const COORDINATORS: usize = 2;
const BUCKET: &str = "lake";
/// Room of the warehouse's disk, in MiB. It is filled up by a file, never by what the rounds load.
const DISK: u64 = 96;
/// Longest that a healthy cluster needs to be whole again.
const WHOLE: Duration = Duration::from_secs(60);

/// The ways of one node.
pub(crate) struct Way {
    pub(crate) coordinators: Vec<Proxy>,
    pub(crate) warehouse: Proxy,
    pub(crate) s3: Proxy,
}

/// See the module. Fields are dropped in this order: processes, then servers, then what these stand on.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) ways: Vec<Way>,
    /// From each coordinator to the ledger.
    pub(crate) to_ledger: Vec<Proxy>,
    pub(crate) pool: PgPool,
    pub(crate) ledger: Postgres,
    pub(crate) warehouse: Postgres,
    pub(crate) s3: S3Process,
    /// Where the warehouse's tables stand; `None` where this user may not mount.
    pub(crate) disk: Option<SmallDisk>,
    slots: usize,
    pub(crate) folder: tempfile::TempDir,
}

/// Who leads, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lead {
    pub(crate) place: usize,
    pub(crate) epoch: i64,
    /// Milliseconds since the Unix epoch.
    pub(crate) claimed_at: u64,
}

/// The ways out of a node, for its settings.
fn ways(way: &Way, warehouse: &Postgres) -> Ways {
    let coordinators: Vec<String> = way
        .coordinators
        .iter()
        .map(|proxy| format!("http://127.0.0.1:{}", proxy.port()))
        .collect();
    Ways {
        coordinators: coordinators.join(","),
        warehouse: through(&way.warehouse, warehouse, "warehouse"),
        envs: s3::envs(way.s3.port()),
    }
}

/// A database of a server as it is reached through a proxy.
fn through(proxy: &Proxy, server: &Postgres, database: &str) -> String {
    server
        .url(database)
        .replace(&format!(":{}/", server.port()), &format!(":{}/", proxy.port()))
}

/// A port of an address such as `http://127.0.0.1:7400`.
fn port_of(address: &str) -> Result<u16> {
    let (_, port) = address.rsplit_once(':').context("no port")?;
    Ok(port.parse()?)
}

impl World {
    /// Starts all of it: nodes with so many slots, where every segment takes `slow` ms, and with these faults of their own
    /// besides.
    pub(crate) async fn start(slots: usize, slow: u64, faults: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (ledger, warehouse) = tokio::try_join!(Postgres::start(), Postgres::start())?;
        ledger.create("ledger").await?.close().await;
        let disk = small_disk(&folder.path().join("disk"), &warehouse).await?;
        let space = if disk.is_some() { " TABLESPACE small" } else { "" };
        warehouse
            .execute("postgres", &format!("CREATE DATABASE warehouse{space}"))
            .await?;
        let program = PathBuf::from(HAULAGE).with_file_name("haulage-test-s3");
        let s3 = S3Process::start(&program, &[BUCKET]).await?;
        std::fs::create_dir(s3.folder(BUCKET).join("in"))?;
        let mut to_ledger = Vec::new();
        for _ in 0..COORDINATORS {
            to_ledger.push(Proxy::start(ledger.port()).await?);
        }
        let side = folder.path().join("side.db");
        let settings = Settings {
            ledger: ledger.url("ledger"),
            warehouse: warehouse.url("warehouse"),
            store: format!("s3://{BUCKET}/store"),
            nodes: 0,
            envs: vec![(
                "HAULAGE_DESTINATION_SIDE".to_owned(),
                format!("sqlite:{}", side.display()),
            )],
            faults: Some(format!(
                "slow@segment:{slow}ms{}{faults}",
                if faults.is_empty() { "" } else { "," }
            )),
        };
        let seat = |(place, proxy): (usize, &Proxy)| (format!("c{}", place + 1), through(proxy, &ledger, "ledger"));
        let seats = to_ledger.iter().enumerate().map(seat).collect();
        let cluster = Cluster::start_on(folder.path(), settings, seats).await?;
        let mut all = Vec::new();
        for _ in 0..NODES {
            let mut coordinators = Vec::new();
            for address in cluster.address.split(',') {
                coordinators.push(Proxy::start(port_of(address)?).await?);
            }
            all.push(Way {
                coordinators,
                warehouse: Proxy::start(warehouse.port()).await?,
                s3: Proxy::start(s3.port()).await?,
            });
        }
        let pool = warehouse.pool("warehouse").await?;
        let mut world = Self {
            cluster,
            ways: all,
            to_ledger,
            pool,
            ledger,
            warehouse,
            s3,
            disk,
            slots,
            folder,
        };
        for node in 0..NODES {
            world.start_node(node)?;
        }
        world.until_whole().await?;
        Ok(world)
    }

    /// Starts a node, for the first time or again.
    pub(crate) fn start_node(&mut self, node: usize) -> Result<()> {
        let name = name_of(node);
        self.cluster.nodes.retain(|(other, _)| *other != name);
        let ways = ways(&self.ways[node], &self.warehouse);
        self.cluster.add_node_by(&ways, &name, self.slots)
    }

    /// Waits until every node is alive in the leader's eyes.
    pub(crate) async fn until_whole(&self) -> Result<()> {
        until("every node is alive", WHOLE, async || {
            let listed = self
                .cluster
                .client()
                .args(["nodes", "--output", "json"])
                .output()
                .await?;
            Ok((listed.code == 0 && listed.stdout.matches("\"alive\"").count() == NODES).then_some(()))
        })
        .await
    }

    /// A run as `show` has it; `None` while no coordinator can say it.
    pub(crate) async fn try_show(&self, run: &str) -> Result<Option<Value>> {
        let said = self
            .cluster
            .client()
            .args(["show", run, "--output", "json"])
            .output()
            .await?;
        if said.code == 0 {
            said.json().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Who leads. An error while the ledger is away.
    pub(crate) async fn lead(&self) -> Result<Lead> {
        let mut connection = PgConnection::connect(&self.ledger.url("ledger")).await?;
        let (name, epoch, claimed_at): (String, i64, i64) =
            sqlx::query_as("SELECT leader, epoch, claimed_at FROM haulage_ledger.leader")
                .fetch_one(&mut connection)
                .await?;
        connection.close().await?;
        let place = (0..COORDINATORS).find(|place| name == format!("c{}", place + 1));
        Ok(Lead {
            place: place.with_context(|| format!("nobody knows {name:?}"))?,
            epoch,
            claimed_at: claimed_at.try_into()?,
        })
    }

    /// Writes an object of the bucket.
    pub(crate) fn put(&self, key: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.s3.folder(BUCKET).join(key), text)?)
    }

    /// The SQLite file that every node has as destination `side`.
    pub(crate) fn side(&self) -> PathBuf {
        self.folder.path().join("side.db")
    }

    /// The file that takes all room of the warehouse's disk while it is there.
    pub(crate) fn filler(&self) -> PathBuf {
        self.folder.path().join("disk/filler")
    }
}

/// The name of a node.
pub(crate) fn name_of(node: usize) -> String {
    format!("node-{}", node + 1)
}

/// Makes a tablespace `small` of the server on a small disk.
async fn small_disk(path: &std::path::Path, server: &Postgres) -> Result<Option<SmallDisk>> {
    let Some(disk) = SmallDisk::mount(path, DISK)? else {
        return Ok(None);
    };
    let parent = path.parent().context("a folder stands in another")?;
    // The server's user has to be let through.
    std::fs::set_permissions(parent, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let space = path.join("tablespace");
    std::fs::create_dir(&space)?;
    server.give(&space)?;
    server
        .execute(
            "postgres",
            &format!("CREATE TABLESPACE small LOCATION '{}'", space.display()),
        )
        .await?;
    Ok(Some(disk))
}
