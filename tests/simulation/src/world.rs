//! The world: everything there is, the loop that takes one event after the other, and what befalls everybody.

use std::collections::{BTreeMap, BTreeSet};

use haulage_core::ids::Millis;
use haulage_core::run::Phase;

use crate::bug::Bug;
use crate::call::Effect;
use crate::chance::Chance;
use crate::client::Client;
use crate::coordinator::Coordinator;
use crate::destination::Destination;
use crate::faults::{Fault, Rates, Tally};
use crate::invariants::{Checks, Happened, Violation};
use crate::ledger::{Ledger, LedgerCall};
use crate::network::{Pending, Session, What};
use crate::node::Node;
use crate::queue::Queue;
use crate::trace::{Trace, say};
use crate::work::PortCall;
use crate::workload::{self, DESTINATIONS, Run};
use crate::{Options, Report};

const NODES: usize = 3;
const COORDINATORS: usize = 2;
/// When faults stop.
const CALM_AT: u64 = 14_000;
/// How long after that every run has come to rest. Two runs that wait for each other's targets take five minutes until one
/// of them gives way.
const REST_WITHIN: u64 = 900_000;
/// How long late messages may still arrive after that.
const AFTERWARDS: u64 = 9_000;
/// What the wall clocks show when a history begins.
const WALL: u64 = 1_700_000_000_000;

/// A process: which, and its start. What was meant for an earlier start reaches nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) role: Role,
    pub(crate) life: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Node(usize),
    Coordinator(usize),
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.role {
            Role::Node(node) => write!(f, "n{node}.{}", self.life),
            Role::Coordinator(coordinator) => write!(f, "c{coordinator}.{}", self.life),
        }
    }
}

/// What is common to a process of either kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) up: bool,
    pub(crate) number: u32,
    pub(crate) paused_until: u64,
}

/// What happens next.
#[derive(Debug)]
pub(crate) enum Event {
    /// Something reaches a process.
    At(Process, What),
    /// A call reaches the ledger.
    Ledger(Process, crate::coordinator::Op, LedgerCall, bool),
    /// A call of a worker reaches a destination or a source.
    Port(Process, PortCall, bool),
    Start(Role),
    Fault(Fault),
    Client(Client),
    Connect,
    Elect,
    Calm,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) chance: Chance,
    pub(crate) queue: Queue<Event>,
    pub(crate) trace: Trace,
    pub(crate) tally: Tally,
    pub(crate) rates: Rates,
    pub(crate) calm: bool,
    pub(crate) bug: Option<Bug>,
    pub(crate) runs: Vec<Run>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) coordinators: Vec<Coordinator>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) calls: BTreeMap<u64, Pending>,
    pub(crate) partitions: BTreeMap<(usize, usize), u64>,
    pub(crate) ledger: Ledger,
    pub(crate) ledger_down_until: u64,
    pub(crate) destinations: Vec<Destination>,
    pub(crate) checks: Checks,
    /// What the step that is under way has changed.
    pub(crate) happened: Vec<Happened>,
    pub(crate) operated: BTreeSet<usize>,
    /// How often a replay was refused.
    pub(crate) refused: BTreeMap<usize, u32>,
    /// Replays that nobody asks for any more.
    pub(crate) given_up: BTreeSet<usize>,
    serial: u64,
}

impl World {
    pub(crate) fn new(options: &Options) -> Self {
        let mut chance = Chance::new(options.seed);
        let mut runs = workload::runs(&mut chance);
        workload::replays(&mut Chance::new(!options.seed), &mut runs);
        let rates = Rates::of(&mut chance);
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            trace: Trace::new(options.trace),
            tally: Tally::new(),
            rates,
            calm: false,
            bug: options.bug,
            checks: Checks::new(&runs),
            nodes: (0..NODES).map(Node::new).collect(),
            coordinators: (0..COORDINATORS).map(|_| Coordinator::new(&mut chance)).collect(),
            sessions: BTreeMap::new(),
            calls: BTreeMap::new(),
            partitions: BTreeMap::new(),
            ledger: Ledger::default(),
            ledger_down_until: 0,
            destinations: (0..DESTINATIONS)
                .map(|number| Destination::new(number == 0, options.bug))
                .collect(),
            happened: Vec::new(),
            operated: BTreeSet::new(),
            refused: BTreeMap::new(),
            given_up: BTreeSet::new(),
            serial: 0,
            runs,
            chance,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for number in 0..self.runs.len() {
            let run = &self.runs[number];
            self.queue.push(run.submit_at, Event::Client(Client::Submit(number)));
            if let Some(at) = run.cancel_at {
                self.queue.push(at, Event::Client(Client::Cancel(number, 5)));
            }
            for at in run.revert_at.clone() {
                self.queue.push(at, Event::Client(Client::Revert(number, 5)));
            }
        }
        for _ in 0..self.chance.below(7) {
            let at = self.chance.between(300, CALM_AT - 1);
            let fault = Fault::any(&mut self.chance, NODES, COORDINATORS, DESTINATIONS);
            self.queue.push(at, Event::Fault(fault));
        }
        self.queue.push(0, Event::Elect);
        self.queue.push(1, Event::Connect);
        self.queue.push(CALM_AT, Event::Calm);
    }

