//! Users: they submit, cancel, and decide about runs that are stuck or wait for a destination, and ask again when nobody
//! answers.

use haulage_coordinator::ledger::Append;
use haulage_core::event::{Event, Outcome, StuckDecision};
use haulage_core::ids::Seq;
use haulage_core::run::{Input, Phase};

use crate::coordinator::Op;
use crate::ledger::LedgerCall;
use crate::network::What;
use crate::trace::say;
use crate::world::{Event as Turn, Role, World};

/// What a user wants, of which run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Client {
    Submit(usize),
    /// So many times more, if nobody takes it.
    Cancel(usize, u32),
    /// So many times more, if it isn't published yet or nobody takes it.
    Revert(usize, u32),
    Operate(usize),
}

/// How often somebody asks for a replay that is refused.
const ASKED: u32 = 6;

impl World {
    /// A replay was refused. Another one may end, or be taken back: so it is asked for again, for a while.
    pub(crate) fn unreplayable(&mut self, number: usize) {
        let asked = self.refused.entry(number).or_default();
        *asked += 1;
        if *asked >= ASKED && self.given_up.insert(number) {
            self.count("(a replay was given up)");
        }
    }

    pub(crate) fn client(&mut self, client: Client) {
        // Also one that was deposed and doesn't know it yet.
        let leaders: Vec<usize> = (0..self.coordinators.len())
            .filter(|one| self.coordinators[*one].lead.is_some())
            .collect();
        let leader = match leaders.len() {
            0 => None,
            count => Some(leaders[self.chance.place(count)]),
        };
        match client {
            Client::Submit(number) => {
                if self.given_up.contains(&number) {
                    return;
                }
                let run = &self.runs[number];
                // A lost answer is asked for again: submitting twice is harmless.
                self.queue.push(self.now + 1_500, Turn::Client(client));
                let known = self.ledger.runs.contains_key(&run.id)
                    && (self.ledger.runs[&run.id].state.finished().is_some()
                        || self.coordinators.iter().any(|one| one.leads(&run.id)));
                let id = run.id.clone();
                let Some(leader) = leader.filter(|_| !known) else {
                    return;
                };
                let submission = Box::new(run.submission());
                let Some(epoch) = self.coordinators[leader].epoch() else {
                    return;
                };
                say!(self, "submit {id} to c{leader}");
                let at = self.wall(leader);
                let call = LedgerCall::Submit(epoch, id, submission, at);
                self.ask_ledger(leader, Op::Submit(number), call);
            }
            Client::Cancel(number, left) => {
                let id = self.runs[number].id.clone();
                let taken = leader.is_some_and(|leader| self.coordinators[leader].leads(&id));
                if let Some(leader) = leader.filter(|_| taken) {
                    say!(self, "cancel {id}");
                    let input = Input::Cancel {
                        reason: "asked to".to_owned(),
                    };
                    let to = self.process(Role::Coordinator(leader));
                    self.after(1, to, What::Tell(id, Box::new(input)));
                } else if left > 0 {
                    self.queue
                        .push(self.now + 1_000, Turn::Client(Client::Cancel(number, left - 1)));
                }
            }
            Client::Revert(number, left) => {
                let id = self.runs[number].id.clone();
                let log = self
                    .ledger
                    .runs
                    .get(&id)
                    .map(|log| (log.state.phase(), log.events.len()));
                let published = matches!(log, Some((Phase::AtRest(Outcome::Published), _)));
                let epoch = leader.and_then(|leader| self.coordinators[leader].epoch());
                if let (Some(leader), Some(epoch), Some((_, length)), true) = (leader, epoch, log, published) {
                    say!(self, "revert {id}, asked of c{leader}");
                    let event = Event::RevertRequested {
                        reason: "the wrong month".to_owned(),
                        by: "somebody".to_owned(),
                        at: self.wall(leader),
                    };
                    let append = Append {
                        run: id,
                        expected: Seq(length as u64),
                        events: vec![event],
                    };
                    self.count("(a run is to be reverted)");
                    self.ask_ledger(leader, Op::Revert(number), LedgerCall::Append(epoch, vec![append]));
                } else if left > 0 {
                    let again = Turn::Client(Client::Revert(number, left - 1));
                    self.queue.push(self.now + 2_000, again);
                }
            }
            Client::Operate(number) => {
                let id = self.runs[number].id.clone();
                let state = self.ledger.runs.get(&id).map(|log| &log.state);
                let stuck = state.is_some_and(|state| state.phase() == Phase::Stuck);
                let waits = state.is_some_and(|state| state.undoing_waits().is_some());
                if !stuck && !waits {
                    self.operated.remove(&number);
                    return;
                }
                self.queue.push(self.now + 3_000, Turn::Client(client));
                let abandon = self.chance.permille(400);
                if waits && !abandon {
                    // It is tried again by itself.
                    return;
                }
                if waits {
                    self.count("operator abandons a step that waits");
                }
                let input = Input::Decide {
                    decision: if abandon {
                        StuckDecision::Abandon
                    } else {
                        StuckDecision::Retry
                    },
                    step: None,
                    reason: "looked at".to_owned(),
                    by: "an operator".to_owned(),
                };
                if let Some(leader) = leader {
                    let to = self.process(Role::Coordinator(leader));
                    self.after(1, to, What::Tell(id, Box::new(input)));
                }
            }
        }
    }
}
