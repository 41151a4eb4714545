//! A server that speaks the S3 protocol, in this process, over a temporary folder. Stands alone, to be included where a
//! test needs one.

use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a client has to have in `AWS_ACCESS_KEY_ID`.
pub(crate) const ACCESS_KEY: &str = "haulage-test";
/// What a client has to have in `AWS_SECRET_ACCESS_KEY`.
pub(crate) const SECRET_KEY: &str = "a-secret-that-no-message-shows";

/// A running server; it ends when this is dropped.
pub(crate) struct S3Server {
    root: tempfile::TempDir,
    address: String,
    server: JoinHandle<()>,
}

impl S3Server {
    /// Starts a server on a free port of the loopback interface, with these buckets, empty.
    pub(crate) async fn start(buckets: &[&str]) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for bucket in buckets {
            std::fs::create_dir(root.path().join(bucket)).expect("a folder for the bucket");
        }
        let files = FileSystem::new(root.path()).expect("a store over the folder");
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    // A client that goes away in the middle is its own business.
                    drop(
                        Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(socket), service)
                            .await,
                    );
                });
            }
        });
        Self { root, address, server }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Where the objects of a bucket are kept, as files.
    pub(crate) fn folder(&self, bucket: &str) -> PathBuf {
        self.root.path().join(bucket)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.server.abort();
    }
}
