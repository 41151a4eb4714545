//! The runs of a leader: an actor's shell around the production's `RunLog` for each, and the group writer that appends
//! for all of them (`coordinator/src/actors/run.rs`, `coordinator/src/ledger/group.rs`).

use haulage_coordinator::deciding::{Answer, Next, RunAction, RunLog};
use haulage_coordinator::ledger::{Append, Appended};
use haulage_core::event::Event;
use haulage_core::ids::{Millis, NodeName, RunId, Seq, Work};
use haulage_core::run::{Input, Phase};

use crate::coordinator::{Lead, Op};
use crate::invariants::Happened;
use crate::ledger::{LedgerAnswer, LedgerCall, LedgerError};
use crate::network::{Reply, What};
use crate::trace::say;
use crate::world::{Role, World};

/// As in the group writer: before the second try, the third, ...
const PAUSES: [u64; 6] = [100, 200, 400, 800, 1_600, 3_200];

/// The node's call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) session: u64,
    pub(crate) call: u64,
}

/// What is in a run actor's mailbox.
#[derive(Debug)]
pub(crate) enum Mail {
    Input(Input),
    Grant(u64, Work, NodeName),
    Ask(Input, Asker),
}

/// A run's actor.
pub(crate) struct Actor {
    log: RunLog<Asker>,
    /// Tells this actor from the one before it.
    life: u64,
    /// It reads or appends, and takes no message.
    busy: bool,
    mailbox: Vec<Mail>,
    flush_asked: bool,
    /// It failed, and is being started again.
    away: bool,
}

impl Actor {
    fn new(run: RunId, life: u64) -> Self {
        Self {
            log: RunLog::new(run, life),
            life,
            busy: false,
            mailbox: Vec::new(),
            flush_asked: false,
            away: false,
        }
    }

    pub(crate) fn is_away(&self) -> bool {
        self.away
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Input(input) => self.log.take(input),
            Mail::Grant(number, work, node) => self.log.grant(number, work, node),
            Mail::Ask(input, asker) => self.log.ask(input, asker),
        }
    }
}

/// Appends that wait for the next transaction, and those that are under way.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    queue: Vec<(u64, Append)>,
    under_way: Vec<(u64, Append)>,
    tries: usize,
}

impl World {
    pub(crate) fn start_run(&mut self, coordinator: usize, run: &RunId) {
        let life = self.serial();
        let at_rest = self
            .ledger
            .runs
            .get(run)
            .is_some_and(|log| log.state.finished().is_some());
        let Some(lead) = &mut self.coordinators[coordinator].lead else {
            return;
        };
        if lead.runs.contains_key(run) || (at_rest && !lead.recovering.contains(run)) {
            return;
        }
        lead.runs.insert(run.clone(), Actor::new(run.clone(), life));
        self.ask_flush(coordinator, run, 0);
    }

    /// Every run's actor fails, wherever it was, and is started again from the ledger.
    pub(crate) fn fail_run_actors(&mut self) {
        for coordinator in 0..self.coordinators.len() {
            let me = self.process(Role::Coordinator(coordinator));
            let Some(lead) = &mut self.coordinators[coordinator].lead else {
                continue;
            };
            let runs: Vec<(RunId, u64)> = lead
                .runs
                .iter_mut()
                .map(|(run, actor)| {
                    actor.away = true;
                    (run.clone(), actor.life)
                })
                .collect();
            for (run, life) in runs {
                say!(self, "{me}: the actor of {run} fails");
                self.count("run actor failed");
                self.after(200, me, What::Revive(run, life));
            }
        }
    }

    pub(crate) fn revive(&mut self, coordinator: usize, run: &RunId, life: u64) {
        let fresh = self.serial();
        let Some(actor) = self.actor(coordinator, run, life) else {
            return;
        };
        *actor = Actor::new(run.clone(), fresh);
        self.ask_flush(coordinator, run, 0);
    }

    fn actor(&mut self, coordinator: usize, run: &RunId, life: u64) -> Option<&mut Actor> {
        let lead = self.coordinators[coordinator].lead.as_mut()?;
        lead.runs.get_mut(run).filter(|actor| actor.life == life)
    }

