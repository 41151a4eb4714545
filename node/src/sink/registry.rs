//! From a destination's name and address to the [`Destination`]: the one place that knows which kinds there are.
//!
//! Opening never connects: a node starts while a warehouse is down, and the use of it says what is wrong.

use std::path::PathBuf;
use std::sync::Arc;

use haulage_core::failure::Failure;

use super::Destination;
use super::postgres::Postgres;
use super::sqlite::Sqlite;

/// Opens the destination `name` at `url`: `postgres://user:password@host:port/database`, `postgresql://...`, or
/// `sqlite:PATH`. Permanent failure if the address can't be read; the failure never repeats the address, because it may
/// hold a password.
pub async fn open(name: &str, url: &str) -> Result<Arc<dyn Destination>, Failure> {
    match url.split_once(':') {
        Some(("postgres" | "postgresql", _)) => Ok(Arc::new(Postgres::open(name, url)?)),
        Some(("sqlite", path)) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path == ":memory:" {
                return Err(Failure::permanent(format!(
                    "destination {name}: sqlite needs the path of a file; write sqlite:PATH"
                )));
            }
            Ok(Arc::new(Sqlite::open(name, PathBuf::from(path))))
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
