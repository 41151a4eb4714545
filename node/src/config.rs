//! What a node is told at start: its destinations, its checkpoint store, how it reaches S3 and its coordinators, and
//! how much it may use.
//!
//! A secret is looked up when it is needed and never kept: an address may be `secret://NAME`, which is the environment
//! variable `HAULAGE_SECRET_NAME`, or else the file `NAME` in the folder of secrets. No address, cookie or secret ever
//! appears in a log, an error or this type's `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use haulage_core::failure::Failure;
use haulage_core::ids::NodeName;

use crate::fault::Fault;
use crate::sink::registry;
use crate::store::S3Settings;

/// What DataFusion may use for the rows in flight, unless told otherwise.
pub const MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// Connections through which a node writes to one destination at once, unless told otherwise. PostgreSQL takes 100 from
/// everybody together, as it is installed.
pub const CONNECTIONS: u32 = 32;

/// The settings of a node.
#[derive(Clone)]
pub struct NodeConfig {
    /// Its name: unique in the cluster, the same after a restart.
    pub name: NodeName,
    /// How many chunks it works on at once.
    pub slots: u32,
    /// Bytes for DataFusion's memory pool.
    pub memory_bytes: u64,
    /// Connections through which its chunks write to one destination at once, at least 1. Each chunk writes through as
    /// many as its stage has loads there, also if these are more.
    pub connections: u32,
    /// Destinations: name to address. An address may hold a password, or be `secret://NAME`.
    pub destinations: BTreeMap<String, String>,
    /// Databases that sources read from: name of the connection to address, which may hold a password, or be
    /// `secret://NAME`.
    pub sources: BTreeMap<String, String>,
    /// Where `secret://NAME` is looked up as a file, when the environment doesn't have it.
    pub secrets_dir: Option<PathBuf>,
    /// The checkpoint store: a folder, or `s3://bucket/prefix`. The same for all nodes of a cluster.
    pub store: String,
    /// The folder of this installation's own files. It is made when a SQLite file is to be in it; no other is.
    pub home: Option<PathBuf>,
    /// How S3 is reached.
    pub s3: S3Settings,
    /// Coordinators to attach to, tried in turn: `host:port` or `http://host:port`. None: the embedded mode, in which
    /// the coordinator runs in this process.
    pub coordinators: Vec<String>,
    /// The secret that nodes and coordinators share.
    pub cookie: String,
    /// Faults for tests.
    pub fault: Fault,
}

impl NodeConfig {
    /// A node with as many slots as the machine has cores, the default memory, and no destinations yet.
    pub fn new(name: impl Into<String>, store: impl Into<String>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            name: NodeName::new(name),
            slots: u32::try_from(cores).unwrap_or(1),
            memory_bytes: MEMORY_BYTES,
            connections: CONNECTIONS,
            destinations: BTreeMap::new(),
            sources: BTreeMap::new(),
            secrets_dir: None,
            store: store.into(),
            home: None,
            s3: S3Settings::default(),
            coordinators: Vec::new(),
            cookie: String::new(),
            fault: Fault::default(),
        }
    }

    /// The address of a destination, with its secret looked up. Permanent failure naming the destination and what to
    /// do if it isn't configured or its secret isn't there; the address itself is never in it.
    pub fn destination(&self, name: &str) -> Result<String, Failure> {
        self.address("destination", name, &self.destinations)
    }

    /// The address of the database behind the connection of a source, likewise.
    pub fn source(&self, name: &str) -> Result<String, Failure> {
        self.address("source", name, &self.sources)
    }

    fn address(&self, what: &str, name: &str, among: &BTreeMap<String, String>) -> Result<String, Failure> {
        let Some(address) = among.get(name) else {
            let known: Vec<&str> = among.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let variable = format!("HAULAGE_{what}_{name}").to_ascii_uppercase();
            return Err(Failure::permanent(format!(
                "node {} has no {what} {name} (it has: {known}); start it with --{what} {name}=ADDRESS, or with the \
                 address in the environment variable {variable}",
                self.name
            )));
        };
        match address.strip_prefix("secret://") {
            Some(secret) => self
                .secret(secret)
                .map_err(|reason| Failure::permanent(format!("{what} {name} of node {}: {reason}", self.name))),
            None => Ok(address.clone()),
        }
    }

    /// Where each destination is, without credentials: what tells one destination from another of the same name. One
    /// whose address can't be read, or whose secret isn't there, is left out; its use says why.
    pub fn places(&self) -> BTreeMap<String, String> {
        let place = |name: &String| {
            let place = registry::place(&self.destination(name).ok()?)?;
            Some((name.clone(), place))
        };
        self.destinations.keys().filter_map(place).collect()
    }

    /// The value of `secret://NAME`; else where it was looked for.
    pub(crate) fn secret(&self, name: &str) -> Result<String, String> {
        let sound = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(sound) {
            return Err(format!(
                "secret://{name} is no name of a secret; use letters, digits, `_`, `-` and `.`"
            ));
        }
        let variable = format!("HAULAGE_SECRET_{name}");
        if let Ok(value) = std::env::var(&variable) {
            return Ok(value);
        }
        let Some(folder) = &self.secrets_dir else {
            return Err(format!(
                "secret://{name} is not set; set the environment variable {variable}, or start the node with \
                 --secrets-dir and put it into a file {name} there"
            ));
        };
        let path = folder.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
            Err(error) => Err(format!(
                "secret://{name}: neither {variable} is set nor {} readable: {error}",
                path.display()
            )),
        }
    }
}

