//! Which releases understand each other. A hello and its answer say which protocols their sender speaks; both ends come
//! to the same conclusion about that, each by itself, so a peer is served or refused and never misunderstood.
//!
//! The number stands for the meaning of messages, not for their form: the envelope has a version of its own
//! ([`super::wire::VERSION`]). A change that an older peer can do without (a field that may be missing) keeps the number;
//! one that it would misunderstand raises it. Whoever sends something new looks at what was agreed first; what any peer may
//! have to be told raises the oldest protocol that is served, too.
//!
//! | protocol | what it brought | served |
//! |---|---|---|
//! | 1 | the first; its hello carries no number | no: it knows neither `recall` nor staging that is lost |
//! | 2 | nodes that leave, steps that recall a load, staging again what is lost | no: it keeps no target for a run that may still take its load back, nor lets it go |
//! | 3 | a load that is recalled keeps its target, until it is reverted or let go | no: it would read the sources of a replay, and not what is replayed |
//! | 4 | replays; nodes can be asked about what is published | yes |
//!
//! Nodes of protocol 1 don't look at a coordinator's numbers: one that is refused gets no lease and no work, and only the
//! coordinator's log says why.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The newest protocol that this release speaks.
pub const PROTOCOL: u32 = 4;
/// The oldest one that it still serves.
pub const OLDEST_SERVED: u32 = 4;
/// The first protocol in which a node can leave in order.
pub const LEAVING: u32 = 2;

/// What a peer speaks. A hello that doesn't say so is of protocol 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Speaks {
    /// The newest.
    pub protocol: u32,
    /// The oldest.
    pub oldest: u32,
    /// The release, for people.
    pub release: String,
}

impl Default for Speaks {
    fn default() -> Self {
        Self {
            protocol: 1,
            oldest: 1,
            release: String::new(),
        }
    }
}

/// The two ends of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It gives out work.
    Coordinator,
    /// It does the work.
    Node,
}

/// Two ends that have no protocol in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {peer} runs {}, this {} runs {}; {}", name(.theirs), .peer.other(), name(.ours), self.way_out())]
pub struct Unsuited {
    /// What the peer is.
    pub peer: Role,
    /// What it speaks.
    pub theirs: Speaks,
    /// What this end speaks.
    pub ours: Speaks,
}

impl Speaks {
    /// What this release speaks.
    pub fn ours() -> Self {
        Self {
            protocol: PROTOCOL,
            oldest: OLDEST_SERVED,
            release: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The newest protocol that both speak. `peer` is the end that speaks `theirs`.
    pub fn agree(&self, peer: Role, theirs: &Self) -> Result<u32, Unsuited> {
        let newest = self.protocol.min(theirs.protocol);
        if newest < self.oldest.max(theirs.oldest) {
            return Err(Unsuited {
                peer,
                theirs: theirs.clone(),
                ours: self.clone(),
            });
        }
        Ok(newest)
    }
}

impl Role {
    fn other(self) -> Self {
        match self {
            Self::Coordinator => Self::Node,
            Self::Node => Self::Coordinator,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "coordinator",
            Self::Node => "node",
        })
    }
}

impl Unsuited {
    /// The older end goes forward. Both ends name the same one, since without a common protocol the newest ones differ.
    fn way_out(&self) -> String {
        let Self { peer, theirs, ours } = self;
        let (which, newer) = if theirs.protocol > ours.protocol {
            (format!("this {}", peer.other()), theirs)
        } else {
            (format!("the {peer}"), ours)
        };
        if newer.release.is_empty() {
            format!("upgrade {which} to a release of protocol {}", newer.protocol)
        } else {
            format!("upgrade {which} to release {}", newer.release)
        }
    }
}

fn name(speaks: &Speaks) -> String {
    let Speaks {
        protocol,
        oldest,
        release,
    } = speaks;
    let protocols = if oldest == protocol {
        format!("protocol {protocol}")
    } else {
        format!("protocols {oldest} to {protocol}")
    };
    if release.is_empty() {
        format!("an early release ({protocols})")
    } else {
        format!("release {release} ({protocols})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(oldest: u32, protocol: u32) -> Speaks {
        Speaks {
            protocol,
            oldest,
            release: format!("0.{protocol}.0"),
        }
    }

    #[test]
    fn both_ends_come_to_the_same_conclusion() {
        for (one, other, agreed) in [
            (speaks(1, 2), speaks(1, 2), Some(2)),
            (speaks(1, 2), Speaks::default(), Some(1)),
            (speaks(1, 2), speaks(2, 99), Some(2)),
            (speaks(1, 2), speaks(99, 99), None),
            (speaks(3, 4), speaks(1, 2), None),
        ] {
            assert_eq!(one.agree(Role::Node, &other).ok(), agreed, "{one:?} and {other:?}");
            assert_eq!(
                other.agree(Role::Coordinator, &one).ok(),
                agreed,
                "{other:?} and {one:?}"
            );
        }
    }

    #[test]
    fn a_refusal_says_on_both_sides_which_one_to_upgrade() {
        for (coordinator, node, on_the_coordinator, on_the_node) in [
            (
                speaks(1, 2),
                speaks(99, 99),
                "the node runs release 0.99.0 (protocol 99), this coordinator runs release 0.2.0 (protocols 1 to 2); upgrade \
                 this coordinator to release 0.99.0",
                "the coordinator runs release 0.2.0 (protocols 1 to 2), this node runs release 0.99.0 (protocol 99); upgrade \
                 the coordinator to release 0.99.0",
            ),
            (
                speaks(2, 2),
                Speaks::default(),
                "the node runs an early release (protocol 1), this coordinator runs release 0.2.0 (protocol 2); upgrade the \
                 node to release 0.2.0",
                "the coordinator runs release 0.2.0 (protocol 2), this node runs an early release (protocol 1); upgrade this \
                 node to release 0.2.0",
            ),
        ] {
            let refused = coordinator.agree(Role::Node, &node).expect_err("nothing in common");
            assert_eq!(refused.to_string(), on_the_coordinator);
            let refused = node
                .agree(Role::Coordinator, &coordinator)
                .expect_err("nothing in common");
            assert_eq!(refused.to_string(), on_the_node);
        }
    }

    #[test]
    fn this_release_refuses_what_is_too_old_and_serves_who_speaks_both() {
        for (theirs, agreed) in [
            (Speaks::default(), None),
            (speaks(1, OLDEST_SERVED - 1), None),
            (speaks(1, OLDEST_SERVED), Some(OLDEST_SERVED)),
            (speaks(PROTOCOL - 1, PROTOCOL), Some(PROTOCOL)),
            (speaks(PROTOCOL, PROTOCOL + 1), Some(PROTOCOL)),
        ] {
            assert_eq!(Speaks::ours().agree(Role::Node, &theirs).ok(), agreed, "{theirs:?}");
        }
    }

    #[test]
    fn a_hello_without_a_number_is_of_the_first_protocol() {
        let read: Speaks = serde_json::from_str("{}").expect("every field may be missing");
        assert_eq!((read.oldest, read.protocol), (1, 1));
    }
}
