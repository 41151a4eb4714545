//! The cluster link: what nodes and the coordinator say to each other, and how a ractor_cluster session runs inside
//! one gRPC stream.
//!
//! Two long-lived remotable actors speak: the node's `NodeAgent` ([`actor::AgentMessage`]) and the coordinator's
//! `ClusterGateway` ([`actor::GatewayMessage`]). Both find each other through process groups ([`actor::AGENTS`],
//! [`actor::GATEWAYS`]). Every message is an envelope ([`wire`]) around JSON, with version, epoch and trace context,
//! and every message is a call with a reply and a timeout: `cast` reports success for a message that was lost.
//!
//! Rows never travel here, only references to them.

pub mod actor;
pub mod message;
pub mod protocol;
pub mod transport;
pub mod wire;
