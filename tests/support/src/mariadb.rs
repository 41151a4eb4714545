//! A MariaDB server of a test's own: made by mariadb-install-db in a folder that goes away, on a loopback port that was
//! free, without fsync; stopped on drop, and also when the test is killed.
//!
//! Lets `root` in without a password, and `locked` with one. It stops as in a crash, at once; what was committed is there
//! when it starts again.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};
use tempfile::TempDir;

use super::daemon::{Account, Daemon, run, tail};
use super::{PATIENCE, folder, free_port, until};

/// The password of the user `locked`.
pub const PASSWORD: &str = "the right one";

/// Programs of servers stand where the path of users doesn't lead.
const ELSEWHERE: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// A server; it runs unless it was stopped.
pub struct Mariadb {
    // First, so that the server is gone before its folder is.
    server: Mutex<Option<Daemon>>,
    port: u16,
    program: PathBuf,
    account: Account,
    databases: AtomicU32,
    folder: TempDir,
}

impl Mariadb {
    /// Starts a server; its database `shop` is empty.
    pub async fn start() -> Result<Self> {
        let account = Account::of("mysql")?;
        let folder = folder("mariadb")?;
        account.give(folder.path())?;
        let mut install = account.command();
        install.arg(find("mariadb-install-db")?);
        install.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
        install.args(["--skip-test-db", "--skip-name-resolve"]);
        install.args(["--innodb-flush-method=nosync", "--innodb-log-file-size=8M"]);
        install.arg(format!("--datadir={}", folder.path().join("data").display()));
        // A server that starts removes temporary tables that it finds there, whosever they are.
        install.arg(format!("--tmpdir={}", folder.path().display()));
        run(install).await?;
        let mut server = Self {
            server: Mutex::new(None),
            port: 0,
            program: find("mariadbd")?,
            account,
            databases: AtomicU32::new(0),
            folder,
        };
        // Between finding a free port and listening on it, somebody else may take it: then try another.
        for attempt in 1.. {
            server.port = free_port()?;
            match server.start_again().await {
                Ok(()) => break,
                Err(error) if attempt == 3 => return Err(error),
                Err(_) => {}
            }
        }
        let locked = format!("CREATE USER locked@'%' IDENTIFIED BY '{PASSWORD}'; CREATE DATABASE shop");
        server.execute("mysql", &locked).await?;
        Ok(server)
    }

    /// The server that the tests of this process share; it stops when the last of them is done.
    pub async fn shared() -> Result<Arc<Self>> {
        static SHARED: tokio::sync::Mutex<Weak<Mariadb>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start().await?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// Ends the server as a crash would. Nobody answers on its port until [`Mariadb::start_again`].
    pub fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(server);
    }

    /// Starts the server after [`Mariadb::stop`], and waits until it answers.
    pub async fn start_again(&self) -> Result<()> {
        let server = self.launch()?;
        until("MariaDB answers", PATIENCE, async || {
            ensure!(!server.has_ended(), "MariaDB doesn't start: {}", tail(&self.log_file()));
            let Ok(connection) = MySqlConnection::connect(&self.url("mysql")).await else {
                return Ok(None);
            };
            Ok(Some(connection.close().await?))
        })
        .await?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(())
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database, for the user that may do everything.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@127.0.0.1:{}/{database}", self.port)
    }

    /// The address of a database, for the user that has a password.
    pub fn url_with_password(&self, password: &str, database: &str) -> String {
        let password = password.replace(' ', "%20");
        format!("mysql://locked:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database with a name of its own, and says it.
    pub async fn database(&self) -> Result<String> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute("mysql", &format!("CREATE DATABASE {name}")).await?;
        Ok(name)
    }

    /// Connections to a database, for the test itself.
    pub async fn pool(&self, database: &str) -> Result<MySqlPool> {
        let options: MySqlConnectOptions = self.url(database).parse()?;
        Ok(MySqlPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await?)
    }

    /// Runs statements in a database.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<()> {
        let mut connection = MySqlConnection::connect(&self.url(database)).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut connection)
            .await
            .with_context(|| sql.to_owned())?;
        Ok(connection.close().await?)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn launch(&self) -> Result<Daemon> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let folder = self.folder.path().display();
        let mut server = self.account.server("KILL");
        server.arg(&self.program).arg("--no-defaults");
        for setting in [
            format!("--datadir={folder}/data"),
            format!("--tmpdir={folder}"),
            format!("--socket={folder}/socket"),
            format!("--pid-file={folder}/pid"),
            format!("--port={}", self.port),
            "--bind-address=127.0.0.1".to_owned(),
            "--skip-name-resolve".to_owned(),
            "--skip-log-bin".to_owned(),
            "--character-set-server=utf8mb4".to_owned(),
            "--performance-schema=OFF".to_owned(),
            // What is committed outlives the process, though not the machine.
            "--innodb-flush-log-at-trx-commit=2".to_owned(),
            "--innodb-flush-method=nosync".to_owned(),
            "--innodb-buffer-pool-size=32M".to_owned(),
            "--innodb-log-file-size=8M".to_owned(),
        ] {
            server.arg(setting);
        }
        server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Daemon::spawn("MariaDB", "KILL", server)
    }
}

/// A program of MariaDB's on this machine.
fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ELSEWHERE.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.exists())
        .with_context(|| {
            let elsewhere = ELSEWHERE.join(", ");
            format!("MariaDB's {name} is neither in PATH nor in {elsewhere}; tests/run installs it")
        })
}
