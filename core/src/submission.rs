//! A submission: what a user asked for, and the identity that makes asking twice harmless.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{LoadName, RunId};

/// What a user asked for. Parameters are kept as the text the user gave; the plan types them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline file's whole text.
    pub definition: String,
    /// Where the text came from, for error messages.
    pub file: String,
    /// What relative source paths are relative to: a folder or an `s3://bucket/prefix`.
    pub base: String,
    /// Parameter values by name.
    pub params: BTreeMap<String, String>,
    /// The loads in the order in which they publish, with the destination of each.
    pub loads: Vec<LoadOutline>,
    /// Where destinations of the loads are, by name, if the client knows it: `postgres://host:port/database` or
    /// `sqlite:/path`, never with a credential. Nodes whose destination of that name is elsewhere get none of the work.
    #[serde(default)]
    pub places: BTreeMap<String, String>,
    /// The W3C `traceparent` of the client's span, empty if it had none.
    pub traceparent: String,
}

/// The part of a load that decisions need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadOutline {
    /// The load's name.
    pub name: LoadName,
    /// The destination's name.
    pub destination: String,
    /// The table or path there.
    pub table: String,
}

impl Submission {
    /// SHA-256 over pipeline, definition, base, parameters and places, in hex. Equal for equal requests.
    pub fn key(&self) -> String {
        let mut hash = Sha256::new();
        // Lengths go in front, so that no two different submissions run together into the same bytes.
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        };
        add(&self.pipeline);
        add(&self.definition);
        add(&self.base);
        for (name, value) in &self.params {
            add(name);
            add(value);
        }
        for (name, place) in &self.places {
            // No parameter has an empty name, so none passes for a place.
            add("");
            add(name);
            add(place);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Names the version of the pipeline file: the beginning of the SHA-256 of its text, in hex.
    pub fn definition_id(&self) -> String {
        let hash = Sha256::digest(self.definition.as_bytes());
        hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The id of the `number`-th run of this submission, from 1, in the ledger with this mark. Without the mark, two
    /// ledgers that publish to one warehouse (or a new one after the old was lost) would take each other's runs for
    /// their own there.
    pub fn run_id(&self, ledger: &str, number: u32) -> RunId {
        let short = &self.key()[..10];
        match number {
            0 | 1 => RunId(format!("{}-{ledger}-{short}", self.pipeline)),
            more => RunId(format!("{}-{ledger}-{short}-{more}", self.pipeline)),
        }
    }
}