    /// Lets time pass until every run is at rest and late messages have come, or an invariant is broken.
    pub(crate) fn run(mut self, options: &Options) -> Report {
        let mut steps = 0;
        let mut violation = None;
        let mut rest_since = None;
        while let Some((at, event)) = self.queue.pop() {
            self.now = at;
            steps += 1;
            self.step(event);
            let happened = std::mem::take(&mut self.happened);
            let mut checks = std::mem::take(&mut self.checks);
            let checked = checks.after_step(&self, &happened);
            self.checks = checks;
            if let Err(found) = checked {
                say!(self, "VIOLATION {found}");
                violation = Some(found);
                break;
            }
            let is_known =
                |number: usize| self.ledger.runs.contains_key(&self.runs[number].id) || self.given_up.contains(&number);
            let at_rest = (0..self.runs.len()).all(is_known)
                && self
                    .ledger
                    .runs
                    .values()
                    .all(|log| matches!(log.state.phase(), Phase::AtRest(_)));
            if !at_rest {
                rest_since = None;
            } else if self.now > *rest_since.get_or_insert(self.now) + AFTERWARDS {
                break;
            }
            if self.now > CALM_AT + REST_WITHIN {
                let found = Violation::i7_every_run_comes_to_rest(&self);
                say!(self, "VIOLATION {found}");
                violation = Some(found);
                break;
            }
        }
        let outcomes = self.checks.outcomes();
        let (hash, trace) = self.trace.into_parts();
        Report {
            seed: options.seed,
            hash,
            steps,
            virtual_ms: self.now,
            faults: self.tally,
            outcomes,
            violation,
            trace,
        }
    }

    pub(crate) fn wall(&self, coordinator: usize) -> Millis {
        Millis(WALL + self.now + self.coordinators[coordinator].skew)
    }

    pub(crate) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn count(&mut self, fault: &'static str) {
        *self.tally.entry(fault).or_default() += 1;
    }

    /// Whether a fault of this rate happens now.
    pub(crate) fn befalls(&mut self, rate: u64) -> bool {
        !self.calm && self.chance.permille(rate)
    }

    /// The same, counted if it does.
    pub(crate) fn strikes(&mut self, rate: u64, fault: &'static str) -> bool {
        let strikes = self.befalls(rate);
        if strikes {
            self.count(fault);
        }
        strikes
    }

    pub(crate) fn effect(&mut self, from: Process, call: &PortCall, effects: Vec<Effect>) {
        for effect in effects {
            say!(self, "  {effect:?} by {} of {from}", call.key.work);
            self.happened.push(Happened::Effect {
                by: from,
                call: Box::new(call.clone()),
                effect,
            });
        }
    }

    pub(crate) fn life(&self, role: Role) -> Life {
        match role {
            Role::Node(node) => self.nodes[node].life,
            Role::Coordinator(coordinator) => self.coordinators[coordinator].life,
        }
    }

    fn life_mut(&mut self, role: Role) -> &mut Life {
        match role {
            Role::Node(node) => &mut self.nodes[node].life,
            Role::Coordinator(coordinator) => &mut self.coordinators[coordinator].life,
        }
    }

    pub(crate) fn process(&self, role: Role) -> Process {
        Process {
            role,
            life: self.life(role).number,
        }
    }

    /// Whether this start of the process still runs, paused or not.
    pub(crate) fn lives(&self, process: Process) -> bool {
        let life = self.life(process.role);
        life.up && life.number == process.life
    }

