//! A PostgreSQL cluster of a test's own: made by initdb in a folder that goes away, on a loopback port that was free,
//! without fsync; stopped on drop, and also when the test is killed.
//!
//! Trusts everybody but the role `locked`, which has a password: the tests of wrong passwords need one. It stops and
//! crashes the same way, at once, because nothing here is worth a checkpoint.

mod programs;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use self::programs::Programs;
use super::daemon::{Daemon, run, tail};
use super::{PATIENCE, folder, free_port, until};

/// The password of the role `locked`.
pub const PASSWORD: &str = "the right one";

/// A cluster; its server runs unless it was stopped.
pub struct Postgres {
    // First, so that the server is gone before its folder is.
    server: Mutex<Option<Daemon>>,
    port: u16,
    programs: Programs,
    file_limit: Option<u64>,
    databases: AtomicU32,
    folder: TempDir,
}

impl Postgres {
    /// Starts a cluster; its database `postgres` is empty.
    pub async fn start() -> Result<Self> {
        Self::start_limited(None).await
    }

    /// Starts a cluster whose server can't make a file larger than `kib` KiB: for it the disk is full then.
    pub async fn start_with_file_limit(kib: u64) -> Result<Self> {
        Self::start_limited(Some(kib)).await
    }

    /// The cluster that the tests of this process share; it stops when the last of them is done.
    pub async fn shared() -> Result<Arc<Self>> {
        static SHARED: tokio::sync::Mutex<Weak<Postgres>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(cluster) = shared.upgrade() {
            return Ok(cluster);
        }
        let cluster = Arc::new(Self::start().await?);
        *shared = Arc::downgrade(&cluster);
        Ok(cluster)
    }

    async fn start_limited(file_limit: Option<u64>) -> Result<Self> {
        let programs = Programs::find()?;
        let folder = folder("postgres")?;
        programs.give(folder.path())?;
        let data = folder.path().join("data");
        let mut initdb = programs.command("initdb");
        initdb.args([
            "--auth=trust",
            "--no-sync",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
        ]);
        if file_limit.is_some() {
            // The log is cut into files, too: they have to stay below the limit.
            initdb.arg("--wal-segsize=1");
        }
        initdb.arg("--pgdata").arg(&data);
        run(initdb).await?;
        let rules = data.join("pg_hba.conf");
        let trusting = std::fs::read_to_string(&rules).context("reading pg_hba.conf")?;
        std::fs::write(&rules, format!("host all locked all scram-sha-256\n{trusting}")).context("pg_hba.conf")?;
        let mut cluster = Self {
            server: Mutex::new(None),
            port: 0,
            programs,
            file_limit,
            databases: AtomicU32::new(0),
            folder,
        };
        // Between finding a free port and listening on it, somebody else may take it: then try another.
        for attempt in 1.. {
            cluster.port = free_port()?;
            match cluster.start_again().await {
                Ok(()) => break,
                Err(error) if attempt == 3 => return Err(error),
                Err(_) => {}
            }
        }
        cluster
            .execute("postgres", &format!("CREATE ROLE locked LOGIN PASSWORD '{PASSWORD}'"))
            .await?;
        Ok(cluster)
    }

    /// Ends the server as a crash would: what is unlogged is empty afterwards. Nobody answers on its port until
    /// [`Postgres::start_again`].
    pub fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(server);
    }

    /// Starts the server after [`Postgres::stop`], and waits until it answers.
    pub async fn start_again(&self) -> Result<()> {
        let server = self.launch()?;
        until("PostgreSQL answers", PATIENCE, async || {
            ensure!(!server.has_ended(), "PostgreSQL doesn't start: {}", self.log());
            let mut ready = Command::new(self.programs.path("pg_isready"));
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            Ok(tokio::process::Command::from(ready)
                .status()
                .await?
                .success()
                .then_some(()))
        })
        .await?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(())
    }

    /// Lets clients in by TLS, too: the server shows a certificate of [`super::CA`] for the host db.example.
    pub async fn offer_tls(&self) -> Result<()> {
        let data = self.folder.path().join("data");
        for (name, text) in [
            ("server.crt", include_str!("../tls/server.pem")),
            ("server.key", include_str!("../tls/server.key")),
        ] {
            std::fs::write(data.join(name), text)?;
            self.programs.give(&data.join(name))?;
        }
        self.execute("postgres", "ALTER SYSTEM SET ssl = on").await?;
        self.execute("postgres", "SELECT pg_reload_conf()").await?;
        until("the server to offer TLS", PATIENCE, async || {
            let pool = self.pool("postgres").await?;
            let on: String = sqlx::query_scalar("SHOW ssl").fetch_one(&pool).await?;
            Ok((on == "on").then_some(()))
        })
        .await
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database, for the role that may do everything.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// The address of a database, for a role without a password.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// The address of database `postgres`, for the role that has a password.
    pub fn url_with_password(&self, password: &str) -> String {
        format!("postgres://locked:{password}@127.0.0.1:{}/postgres", self.port)
    }

    /// Makes an empty database with a name of its own, and says it.
    pub async fn database(&self) -> Result<String> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name}")).await?;
        Ok(name)
    }

    /// Makes an empty database, and connects to it.
    pub async fn create(&self, database: &str) -> Result<PgPool> {
        self.execute("postgres", &format!("CREATE DATABASE \"{database}\""))
            .await?;
        self.pool(database).await
    }

    /// Connections to a database, for the test itself.
    pub async fn pool(&self, database: &str) -> Result<PgPool> {
        let options: PgConnectOptions = self.url(database).parse()?;
        Ok(PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await?)
    }

    /// Runs statements in a database.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<()> {
        let mut connection = PgConnection::connect(&self.url(database)).await?;
        connection
            .execute(AssertSqlSafe(sql.to_owned()))
            .await
            .with_context(|| sql.to_owned())?;
        Ok(connection.close().await?)
    }

    /// Runs a psql script against a database, in `folder`.
    pub async fn psql(&self, database: &str, folder: &Path, script: &Path) -> Result<()> {
        let mut psql = Command::new(self.programs.path("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-f"])
            .arg(script)
            .current_dir(folder);
        run(psql).await
    }

    /// Makes a folder the server's own.
    pub fn give(&self, folder: &Path) -> Result<()> {
        self.programs.give(folder)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The end of what the server has logged.
    fn log(&self) -> String {
        tail(&self.log_file())
    }

    fn launch(&self) -> Result<Daemon> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut server = self.programs.server("postgres", self.file_limit);
        server.arg("-D").arg(self.folder.path().join("data"));
        let sockets = format!("unix_socket_directories={}", self.folder.path().display());
        let port = format!("port={}", self.port);
        for setting in [
            "listen_addresses=127.0.0.1",
            &port,
            &sockets,
            "fsync=off",
            "max_connections=200",
        ] {
            server.args(["-c", setting]);
        }
        server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Daemon::spawn("PostgreSQL", "QUIT", server)
    }
}
