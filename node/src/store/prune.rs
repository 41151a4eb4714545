//! Pruning: what runs that are at rest have left in the checkpoint store is deleted, piece by piece. Which runs those are
//! the coordinator knows; here nothing is decided.

use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_proto::link::message::{Prune, PrunedPart};

use super::Store;

/// Objects that are deleted at once.
const PARALLEL: usize = 8;
/// How the keys of rejected rows end.
const REJECTS: &str = ".rejects.jsonl.zst";

/// Does a piece of it.
pub(crate) async fn prune(store: &dyn Store, what: Prune) -> Result<PrunedPart, Failure> {
    match what {
        Prune::Runs { after } => Ok(PrunedPart {
            runs: store.runs(&after).await?.into_iter().map(RunId).collect(),
            ..PrunedPart::default()
        }),
        Prune::Run {
            run,
            rejects,
            dry,
            after,
        } => {
            let found = store.list(&format!("runs/{run}"), &after).await?;
            let mut part = PrunedPart {
                next: found.last().map(|(key, _)| key.clone()),
                ..PrunedPart::default()
            };
            let wanted: Vec<_> = found
                .into_iter()
                .filter(|(key, _)| rejects || !key.ends_with(REJECTS))
                .collect();
            for (_, bytes) in &wanted {
                part.objects += 1;
                part.bytes += bytes;
            }
            if !dry {
                let deletes: Vec<_> = wanted.iter().map(|(key, _)| store.delete(key)).collect();
                stream::iter(deletes)
                    .buffer_unordered(PARALLEL)
                    .try_collect::<()>()
                    .await?;
            }
            Ok(part)
        }
    }
}
