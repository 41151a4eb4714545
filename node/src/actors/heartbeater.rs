//! Heartbeats and the node's own fence, in an actor that never waits: calls run beside it and come back as messages.
//!
//! A lease counts from when the heartbeat that was answered was *sent*, on this process's monotonic clock, so it runs
//! out here before the leader may give the work to somebody else. When it does, every attempt is cancelled and nothing
//! new is taken until a coordinator grants a lease again.
//!
//! ```text
//!   not greeted ──hello──► leased ──lease runs out, or "unknown"──► lapsed
//!                            ▲──────────hello, or a grant──────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use haulage_core::ids::Epoch;
use haulage_core::lease::{HEARTBEAT_MS, LEASE_MS, SelfFence};
use haulage_proto::link::actor::GatewayMessage;
use haulage_proto::link::message::{Heartbeat, Hello, HelloReply, LeaseGrant};
use haulage_proto::link::protocol::{Role, Speaks};
use haulage_proto::link::wire::{self, Wire};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;

use super::gateway;
use super::shared::{Refusal, Rhythm, Shared};
use super::supervisor::SupervisorMessage;
use crate::trace::Carrier;

/// How long a node that speaks no protocol of the coordinator's stays, so that its answer to the hello gets there: it is
/// what the coordinator says about it.
const PARTING: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Heartbeater;

/// What the heartbeater is told.
#[derive(ractor_cluster::RactorMessage)]
pub(crate) enum HeartbeaterMessage {
    /// A coordinator said hello: the lease begins, and the answer says what this node holds.
    Greeted { hello: Hello, reply: RpcReplyPort<Wire> },
    /// It is time for the next heartbeat of this rhythm.
    Tick { rhythm: u64 },
    /// A heartbeat was answered.
    Granted { sent: u64, epoch: Epoch, grant: LeaseGrant },
    /// A heartbeat was not answered by a gateway.
    Unanswered { reason: String },
    /// A lease may have run out by now.
    Check,
    /// There is news that shouldn't wait for the next heartbeat.
    Now,
    /// This node can't work for the coordinator, and ends.
    Part { reason: String },
}

/// Whom it works with.
pub(crate) struct Colleagues {
    pub(crate) shared: Arc<Shared>,
    pub(crate) supervisor: ActorRef<SupervisorMessage>,
}

/// What it remembers.
pub(crate) struct State {
    with: Colleagues,
    origin: Instant,
    fence: SelfFence,
    lease_ms: u64,
    heartbeat_ms: u64,
    /// Grows with every hello, which may bring another interval: ticks of an older rhythm are of no interest any more.
    rhythm: u64,
    /// When the last hello came; nobody expects heartbeats before the first.
    greeted: Option<u64>,
    leased: bool,
    /// Whether the last heartbeat was answered, so that a silence is logged once.
    heard: bool,
}

impl Actor for Heartbeater {
    type Msg = HeartbeaterMessage;
    type State = State;
    type Arguments = Colleagues;

