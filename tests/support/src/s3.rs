//! A server that speaks the S3 protocol over a temporary folder: [`S3`] in this process, [`S3Process`] as one of its own,
//! which can be killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::s3_conditions::Conditional;
pub use crate::s3_conditions::Conditions;

/// What a client has to have in `AWS_ACCESS_KEY_ID`.
pub const ACCESS_KEY: &str = "haulage-test";
/// What a client has to have in `AWS_SECRET_ACCESS_KEY`.
pub const SECRET_KEY: &str = "a-secret-that-no-message-shows";

/// A running server; it ends when this is dropped.
pub struct S3 {
    root: TempDir,
    port: u16,
    server: JoinHandle<()>,
}

impl S3 {
    /// Starts a server on a free port of loopback, with these buckets, empty.
    pub async fn start(buckets: &[&str]) -> Result<Self> {
        Self::start_with(buckets, Conditions::Honoured).await
    }

    /// One that does this with writes under a condition.
    pub async fn start_with(buckets: &[&str], conditions: Conditions) -> Result<Self> {
        let root = root_with(buckets)?;
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("a free port of loopback")?;
        let port = listener.local_addr()?.port();
        let server = serve_with(root.path(), listener, conditions)?;
        Ok(Self { root, port, server })
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a client has to have in `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The environment in which a process finds this server.
    pub fn envs(&self) -> Vec<(String, String)> {
        envs(self.port)
    }

    /// Copies the files of a folder to `bucket/prefix/`.
    pub fn upload(&self, folder: &Path, bucket: &str, prefix: &str) -> Result<()> {
        let target = self.folder(bucket).join(prefix);
        std::fs::create_dir_all(&target)?;
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), target.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Where the objects of a bucket are kept, as files.
    pub fn folder(&self, bucket: &str) -> PathBuf {
        self.root.path().join(bucket)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn root_with(buckets: &[&str]) -> Result<TempDir> {
    let root = super::folder("s3")?;
    for bucket in buckets {
        std::fs::create_dir(root.path().join(bucket)).with_context(|| format!("a folder for bucket {bucket}"))?;
    }
    Ok(root)
}

/// The environment in which a process finds a server, or a proxy in front of one, on this loopback port.
pub fn envs(port: u16) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}").as_str()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_REGION", "us-east-1"),
        ("HAULAGE_S3_PATH_STYLE", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Serves the folders of `root` as buckets until the task is aborted.
pub fn serve(root: &Path, listener: TcpListener) -> Result<JoinHandle<()>> {
    serve_with(root, listener, Conditions::Honoured)
}

fn serve_with(root: &Path, listener: TcpListener, conditions: Conditions) -> Result<JoinHandle<()>> {
    let files = FileSystem::new(root).map_err(|error| anyhow!("s3s-fs: {error:?}"))?;
    let mut service = S3ServiceBuilder::new(Conditional::new(files, conditions));
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = service.build();
    Ok(tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let http = Builder::new(TokioExecutor::new());
                // A client that goes away in the middle is its own business.
                drop(http.serve_connection(TokioIo::new(socket), service).await);
            });
        }
    }))
}

/// A server in a process of its own, on a port that stays the same over kills. It ends when this is dropped.
pub struct S3Process {
    program: PathBuf,
    root: TempDir,
    port: u16,
    child: Option<Child>,
}

impl S3Process {
    /// Starts it with these buckets, empty. `program` is `haulage-test-s3` of this crate.
    pub async fn start(program: &Path, buckets: &[&str]) -> Result<Self> {
        ensure!(
            program.exists(),
            "there is no {}; build the whole workspace: cargo build --workspace --bins",
            program.display()
        );
        let mut server = Self {
            program: program.to_owned(),
            root: root_with(buckets)?,
            port: super::free_port()?,
            child: None,
        };
        server.start_again().await?;
        Ok(server)
    }

    /// SIGKILL. Nobody answers on its port until [`S3Process::start_again`].
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it over the same folder, unless it runs, and waits until it takes connections.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.child.is_none() {
            let mut command = Command::new(&self.program);
            command.arg(self.root.path()).arg(self.port.to_string());
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            self.child = Some(child.with_context(|| format!("starting {}", self.program.display()))?);
        }
        super::until("the S3 server takes connections", super::PATIENCE, async || {
            Ok(tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok())
        })
        .await?;
        Ok(())
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The environment in which a process finds this server.
    pub fn envs(&self) -> Vec<(String, String)> {
        envs(self.port)
    }

    /// Where the objects of a bucket are kept, as files.
    pub fn folder(&self, bucket: &str) -> PathBuf {
        self.root.path().join(bucket)
    }
}

impl Drop for S3Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("the S3 server is left running: {error:#}");
        }
    }
}
