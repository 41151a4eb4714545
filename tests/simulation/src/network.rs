//! The network: sessions between nodes and coordinators, and calls over them that may be lost, delayed, doubled and
//! overtaken. Both ends learn of a cut at moments of their own, so a session may be half open for a while.

use haulage_coordinator::deciding::AgentId;
use haulage_core::ids::{Epoch, Millis, NodeName, RunId};
use haulage_core::run::Input;
use haulage_proto::link::message::{
    Assignment, AssignmentReply, AttemptKey, Done, Heartbeat, Hello, HelloReply, LeaseGrant,
};

use crate::coordinator::Op;
use crate::ledger::{LedgerAnswer, LedgerError};
use crate::trace::say;
use crate::work::PortAnswer;
use crate::world::{Event, Process, Role, World};

/// What reaches a process.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Request(u64, u64, Epoch, Box<Body>),
    /// The answer to a call; `None` once its time is up.
    Answer(u64, Option<(Epoch, Reply)>),
    SessionUp(u64),
    SessionDown(u64),
    // At a node.
    Beat(u64),
    Check,
    Restart(AttemptKey, u64),
    Port(AttemptKey, u64, PortAnswer),
    Report(AttemptKey, u64),
    // At a coordinator.
    Tick,
    Look,
    Flush(RunId, u64),
    Revive(RunId, u64),
    WriteAgain,
    Ledger(Op, Result<LedgerAnswer, LedgerError>),
    Tell(RunId, Box<Input>),
}

/// What is asked over a session.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Hello(Hello),
    Assign(Box<Assignment>),
    Drop(AttemptKey),
    Release(RunId),
    Heartbeat(Heartbeat),
    Done(Done),
}

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Hello(HelloReply),
    Assigned(AssignmentReply),
    Dropped,
    Grant(LeaseGrant),
    Acknowledged(bool),
}

/// What a caller does with the answer.
#[derive(Debug, Clone)]
pub(crate) enum Pending {
    Hello(AgentId, Millis),
    Assign(NodeName, String, AttemptKey, u32),
    Drop(NodeName, String, AttemptKey),
    Nothing,
    Beat(u64),
    Done(AttemptKey, u64),
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) node: Process,
    pub(crate) coordinator: Process,
    /// Nothing passes any more.
    pub(crate) cut: bool,
    /// Which ends take it for open.
    pub(crate) at_node: bool,
    pub(crate) at_coordinator: bool,
}

impl World {
    /// Nodes dial coordinators that lead, again and again.
    pub(crate) fn connect(&mut self) {
        self.queue.push(self.now + 250, Event::Connect);
        let now = self.now;
        self.partitions.retain(|_, until| *until > now);
        let gone: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, s)| {
                s.cut && !(s.at_node && self.lives(s.node)) && !(s.at_coordinator && self.lives(s.coordinator))
            })
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.sessions.remove(&id);
        }
        for node in 0..self.nodes.len() {
            for coordinator in 0..self.coordinators.len() {
                let (from, to) = (
                    self.process(Role::Node(node)),
                    self.process(Role::Coordinator(coordinator)),
                );
                let open = |s: &Session| (s.node, s.coordinator, s.cut) == (from, to, false);
                let wanted = self.lives(from)
                    && self.lives(to)
                    && self.coordinators[coordinator].lead.is_some()
                    && !self.partitions.contains_key(&(node, coordinator))
                    && !self.sessions.values().any(open);
                if !wanted || !self.chance.permille(700) {
                    continue;
                }
                let id = self.serial();
                let session = Session {
                    node: from,
                    coordinator: to,
                    cut: false,
                    at_node: false,
                    at_coordinator: false,
                };
                self.sessions.insert(id, session);
                let (wait, more) = (self.chance.between(1, 40), self.chance.below(40));
                self.after(wait, from, What::SessionUp(id));
                self.after(wait + more, to, What::SessionUp(id));
            }
        }
    }

    pub(crate) fn break_sessions(&mut self, which: impl Fn(&Session) -> bool) {
        let broken = self.sessions.iter_mut().filter(|(_, s)| !s.cut && which(s));
        let broken: Vec<(u64, Process, Process)> = broken
            .map(|(id, session)| {
                session.cut = true;
                (*id, session.node, session.coordinator)
            })
            .collect();
        for (id, node, coordinator) in broken {
            let (at_node, at_coordinator) = (self.chance.between(1, 7_000), self.chance.between(1, 7_000));
            self.after(at_node, node, What::SessionDown(id));
            self.after(at_coordinator, coordinator, What::SessionDown(id));
        }
    }

    /// Calls the other end of a session. Every call ends: with an answer, or after `timeout`.
    pub(crate) fn call(
        &mut self,
        caller: Process,
        session: u64,
        epoch: Epoch,
        body: Body,
        pending: Pending,
        timeout: u64,
    ) {
        let call = self.serial();
        self.calls.insert(call, pending);
        self.after(timeout, caller, What::Answer(call, None));
        self.send(caller, session, What::Request(session, call, epoch, Box::new(body)));
    }

    pub(crate) fn reply(&mut self, from: Process, session: u64, call: u64, epoch: Epoch, reply: Reply) {
        self.send(from, session, What::Answer(call, Some((epoch, reply))));
    }

    fn send(&mut self, from: Process, session: u64, what: What) {
        let Some(over) = self.sessions.get(&session) else {
            return;
        };
        if over.cut {
            return;
        }
        let to = if over.node == from { over.coordinator } else { over.node };
        if self.strikes(self.rates.message_lost, "message lost") {
            say!(self, "lost: {from} to {to}");
            return;
        }
        if self.strikes(self.rates.message_twice, "message doubled") {
            let wait = self.chance.between(1, 6_000);
            self.after(wait, to, what.clone());
        }
        let wait = if self.strikes(self.rates.message_slow, "message late") {
            self.chance.between(200, 6_000)
        } else {
            self.chance.between(1, 15)
        };
        self.after(wait, to, what);
    }
}
