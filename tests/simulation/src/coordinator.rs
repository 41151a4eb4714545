//! A coordinator's shell: what `coordinator/src/actors` does around the production's own deciding code, which runs here
//! unmodified: [`Dispatch`] and, in `runs.rs`, one `RunLog` for each run.

use std::collections::{BTreeMap, BTreeSet};

use haulage_coordinator::deciding::{Action, Actorless, AgentId, Dispatch, ToRun, Ungreeted};
use haulage_coordinator::ledger::Appended;
use haulage_core::event::Event as CoreEvent;
use haulage_core::ids::{Epoch, Millis, RunId};
use haulage_core::lease::Settings;
use haulage_core::run::{Input, Phase};
use haulage_proto::link::message::Done;

use crate::bug::Bug;
use crate::chance::Chance;
use crate::client::Client;
use crate::invariants::Happened;
use crate::ledger::{LedgerAnswer, LedgerCall, LedgerError};
use crate::network::{Body, Pending, Reply, What};
use crate::runs::{Actor, Asker, Mail, Writer};
use crate::trace::say;
use crate::world::{Event, Life, Process, Role, World};

/// How often silence is looked at; the real one looks more often, which only costs time here.
const TICK_MS: u64 = 200;
/// As in `coordinator/src/leadership.rs`.
const LOOK_MS: u64 = 2_000;
/// As in `coordinator/src/actors/calls.rs`.
const CALL_MS: u64 = haulage_coordinator::deciding::CALL_TIMEOUT_MS;

/// What a coordinator asks the ledger for.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Claim,
    Open(Epoch),
    Look,
    Read(RunId, u64),
    Append,
    Submit(usize),
    Revert(usize),
    /// Looks for open runs that nobody works on.
    Missing,
}

/// What a leader keeps.
pub(crate) struct Lead {
    pub(crate) epoch: Epoch,
    pub(crate) dispatch: Dispatch,
    pub(crate) runs: BTreeMap<RunId, Actor>,
    pub(crate) writer: Writer,
    /// Open runs of an earlier leader that nothing is known about yet.
    pub(crate) recovering: BTreeSet<RunId>,
}

pub(crate) struct Coordinator {
    pub(crate) life: Life,
    /// How much its wall clock is ahead.
    pub(crate) skew: u64,
    pub(crate) lead: Option<Lead>,
    claiming: bool,
}

impl Coordinator {
    pub(crate) fn new(chance: &mut Chance) -> Self {
        Self {
            life: Life {
                up: true,
                number: 1,
                paused_until: 0,
            },
            skew: chance.below(2_000),
            lead: None,
            claiming: false,
        }
    }

    /// The process has ended.
    pub(crate) fn stop(&mut self) {
        self.lead = None;
        self.claiming = false;
    }

    /// Whether it neither leads nor is about to.
    pub(crate) fn is_idle(&self) -> bool {
        self.life.up && self.lead.is_none() && !self.claiming
    }

    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.lead.as_ref().map(|lead| lead.epoch)
    }

    pub(crate) fn leads(&self, run: &RunId) -> bool {
        self.lead.as_ref().is_some_and(|lead| lead.runs.contains_key(run))
    }
}

impl World {
    pub(crate) fn claim(&mut self, coordinator: usize) {
        self.coordinators[coordinator].claiming = true;
        say!(self, "c{coordinator} claims the ledger");
        self.ask_ledger(coordinator, Op::Claim, LedgerCall::Claim);
    }

    /// A call to the ledger, and whatever can go wrong around it.
    pub(crate) fn ask_ledger(&mut self, coordinator: usize, op: Op, call: LedgerCall) {
        let me = self.process(Role::Coordinator(coordinator));
        let rates = self.rates;
        if self.befalls(rates.coordinator_crash) {
            if self.chance.permille(500) {
                self.queue.push(self.now + 2, Event::Ledger(me, op, call, false));
            }
            return self.crash(me.role, "coordinator crash at a call");
        }
        let mut wait = self.chance.between(1, 8);
        if self.befalls(rates.coordinator_pause) {
            let pause = self.chance.between(500, 9_000);
            self.pause(me.role, pause, "coordinator pause at a call");
            wait += pause;
        }
        if self.strikes(rates.ledger_late, "ledger late") {
            wait += self.chance.between(300, 5_000);
        }
        if self.strikes(rates.ledger_request_lost, "ledger request lost") {
            return self.after(wait, me, What::Ledger(op, Err(LedgerError::Away)));
        }
        let answered = !self.strikes(rates.ledger_answer_lost, "answer of the ledger lost");
        self.queue.push(self.now + wait, Event::Ledger(me, op, call, answered));
    }

