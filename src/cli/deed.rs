//! What `cancel`, `revert` and `saga` have in common: they ask something of one run. In a home nobody else would carry it
//! out, so this process does, and follows the run until nothing more happens to it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use haulage_proto::v1::{GetRunRequest, RunState};
use serde_json::Value;
use tonic::Status;

use crate::api::{self, Client, Explain as _};
use crate::cli::node_options::NodeOptions;
use crate::cli::{Globals, close, reach};
use crate::embedded::{self, Embedded};
use crate::exit::{Exit, Usage};
use crate::follow::{self, OnSignal};
use crate::signals::Signals;

/// Something that is asked of a run.
pub(crate) struct Deed<'a> {
    /// The run's id.
    pub(crate) run: &'a str,
    /// What to type to ask for it, without options that change nothing about it.
    pub(crate) command: String,
    /// What to do when another process works in the home.
    pub(crate) busy: &'static str,
    /// Where what was asked for is done, or isn't, other than the run's state alone would say.
    pub(crate) exit: fn(RunState) -> Option<Exit>,
}

impl Deed<'_> {
    /// Does it in the home. `ask` asks the coordinator there, and returns the place in the run's log where that stands.
    pub(crate) async fn in_home(
        &self,
        ask: impl AsyncFnOnce(&Client) -> Result<u64, Status>,
        node: &NodeOptions,
        signals: &mut Signals,
        globals: &Globals,
    ) -> Result<Exit> {
        let home = reach::existing_home(globals)?;
        let lock = home.lock().context(self.busy)?;
        let here = embedded::node_config(&home, node)?.places();
        let embedded = Embedded::start(&home, lock, node).await?;
        let client = embedded.client();
        let done = async {
            self.refuse_elsewhere(&client, &here, globals).await?;
            let asked = ask(&client).await.explained()?;
            self.to_the_end(&client, asked, signals, globals).await
        };
        let exit = done.await;
        embedded.stop().await;
        exit
    }

    /// Follows until nothing more happens to the run, from where its log says that something was asked of it.
    pub(crate) async fn to_the_end(
        &self,
        client: &Client,
        asked: u64,
        signals: &mut Signals,
        globals: &Globals,
    ) -> Result<Exit> {
        let followed = Box::pin(follow::follow_from(
            client,
            self.run,
            asked,
            OnSignal::Leave,
            signals,
            globals.output(),
        ))
        .await?;
        let exit = close::close(&followed, self.run, globals)?;
        Ok(followed.run.and_then(|run| (self.exit)(run.state())).unwrap_or(exit))
    }

    /// Refuses a run whose destinations are not where this process has them: it would wait for ever for one that has them
    /// there.
    async fn refuse_elsewhere(
        &self,
        client: &Client,
        here: &BTreeMap<String, String>,
        globals: &Globals,
    ) -> Result<()> {
        let request = GetRunRequest {
            run_id: self.run.to_owned(),
        };
        let events = client
            .clone()
            .get_run(api::call(request))
            .await
            .explained()?
            .into_inner()
            .events;
        let submitted: Value = events
            .first()
            .and_then(|event| serde_json::from_str(&event.json).ok())
            .unwrap_or_default();
        let places = submitted["submission"]["places"].as_object();
        for (name, place) in places.into_iter().flatten() {
            let (Some(place), Some(other)) = (place.as_str(), here.get(name)) else {
                continue;
            };
            if place != other {
                return Err(Usage(format!(
                    "the run began with the destination `{name}` at {place}, and here it is {other}; nothing was done to \
                     the run. Say where it is: {} --destination {name}=ADDRESS-THERE",
                    globals.hint(&self.command)
                ))
                .into());
            }
        }
        Ok(())
    }
}
