//! From the pipeline file to a checked plan: parsing with line and column, typed parameters, and DataFusion's logical
//! plans of every step, looked at for what a chunk can't answer alone.
//!
//! The coordinator refuses an unsound submission with it, nodes run what it made, and `haulage validate` is it alone.
//! Deliberately not here: anything that opens a source or a destination.

pub mod checks;
pub mod compile;
pub mod contract;
mod deep;
pub mod definition;
pub mod diagnostics;
pub mod moment;
mod parse;
pub mod render;
mod rest;
pub mod types;
mod yaml;

pub use compile::{Compiled, compile};
pub use diagnostics::{Diagnostic, Diagnostics, did_you_mean};
pub use parse::{Draft, Sound, outline, parse_and_bind};

/// The hidden last column that carries a row's place in its segment through every step of a chunk, so that a reject
/// finds its line and every row is accounted for. UInt64, not null. No column of a source may have this name.
pub const ROW_COLUMN: &str = "__haulage_row";

/// The columns that `provenance: true` adds to a load's rows, all nullable: the run (text), its chunk (text), and the line
/// or row number in the chunk's object (bigint).
pub const PROVENANCE: [&str; 3] = ["_haulage_run", "_haulage_chunk", "_haulage_line"];
