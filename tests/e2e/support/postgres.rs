//! A PostgreSQL cluster of its own for one test: made by initdb in a temporary folder, stopped and removed on drop.
//!
//! PostgreSQL refuses to run as root; then it runs as the user `postgres`. It listens on loopback (for the binary under
//! test) with trust for everybody but the role `locked`, which has a password: the tests of wrong passwords need one.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::process::free_port;

/// A running cluster.
pub(crate) struct Postgres {
    root: tempfile::TempDir,
    bin: PathBuf,
    /// Whether commands have to switch to the user `postgres`.
    switch: bool,
    port: u16,
    /// Largest file that the server may make, in KiB.
    file_limit: Option<u64>,
}

impl Postgres {
    /// Starts a cluster; its database `postgres` is empty.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_limited(None).await
    }

    /// Starts a cluster whose server can't make a file larger than `kib` KiB: for it the disk is full then.
    pub(crate) async fn start_with_file_limit(kib: u64) -> Result<Self> {
        Self::start_limited(Some(kib)).await
    }

    async fn start_limited(kib: Option<u64>) -> Result<Self> {
        let bin = binaries()?;
        let root = tempfile::Builder::new().prefix("haulage-pg-").tempdir()?;
        let switch = id(&["-u"])? == 0;
        let mut cluster = Self {
            root,
            bin,
            switch,
            port: 0,
            file_limit: None,
        };
        let mut args = vec!["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"];
        if kib.is_some() {
            // The log is cut into files, too: they have to stay below the limit.
            args.push("--wal-segsize=1");
        }
        cluster.give(cluster.root.path())?;
        let data = cluster.data();
        args.extend(["-D", &data]);
        cluster.run("initdb", &args)?;
        cluster.configure()?;
        cluster.file_limit = kib;
        // Between finding a free port and listening on it somebody else may take it: then try another.
        for attempt in 1.. {
            cluster.port = free_port()?;
            let socket = cluster.root.path().display();
            let options = format!(
                "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={socket} -c fsync=off \
                 -c max_connections=200",
                cluster.port
            );
            let log = cluster.root.path().join("log").display().to_string();
            let args = [
                "-D",
                &cluster.data(),
                "-l",
                &log,
                "-o",
                &options,
                "-w",
                "-t",
                "60",
                "start",
            ];
            match cluster.run("pg_ctl", &args) {
                Ok(()) => break,
                Err(error) if attempt == 3 => return Err(error),
                Err(_) => {}
            }
        }
        let pool = cluster.pool("postgres").await?;
        sqlx::query("CREATE ROLE locked LOGIN PASSWORD 'the right one'")
            .execute(&pool)
            .await?;
        Ok(cluster)
    }

    /// Where the binary under test finds `database`.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The same database, through the role that has a password.
    pub(crate) fn url_with_password(&self, password: &str) -> String {
        format!("postgres://locked:{password}@127.0.0.1:{}/postgres", self.port)
    }

    /// Makes a database.
    pub(crate) async fn create(&self, database: &str) -> Result<PgPool> {
        let pool = self.pool("postgres").await?;
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE \"{database}\"")))
            .execute(&pool)
            .await?;
        self.pool(database).await
    }

    /// Connections to a database, for the test itself.
    pub(crate) async fn pool(&self, database: &str) -> Result<PgPool> {
        let options: PgConnectOptions = self.url(database).parse()?;
        Ok(PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await?)
    }

    /// Runs a psql script against a database, in `folder`.
    pub(crate) fn psql(&self, database: &str, folder: &Path, script: &Path) -> Result<()> {
        let output = Command::new(self.bin.join("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-f"])
            .arg(script)
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "psql -f {}: {}",
            script.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Makes a folder the server's own.
    pub(crate) fn give(&self, folder: &Path) -> Result<()> {
        if self.switch {
            chown(folder, Some(id(&["-u", "postgres"])?), Some(id(&["-g", "postgres"])?))?;
        }
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700))?;
        Ok(())
    }

    fn data(&self) -> String {
        self.root.path().join("data").display().to_string()
    }

    fn configure(&self) -> Result<()> {
        let hba = self.root.path().join("data/pg_hba.conf");
        let rules =
            "local all all trust\nhost all locked 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
        std::fs::write(hba, rules).context("writing pg_hba.conf")
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<()> {
        let program = self.bin.join(program);
        let mut words: Vec<OsString> = Vec::new();
        if self.switch {
            words.extend(["runuser", "-u", "postgres", "--"].map(OsString::from));
        }
        if let Some(kib) = self.file_limit {
            let script = format!("ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
            words.extend(["sh".into(), "-c".into(), script.into()]);
        }
        words.push(program.clone().into_os_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        // The server inherits these: a pipe would keep `output` waiting for as long as it runs.
        let log = tempfile::tempfile()?;
        let status = command
            .args(args)
            .current_dir(self.root.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("starting {}", program.display()))?;
        if status.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(self.root.path().join("log")).unwrap_or_default();
        bail!("{} {args:?} ended with {status}\n{log}", program.display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Err(error) = self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "-w", "stop"]) {
            eprintln!("PostgreSQL was not stopped: {error:#}");
        }
    }
}

fn binaries() -> Result<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<_> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
        versions.sort();
        folders.extend(versions.into_iter().rev());
    }
    folders
        .into_iter()
        .find(|folder| folder.join("initdb").exists() && folder.join("psql").exists())
        .context("PostgreSQL's initdb is neither in PATH nor under /usr/lib/postgresql; tests/run installs it")
}

fn id(args: &[&str]) -> Result<u32> {
    let output = Command::new("id").args(args).output()?;
    ensure!(
        output.status.success(),
        "id {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
