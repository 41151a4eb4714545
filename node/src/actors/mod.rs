//! The actors of a node.
//!
//! ```text
//!   coordinator ──AgentMessage──► NodeAgent ──► Supervisor ──spawns, links──► Worker (one per attempt)
//!        ▲  ▲                        │               │  ▲                        │ runs on the data runtime
//!        │  │                        │ hello         │  └──────── ended ─────────┘
//!        │  │                        ▼               ▼
//!        │  └───── heartbeat ─── Heartbeater     Reporter ─── done, until acknowledged ──┐
//!        └───────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Only the `NodeAgent` is remotable, lives as long as the process and has no name; everything else is local. None of
//! them touches data: a worker's data work runs on a runtime of its own, so that no heartbeat ever waits for a query.

pub(crate) mod agent;
pub(crate) mod gateway;
pub(crate) mod heartbeater;
pub(crate) mod reporter;
pub(crate) mod shared;
pub(crate) mod supervisor;
pub(crate) mod worker;