    pub(crate) fn mail(&mut self, coordinator: usize, run: &RunId, mail: Mail) {
        let Some(lead) = &mut self.coordinators[coordinator].lead else {
            return;
        };
        // A run whose actor is being started misses it, and finds out when it posts what it awaits.
        let Some(actor) = lead.runs.get_mut(run).filter(|actor| !actor.away) else {
            return;
        };
        if actor.busy {
            actor.mailbox.push(mail);
            return;
        }
        actor.take(mail);
        self.ask_flush(coordinator, run, 0);
    }

    pub(crate) fn doubt(&mut self, coordinator: usize, run: &RunId) {
        let Some(lead) = &mut self.coordinators[coordinator].lead else {
            return;
        };
        let length = self.ledger.runs.get(run).map_or(0, |log| log.events.len() as u64);
        let behind = |actor: &&mut Actor| {
            let known = actor.log.state();
            !actor.away
                && !actor.busy
                && known.is_some_and(|(state, seq)| state.phase() == Phase::Stuck && seq.0 < length)
        };
        if let Some(actor) = lead.runs.get_mut(run).filter(behind) {
            actor.log.forget();
            self.ask_flush(coordinator, run, 0);
        }
    }

    fn ask_flush(&mut self, coordinator: usize, run: &RunId, wait: u64) {
        let me = self.process(Role::Coordinator(coordinator));
        let Some(lead) = &mut self.coordinators[coordinator].lead else {
            return;
        };
        let Some(actor) = lead.runs.get_mut(run) else { return };
        if !std::mem::replace(&mut actor.flush_asked, true) {
            let life = actor.life;
            self.after(wait, me, What::Flush(run.clone(), life));
        }
    }

    pub(crate) fn flush(&mut self, coordinator: usize, run: &RunId, life: u64) {
        let Some(actor) = self.actor(coordinator, run, life).filter(|actor| !actor.away) else {
            return;
        };
        actor.flush_asked = false;
        if actor.busy {
            // What comes after the append asks again.
            return;
        }
        if actor.log.is_forgotten() {
            actor.busy = true;
            return self.ask_ledger(coordinator, Op::Read(run.clone(), life), LedgerCall::Read(run.clone()));
        }
        self.decide(coordinator, run, life);
    }

    pub(crate) fn read(&mut self, coordinator: usize, run: &RunId, life: u64, rows: Option<Vec<(Seq, Event)>>) {
        let Some(actor) = self.actor(coordinator, run, life).filter(|actor| !actor.away) else {
            return;
        };
        actor.busy = false;
        match rows.map(|rows| actor.log.read(&rows)) {
            None => self.wait_for_ledger(coordinator, run, life),
            Some(Err(error)) => self.happened.push(Happened::Unreadable(format!("{run}: {error}"))),
            Some(Ok(())) => {
                if let Some(lead) = &mut self.coordinators[coordinator].lead {
                    lead.recovering.remove(run);
                }
                self.decide(coordinator, run, life);
            }
        }
    }

    fn decide(&mut self, coordinator: usize, run: &RunId, life: u64) {
        let wall = self.wall(coordinator);
        let Some(actor) = self.actor(coordinator, run, life) else {
            return;
        };
        match actor.log.decide(wall) {
            Next::Act(actions) => self.act_for_run(coordinator, run, life, actions),
            Next::Append(append) => {
                actor.busy = true;
                if let Some(lead) = &mut self.coordinators[coordinator].lead {
                    lead.writer.queue.push((life, append));
                    if lead.writer.under_way.is_empty() {
                        self.next_group(coordinator);
                    }
                }
            }
        }
    }

    fn next_group(&mut self, coordinator: usize) {
        if let Some(Lead { writer, .. }) = &mut self.coordinators[coordinator].lead {
            writer.under_way = std::mem::take(&mut writer.queue);
            writer.tries = 0;
            if !writer.under_way.is_empty() {
                self.write(coordinator);
            }
        }
    }

    /// Writes the group, or writes it again.
    pub(crate) fn write(&mut self, coordinator: usize) {
        let Some(lead) = &self.coordinators[coordinator].lead else {
            return;
        };
        let appends = lead.writer.under_way.iter().map(|(_, append)| append.clone()).collect();
        let call = LedgerCall::Append(lead.epoch, appends);
        self.ask_ledger(coordinator, Op::Append, call);
    }

