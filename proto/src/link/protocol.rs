//! Which releases understand each other. A hello and its answer say which protocols their sender speaks; both ends come
//! to the same conclusion about that, each by itself, so a peer is served or refused and never misunderstood.
//!
//! The number stands for the meaning of messages, not for their form: the envelope has a version of its own
//! ([`super::wire::VERSION`]). A change that an older peer can do without (a field that may be missing) keeps the number;
//! one that it would misunderstand raises it, and whoever sends something new looks at what was agreed first.
//!
//! | protocol | what it brought |
//! |---|---|
//! | 1 | the first; its hello carries no number |
//! | 2 | nodes that leave: hand back attempts, decline assignments, can be asked to leave |

use serde::{Deserialize, Serialize};

/// The newest protocol that this release speaks.
pub const PROTOCOL: u32 = 2;
/// The oldest one that it still serves.
pub const OLDEST_SERVED: u32 = 1;
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

/// Two ends that have no protocol in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {role} runs {}, this process runs {}; run {} on both", name(.theirs), name(.ours), wanted(.ours, .theirs))]
pub struct Unsuited {
    /// What the peer is.
    pub role: &'static str,
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

    /// The newest protocol that both speak. `role` is what the peer is, for people.
    pub fn agree(&self, role: &'static str, theirs: &Self) -> Result<u32, Unsuited> {
        let newest = self.protocol.min(theirs.protocol);
        if newest < self.oldest.max(theirs.oldest) {
            return Err(Unsuited {
                role,
                theirs: theirs.clone(),
                ours: self.clone(),
            });
        }
        Ok(newest)
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

/// The newer of the two: an operator goes forward.
fn wanted(ours: &Speaks, theirs: &Speaks) -> String {
    let newer = if theirs.protocol > ours.protocol { theirs } else { ours };
    match newer.release.as_str() {
        "" => "the same release".to_owned(),
        release => format!("release {release}"),
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
            assert_eq!(one.agree("peer", &other).ok(), agreed, "{one:?} and {other:?}");
            assert_eq!(other.agree("peer", &one).ok(), agreed, "{other:?} and {one:?}");
        }
    }

    #[test]
    fn a_refusal_says_which_release_to_run() {
        let refused = speaks(1, 2)
            .agree("node", &speaks(99, 99))
            .expect_err("nothing in common");
        assert_eq!(
            refused.to_string(),
            "the node runs release 0.99.0 (protocol 99), this process runs release 0.2.0 (protocols 1 to 2); run release \
             0.99.0 on both"
        );
    }

    #[test]
    fn a_hello_without_a_number_is_of_the_first_protocol() {
        let read: Speaks = serde_json::from_str("{}").expect("every field may be missing");
        assert_eq!((read.oldest, read.protocol), (1, 1));
    }
}
