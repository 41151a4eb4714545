//! A server that speaks the S3 protocol, in this process, over a temporary folder.

use std::path::{Path, PathBuf};

use anyhow::Result;
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const ACCESS_KEY: &str = "haulage-test";
const SECRET_KEY: &str = "a secret that must not be printed";

/// A running server; it ends when this is dropped.
pub(crate) struct S3 {
    root: tempfile::TempDir,
    endpoint: String,
    server: JoinHandle<()>,
}

impl S3 {
    /// Starts a server with these buckets, empty.
    pub(crate) async fn start(buckets: &[&str]) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("haulage-s3-").tempdir()?;
        for bucket in buckets {
            std::fs::create_dir(root.path().join(bucket))?;
        }
        let files = FileSystem::new(root.path()).map_err(|error| anyhow::anyhow!("s3s-fs: {error:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // A client that goes away in the middle is its own business.
                    drop(http.serve_connection(TokioIo::new(socket), service).await);
                });
            }
        });
        Ok(Self { root, endpoint, server })
    }

    /// The environment in which the binary under test finds this server.
    pub(crate) fn envs(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", "us-east-1"),
            ("HAULAGE_S3_PATH_STYLE", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Copies the files of a folder to `bucket/prefix/`.
    pub(crate) fn upload(&self, folder: &Path, bucket: &str, prefix: &str) -> Result<()> {
        let target = self.folder(bucket).join(prefix);
        std::fs::create_dir_all(&target)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), target.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Where the objects of a bucket are kept.
    pub(crate) fn folder(&self, bucket: &str) -> PathBuf {
        self.root.path().join(bucket)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.abort();
    }
}