    pub(crate) fn written(&mut self, coordinator: usize, answer: Result<LedgerAnswer, LedgerError>) {
        let me = self.process(Role::Coordinator(coordinator));
        let Some(lead) = &mut self.coordinators[coordinator].lead else {
            return;
        };
        let answers: Vec<Option<Appended>> = match answer {
            Ok(LedgerAnswer::Appended(answers)) => answers.into_iter().map(Some).collect(),
            Err(LedgerError::Deposed) => return self.depose(coordinator),
            Ok(_) | Err(LedgerError::Away) => {
                if let Some(pause) = PAUSES.get(lead.writer.tries) {
                    lead.writer.tries += 1;
                    return self.after(*pause, me, What::WriteAgain);
                }
                lead.writer.under_way.iter().map(|_| None).collect()
            }
        };
        let group = std::mem::take(&mut lead.writer.under_way);
        self.next_group(coordinator);
        for ((life, append), answer) in group.into_iter().zip(answers) {
            self.appended(coordinator, &append, life, answer);
        }
    }

    fn appended(&mut self, coordinator: usize, append: &Append, life: u64, answer: Option<Appended>) {
        let run = &append.run;
        let wall = self.wall(coordinator);
        let Some(actor) = self.actor(coordinator, run, life).filter(|actor| !actor.away) else {
            return;
        };
        actor.busy = false;
        let Some(answer) = answer else {
            return self.wait_for_ledger(coordinator, run, life);
        };
        match actor.log.appended(answer, wall) {
            Some(actions) => {
                for event in &append.events {
                    say!(self, "c{coordinator} {run}: {}", event.text());
                }
                self.act_for_run(coordinator, run, life, actions);
            }
            None => self.ask_flush(coordinator, run, 0),
        }
        self.drain(coordinator, run, life);
    }

    fn wait_for_ledger(&mut self, coordinator: usize, run: &RunId, life: u64) {
        let Some(actor) = self.actor(coordinator, run, life) else {
            return;
        };
        let waits = actor.log.failed();
        self.ask_flush(coordinator, run, waits.wait_ms);
        self.act_for_run(coordinator, run, life, waits.actions);
        self.drain(coordinator, run, life);
    }

    /// What came while the actor was busy.
    fn drain(&mut self, coordinator: usize, run: &RunId, life: u64) {
        let Some(actor) = self.actor(coordinator, run, life).filter(|actor| !actor.busy) else {
            return;
        };
        let mailbox = std::mem::take(&mut actor.mailbox);
        let any = !mailbox.is_empty();
        mailbox.into_iter().for_each(|mail| actor.take(mail));
        if any {
            self.ask_flush(coordinator, run, 0);
        }
    }

    fn act_for_run(&mut self, coordinator: usize, run: &RunId, life: u64, actions: Vec<RunAction<Asker>>) {
        let me = self.process(Role::Coordinator(coordinator));
        let now = Millis(self.now);
        for action in actions {
            let Some(lead) = &mut self.coordinators[coordinator].lead else {
                return;
            };
            let epoch = lead.epoch;
            match action {
                RunAction::Answer { to, answer } => {
                    let acknowledged = match answer {
                        Answer::Stands | Answer::Refused(_) => true,
                        Answer::NotNow => false,
                    };
                    self.reply(me, to.session, to.call, epoch, Reply::Acknowledged(acknowledged));
                }
                RunAction::Post(post) => {
                    lead.dispatch.post(post, now);
                    self.remember(coordinator, run, life);
                }
                RunAction::AtRest(_) => {
                    self.remember(coordinator, run, life);
                    if let Some(lead) = &mut self.coordinators[coordinator].lead {
                        lead.runs.remove(run);
                        lead.dispatch.at_rest(run, now);
                    }
                }
            }
        }
        self.act(coordinator);
    }

    /// Holds a leader's memory of a run against the ledger.
    fn remember(&mut self, coordinator: usize, run: &RunId, life: u64) {
        let epoch = self.coordinators[coordinator].epoch();
        let Some(actor) = self.actor(coordinator, run, life) else {
            return;
        };
        if let Some((state, seq)) = actor.log.state() {
            let state = std::sync::Arc::clone(state);
            self.happened.push(Happened::Remembered {
                run: run.clone(),
                state,
                seq,
                epoch,
            });
        }
    }
}
