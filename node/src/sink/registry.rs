//! From a destination's name and address to the [`Destination`]: the one place that knows which kinds there are.
//!
//! Opening never connects: a node starts while a warehouse is down, and the use of it says what is wrong.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use haulage_core::failure::Failure;

use sqlx::postgres::PgConnectOptions;

use super::Destination;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use crate::config::CONNECTIONS;

/// Where an address leads, without who goes there: `postgres://host:port/database` or `sqlite:/path`. Two addresses of one
/// place that are spelled differently (a host and its number) count as two. None if the address can't be read.
pub(crate) fn place(url: &str) -> Option<String> {
    match url.split_once(':')? {
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
    open_with(name, url, CONNECTIONS, None).await
}

/// Opens the destination `name` at `url`: `postgres://user:password@host:port/database`, `postgresql://...`, or
/// `sqlite:PATH`. `connections` bounds the segments that write to it at once, see [`Destination::reserve`]; `home` is the one
/// folder that is made when a file is to be in it. Permanent failure if the address can't be read; the failure never repeats the address, because it may hold a password.
pub async fn open_with(
    name: &str,
    url: &str,
    connections: u32,
    home: Option<&Path>,
) -> Result<Arc<dyn Destination>, Failure> {
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
        Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => {
            Err(Failure::permanent(format!(
                "destination {name}: there is no destination of kind `{scheme}`; use postgres://... or sqlite:PATH"
            )))
        }
        _ => Err(Failure::permanent(format!(
            "destination {name}: its address names no kind; use postgres://... or sqlite:PATH"
        ))),
    }
}
