//! A node's model: agent, heartbeater, supervisor and reporter of `node/src/actors`, with the production's own fence
//! (`core::lease::SelfFence`).

use std::collections::BTreeMap;

use haulage_core::checkpoint::Counts;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Attempt, Epoch, NodeName, Work};
use haulage_core::lease::{HEARTBEAT_MS, LEASE_MS, SelfFence};
use haulage_proto::link::message::{
    Assignment, AssignmentReply, AttemptKey, Done, Heartbeat, Hello, HelloReply, LeaseGrant, Outcome,
};
use haulage_proto::link::protocol::Speaks;

use crate::bug::Bug;
use crate::invariants::Happened;
use crate::network::{Body, Pending, Reply, What};
use crate::trace::say;
use crate::work::{Next, PortAnswer, PortCall, Worker};
use crate::world::{Life, Process, Role, World};

/// As in the node's supervisor.
const RESTARTS: u32 = 3;
const BESIDE: usize = 4;
const SLOTS: u32 = 2;
/// As in the node's reporter.
const ANSWER_MS: u64 = 5_000;
const REPORT_MS: (u64, u64) = (50, 2_000);

#[derive(Debug)]
enum Phase {
    Running(Worker),
    Waiting,
    Finished(Result<Outcome, Failure>),
}

#[derive(Debug)]
struct Entry {
    assignment: Assignment,
    epoch: Epoch,
    attempt: Attempt,
    restarts: u32,
    serial: u64,
    tries: u32,
    phase: Phase,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) life: Life,
    name: NodeName,
    epoch: Epoch,
    fence: SelfFence,
    lease_ms: u64,
    heartbeat_ms: u64,
    rhythm: u64,
    greeted: Option<u64>,
    leased: bool,
    entries: BTreeMap<AttemptKey, Entry>,
}

impl Node {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            life: Life {
                up: true,
                number: 1,
                paused_until: 0,
            },
            name: NodeName::new(format!("n{number}")),
            epoch: Epoch(0),
            fence: SelfFence::default(),
            lease_ms: LEASE_MS,
            heartbeat_ms: HEARTBEAT_MS,
            rhythm: 0,
            greeted: None,
            leased: false,
            entries: BTreeMap::new(),
        }
    }

    /// The process has ended: nothing of its memory is left.
    pub(crate) fn stop(&mut self) {
        *self = Self {
            life: self.life,
            name: self.name.clone(),
            ..Self::new(0)
        };
    }

    fn boot(&self) -> String {
        format!("{}-{}", self.name, self.life.number)
    }

    fn admit(&mut self, epoch: Epoch, bug: Option<Bug>) -> bool {
        let admitted = epoch >= self.epoch || bug == Some(Bug::NodeWithoutEpoch);
        self.epoch = self.epoch.max(epoch);
        admitted
    }

    fn has_room(&self, work: &Work) -> bool {
        let is_chunk = |work: &Work| matches!(work, Work::Chunk(_));
        let working = self
            .entries
            .iter()
            .filter(|(_, entry)| !matches!(entry.phase, Phase::Finished(_)));
        let (chunks, beside): (Vec<_>, Vec<_>) = working.partition(|(key, _)| is_chunk(&key.work));
        let free = if is_chunk(work) {
            chunks.len() < SLOTS as usize
        } else {
            beside.len() < BESIDE
        };
        self.leased && free
    }
}

