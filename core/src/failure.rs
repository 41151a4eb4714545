//! What went wrong, in a form that the ledger keeps and a retry decision can branch on.

use serde::{Deserialize, Serialize};

/// What a failure means for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// May pass by itself: a cut connection, a busy server, a lost node. Retried with backoff.
    Transient,
    /// Will fail the same way again: a missing file, a wrong password, a type that doesn't fit. The run ends.
    Permanent,
    /// Takes nodes down. Set aside, not passed round.
    Poison,
    /// A newer attempt or epoch exists. The attempt has no effect, and says nothing about the work.
    Fenced,
    /// Rows that were staged are gone: a crash of a database server empties unlogged tables. They are staged again.
    StagingLost,
}

/// A failure as it stands in the ledger. Never holds a secret or a connection string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What it means for a retry.
    pub class: Class,
    /// What happened, where, and what to do next. Lowercase, no full stop.
    pub message: String,
}

impl Failure {
    /// A failure that may pass by itself.
    pub fn transient(message: impl Into<String>) -> Self {
        Self {
            class: Class::Transient,
            message: message.into(),
        }
    }

    /// A failure that will repeat.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self {
            class: Class::Permanent,
            message: message.into(),
        }
    }

    /// Less is staged than was.
    pub fn staging_lost(message: impl Into<String>) -> Self {
        Self {
            class: Class::StagingLost,
            message: message.into(),
        }
    }

    /// Work that takes nodes down.
    pub fn poison(message: impl Into<String>) -> Self {
        Self {
            class: Class::Poison,
            message: message.into(),
        }
    }

    /// An attempt that a newer one has replaced.
    pub fn fenced(message: impl Into<String>) -> Self {
        Self {
            class: Class::Fenced,
            message: message.into(),
        }
    }
}