    async fn pre_start(&self, _: ActorRef<Self::Msg>, with: Colleagues) -> Result<State, ActorProcessingErr> {
        Ok(State {
            with,
            origin: Instant::now(),
            fence: SelfFence::default(),
            lease_ms: LEASE_MS,
            heartbeat_ms: HEARTBEAT_MS,
            rhythm: 0,
            greeted: None,
            leased: false,
            heard: true,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: HeartbeaterMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HeartbeaterMessage::Greeted { hello, reply } => state.greeted(&myself, &hello, reply)?,
            HeartbeaterMessage::Tick { rhythm } => {
                if rhythm == state.rhythm {
                    let next = move || HeartbeaterMessage::Tick { rhythm };
                    myself.send_after(Duration::from_millis(state.heartbeat_ms), next);
                    state.check()?;
                    state.beat(&myself)?;
                }
            }
            HeartbeaterMessage::Granted { sent, epoch, grant } => state.granted(&myself, sent, epoch, grant)?,
            HeartbeaterMessage::Unanswered { reason } => {
                if std::mem::replace(&mut state.heard, false) {
                    tracing::warn!("a heartbeat was not answered: {reason}");
                }
            }
            HeartbeaterMessage::Check => state.check()?,
            HeartbeaterMessage::Now => {
                if state.greeted.is_some() {
                    state.beat(&myself)?;
                }
            }
            HeartbeaterMessage::Part { reason } => return Err(reason.into()),
        }
        Ok(())
    }
}

impl State {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn greeted(
        &mut self,
        myself: &ActorRef<HeartbeaterMessage>,
        hello: &Hello,
        reply: RpcReplyPort<Wire>,
    ) -> Result<(), ActorProcessingErr> {
        match Speaks::ours().agree(Role::Coordinator, &hello.speaks) {
            Ok(protocol) => self.with.shared.agreed(protocol),
            Err(unsuited) => {
                let reason = unsuited.to_string();
                tracing::error!("this node ends: {reason}");
                self.with.shared.refuse(Refusal::Unsuited(unsuited));
                self.with.shared.answer(reply, &self.hello_reply());
                myself.send_after(PARTING, || HeartbeaterMessage::Part { reason });
                return Ok(());
            }
        }
        // What was worked on under a lease that has run out was given to others: this greeting doesn't bring it back.
        self.check()?;
        let now = self.now();
        // Asked again while its lease stands is no news.
        let known = self.leased && !self.fence.expired(now);
        self.lease_ms = hello.lease_ms.max(1);
        self.heartbeat_ms = hello.heartbeat_ms.clamp(1, self.lease_ms);
        self.greeted = Some(now);
        self.hear();
        // Where nothing is held, the lease begins: the leader counts from when it hears the answer, which is later. One that
        // runs is not prolonged, since nobody knows how long the greeting was on its way: that takes a heartbeat.
        if !known {
            self.lease(myself, now, self.lease_ms)?;
        }
        // The first heartbeat goes at once: waiting out an interval of before could outlast what is left of a lease.
        self.rhythm += 1;
        myself.cast(HeartbeaterMessage::Tick { rhythm: self.rhythm })?;
        let shared = &self.with.shared;
        // After the supervisor heard of the lease: an assignment may follow the answer at once.
        shared.answer(reply, &self.hello_reply());
        if !known {
            tracing::info!(epoch = shared.epoch().0, "greeted by a coordinator");
        }
        Ok(())
    }

    fn hello_reply(&self) -> HelloReply {
        let shared = &self.with.shared;
        HelloReply {
            node: shared.name.clone(),
            boot: shared.boot.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: shared.slots,
            places: shared.places.clone(),
            running: shared.held().into_iter().map(|(key, _)| key).collect(),
            speaks: Speaks::ours(),
            draining: shared.is_draining(),
        }
    }

    /// Sends a heartbeat to every gateway: one of them may be the shadow of a session that is about to end.
    fn beat(&mut self, myself: &ActorRef<HeartbeaterMessage>) -> Result<(), ActorProcessingErr> {
        let shared = &self.with.shared;
        let held = shared.held();
        let ahead = held.iter().map(|(_, progress)| progress.bytes_read_again()).collect();
        let progress = held.into_iter().map(|(key, progress)| (key, progress.get())).collect();
        let body = Heartbeat {
            node: shared.name.clone(),
            boot: shared.boot.clone(),
            progress,
            ahead,
            draining: shared.is_draining(),
        };
        let message = wire::encode(&shared.meta(&Carrier::new()), &body)?;
        // Less than two intervals, so that not more than two are ever on their way to one gateway.
        let timeout = Duration::from_millis(self.heartbeat_ms.saturating_mul(3) / 2 + 1);
        let sent = self.now();
        let gateways = gateway::gateways();
        if gateways.is_empty() {
            myself.cast(HeartbeaterMessage::Unanswered {
                reason: "no coordinator is connected".to_owned(),
            })?;
        }
        for gateway in gateways {
            let (myself, message) = (myself.clone(), message.clone());
            tokio::spawn(async move {
                let answer = gateway::ask::<LeaseGrant>(&gateway, GatewayMessage::Heartbeat, message, timeout).await;
                let news = match answer {
                    Ok((meta, grant)) => HeartbeaterMessage::Granted {
                        sent,
                        epoch: meta.epoch,
                        grant,
                    },
                    Err(reason) => HeartbeaterMessage::Unanswered { reason },
                };
                // An error means that this node is shutting down.
                drop(myself.cast(news));
            });
        }
        Ok(())
    }

