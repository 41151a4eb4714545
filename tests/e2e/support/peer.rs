//! A node by hand: an agent in this process that attaches to a real coordinator over its port and says of itself what
//! the test wants. It takes no work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use haulage_proto::link::actor::{AGENTS, AgentMessage, GATEWAYS, GatewayMessage};
use haulage_proto::link::transport::{self, Dialed};
use haulage_proto::link::wire::{self, Meta, Wire};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::NodeServerMessage;
use serde_json::Value;
use tonic::transport::Endpoint;

use super::process::until;

/// See the module.
pub(crate) struct Peer {
    session: ActorRef<NodeServerMessage>,
    agent: ActorRef<AgentMessage>,
    heard: Arc<Mutex<Vec<Value>>>,
    _dialed: Dialed,
}

struct Agent;

/// What it answers a hello with, and the hellos that it has heard.
struct Said {
    reply: Value,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Actor for Agent {
    type Msg = AgentMessage;
    type State = Said;
    type Arguments = Said;

    async fn pre_start(&self, me: ActorRef<AgentMessage>, said: Said) -> Result<Said, ActorProcessingErr> {
        ractor::pg::join(AGENTS.to_owned(), vec![me.get_cell()]);
        Ok(said)
    }

    async fn handle(
        &self,
        _: ActorRef<AgentMessage>,
        message: AgentMessage,
        said: &mut Said,
    ) -> Result<(), ActorProcessingErr> {
        if let AgentMessage::Hello(wire, port) = message {
            let (_, hello) = wire::decode::<Value>(&wire)?;
            said.heard.lock().unwrap_or_else(PoisonError::into_inner).push(hello);
            drop(port.send(wire::encode(&Meta::default(), &said.reply)?));
        }
        Ok(())
    }
}

impl Peer {
    /// Dials a coordinator. `reply` is its answer to a hello; without `speaks` it is one of protocol 1, which is refused.
    pub(crate) async fn attach(address: &str, name: &str, cookie: &str, reply: Value) -> Result<Self> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let said = Said {
            reply,
            heard: Arc::clone(&heard),
        };
        let (agent, _) = Actor::spawn(None, Agent, said).await?;
        let session = transport::session(name, cookie).await?;
        let channel = Endpoint::from_shared(address.to_owned())?.connect().await?;
        let dialed = transport::dial(&session, channel, "the coordinator").await?;
        Ok(Self {
            session,
            agent,
            heard,
            _dialed: dialed,
        })
    }

    /// The first hello that it hears.
    pub(crate) async fn hello(&self) -> Result<Value> {
        until("a hello", Duration::from_secs(30), async || {
            Ok(self
                .heard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .first()
                .cloned())
        })
        .await
    }

    /// Says something to the coordinator's gateway that means nothing, `times` times.
    pub(crate) async fn talk_nonsense(&self, times: usize) -> Result<()> {
        let gateway = until("the gateway", Duration::from_secs(30), async || {
            Ok(ractor::pg::get_members(&GATEWAYS.to_owned()).into_iter().next())
        })
        .await?;
        let known: ActorRef<GatewayMessage> = gateway.clone().into();
        // A call that this actor doesn't have.
        let strange: ActorRef<AgentMessage> = gateway.into();
        let brief = Some(Duration::from_millis(50));
        let lies = wire::encode(&Meta::default(), &serde_json::json!({"node": 7, "key": [null]}))?;
        for number in 0..times {
            let wire = match number % 3 {
                0 => Wire(vec![0xff; 1000]),
                1 => Wire(Vec::new()),
                _ => lies.clone(),
            };
            drop(
                known
                    .call(|port| GatewayMessage::Heartbeat(wire.clone(), port), brief)
                    .await,
            );
            drop(known.call(|port| GatewayMessage::Done(wire.clone(), port), brief).await);
            drop(strange.call(|port| AgentMessage::Assign(wire, port), brief).await);
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.agent.stop(None);
        self.session.stop(None);
    }
}
