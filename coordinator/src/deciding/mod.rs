//! What a coordinator decides beside `haulage_core::run`: who gets which work and when it is sent, what a node is
//! answered, and what follows from each outcome of an append.
//!
//! ```text
//!   actors (ractor, tokio, a clock)          deciding (this module)
//!   message ──────────────────────────────►  Dispatch, RunLog: facts in
//!   sends, appends, answers  ◄─────────────  Action: what to do, in order
//! ```
//!
//! Nothing here has a clock, a runtime, randomness or IO: time is an argument, an agent is an id, and whoever waits for
//! an answer is a value that comes back with it. So the actors and the simulation run the same code.
//!
//! An internal interface of the workspace, without promises to anybody else.

pub(crate) mod assignment;
mod board;
mod dispatch;
mod nodes;
mod reached;
mod run_log;

use std::collections::HashMap;
use std::fmt;

pub use assignment::input;
pub use board::{Awaited, Places, Post, Waiting};
pub use dispatch::{Action, Beat, Dispatch, DrainError, Heard, NodeView, ToRun, Ungreeted};
pub use nodes::Summary;
pub use run_log::{Answer, Next, RunAction, RunLog, Unreadable, Waits};

/// A trace context as it travels: `traceparent` and `tracestate`.
pub type Carrier = HashMap<String, String>;

/// How long a node may take to answer a call before it is made again.
pub const CALL_TIMEOUT_MS: u64 = 3_000;

/// An agent as the shell knows it: the session it is reached by, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId {
    /// The session; `None` is this process.
    pub session: Option<u64>,
    /// The actor's number on its side of the session.
    pub number: u64,
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.session {
            Some(session) => write!(f, "{session}.{}", self.number),
            None => write!(f, "0.{}", self.number),
        }
    }
}

/// What is known of a run that no actor leads at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actorless {
    /// Its actor is being started.
    Starting,
    /// It can't be recovered.
    SetAside,
    /// It is at rest, or was never heard of.
    Unknown {
        /// Whether every open run has been looked at, so that it can't be one of those.
        complete: bool,
    },
}

impl Actorless {
    /// Whether a node may forget how an attempt of it ended.
    pub fn acknowledges(self) -> bool {
        match self {
            Self::Starting => false,
            Self::SetAside => true,
            // Nobody wants it. While runs are still being recovered, nobody knows.
            Self::Unknown { complete } => complete,
        }
    }
}
