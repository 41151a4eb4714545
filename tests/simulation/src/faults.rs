//! Which faults a seed brings, how often, and how many were injected. Every seed has its own rates, and many of them are
//! 0: a fault is found more easily where not everything breaks at once.

use std::collections::BTreeMap;

use crate::chance::Chance;

/// How many faults were injected, by kind.
pub type Tally = BTreeMap<&'static str, u64>;

/// How many of a thousand go wrong, by kind.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    pub(crate) message_lost: u64,
    pub(crate) message_twice: u64,
    pub(crate) message_slow: u64,
    pub(crate) request_lost: u64,
    pub(crate) answer_lost: u64,
    pub(crate) request_late: u64,
    pub(crate) node_crash: u64,
    pub(crate) node_pause: u64,
    pub(crate) worker_crash: u64,
    pub(crate) destination_crash: u64,
    pub(crate) ledger_request_lost: u64,
    pub(crate) ledger_answer_lost: u64,
    pub(crate) ledger_late: u64,
    pub(crate) coordinator_crash: u64,
    pub(crate) coordinator_pause: u64,
    /// How long a segment takes to read and transform, at most; not a rate.
    pub(crate) segment_ms: u64,
}

impl Rates {
    pub(crate) fn of(chance: &mut Chance) -> Self {
        let mut up_to = |most: u64| {
            if chance.permille(500) {
                chance.between(1, most)
            } else {
                0
            }
        };
        Self {
            message_lost: up_to(60),
            message_twice: up_to(60),
            message_slow: up_to(40),
            request_lost: up_to(60),
            answer_lost: up_to(80),
            request_late: up_to(40),
            node_crash: up_to(30),
            node_pause: up_to(30),
            worker_crash: up_to(40),
            destination_crash: up_to(15),
            ledger_request_lost: up_to(40),
            ledger_answer_lost: up_to(60),
            ledger_late: up_to(20),
            coordinator_crash: up_to(15),
            coordinator_pause: up_to(15),
            segment_ms: up_to(1_500),
        }
    }
}

/// Something that befalls the world at a moment, whoever is at work.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    NodeCrash(usize),
    NodePause(usize, u64),
    CoordinatorCrash(usize),
    CoordinatorPause(usize, u64),
    /// Another coordinator claims the ledger although somebody leads.
    Depose,
    /// A node and a coordinator don't reach each other for so long.
    Partition(usize, usize, u64),
    /// Every connection between nodes and coordinators is cut.
    Cut,
    LedgerDown(u64),
    DestinationDown(usize, u64),
    DestinationCrash(usize),
    /// The actor of every run fails and is started again.
    RunActors,
}

impl Fault {
    pub(crate) fn any(chance: &mut Chance, nodes: usize, coordinators: usize, destinations: usize) -> Self {
        let pause = chance.between(200, 12_000);
        match chance.below(12) {
            0 => Self::NodeCrash(chance.place(nodes)),
            1 | 2 => Self::NodePause(chance.place(nodes), pause),
            3 => Self::CoordinatorCrash(chance.place(coordinators)),
            4 => Self::CoordinatorPause(chance.place(coordinators), pause),
            5 => Self::Depose,
            6 | 7 => Self::Partition(chance.place(nodes), chance.place(coordinators), pause),
            8 => Self::Cut,
            9 => Self::LedgerDown(pause / 2),
            10 => Self::DestinationDown(chance.place(destinations), pause / 2),
            11 if chance.permille(500) => Self::DestinationCrash(chance.place(destinations)),
            _ => Self::RunActors,
        }
    }
}