    /// Something for a process, after so many milliseconds.
    pub(crate) fn after(&mut self, wait: u64, process: Process, what: What) {
        self.queue.push(self.now + wait, Event::At(process, what));
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::At(process, what) => {
                if !self.lives(process) {
                    return;
                }
                let until = self.life(process.role).paused_until;
                if self.now < until {
                    // Woken up, it finds timers and messages together, in no order that one could rely on.
                    let at = until + self.chance.below(4);
                    self.queue.push(at, Event::At(process, what));
                    return;
                }
                match process.role {
                    Role::Node(node) => self.at_node(node, what),
                    Role::Coordinator(coordinator) => self.at_coordinator(coordinator, what),
                }
            }
            Event::Ledger(from, op, call, answered) => self.at_ledger(from, op, call, answered),
            Event::Port(from, call, answered) => self.at_port(from, call, answered),
            Event::Start(role) => self.start(role),
            Event::Fault(fault) => self.befall(fault),
            Event::Client(client) => self.client(client),
            Event::Connect => self.connect(),
            Event::Elect => self.elect(),
            Event::Calm => {
                say!(self, "CALM: no faults from here on");
                self.calm = true;
                self.partitions.clear();
                self.ledger_down_until = 0;
                self.destinations
                    .iter_mut()
                    .for_each(|destination| destination.down_until = 0);
            }
        }
    }

    pub(crate) fn crash(&mut self, role: Role, why: &'static str) {
        if !self.life(role).up {
            return;
        }
        say!(self, "CRASH of {} ({why})", self.process(role));
        self.count(why);
        let life = self.life_mut(role);
        life.up = false;
        life.paused_until = 0;
        match role {
            Role::Node(node) => self.nodes[node].stop(),
            Role::Coordinator(coordinator) => self.coordinators[coordinator].stop(),
        }
        let process = self.process(role);
        self.break_sessions(|session| session.node == process || session.coordinator == process);
        let wait = self.chance.between(200, 5_000);
        self.queue.push(self.now + wait, Event::Start(role));
    }

    pub(crate) fn pause(&mut self, role: Role, wait: u64, why: &'static str) {
        if !self.life(role).up || self.calm {
            return;
        }
        // Whoever is stopped at the end of the faults goes on then.
        let until = (self.now + wait).min(CALM_AT.max(self.now));
        say!(self, "PAUSE of {} until {until} ({why})", self.process(role));
        self.count(why);
        let life = self.life_mut(role);
        life.paused_until = life.paused_until.max(until);
    }

    fn start(&mut self, role: Role) {
        let life = self.life_mut(role);
        if life.up {
            return;
        }
        life.up = true;
        life.number += 1;
        say!(self, "START of {}", self.process(role));
    }

    fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::NodeCrash(node) => self.crash(Role::Node(node), "node crash"),
            Fault::NodePause(node, wait) => self.pause(Role::Node(node), wait, "node pause"),
            Fault::CoordinatorCrash(one) => self.crash(Role::Coordinator(one), "coordinator crash"),
            Fault::CoordinatorPause(one, wait) => self.pause(Role::Coordinator(one), wait, "coordinator pause"),
            Fault::Depose => {
                let idle = (0..COORDINATORS).find(|one| self.coordinators[*one].is_idle());
                if let Some(one) = idle {
                    self.count("leader deposed");
                    self.claim(one);
                }
            }
            Fault::Partition(node, coordinator, wait) => {
                say!(self, "PARTITION of n{node} and c{coordinator} for {wait} ms");
                self.count("partition");
                self.partitions.insert((node, coordinator), self.now + wait);
                self.break_sessions(|session| {
                    (session.node.role, session.coordinator.role) == (Role::Node(node), Role::Coordinator(coordinator))
                });
            }
            Fault::Cut => {
                say!(self, "CUT of every session");
                self.count("sessions cut");
                self.break_sessions(|_| true);
            }
            Fault::LedgerDown(wait) => {
                say!(self, "LEDGER away for {wait} ms");
                self.count("ledger away");
                self.ledger_down_until = self.now + wait;
            }
            Fault::DestinationDown(destination, wait) => {
                say!(self, "DESTINATION {destination} away for {wait} ms");
                self.count("destination away");
                self.destinations[destination].down_until = self.now + wait;
            }
            Fault::DestinationCrash(destination) => self.crash_destination(destination, "destination crash"),
            Fault::RunActors => self.fail_run_actors(),
        }
    }

    pub(crate) fn crash_destination(&mut self, destination: usize, why: &'static str) {
        say!(self, "CRASH of destination {destination}: unlogged staging is empty");
        self.count(why);
        self.destinations[destination].crash();
        self.happened.push(Happened::Truncated);
    }

    /// When nobody leads, somebody claims, sooner or later. Who leads safely doesn't hang on how a leader is found.
    fn elect(&mut self) {
        self.queue.push(self.now + 500, Event::Elect);
        let awake = |world: &Self, one: usize| {
            let life = world.coordinators[one].life;
            life.up && life.paused_until <= world.now
        };
        let led = (0..COORDINATORS).any(|one| awake(self, one) && !self.coordinators[one].is_idle());
        if led || !(self.calm || self.now < 600 || self.chance.permille(350)) {
            return;
        }
        let idle: Vec<usize> = (0..COORDINATORS)
            .filter(|one| awake(self, *one) && self.coordinators[*one].is_idle())
            .collect();
        if !idle.is_empty() {
            let one = idle[self.chance.place(idle.len())];
            self.claim(one);
        }
    }
}
