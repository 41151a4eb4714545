//! Exit codes, and the two errors that are not plain failures.
//!
//! 0: done, or already published. 1: failed. 2: wrong usage. 130: interrupted, or the run was cancelled.

use std::process::ExitCode;

use haulage_proto::v1::RunState;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for is done.
    Success,
    /// It failed, and an error has been printed.
    Failed,
    /// The command line can't mean anything.
    Usage,
    /// Ctrl-C, or a cancelled run.
    Interrupted,
}

/// A mistake in the command line that only shows after parsing: a missing file, a value that is no address.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

impl Exit {
    /// The code that a run's last known state stands for.
    pub(crate) fn of_state(state: RunState) -> Self {
        match state {
            RunState::Published => Self::Success,
            RunState::Cancelled => Self::Interrupted,
            RunState::Failed
            | RunState::Reverting
            | RunState::Reverted
            | RunState::Stuck
            | RunState::Unspecified
            | RunState::Discovering
            | RunState::Loading
            | RunState::Verifying
            | RunState::Publishing
            | RunState::RollingBack => Self::Failed,
        }
    }

    /// The code for an error that ended a verb; `None` if it is only that nobody reads our output any more.
    pub(crate) fn of_error(error: &anyhow::Error) -> Option<Self> {
        for cause in error.chain() {
            if cause.is::<Usage>() {
                return Some(Self::Usage);
            }
            if let Some(io) = cause.downcast_ref::<std::io::Error>()
                && io.kind() == std::io::ErrorKind::BrokenPipe
                && cause.to_string() == crate::output::CLOSED
            {
                return None;
            }
        }
        Some(Self::Failed)
    }

    /// The number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Interrupted => 130,
        }
    }
}

/// An error with its causes, one after the other, without those that an earlier one quotes already.
pub(crate) fn said_once(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if said.contains(&text) {
            continue;
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(&text);
    }
    said
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_map_to_documented_codes() {
        let cases = [
            (RunState::Published, 0),
            (RunState::Failed, 1),
            (RunState::Stuck, 1),
            (RunState::Loading, 1),
            (RunState::Cancelled, 130),
        ];
        for (state, code) in cases {
            assert_eq!(Exit::of_state(state).code(), code, "{state:?}");
        }
    }

    #[test]
    fn a_cause_that_is_quoted_is_not_said_again() {
        let refused = || std::io::Error::other("password authentication failed");
        let quoting = anyhow::Error::from(refused()).context("can't open the ledger: password authentication failed");
        assert_eq!(
            said_once(&quoting),
            "can't open the ledger: password authentication failed"
        );
        let plain = anyhow::Error::from(refused()).context("can't open the ledger");
        assert_eq!(
            said_once(&plain),
            "can't open the ledger: password authentication failed"
        );
    }

    #[test]
    fn usage_is_found_under_context() {
        let error = anyhow::Error::from(Usage("no such file".into())).context("while reading");
        assert_eq!(Exit::of_error(&error), Some(Exit::Usage));
        assert_eq!(Exit::of_error(&anyhow::anyhow!("boom")), Some(Exit::Failed));
    }

    #[test]
    fn a_closed_pipe_on_stdout_is_no_error_but_one_elsewhere_is() {
        let ours = std::io::Error::new(std::io::ErrorKind::BrokenPipe, crate::output::CLOSED);
        assert_eq!(Exit::of_error(&ours.into()), None);
        let other = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Exit::of_error(&other.into()), Some(Exit::Failed));
    }
}