    fn granted(
        &mut self,
        myself: &ActorRef<HeartbeaterMessage>,
        sent: u64,
        epoch: Epoch,
        grant: LeaseGrant,
    ) -> Result<(), ActorProcessingErr> {
        if !self.with.shared.admit(epoch) {
            return Ok(());
        }
        self.hear();
        if !std::mem::replace(&mut self.heard, true) {
            tracing::info!("heartbeats are answered again");
        }
        if grant.unknown {
            // Said before the last hello, it is about a time when the leader did not know this node yet.
            if self.greeted.is_some_and(|greeted| sent >= greeted) {
                self.fence.clear();
                self.lapse("the coordinator has given this node up and greets it anew")?;
            }
            return Ok(());
        }
        if grant.name_taken {
            return Err(self.refused().into());
        }
        if grant.may_leave {
            self.with.supervisor.cast(SupervisorMessage::MayLeave)?;
        }
        if !grant.unwanted.is_empty() {
            let dropped = SupervisorMessage::Drop {
                attempts: grant.unwanted,
                runs: Vec::new(),
                reply: None,
            };
            self.with.supervisor.cast(dropped)?;
        }
        self.lease(myself, sent, grant.lease_ms)
    }

    fn hear(&self) {
        self.with.shared.hear(Rhythm {
            heartbeat_ms: self.heartbeat_ms,
            lease_ms: self.lease_ms,
        });
    }

    /// Another process has this node's name and lives. An error ends the node as a whole: two of one name would be given
    /// each other's work.
    fn refused(&self) -> String {
        let shared = &self.with.shared;
        tracing::warn!(node = %shared.name, "another process runs under this node's name, so this one ends");
        shared.refuse(Refusal::NameTaken);
        format!("another process runs under the name {}", shared.name)
    }

    fn lease(
        &mut self,
        myself: &ActorRef<HeartbeaterMessage>,
        sent: u64,
        lease_ms: u64,
    ) -> Result<(), ActorProcessingErr> {
        self.fence.granted(sent, lease_ms);
        let now = self.now();
        if self.fence.expired(now) {
            return self.check();
        }
        if !std::mem::replace(&mut self.leased, true) {
            self.with.supervisor.cast(SupervisorMessage::Leased)?;
        }
        // One look exactly when this grant runs out; the ticks between are coarser than a lease's end deserves.
        let left = sent.saturating_add(lease_ms).saturating_sub(now);
        myself.send_after(Duration::from_millis(left), || HeartbeaterMessage::Check);
        Ok(())
    }

    fn check(&mut self) -> Result<(), ActorProcessingErr> {
        if !self.fence.expired(self.now()) {
            return Ok(());
        }
        self.fence.clear();
        self.lapse("no coordinator has renewed the lease in time")
    }

    fn lapse(&mut self, reason: &str) -> Result<(), ActorProcessingErr> {
        if std::mem::replace(&mut self.leased, false) {
            tracing::warn!("this node cancels its work: {reason}");
            self.with.supervisor.cast(SupervisorMessage::Lapsed {
                reason: reason.to_owned(),
            })?;
        }
        Ok(())
    }
}