    /// A call reaches the ledger.
    pub(crate) fn at_ledger(&mut self, from: Process, op: Op, call: LedgerCall, answered: bool) {
        let forgets = self.bug == Some(Bug::LedgerForgets) && !self.calm;
        let mut answer = if self.now < self.ledger_down_until {
            Err(LedgerError::Away)
        } else {
            match &call {
                // What it answered is gone when it goes on.
                LedgerCall::Append(_, appends) if forgets && !answered => {
                    let pretended = LedgerAnswer::Appended(self.ledger.pretend(appends));
                    return self.after(1, from, What::Ledger(op, Ok(pretended)));
                }
                LedgerCall::Claim
                | LedgerCall::OpenRuns
                | LedgerCall::Epoch
                | LedgerCall::Read(_)
                | LedgerCall::Append(..)
                | LedgerCall::Submit(..) => self.ledger.execute(call, self.bug),
            }
        };
        if let (Op::Submit(number), Ok(LedgerAnswer::Unreplayable)) = (&op, &answer) {
            self.happened.push(Happened::Unreplayable(*number));
        }
        for run in std::mem::take(&mut self.ledger.written) {
            let number = self.number(&run);
            let log = &self.ledger.runs[&run];
            let refused = matches!(log.events.last(), Some(last) if matches!(last.event, CoreEvent::Finished { .. }))
                && log
                    .events
                    .iter()
                    .rev()
                    .nth(1)
                    .is_some_and(|last| matches!(last.event, CoreEvent::RevertRefused { .. }));
            if refused {
                self.count("(a revert was refused)");
            }
            let state = &self.ledger.runs[&run].state;
            let stuck = state.phase() == Phase::Stuck;
            if (stuck || state.undoing_waits().is_some()) && self.operated.insert(number) {
                if stuck {
                    self.count("(a run was stuck)");
                }
                self.queue
                    .push(self.now + 2_000, Event::Client(Client::Operate(number)));
            }
            self.happened.push(Happened::Written(run));
        }
        if !answered && answer.is_ok() {
            say!(self, "  the ledger's answer to {from} is lost");
            answer = Err(LedgerError::Away);
        }
        let wait = self.chance.between(1, 8);
        self.after(wait, from, What::Ledger(op, answer));
    }