// By hand: destinations, coordinators, the store's address and the cookie may all hold a password.
impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("name", &self.name)
            .field("slots", &self.slots)
            .field("memory_bytes", &self.memory_bytes)
            .field("destinations", &self.destinations.keys().collect::<Vec<_>>())
            .field("sources", &self.sources.keys().collect::<Vec<_>>())
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        let mut config = NodeConfig::new("n1", "checkpoints");
        config.cookie = "crumb".into();
        config
            .destinations
            .insert("plain".into(), "postgres://u:hunter2@h/d".into());
        config
            .destinations
            .insert("hidden".into(), "secret://warehouse.url".into());
        config
            .sources
            .insert("crm".into(), "postgres://reader:hunter2@h/crm".into());
        config
            .destinations
            .insert("odd".into(), "secret://../etc/passwd".into());
        config
    }

    #[test]
    fn secrets_are_read_when_needed_and_errors_say_where_they_were_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config();
        let missing = config.destination("hidden").unwrap_err();
        assert!(missing.message.contains("HAULAGE_SECRET_warehouse.url"), "{missing}");
        config.secrets_dir = Some(folder.path().to_owned());
        assert!(config.destination("hidden").is_err());
        std::fs::write(folder.path().join("warehouse.url"), "sqlite:x.db\n").unwrap();
        assert_eq!(config.destination("hidden").unwrap(), "sqlite:x.db");
        assert!(
            config
                .destination("odd")
                .unwrap_err()
                .message
                .contains("no name of a secret")
        );
        let unknown = config.destination("lake").unwrap_err();
        assert!(unknown.message.contains("it has: hidden, odd, plain"), "{unknown}");
        assert_eq!(config.source("crm").unwrap(), "postgres://reader:hunter2@h/crm");
        let unknown = config.source("plain").unwrap_err();
        assert!(
            unknown.message.contains("has no source plain (it has: crm)")
                && unknown.message.contains("--source plain=ADDRESS")
                && unknown.message.contains("HAULAGE_SOURCE_PLAIN"),
            "{unknown}"
        );
    }

    #[test]
    fn a_place_tells_destinations_apart_and_holds_no_credential() {
        for (address, place) in [
            (
                "postgres://u:hunter2@db.example:6543/dw?sslmode=require",
                "postgres://db.example:6543/dw",
            ),
            (
                "postgresql://u2:other@db.example:6543/dw",
                "postgres://db.example:6543/dw",
            ),
            ("postgres://u@localhost", "postgres://localhost:5432/u"),
            ("postgres:///dw?host=/run/pg&user=u", "postgres:///run/pg:5432/dw"),
            ("sqlite:/data/a.db", "sqlite:/data/a.db"),
            ("sqlite:///data/../data/./a.db", "sqlite:/data/../data/a.db"),
        ] {
            let mut config = NodeConfig::new("n1", "checkpoints");
            config.destinations.insert("w".into(), address.into());
            assert_eq!(config.places().get("w").map(String::as_str), Some(place), "{address}");
        }
        let mut config = config();
        config.destinations.insert("relative".into(), "sqlite:a.db".into());
        let places = config.places();
        assert!(
            !places.contains_key("odd") && !places.contains_key("hidden"),
            "{places:?}"
        );
        let here = std::env::current_dir().unwrap().join("a.db");
        assert_eq!(places["relative"], format!("sqlite:{}", here.display()));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let shown = format!("{:?}", config());
        assert!(!shown.contains("hunter2") && !shown.contains("crumb"), "{shown}");
    }
}
