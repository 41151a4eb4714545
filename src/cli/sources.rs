//! Before `haulage run` makes a run: whether the files that it would read are here and are what the pipeline says.
//!
//! Everything is on this machine then, so a typo in a path need not become a failed run in the ledger. A submission that
//! already has a run is let through whatever its files are by now: asking twice is harmless, also when they have been
//! moved away since.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use haulage_core::submission::Submission;
use haulage_node::NodeConfig;
use haulage_plan::Diagnostics;
use haulage_plan::definition::Definition;
use haulage_proto::v1::{ListRunsRequest, Run, RunState};

use crate::api::{self, Client, Explain as _};
use crate::pipeline::Document;

/// Runs of a pipeline that are looked through for an earlier one of the same submission.
const EARLIER: u32 = 500;

/// What is wrong with the files, kept until it is known whether the submission has a run already.
pub(crate) struct Checked {
    wrong: Option<Diagnostics>,
    definition: Definition,
}

impl Checked {
    /// Looks at the sources. An error right away if no earlier run can answer: nothing was ever run in this home, or
    /// the pipeline is to be run again.
    pub(crate) async fn new(
        config: &NodeConfig,
        definition: Definition,
        document: &Document,
        ledger: &Path,
        rerun: bool,
    ) -> Result<Self> {
        let wrong = haulage_node::check::sources(config, &definition, &document.base)
            .await
            .err();
        match wrong {
            Some(wrong) if rerun || !ledger.exists() => Err(wrong.into()),
            wrong => Ok(Self { wrong, definition }),
        }
    }

    /// What is wrong, unless the same submission has a run that is not over or is published.
    pub(crate) async fn unless_answered(
        self,
        client: &Client,
        document: &Document,
        params: &BTreeMap<String, String>,
        places: &BTreeMap<String, String>,
    ) -> Result<()> {
        if self.wrong.is_none() || self.earlier(client, document, params, places).await?.is_some() {
            return Ok(());
        }
        self.wrong.map_or(Ok(()), |wrong| Err(wrong.into()))
    }

    /// The newest run of the same submission that is not over, or is published.
    pub(crate) async fn earlier(
        &self,
        client: &Client,
        document: &Document,
        params: &BTreeMap<String, String>,
        places: &BTreeMap<String, String>,
    ) -> Result<Option<Run>> {
        let loads = haulage_plan::outline(&self.definition);
        let submission = Submission {
            pipeline: self.definition.pipeline.clone(),
            definition: document.text.clone(),
            file: document.file.clone(),
            base: document.base.clone(),
            params: params.clone(),
            places: places
                .iter()
                .filter(|(name, _)| loads.iter().any(|load| load.destination == **name))
                .map(|(name, place)| (name.clone(), place.clone()))
                .collect(),
            loads,
            incremental: false,
            traceparent: String::new(),
            replay: None,
        };
        // The ids of all runs of a submission hold the same part; only their numbers differ.
        let first = submission.run_id("", 1).0;
        let Some(mark) = first.strip_prefix(&format!("{}-", submission.pipeline)) else {
            return Ok(None);
        };
        let request = ListRunsRequest {
            pipeline: submission.pipeline.clone(),
            limit: EARLIER,
        };
        let listed = client.clone().list_runs(api::call(request)).await;
        let runs = listed.explained()?.into_inner().runs;
        Ok(runs.into_iter().find(|run| {
            let over = matches!(run.state(), RunState::Failed | RunState::Cancelled | RunState::Reverted);
            !over && run.run_id.contains(mark)
        }))
    }
}
