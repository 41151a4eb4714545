//! What a destination says when its staging area isn't what the chunks reported: the same in all of them, since the run
//! decides by the failure's class whether it stages again.

use haulage_core::failure::Failure;
use haulage_core::words::counted;

use super::{Expected, LoadContext};

/// A load's staging area, held against what its chunks reported.
pub(super) struct Staged<'a> {
    /// The load.
    pub(super) load: &'a LoadContext,
    /// What the chunks reported.
    pub(super) expected: Expected,
    /// What may have made it less at this destination, for a person; empty if nothing is known to.
    pub(super) lost_by: &'static str,
}

impl Staged<'_> {
    /// The markers that stand.
    pub(super) fn marked(&self, found: Expected) -> Result<(), Failure> {
        let words = format!(
            "has {} with {} marked",
            counted(found.segments, "segment"),
            counted(found.rows, "row")
        );
        self.holds(found, &words)
    }

    /// The rows that are there, whatever the markers say.
    pub(super) fn counted(&self, rows: u64) -> Result<(), Failure> {
        let found = Expected { rows, ..self.expected };
        self.holds(found, &format!("holds {}", counted(rows, "row")))
    }

    /// A table of the staging area that should be there and isn't; `held` is what was in it.
    pub(super) fn gone(&self, table: &str, held: &str) -> Failure {
        Failure::staging_lost(format!("load {}: {table}, where its {held}, is gone", self.load.load))
    }

    /// Less than was staged can be staged again; more is nobody's.
    fn holds(&self, found: Expected, words: &str) -> Result<(), Failure> {
        let Self {
            load,
            expected,
            lost_by,
        } = self;
        if found == *expected {
            return Ok(());
        }
        let message = format!(
            "load {}: the staging area {words}, and the chunks reported {} in {}",
            load.load,
            counted(expected.rows, "row"),
            counted(expected.segments, "segment")
        );
        if found.rows > expected.rows || found.segments > expected.segments {
            return Err(Failure::permanent(format!(
                "{message}; somebody else has written there: run the pipeline again"
            )));
        }
        Err(Failure::staging_lost(if lost_by.is_empty() {
            message
        } else {
            format!("{message}; {lost_by}")
        }))
    }
}

#[cfg(test)]
mod tests {
    use haulage_core::failure::Class;

    use super::*;

    fn expected(segments: u64, rows: u64) -> Expected {
        Expected { rows, segments }
    }

    #[test]
    fn less_can_be_staged_again_and_more_is_nobodys() {
        let load = crate::sink::tests::load();
        let staged = Staged {
            load: &load,
            expected: expected(2, 30),
            lost_by: "",
        };
        assert_eq!(staged.marked(expected(2, 30)), Ok(()));
        assert_eq!(staged.counted(30), Ok(()));
        for (less, words) in [
            (staged.marked(expected(1, 30)), "has 1 segment with 30 rows marked"),
            (staged.marked(expected(2, 29)), "has 2 segments with 29 rows marked"),
            (staged.counted(0), "holds 0 rows"),
        ] {
            let failure = less.expect_err("less than was staged");
            assert_eq!(failure.class, Class::StagingLost);
            assert_eq!(
                failure.message,
                format!("load l: the staging area {words}, and the chunks reported 30 rows in 2 segments")
            );
        }
        for more in [
            staged.marked(expected(3, 30)),
            staged.marked(expected(1, 31)),
            staged.counted(31),
        ] {
            let failure = more.expect_err("more than was staged");
            assert_eq!(failure.class, Class::Permanent);
            assert!(failure.message.ends_with("run the pipeline again"), "{failure}");
        }
    }

    #[test]
    fn what_may_have_lost_it_is_said() {
        let load = crate::sink::tests::load();
        let staged = Staged {
            load: &load,
            expected: expected(2, 30),
            lost_by: "the moon did it",
        };
        let failure = staged.counted(7).expect_err("less than was staged");
        assert!(failure.message.ends_with("in 2 segments; the moon did it"), "{failure}");
        let gone = staged.gone("stage_1", "rows were staged");
        assert_eq!(gone.class, Class::StagingLost);
        assert_eq!(gone.message, "load l: stage_1, where its rows were staged, is gone");
    }
}
