//! A PostgreSQL cluster of the tests' own: in a folder that goes away, on a loopback port that was free, without fsync.
//! Trusts everybody but role `locked`, which has the password `opensesame`. Needs nothing but PostgreSQL's programs; as
//! root it runs them as user `postgres`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::time::Instant;

/// How long a start may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running cluster; stopped when dropped.
pub(crate) struct Cluster {
    folder: TempDir,
    port: u16,
    server: Mutex<Option<(u32, JoinHandle<()>)>>,
    databases: AtomicU32,
}

impl Cluster {
    /// The cluster that the tests of this process share; it stops when the last of them is done.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = shared.upgrade() {
            return cluster;
        }
        let cluster = Arc::new(Self::start());
        *shared = Arc::downgrade(&cluster);
        cluster
    }

    /// Makes and starts a cluster.
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("haulage-postgres-")
            .tempdir()
            .expect("a folder for a cluster");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        let data = folder.path().join("data");
        let mut initdb = as_postgres(&program("initdb"), None);
        initdb.args([
            "--auth=trust",
            "--no-sync",
            "--no-instructions",
            "--username=postgres",
            "--encoding=UTF8",
        ]);
        run(initdb.args(["--locale=C", "--pgdata"]).arg(&data));
        let rules = data.join("pg_hba.conf");
        let trusting = std::fs::read_to_string(&rules).expect("the rules of a new cluster");
        std::fs::write(&rules, format!("host all locked all scram-sha-256\n{trusting}")).expect("a rule more");
        // Between finding a free port and listening on it, somebody else may take it.
        for _ in 0..5 {
            let port = free_port();
            if let Some(server) = launch(folder.path(), &data, port) {
                return Self {
                    folder,
                    port,
                    server: Mutex::new(Some(server)),
                    databases: AtomicU32::new(0),
                };
            }
        }
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        panic!("postgres doesn't start: {log}");
    }

    /// Ends the server as a crash would, and starts it again: unlogged tables are empty then.
    pub(crate) fn crash(&self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        quit(server.take());
        *server = launch(self.folder.path(), &self.folder.path().join("data"), self.port);
        assert!(server.is_some(), "postgres starts again");
    }

    /// The loopback port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database, and says its name.
    pub(crate) async fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&self.url("postgres"))
            .await
            .expect("a connection to the cluster");
        connection
            .execute(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .await
            .expect("a database");
        connection.close().await.expect("a closed connection");
        name
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        quit(self.server.lock().unwrap_or_else(PoisonError::into_inner).take());
        std::fs::remove_dir_all(self.folder.path()).ok();
    }
}

/// Immediate shutdown: nothing here is worth a checkpoint.
fn quit(server: Option<(u32, JoinHandle<()>)>) {
    if let Some((pid, watcher)) = server {
        Command::new("kill").args(["-QUIT", &pid.to_string()]).status().ok();
        watcher.join().ok();
    }
}

/// Starts the server and waits until it answers. `None` if it ended instead.
fn launch(folder: &Path, data: &Path, port: u16) -> Option<(u32, JoinHandle<()>)> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .expect("a log file");
    // The server dies with us, also when a test is killed. The signal comes when the *thread* that started it ends, so
    // one thread starts it and stays.
    let mut server = as_postgres(&program("postgres"), Some("QUIT"));
    server
        .arg("-D")
        .arg(data)
        .args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={port}")]);
    server.args([
        "-c",
        &format!("unix_socket_directories={}", folder.display()),
        "-c",
        "fsync=off",
    ]);
    server.args(["-c", "max_connections=200", "-c", "shared_buffers=32MB"]);
    server
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .stdin(Stdio::null());
    let (started, pid) = mpsc::sync_channel(1);
    let watcher = std::thread::spawn(move || {
        let mut child = server.spawn().expect("postgres can be started");
        started.send(child.id()).expect("somebody waits for the pid");
        child.wait().ok();
    });
    let pid = pid.recv().expect("the pid of postgres");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && !watcher.is_finished() {
        let mut ready = Command::new(program("pg_isready"));
        ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        if ready.status().is_ok_and(|status| status.success()) {
            return Some((pid, watcher));
        }
        // Asked again at once, it would take the processor from the server that it waits for.
        std::thread::sleep(Duration::from_millis(20));
    }
    Command::new("kill").args(["-QUIT", &pid.to_string()]).status().ok();
    watcher.join().ok();
    None
}

/// A command that runs as user `postgres` where we are root, and gets `signal` when the thread that started it ends.
fn as_postgres(program: &Path, signal: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    if let Some(signal) = signal {
        command.args(["--pdeathsig", signal]);
    }
    command.arg("--").arg(program).current_dir("/").env("LC_ALL", "C");
    command
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id can be run");
    id.stdout.trim_ascii() == b"0"
}

/// A program of PostgreSQL's: the newest that the distribution has, else whatever is in the path.
fn program(name: &str) -> PathBuf {
    let mut found = Vec::new();
    for version in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        let program = version.path().join("bin").join(name);
        let number: u32 = version.file_name().to_string_lossy().parse().unwrap_or(0);
        if program.exists() {
            found.push((number, program));
        }
    }
    found
        .into_iter()
        .max()
        .map_or_else(|| PathBuf::from(name), |(_, program)| program)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its number").port()
}

fn run(command: &mut Command) {
    let output = command.output().expect("a command that can be run");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
