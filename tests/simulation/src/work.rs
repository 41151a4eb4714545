//! What a node's worker does for one attempt, one port call after the other, as `node/src/work` does it: a chunk is begun
//! at every load, goes on behind what stands everywhere, and commits segment by segment; a step is one call.

use std::collections::BTreeSet;

use haulage_core::checkpoint::{ChunkReport, Counts, LoadCounts};
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, StepKind, Work};
use haulage_core::run::Expected;
use haulage_proto::link::message::{Assignment, AttemptKey, Outcome, Task};

use crate::call::{Call, Done, Request};
use crate::network::What;
use crate::trace::say;
use crate::workload::{self, Run};
use crate::world::{Event, Process, Role, World};

/// Why a chunk fails for good.
pub(crate) const BAD_ROW: &str = "row 7 has no value for its key";
/// Why a publish is tried again.
pub(crate) const KEPT: &str = "the target is kept for another run";

/// How often one attempt of a run looks whether a target is still kept for another one, a second apart: each has its own
/// patience, as in `node/src/sink/kept.rs`.
const KEPT_LOOKS: [u32; 3] = [15, 30, 45];

/// A call of a worker; without a request it looks at the sources.
#[derive(Debug, Clone)]
pub(crate) struct PortCall {
    pub(crate) key: AttemptKey,
    pub(crate) serial: u64,
    pub(crate) run: usize,
    /// The attempt as the worker gives it: the key's, but for a bug.
    pub(crate) attempt: Attempt,
    pub(crate) request: Option<(usize, Request)>,
}

pub(crate) type PortAnswer = Result<Option<Done>, Failure>;

/// Where a worker is.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    begun: usize,
    standing: Vec<BTreeSet<u32>>,
    segment: u32,
    load: usize,
    resumed: u32,
    stepped: Option<StepReport>,
    /// How often its target was kept for another run.
    pub(crate) kept: u32,
    discovered: bool,
}

/// What a worker does next.
#[derive(Debug)]
pub(crate) enum Next {
    Call(Option<(usize, Request)>),
    Ended(Result<Outcome, Failure>),
    /// It takes the node down with it.
    Crash,
}

impl Worker {
    pub(crate) fn next(
        &mut self,
        number: usize,
        run: &Run,
        assignment: &Assignment,
        (epoch, attempt): (haulage_core::ids::Epoch, Attempt),
    ) -> Next {
        let request = |load: usize, call: Call| {
            let planned = &run.loads[load];
            let request = Request {
                load: (number, load),
                target: planned.target,
                epoch,
                attempt,
                call,
                round: match assignment.task {
                    Task::Step { round, .. } => round,
                    Task::Discover | Task::Chunk { .. } => 0,
                },
                unpublishable: planned.unpublishable,
                stubborn: planned.stubborn,
            };
            Next::Call(Some((planned.destination, request)))
        };
        match &assignment.key.work {
            Work::Discover if self.discovered => Next::Ended(Ok(Outcome::Discovered { stages: run.planned() })),
            Work::Discover => Next::Call(None),
            Work::Chunk(id) => {
                let Some((stage, chunk)) = run.chunk(*id) else {
                    return Next::Ended(Err(Failure::permanent("there is no such chunk")));
                };
                if self.begun < stage.loads.len() {
                    return request(stage.loads[self.begun], Call::Begin(*id, attempt));
                }
                if chunk.bad {
                    return Next::Ended(Err(Failure::permanent(BAD_ROW)));
                }
                while self.segment < chunk.segments {
                    if chunk.poison && self.segment + 1 == chunk.segments {
                        return Next::Crash;
                    }
                    while self.load < stage.loads.len() {
                        if !self.standing[self.load].contains(&self.segment) {
                            let rows = workload::rows(number, *id, self.segment);
                            let call = Call::Commit(*id, self.segment, attempt, rows);
                            return request(stage.loads[self.load], call);
                        }
                        self.load += 1;
                    }
                    (self.segment, self.load) = (self.segment + 1, 0);
                }
                Next::Ended(Ok(Outcome::Staged {
                    report: self.report(number, run, *id),
                }))
            }
            Work::Step(step) | Work::Compensate(step) => {
                if let Some(report) = self.stepped.take() {
                    return Next::Ended(Ok(Outcome::Stepped { report }));
                }
                let Some(load) = run.load(&step.load) else {
                    return Next::Ended(Err(Failure::permanent("there is no such load")));
                };
                let expected = match assignment.task {
                    Task::Step {
                        expected_rows,
                        expected_segments,
                        ..
                    } => Expected {
                        rows: expected_rows,
                        segments: expected_segments,
                    },
                    Task::Discover | Task::Chunk { .. } => Expected::default(),
                };
                let nth = match assignment.task {
                    Task::Step { round, .. } => round,
                    Task::Discover | Task::Chunk { .. } => 0,
                };
                let undo = matches!(assignment.key.work, Work::Compensate(_));
                match (step.kind, undo) {
                    (StepKind::Prepare, false) => request(load, Call::Prepare),
                    (StepKind::Verify, false) => request(load, Call::Verify(expected)),
                    (StepKind::Cleanup, false) => request(load, Call::Cleanup),
                    (StepKind::Prepare, true) => request(load, Call::Discard),
                    (StepKind::Publish, true) => request(load, Call::Revert),
                    (StepKind::Publish, false) if self.kept > KEPT_LOOKS[number % KEPT_LOOKS.len()] => {
                        Next::Ended(Err(Failure::transient(KEPT)))
                    }
                    (StepKind::Publish, false) => request(load, Call::Publish(expected)),
                    (StepKind::Recall, false) => request(load, Call::Recall(nth)),
                    (StepKind::Recall, true) => request(load, Call::Release(nth)),
                    (StepKind::Verify | StepKind::Cleanup, true) => Next::Ended(Ok(Outcome::Stepped {
                        report: StepReport::default(),
                    })),
                }
            }
        }
    }

