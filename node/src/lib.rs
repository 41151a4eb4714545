//! The node: everything that touches data.
//!
//! A `NodeAgent` takes assignments from the coordinator; the supervisor gives each a chunk or step actor and restarts a
//! failed chunk actor from its last checkpoint. A chunk actor reads segments from a [`source`], runs the stage's SQL
//! over them ([`transform`]), and stages the rows at each destination ([`sink`]) together with a marker.
//!
//! A node decides nothing about a run: not what comes next, not whether a failed attempt is tried again elsewhere.

mod actors;
mod attach;
mod chance;
pub mod check;
pub mod config;
pub mod fault;
mod node;
mod quality;
pub mod receipt;
pub mod sink;
pub mod source;
pub mod store;
mod tls;
mod trace;
pub mod transform;
pub mod watermarks;
mod work;

pub use config::NodeConfig;
pub use node::{Error, Node, start};