impl World {
    pub(crate) fn at_node(&mut self, node: usize, what: What) {
        let me = self.process(Role::Node(node));
        match what {
            What::Request(session, call, epoch, body) => self.asked(node, session, call, epoch, *body),
            What::Answer(call, answer) => {
                let Some(pending) = self.calls.remove(&call) else {
                    return;
                };
                match (pending, answer) {
                    (Pending::Beat(sent), Some((epoch, Reply::Grant(grant)))) => self.granted(node, sent, epoch, grant),
                    (Pending::Done(key, serial), Some((_, Reply::Acknowledged(true)))) => {
                        let held = self.nodes[node].entries.get(&key);
                        if held.is_some_and(|entry| entry.serial == serial) {
                            self.nodes[node].entries.remove(&key);
                        }
                    }
                    (Pending::Done(key, serial), _) => self.report_later(node, key, serial),
                    (_, _) => {}
                }
            }
            What::SessionUp(id) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.at_node = !session.cut;
                }
            }
            What::SessionDown(id) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.at_node = false;
                }
            }
            What::Beat(rhythm) if rhythm == self.nodes[node].rhythm => {
                self.after(self.nodes[node].heartbeat_ms, me, What::Beat(rhythm));
                self.check_lease(node);
                self.beat(node);
            }
            What::Check => self.check_lease(node),
            What::Restart(key, serial) => {
                let due = |entry: &Entry| entry.serial == serial && matches!(entry.phase, Phase::Waiting);
                if self.nodes[node].entries.get(&key).is_some_and(due) {
                    self.start_worker(node, &key);
                }
            }
            What::Port(key, serial, answer) => self.port_answered(node, key, serial, answer),
            What::Report(key, serial) => self.report(node, key, serial),
            // Of another rhythm, or for a coordinator.
            What::Beat(_)
            | What::Tick
            | What::Look
            | What::Flush(..)
            | What::Revive(..)
            | What::WriteAgain
            | What::Ledger(..)
            | What::Tell(..) => {}
        }
    }

    fn heard(&mut self, node: usize, epoch: Epoch) -> bool {
        let by = self.process(Role::Node(node));
        self.happened.push(Happened::Heard { by, epoch });
        self.nodes[node].admit(epoch, self.bug)
    }

    fn asked(&mut self, node: usize, session: u64, call: u64, epoch: Epoch, body: Body) {
        let me = self.process(Role::Node(node));
        let admitted = self.heard(node, epoch);
        let reply = match body {
            Body::Assign(_) if !admitted => Reply::Assigned(AssignmentReply::StaleEpoch),
            _ if !admitted => return,
            Body::Hello(hello) => self.greeted(node, &hello),
            Body::Assign(assignment) => Reply::Assigned(self.assign(node, epoch, *assignment)),
            Body::Drop(key) => {
                self.forget(node, &key);
                Reply::Dropped
            }
            Body::Release(run) => {
                let held = self.nodes[node].entries.keys().filter(|key| key.run == run);
                for key in held.cloned().collect::<Vec<_>>() {
                    self.forget(node, &key);
                }
                Reply::Dropped
            }
            // A node is asked neither.
            Body::Heartbeat(_) | Body::Done(_) => return,
        };
        let epoch = self.nodes[node].epoch;
        self.reply(me, session, call, epoch, reply);
    }

    fn greeted(&mut self, node: usize, hello: &Hello) -> Reply {
        let me = self.process(Role::Node(node));
        self.check_lease(node);
        let one = &mut self.nodes[node];
        one.lease_ms = hello.lease_ms.max(1);
        one.heartbeat_ms = hello.heartbeat_ms.clamp(1, one.lease_ms);
        one.greeted = Some(self.now);
        one.rhythm += 1;
        let (rhythm, lease_ms) = (one.rhythm, one.lease_ms);
        // Nobody knows how long the greeting was on its way.
        if !one.leased {
            self.lease(node, self.now, lease_ms);
        }
        self.after(0, me, What::Beat(rhythm));
        let one = &self.nodes[node];
        Reply::Hello(HelloReply {
            node: one.name.clone(),
            boot: one.boot(),
            version: String::new(),
            slots: SLOTS,
            places: BTreeMap::new(),
            running: one.entries.keys().cloned().collect(),
            speaks: Speaks::ours(),
            draining: false,
        })
    }

    fn beat(&mut self, node: usize) {
        let me = self.process(Role::Node(node));
        let one = &self.nodes[node];
        let (epoch, timeout) = (one.epoch, one.heartbeat_ms * 3 / 2 + 1);
        let heartbeat = Heartbeat {
            node: one.name.clone(),
            boot: one.boot(),
            progress: one.entries.keys().map(|key| (key.clone(), Counts::default())).collect(),
            ahead: Vec::new(),
            draining: false,
        };
        for session in self.gateways(me) {
            let body = Body::Heartbeat(heartbeat.clone());
            self.call(me, session, epoch, body, Pending::Beat(self.now), timeout);
        }
    }

    fn gateways(&self, node: Process) -> Vec<u64> {
        let open = self.sessions.iter().filter(|(_, s)| s.node == node && s.at_node);
        open.map(|(id, _)| *id).collect()
    }

    fn granted(&mut self, node: usize, sent: u64, epoch: Epoch, grant: LeaseGrant) {
        if !self.heard(node, epoch) {
            return;
        }
        if grant.unknown {
            if self.nodes[node].greeted.is_some_and(|greeted| sent >= greeted) {
                self.nodes[node].fence.clear();
                self.lapse(node, "given up by the leader");
            }
            return;
        }
        if grant.name_taken {
            return self.crash(Role::Node(node), "node refused");
        }
        for key in grant.unwanted {
            self.forget(node, &key);
        }
        self.lease(node, sent, grant.lease_ms);
    }

    fn lease(&mut self, node: usize, sent: u64, lease_ms: u64) {
        let me = self.process(Role::Node(node));
        self.nodes[node].fence.granted(sent, lease_ms);
        if self.nodes[node].fence.expired(self.now) {
            return self.check_lease(node);
        }
        self.nodes[node].leased = true;
        let left = (sent + lease_ms).saturating_sub(self.now);
        self.after(left, me, What::Check);
    }

    fn check_lease(&mut self, node: usize) {
        if self.nodes[node].fence.expired(self.now) {
            self.nodes[node].fence.clear();
            self.lapse(node, "its lease has run out");
        }
    }

    fn lapse(&mut self, node: usize, why: &str) {
        if std::mem::replace(&mut self.nodes[node].leased, false) {
            self.count("(a node fenced itself)");
            say!(self, "n{node} cancels its work: {why}");
            self.nodes[node]
                .entries
                .retain(|_, entry| matches!(entry.phase, Phase::Finished(_)));
        }
    }

    fn forget(&mut self, node: usize, key: &AttemptKey) {
        if self.nodes[node].entries.remove(key).is_some() {
            say!(
                self,
                "n{node} drops {} of {}, attempt {}",
                key.work,
                key.run,
                key.attempt
            );
        }
    }

    fn assign(&mut self, node: usize, epoch: Epoch, assignment: Assignment) -> AssignmentReply {
        let by = self.process(Role::Node(node));
        let key = assignment.key.clone();
        if self.nodes[node].entries.contains_key(&key) {
            return AssignmentReply::Accepted;
        }
        let older = self.nodes[node].entries.keys();
        let older: Vec<AttemptKey> = older
            .filter(|held| held.run == key.run && held.work == key.work)
            .cloned()
            .collect();
        for held in older {
            if held.attempt > key.attempt {
                return AssignmentReply::Full;
            }
            self.forget(node, &held);
        }
        if !self.nodes[node].has_room(&key.work) {
            return AssignmentReply::Full;
        }
        self.happened.push(Happened::Accepted { by, epoch });
        say!(
            self,
            "n{node} takes {} of {}, attempt {}, epoch {epoch}",
            key.work,
            key.run,
            key.attempt
        );
        let entry = Entry {
            attempt: key.attempt,
            assignment,
            epoch,
            restarts: 0,
            serial: 0,
            tries: 0,
            phase: Phase::Waiting,
        };
        self.nodes[node].entries.insert(key.clone(), entry);
        self.start_worker(node, &key);
        AssignmentReply::Accepted
    }

    fn start_worker(&mut self, node: usize, key: &AttemptKey) {
        let serial = self.serial();
        if let Some(entry) = self.nodes[node].entries.get_mut(key) {
            entry.serial = serial;
            entry.phase = Phase::Running(Worker::default());
            if entry.restarts > 0 && self.bug == Some(Bug::OwnAttempt) {
                entry.attempt = entry.attempt.next();
            }
            self.go_on(node, key);
        }
    }

    fn go_on(&mut self, node: usize, key: &AttemptKey) {
        let number = self.number(&key.run);
        let Some(entry) = self.nodes[node].entries.get_mut(key) else {
            return;
        };
        let Phase::Running(worker) = &mut entry.phase else {
            return;
        };
        let next = worker.next(
            number,
            &self.runs[number],
            &entry.assignment,
            (entry.epoch, entry.attempt),
        );
        let (serial, attempt) = (entry.serial, entry.attempt);
        match next {
            Next::Call(request) => {
                let call = PortCall {
                    key: key.clone(),
                    serial,
                    run: number,
                    attempt,
                    request,
                };
                self.call_port(self.process(Role::Node(node)), call);
            }
            Next::Ended(result) => self.ended(node, key, serial, result),
            Next::Crash => self.crash(Role::Node(node), "node crash by a poison chunk"),
        }
    }

    fn port_answered(&mut self, node: usize, key: AttemptKey, serial: u64, answer: PortAnswer) {
        let crashed = self.strikes(self.rates.worker_crash, "worker crash");
        let Some(entry) = self.nodes[node].entries.get_mut(&key) else {
            return;
        };
        let Phase::Running(worker) = &mut entry.phase else {
            return;
        };
        if entry.serial != serial {
            return;
        }
        match answer {
            _ if crashed => self.ended(node, &key, serial, Err(Failure::transient("the worker crashed"))),
            Ok(done) => {
                worker.answered(done);
                self.go_on(node, &key);
            }
            Err(failure) => self.ended(node, &key, serial, Err(failure)),
        }
    }

    fn ended(&mut self, node: usize, key: &AttemptKey, serial: u64, result: Result<Outcome, Failure>) {
        let wait = self.chance.between(150, 1_500);
        let me = self.process(Role::Node(node));
        let Some(entry) = self.nodes[node].entries.get_mut(key) else {
            return;
        };
        if entry.serial != serial {
            return;
        }
        let again = matches!(&result, Err(failure) if failure.class == Class::Transient)
            && matches!(key.work, Work::Chunk(_))
            && entry.restarts < RESTARTS;
        if again {
            entry.restarts += 1;
            entry.phase = Phase::Waiting;
            return self.after(wait, me, What::Restart(key.clone(), serial));
        }
        let how = match &result {
            Ok(_) => "well".to_owned(),
            Err(failure) => failure.to_string(),
        };
        entry.phase = Phase::Finished(result);
        say!(
            self,
            "n{node} ended {} of {}, attempt {}: {how}",
            key.work,
            key.run,
            key.attempt
        );
        self.report(node, key.clone(), serial);
    }

    /// Says how an attempt ended, until somebody acknowledges it.
    fn report(&mut self, node: usize, key: AttemptKey, serial: u64) {
        let me = self.process(Role::Node(node));
        let gateways = self.gateways(me);
        let Some(entry) = self.nodes[node].entries.get_mut(&key) else {
            return;
        };
        let Phase::Finished(result) = &entry.phase else { return };
        if entry.serial != serial {
            return;
        }
        entry.tries += 1;
        if entry.tries > 1 && self.bug == Some(Bug::DoneOnce) {
            return;
        }
        let (result, restarts, tries) = (result.clone(), entry.restarts, entry.tries as usize);
        let done = Done {
            node: self.nodes[node].name.clone(),
            key: key.clone(),
            result,
            restarts,
            bytes_read_again: 0,
        };
        let epoch = self.nodes[node].epoch;
        match gateways.is_empty() {
            true => self.report_later(node, key, serial),
            false => {
                let session = gateways[tries % gateways.len()];
                self.call(
                    me,
                    session,
                    epoch,
                    Body::Done(done),
                    Pending::Done(key, serial),
                    ANSWER_MS,
                );
            }
        }
    }

    fn report_later(&mut self, node: usize, key: AttemptKey, serial: u64) {
        let tries = self.nodes[node].entries.get(&key).map_or(0, |entry| entry.tries);
        let wait = (REPORT_MS.0 << tries.min(6)).min(REPORT_MS.1);
        self.after(wait, self.process(Role::Node(node)), What::Report(key, serial));
    }
}
