//! From a destination's name and address to the [`Destination`]: the one place that knows which kinds there are.
//!
//! Opening never connects: a node starts while a warehouse is down, and the use of it says what is wrong.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use haulage_core::failure::Failure;

use sqlx::postgres::PgConnectOptions;

use super::Destination;
use super::files::{self, Files};
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use crate::config::CONNECTIONS;
use crate::store::S3Settings;

/// How addresses are written, for who wrote another one.
const KINDS: &str = "use postgres://..., sqlite:PATH, file:///FOLDER or s3://bucket/prefix";

/// Where an address leads, without who goes there: `postgres://host:port/database`, `sqlite:/path`, `file:/folder` or
/// `s3://bucket/prefix`. Two addresses of one
/// place that are spelled differently (a host and its number) count as two. None if the address can't be read.
pub(crate) fn place(url: &str) -> Option<String> {
    if let Some(folder) = files::folder(url) {
        return Some(format!("file:{}", folder.display()));
    }
    match url.split_once(':')? {
        ("s3", _) => Some(url.trim_end_matches('/').to_owned()),
        ("postgres" | "postgresql", _) => {
            let options: PgConnectOptions = url.parse().ok()?;
            let host = match options.get_socket() {
                Some(socket) => socket.display().to_string(),
                None => options.get_host().to_owned(),
            };
            let database = options.get_database().unwrap_or(options.get_username());
            Some(format!("postgres://{host}:{}/{database}", options.get_port()))
        }
        ("sqlite", path) => {
            let path = std::path::absolute(path.strip_prefix("//").unwrap_or(path)).ok()?;
            Some(format!("sqlite:{}", path.display()))
        }
        _ => None,
    }
}

/// Opens the destination `name` at `url`, with the usual number of connections; see [`open_with`].
pub async fn open(name: &str, url: &str) -> Result<Arc<dyn Destination>, Failure> {
    open_with(name, url, CONNECTIONS, None, &S3Settings::default()).await
}

/// Opens the destination `name` at `url`: `postgres://user:password@host:port/database`, `postgresql://...`,
/// `sqlite:PATH`, a folder as `file:///PATH` or `/PATH`, or `s3://bucket/prefix`. `connections` bounds the segments that write to it at once, see [`Destination::reserve`]; `home` is the one
/// folder that is made when a file is to be in it. Permanent failure if the address can't be read; the failure never repeats the address, because it may hold a password.
pub async fn open_with(
    name: &str,
    url: &str,
    connections: u32,
    home: Option<&Path>,
    s3: &S3Settings,
) -> Result<Arc<dyn Destination>, Failure> {
    if let Some(folder) = files::folder(url) {
        return Ok(Arc::new(Files::in_folder(name, folder)?));
    }
    match url.split_once(':') {
        Some(("postgres" | "postgresql", _)) => Ok(Arc::new(Postgres::open(name, url, connections)?)),
        Some(("sqlite", path)) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path == ":memory:" {
                return Err(Failure::permanent(format!(
                    "destination {name}: sqlite needs the path of a file; write sqlite:PATH"
                )));
            }
            Ok(Arc::new(Sqlite::open(name, PathBuf::from(path), home)))
        }
        Some(("s3", address)) if address.starts_with("//") => Ok(Arc::new(Files::in_s3(name, url, s3)?)),
        Some(("file" | "folder", _)) => Err(Failure::permanent(format!(
            "destination {name}: a folder needs its whole path; write file:///srv/lake"
        ))),
        Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => Err(Failure::permanent(
            format!("destination {name}: there is no destination of kind `{scheme}`; {KINDS}"),
        )),
        _ => Err(Failure::permanent(format!(
            "destination {name}: its address names no kind; {KINDS}"
        ))),
    }
}
