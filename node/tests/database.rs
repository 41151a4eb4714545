//! Tables, views and queries of real databases as sources: everything is covered once, any checkpoint can be resumed from,
//! values arrive as they are, what changes meanwhile is not mixed in, and errors say what to do.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

#[path = "database/binary.rs"]
mod binary;
#[path = "database/mysql.rs"]
mod mysql;
#[path = "database/mysql_faults.rs"]
mod mysql_faults;
#[path = "database/mysql_values.rs"]
mod mysql_values;
#[path = "database/postgres.rs"]
mod postgres;
#[path = "database/reading.rs"]
mod reading;
#[path = "database/snapshot.rs"]
mod snapshot;
#[path = "database/sqlite.rs"]
mod sqlite;
#[path = "database/windows.rs"]
mod windows;
