//! The envelope: one protobuf message around every body, so that version, epoch and trace context travel with the
//! message and not with the connection that happened to carry it.

use std::collections::HashMap;

use haulage_core::ids::Epoch;
use prost::Message as _;
use ractor_cluster::BytesConvertable;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::v1::Envelope;

/// The version of the envelope itself. What its messages mean has a number of its own: [`super::protocol`].
pub const VERSION: u32 = 1;

/// An encoded envelope, as the session carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire(pub Vec<u8>);

// ractor_cluster allows panics here; raw bytes can't fail, and decoding happens where an error can be answered.
impl BytesConvertable for Wire {
    fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// Why an envelope was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an envelope.
    #[error("not a message of the cluster link: {0}")]
    Envelope(#[from] prost::DecodeError),
    /// From a peer of another version.
    #[error(
        "the peer speaks version {theirs} of the cluster link, this process speaks {VERSION}; run the same release on both"
    )]
    Version {
        /// The peer's.
        theirs: u32,
    },
    /// A body that isn't what the message says it is.
    #[error("unreadable message body: {0}")]
    Body(#[from] serde_json::Error),
}

/// What travels around a body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// The leader's term as the sender knows it.
    pub epoch: Epoch,
    /// W3C trace context: `traceparent` and `tracestate`, where there is one.
    pub trace: HashMap<String, String>,
}

/// Encodes a body.
pub fn encode<T: Serialize>(meta: &Meta, body: &T) -> Result<Wire, Error> {
    let take = |name: &str| meta.trace.get(name).cloned().unwrap_or_default();
    let envelope = Envelope {
        version: VERSION,
        epoch: meta.epoch.0,
        traceparent: take("traceparent"),
        tracestate: take("tracestate"),
        body: serde_json::to_vec(body)?,
    };
    Ok(Wire(envelope.encode_to_vec()))
}

/// Decodes a body of type `T`.
pub fn decode<T: DeserializeOwned>(wire: &Wire) -> Result<(Meta, T), Error> {
    let envelope = Envelope::decode(wire.0.as_slice())?;
    if envelope.version != VERSION {
        return Err(Error::Version {
            theirs: envelope.version,
        });
    }
    let mut trace = HashMap::new();
    if !envelope.traceparent.is_empty() {
        trace.insert("traceparent".to_owned(), envelope.traceparent);
        trace.insert("tracestate".to_owned(), envelope.tracestate);
    }
    let body = serde_json::from_slice(&envelope.body)?;
    Ok((
        Meta {
            epoch: Epoch(envelope.epoch),
            trace,
        },
        body,
    ))
}