    pub(crate) fn at_coordinator(&mut self, coordinator: usize, what: What) {
        match what {
            What::Ledger(op, answer) => return self.ledger_answered(coordinator, op, answer),
            What::SessionUp(id) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.at_coordinator = !session.cut;
                }
            }
            What::SessionDown(id) => {
                say!(self, "c{coordinator} learns that session {id} has ended");
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.at_coordinator = false;
                }
            }
            What::Request(session, call, epoch, body) => self.asked_by_node(coordinator, session, call, epoch, *body),
            What::Answer(call, answer) => self.node_answered(coordinator, call, answer),
            What::Tick => {
                let me = self.process(Role::Coordinator(coordinator));
                let now = Millis(self.now);
                if let Some(lead) = &mut self.coordinators[coordinator].lead {
                    lead.dispatch.tick(now);
                    self.after(TICK_MS, me, What::Tick);
                    self.look_for_agents(coordinator);
                }
            }
            What::Look => {
                if self.coordinators[coordinator].lead.is_some() {
                    let me = self.process(Role::Coordinator(coordinator));
                    self.after(LOOK_MS, me, What::Look);
                    self.ask_ledger(coordinator, Op::Look, LedgerCall::Epoch);
                    self.ask_ledger(coordinator, Op::Missing, LedgerCall::OpenRuns);
                }
            }
            What::Flush(run, life) => return self.flush(coordinator, &run, life),
            What::Revive(run, life) => return self.revive(coordinator, &run, life),
            What::WriteAgain => return self.write(coordinator),
            What::Tell(run, input) => return self.mail(coordinator, &run, Mail::Input(*input)),
            // For a node.
            What::Beat(_) | What::Check | What::Restart(..) | What::Port(..) | What::Report(..) => {}
        }
        self.act(coordinator);
    }

    fn ledger_answered(&mut self, coordinator: usize, op: Op, answer: Result<LedgerAnswer, LedgerError>) {
        match (op, answer) {
            (Op::Append, answer) => self.written(coordinator, answer),
            (_, Err(LedgerError::Deposed)) => self.depose(coordinator),
            (Op::Claim, Ok(LedgerAnswer::Epoch(epoch))) => {
                self.ask_ledger(coordinator, Op::Open(epoch), LedgerCall::OpenRuns);
            }
            (Op::Open(epoch), Ok(LedgerAnswer::Runs(open))) => self.lead(coordinator, epoch, open),
            (Op::Look, Ok(LedgerAnswer::Epoch(epoch))) => {
                if self.coordinators[coordinator].epoch().is_some_and(|ours| ours < epoch) {
                    self.depose(coordinator);
                }
            }
            (Op::Submit(number), Ok(LedgerAnswer::Submitted)) => {
                let run = self.runs[number].id.clone();
                self.start_run(coordinator, &run);
            }
            (Op::Submit(number), Ok(LedgerAnswer::Unreplayable)) => self.unreplayable(number),
            (Op::Revert(number), Ok(LedgerAnswer::Appended(answers))) => {
                if let [Appended::At(_)] = answers[..] {
                    let run = self.runs[number].id.clone();
                    self.start_run(coordinator, &run);
                }
            }
            (Op::Missing, Ok(LedgerAnswer::Runs(open))) => {
                for run in open {
                    self.start_run(coordinator, &run);
                    self.doubt(coordinator, &run);
                }
            }
            (Op::Read(run, life), Ok(LedgerAnswer::Log(rows))) => self.read(coordinator, &run, life, Some(rows)),
            (Op::Read(run, life), _) => self.read(coordinator, &run, life, None),
            // A process that can't claim ends; whoever starts it tries again.
            (Op::Claim | Op::Open(_), _) => self.coordinators[coordinator].claiming = false,
            (Op::Look | Op::Submit(_) | Op::Revert(_) | Op::Missing, _) => {}
        }
    }

    fn lead(&mut self, coordinator: usize, epoch: Epoch, open: Vec<RunId>) {
        let me = self.process(Role::Coordinator(coordinator));
        say!(self, "{me} leads, epoch {epoch}");
        let one = &mut self.coordinators[coordinator];
        one.claiming = false;
        one.lead = Some(Lead {
            epoch,
            dispatch: Dispatch::new(Settings::default()),
            runs: BTreeMap::new(),
            writer: Writer::default(),
            recovering: open.iter().cloned().collect(),
        });
        for run in open {
            self.start_run(coordinator, &run);
        }
        self.after(1, me, What::Tick);
        self.after(LOOK_MS, me, What::Look);
    }

    /// It has lost the epoch: everything it does ends, and the process with it.
    pub(crate) fn depose(&mut self, coordinator: usize) {
        say!(self, "c{coordinator} is deposed and ends");
        self.crash(Role::Coordinator(coordinator), "(a deposed leader ended)");
    }

    fn asked_by_node(&mut self, coordinator: usize, session: u64, call: u64, seen: Epoch, body: Body) {
        let me = self.process(Role::Coordinator(coordinator));
        let now = Millis(self.now);
        let Some(lead) = &mut self.coordinators[coordinator].lead else {
            return;
        };
        let epoch = lead.epoch;
        let heed = seen > epoch;
        match body {
            Body::Heartbeat(heartbeat) => {
                let complete = lead.recovering.is_empty();
                let runs = &lead.runs;
                let nobody_leads = |run: &RunId| complete && runs.get(run).is_none_or(Actor::is_away);
                let beat = lead.dispatch.heartbeat(heartbeat, now, complete, nobody_leads);
                self.reply(me, session, call, epoch, Reply::Grant(beat.grant));
                if beat.look {
                    self.look_for_agents(coordinator);
                }
            }
            Body::Done(done) => self.done(coordinator, session, call, done),
            // Coordinators are asked neither.
            Body::Hello(_) | Body::Assign(_) | Body::Drop(_) | Body::Release(_) => {}
        }
        if heed {
            self.ask_ledger(coordinator, Op::Look, LedgerCall::Epoch);
        }
    }

    fn done(&mut self, coordinator: usize, session: u64, call: u64, done: Done) {
        let me = self.process(Role::Coordinator(coordinator));
        let Some(lead) = &self.coordinators[coordinator].lead else {
            return;
        };
        let actorless = match lead.runs.get(&done.key.run) {
            Some(actor) if !actor.is_away() => {
                let run = done.key.run.clone();
                let input = haulage_coordinator::deciding::input(done);
                return self.mail(coordinator, &run, Mail::Ask(input, Asker { session, call }));
            }
            Some(_) => Actorless::Starting,
            None => Actorless::Unknown {
                complete: lead.recovering.is_empty(),
            },
        };
        let reply = Reply::Acknowledged(actorless.acknowledges());
        self.reply(me, session, call, lead.epoch, reply);
    }

    fn node_answered(&mut self, coordinator: usize, call: u64, answer: Option<(Epoch, Reply)>) {
        let Some(pending) = self.calls.remove(&call) else {
            return;
        };
        let now = Millis(self.now);
        let Some(lead) = &mut self.coordinators[coordinator].lead else {
            return;
        };
        let reply = answer.map(|(_, reply)| reply);
        match pending {
            Pending::Hello(agent, asked) => {
                let heard = if reply.is_some() { "has" } else { "hasn't" };
                let session = agent.session.unwrap_or(0);
                say!(
                    self,
                    "n{} {heard} answered c{coordinator}'s hello over session {session}",
                    agent.number
                );
                let Some(lead) = &mut self.coordinators[coordinator].lead else {
                    return;
                };
                let reply = match reply {
                    Some(Reply::Hello(reply)) => Ok(reply),
                    Some(_) | None => Err(Ungreeted::Silent("no answer".to_owned())),
                };
                lead.dispatch.greeted(agent, asked, reply, now);
            }
            Pending::Assign(node, boot, key, refused) => {
                let reply = match reply {
                    Some(Reply::Assigned(reply)) => Some(reply),
                    Some(_) | None => None,
                };
                lead.dispatch.assigned(&node, &boot, &key, refused, reply, now);
            }
            Pending::Drop(node, boot, key) => lead.dispatch.dropped(&node, &boot, &key, reply.is_some(), now),
            Pending::Nothing | Pending::Beat(_) | Pending::Done(..) => {}
        }
    }

    fn look_for_agents(&mut self, coordinator: usize) {
        let me = self.process(Role::Coordinator(coordinator));
        let open = self
            .sessions
            .iter()
            .filter(|(_, s)| s.coordinator == me && s.at_coordinator);
        let present: Vec<AgentId> = open
            .map(|(id, session)| AgentId {
                session: Some(*id),
                number: Self::node_of(session.node).unwrap_or(0) as u64,
            })
            .collect();
        let now = Millis(self.now);
        if let Some(lead) = &mut self.coordinators[coordinator].lead {
            lead.dispatch.agents(&present, now);
        }
    }

    /// Carries out what the dispatch says, until it says nothing.
    pub(crate) fn act(&mut self, coordinator: usize) {
        let (now, wall) = (Millis(self.now), self.wall(coordinator));
        let Some(lead) = &mut self.coordinators[coordinator].lead else {
            return;
        };
        let epoch = lead.epoch;
        for action in lead.dispatch.due(now, wall) {
            self.carry_out(coordinator, epoch, action);
        }
    }

    fn carry_out(&mut self, coordinator: usize, epoch: Epoch, action: Action) {
        let me = self.process(Role::Coordinator(coordinator));
        let session = |agent: AgentId| agent.session.unwrap_or(0);
        match action {
            Action::Hello { agent, asked, hello } => {
                say!(self, "{me} greets n{} over session {}", agent.number, session(agent));
                let pending = Pending::Hello(agent, asked);
                self.call(me, session(agent), epoch, Body::Hello(hello), pending, CALL_MS);
            }
            Action::Assign {
                agent,
                node,
                boot,
                refused,
                trace: _,
                assignment,
            } => {
                let pending = Pending::Assign(node, boot, assignment.key.clone(), refused);
                let body = Body::Assign(Box::new(assignment.as_ref().clone()));
                self.call(me, session(agent), epoch, body, pending, CALL_MS);
            }
            Action::Drop { agent, node, boot, key } => {
                let pending = Pending::Drop(node, boot, key.clone());
                self.call(me, session(agent), epoch, Body::Drop(key), pending, CALL_MS);
            }
            Action::Release { agent, run } => {
                self.call(me, session(agent), epoch, Body::Release(run), Pending::Nothing, CALL_MS);
            }
            Action::TellRun { run, news } => {
                let mail = match news {
                    ToRun::Input(input) => {
                        if let Input::NodeLost { node, silent_ms } = &input {
                            say!(self, "{me} tells {run} that {node} is lost after {silent_ms} ms");
                        }
                        Mail::Input(input)
                    }
                    ToRun::Grant { number, work, node } => Mail::Grant(number, work, node),
                    ToRun::Progress(_) => return,
                };
                self.mail(coordinator, &run, mail);
            }
            Action::Complain { peer, what } => say!(self, "{me} complains about {peer}: {what}"),
            Action::LookAtEpoch => self.ask_ledger(coordinator, Op::Look, LedgerCall::Epoch),
        }
    }
}
