//! What crosses a process boundary: the public gRPC interface, its conversion from core's types, and the cluster link.
//!
//! Generated types stop at [`convert`], the coordinator's `api/` and the link: no decision is ever made on one.
//!
//! Deliberately not here: actors, the ledger, anything that opens a source or a destination.

pub mod convert;
pub mod link;
pub mod receipt;

/// Generated from `haulage/v1/*.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("haulage.v1");

    /// The encoded `FileDescriptorSet` of every file, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/haulage.bin"));
}