    fn report(&self, number: usize, run: &Run, id: haulage_core::ids::ChunkId) -> ChunkReport {
        let mut counts = Counts::default();
        let Some((stage, chunk)) = run.chunk(id) else {
            return empty(counts);
        };
        let rows = (0..chunk.segments).map(|segment| workload::rows(number, id, segment).len() as u64);
        let rows: u64 = rows.sum();
        counts.read = rows;
        for load in &stage.loads {
            let of_load = LoadCounts {
                loaded: rows,
                passed: rows,
                ..LoadCounts::default()
            };
            counts.loads.insert(run.loads[*load].name.0.clone(), of_load);
        }
        ChunkReport {
            segments: chunk.segments,
            resumed: self.resumed,
            continued: self.resumed > 0,
            ..empty(counts)
        }
    }

    /// A call was answered well.
    pub(crate) fn answered(&mut self, done: Option<Done>) {
        match done {
            None => self.discovered = true,
            Some(Done::Markers(markers)) => {
                self.begun += 1;
                self.standing.push(markers.into_iter().collect());
                let everywhere = |segment: &u32| self.standing.iter().all(|load| load.contains(segment));
                self.resumed = (0..).take_while(everywhere).count() as u32;
                self.segment = self.resumed;
            }
            Some(Done::Committed) => self.load += 1,
            Some(Done::Stepped(report)) => self.stepped = Some(report),
            Some(Done::Kept) => self.kept += 1,
        }
    }
}

fn empty(counts: Counts) -> ChunkReport {
    ChunkReport {
        counts,
        segments: 0,
        resumed: 0,
        rejects: Vec::new(),
        restarts: 0,
        bytes_read_again: 0,
        continued: false,
    }
}

impl World {
    /// A worker makes a call, and whatever can go wrong around it may.
    pub(crate) fn call_port(&mut self, from: Process, call: PortCall) {
        let rates = self.rates;
        if self.befalls(rates.node_crash) {
            let sent = self.chance.permille(500);
            if sent {
                self.queue.push(self.now + 2, Event::Port(from, call, false));
            }
            return self.crash(from.role, "node crash at a call");
        }
        let mut wait = self.chance.between(1, 12);
        if let Some((
            _,
            Request {
                call: Call::Commit(..), ..
            },
        )) = &call.request
        {
            wait += self.chance.below(rates.segment_ms);
        }
        if self.befalls(rates.node_pause) {
            let pause = self.chance.between(500, 9_000);
            self.pause(from.role, pause, "node pause at a call");
            // Sent at the first moment after it, before anything that was to be heard meanwhile.
            wait += pause;
        }
        if self.strikes(rates.request_late, "request late") {
            wait += self.chance.between(500, 8_000);
        }
        if let Some((destination, _)) = &call.request
            && self.befalls(rates.destination_crash)
        {
            let destination = *destination;
            self.crash_destination(destination, "destination crash at a call");
            let answer = Err(Failure::transient("the server went down"));
            return self.after(wait, from, What::Port(call.key, call.serial, answer));
        }
        if self.strikes(rates.request_lost, "request lost") {
            let answer = Err(Failure::transient("the connection was cut"));
            return self.after(wait, from, What::Port(call.key, call.serial, answer));
        }
        // Of a recall more often: there are few of them.
        let late = match &call.request {
            Some((_, request)) if matches!(request.call, Call::Recall(_)) => rates.request_late * 8,
            Some(_) => rates.request_late,
            None => 0,
        };
        if self.strikes(late, "request cut off and carried out late") {
            // A server that is busy, or where others hold a lock, comes to it long after its client has given up.
            let late = self.chance.between(200, 9_000);
            self.queue
                .push(self.now + wait + late, Event::Port(from, call.clone(), false));
            let answer = Err(Failure::transient("the connection was cut"));
            return self.after(wait, from, What::Port(call.key, call.serial, answer));
        }
        let answered = !self.strikes(rates.answer_lost, "answer of a commit lost");
        self.queue.push(self.now + wait, Event::Port(from, call, answered));
    }

    /// A call reaches its port.
    pub(crate) fn at_port(&mut self, from: Process, call: PortCall, answered: bool) {
        let mut answer: PortAnswer = Ok(None);
        if let Some((number, request)) = &call.request {
            let away = self.now < self.destinations[*number].down_until;
            answer = if away {
                Err(Failure::transient("the server is away"))
            } else {
                let (done, effects) = self.destinations[*number].execute(request, answered);
                self.effect(from, &call, effects);
                done.map(Some)
            };
            if let Err(failure) = &answer {
                say!(self, "  d{number} refuses {} of {from}: {failure}", call.key.work);
            }
        }
        if !answered {
            say!(self, "  the answer to {} of {from} is lost", call.key.work);
            answer = Err(Failure::transient("the connection was cut"));
        }
        let mut wait = self.chance.between(1, 12);
        if let Ok(Some(Done::Kept)) = answer {
            wait += 1_000;
        }
        self.after(wait, from, What::Port(call.key, call.serial, answer));
    }

    /// The number of a run.
    pub(crate) fn number(&self, run: &haulage_core::ids::RunId) -> usize {
        self.runs.iter().position(|known| known.id == *run).unwrap_or(0)
    }

    pub(crate) fn node_of(process: Process) -> Option<usize> {
        match process.role {
            Role::Node(node) => Some(node),
            Role::Coordinator(_) => None,
        }
    }
}
