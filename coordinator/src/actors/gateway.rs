//! `ClusterGateway`: the one remotable actor of a coordinator. It decodes what nodes say and passes it on; it never
//! waits for anything, so a heartbeat is never held up by another message.

use std::sync::Arc;

use haulage_core::ids::Epoch;
use haulage_proto::link::actor::{GATEWAYS, GatewayMessage};
use haulage_proto::link::message::{Done, DoneReply, Heartbeat};
use haulage_proto::link::wire::{self, Wire};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::de::DeserializeOwned;

use super::cluster::ClusterMessage;
use super::run::RunMessage;
use super::table::Place;
use super::{Answer, Shared, tell};
use crate::complaints::Kind;
use crate::deciding::Actorless;

/// See the module.
pub(crate) struct ClusterGateway;

pub(crate) struct GatewayState {
    shared: Arc<Shared>,
    cluster: ActorRef<ClusterMessage>,
}

impl Actor for ClusterGateway {
    type Msg = GatewayMessage;
    type State = GatewayState;
    type Arguments = (Arc<Shared>, ActorRef<ClusterMessage>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (shared, cluster): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        ractor::pg::join(GATEWAYS.to_owned(), vec![myself.get_cell()]);
        Ok(GatewayState { shared, cluster })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            GatewayMessage::Heartbeat(wire, port) => {
                // Unanswered, and unheard: the node fences itself, and this leader's view of it is the same.
                if !state.shared.leadership.holds() {
                    return Ok(());
                }
                if let Some((heartbeat, answer)) = state.open::<Heartbeat>(&wire, port) {
                    tell(&state.cluster, ClusterMessage::Heartbeat(heartbeat, answer));
                }
            }
            GatewayMessage::Done(wire, port) => {
                if let Some((done, answer)) = state.open::<Done>(&wire, port) {
                    state.done(done, answer);
                }
            }
        }
        Ok(())
    }
}

impl GatewayState {
    /// What is in an envelope, and where its answer goes. A message that can't be read gets none: the node's call
    /// times out, and the reason stands in this log.
    fn open<T: DeserializeOwned>(&self, wire: &Wire, port: RpcReplyPort<Wire>) -> Option<(T, Answer)> {
        match wire::decode::<T>(wire) {
            Ok((meta, body)) => {
                self.heed_epoch(meta.epoch);
                Some((body, Answer::new(self.shared.meta(), port)))
            }
            Err(error) => {
                let what = format!("a node sent something that can't be read: {error}");
                self.shared.complaints.about(Kind::Message, &"a node", &what);
                None
            }
        }
    }

    /// A node that has seen a higher epoch knows another leader: the ledger says whether that is so.
    fn heed_epoch(&self, seen: Epoch) {
        if seen > self.shared.epoch() {
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move { shared.leadership.look(shared.ledger.as_ref()).await });
        }
    }

    fn done(&self, done: Done, answer: Answer) {
        let table = &self.shared.table;
        let actorless = match table.place(&done.key.run) {
            Some(Place::Live(run)) => return tell(&run, RunMessage::Done(done, answer)),
            Some(Place::Starting) => Actorless::Starting,
            Some(Place::SetAside(_)) => Actorless::SetAside,
            None => Actorless::Unknown {
                complete: table.is_complete(),
            },
        };
        answer.send(&DoneReply {
            acknowledged: actorless.acknowledges(),
        });
    }
}
