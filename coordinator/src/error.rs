//! What can end a coordinator, or keep it from starting.

use crate::ledger;

/// Why a coordinator could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger could not be opened, claimed or read.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// An actor did not start; a mistake in this program.
    #[error("could not start the {actor} actor: {source}")]
    Spawn {
        /// Which.
        actor: &'static str,
        /// Why.
        source: ractor::SpawnErr,
    },
    /// The cluster session did not start.
    #[error("could not start the cluster session: {0}")]
    Session(String),
    /// The port could not be served.
    #[error("the gRPC port could not be served: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// Server reflection could not be built; a mistake in this program.
    #[error("server reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Another coordinator leads now.
    #[error("{0}")]
    Deposed(String),
}
