//! The actors of a coordinator: thin shells, one a file.
//!
//! ```text
//!   node ──heartbeat, done──► gateway ──► cluster ◄──what is outstanding── run ◄── api
//!    ▲                           └──────done────────────────────────────► run ──► ledger
//!    └──hello, assign, drop── cluster ──grant, dropped, node lost────────► run
//!                                      runs supervises every run
//! ```
//!
//! What there is to decide stands elsewhere: about runs in `haulage_core::run`, about who gets which work, what is sent
//! and what follows from an append in `deciding`, about silence in `haulage_core::lease`. An actor never waits for another one's answer, and never for a node: calls
//! are made by tasks that send back what came of them.
//!
//! Mailboxes are unbounded in ractor, so everything that fills one is bounded by something else: a node's messages by
//! its heartbeat and its credit, a run's by its grants, a client's by its open requests.

pub(crate) mod calls;
pub(crate) mod cluster;
pub(crate) mod gateway;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use haulage_core::ids::{Epoch, RunId};
use haulage_core::lease;
use haulage_proto::link::wire::{self, Meta, Wire};
use ractor::{ActorRef, Message, RpcReplyPort};
use serde::Serialize;
use tokio::sync::watch;

use crate::complaints::Complaints;
use crate::leadership::Leadership;
use crate::ledger::{Ledger, group};
use table::RunTable;

/// What every actor and the API of one leader share.
pub(crate) struct Shared {
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) writer: group::Writer,
    pub(crate) leadership: Leadership,
    pub(crate) settings: lease::Settings,
    pub(crate) table: RunTable,
    pub(crate) complaints: Arc<Complaints>,
    /// How many nodes are alive, for those who wait for one.
    pub(crate) alive: watch::Sender<usize>,
    /// Runs that no node which is alive may work on, each with what has to change.
    pub(crate) misplaced: watch::Sender<BTreeMap<RunId, String>>,
}

impl Shared {
    pub(crate) fn epoch(&self) -> Epoch {
        self.leadership.epoch()
    }

    /// The envelope of a message that belongs to no run.
    pub(crate) fn meta(&self) -> Meta {
        Meta {
            epoch: self.epoch(),
            ..Meta::default()
        }
    }
}

/// Where the answer to a node's call goes.
#[derive(Debug)]
pub(crate) struct Answer {
    meta: Meta,
    port: RpcReplyPort<Wire>,
}

impl Answer {
    pub(crate) fn new(meta: Meta, port: RpcReplyPort<Wire>) -> Self {
        Self { meta, port }
    }

    /// Sends it. A node that no longer waits asks again, so nothing is lost with an answer.
    pub(crate) fn send<T: Serialize>(self, body: &T) {
        match wire::encode(&self.meta, body) {
            Ok(wire) => drop(self.port.send(wire)),
            Err(error) => tracing::error!(%error, "could not encode an answer to a node"),
        }
    }
}

/// Tells an actor of this process something. It fails only when that actor has ended: then nobody needs to know, since
/// whoever replaces it starts from the ledger.
pub(crate) fn tell<M: Message>(actor: &ActorRef<M>, message: M) {
    drop(actor.cast(message));
}
