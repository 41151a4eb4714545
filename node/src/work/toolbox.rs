//! What the work of a node shares: its checkpoint store, its destinations, and what it keeps of each run. All of it is
//! opened when it is first needed, and a failure to open is tried again the next time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, RunId};
use haulage_plan::definition::Definition;
use indexmap::IndexMap;
use tokio::sync::{OnceCell, Semaphore};

use super::Order;
use super::listing::Listings;
use super::run::{Request, RunContext};
use crate::config::NodeConfig;
use crate::sink::{self, Destination};
use crate::store::{self, Store};

/// Runs of which a node keeps plan and lookups at once. One that is forgotten too early is planned again.
const RUNS: usize = 16;
/// Each holds a segment or two in memory, and a connection.
const READING_BACK: usize = 2;

/// See the module.
pub(crate) struct Toolbox {
    config: NodeConfig,
    memory: Arc<dyn MemoryPool>,
    store: OnceCell<Arc<dyn Store>>,
    destinations: Mutex<HashMap<String, Cell<Arc<dyn Destination>>>>,
    runs: Mutex<IndexMap<RunId, Cell<Arc<RunContext>>>>,
    /// Targets that are read back at once; others wait for their turn.
    pub(crate) reading_back: Semaphore,
    /// Quarantine objects that are being listed.
    pub(crate) listings: Listings,
}

type Cell<T> = Arc<OnceCell<T>>;

impl Toolbox {
    pub(crate) fn new(config: NodeConfig) -> Self {
        let bytes = usize::try_from(config.memory_bytes).unwrap_or(usize::MAX);
        Self {
            config,
            memory: Arc::new(GreedyMemoryPool::new(bytes)),
            store: OnceCell::new(),
            destinations: Mutex::default(),
            runs: Mutex::default(),
            reading_back: Semaphore::new(READING_BACK),
            listings: Listings::default(),
        }
    }

    pub(crate) fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// What all the SQL on this node may use together.
    pub(crate) fn memory(&self) -> Arc<dyn MemoryPool> {
        self.memory.clone()
    }

    /// The checkpoint store.
    pub(crate) async fn store(&self) -> Result<Arc<dyn Store>, Failure> {
        self.store
            .get_or_try_init(|| store::open(&self.config.store, &self.config.s3))
            .await
            .cloned()
    }

    /// The destination of a load. One value serves every load of every run.
    pub(crate) async fn destination(
        &self,
        definition: &Definition,
        load: &LoadName,
    ) -> Result<Arc<dyn Destination>, Failure> {
        self.destination_named(&definition.loads.get(load).ok_or_else(|| unknown_load(load))?.to)
            .await
    }

    /// The destination of this name.
    pub(crate) async fn destination_named(&self, name: &str) -> Result<Arc<dyn Destination>, Failure> {
        let cell = {
            let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
            destinations.entry(name.to_owned()).or_default().clone()
        };
        cell.get_or_try_init(|| async {
            let address = self.config.destination(name)?;
            let config = &self.config;
            sink::registry::open_with(name, &address, config.connections, config.home.as_deref(), &config.s3).await
        })
        .await
        .cloned()
    }

    /// The plan of the order's run, made once.
    pub(crate) async fn context(&self, order: &Order) -> Result<Arc<RunContext>, Failure> {
        let cell = {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            bounded(&mut runs, order.assignment.key.run.clone())
        };
        let make = || async {
            let store = self.store().await?;
            RunContext::new(&self.config, Request::of(order, &store))
                .await
                .map(Arc::new)
        };
        let found = cell.get_or_try_init(make).await?;
        let planned = &order.assignment.columns;
        if planned.is_empty() || found.planned() == *planned {
            return Ok(Arc::clone(found));
        }
        // Made for a discovery of this node that did not count: the run was planned by another's, which found others.
        let new = make().await?;
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.insert(
            order.assignment.key.run.clone(),
            Arc::new(OnceCell::from(Arc::clone(&new))),
        );
        Ok(new)
    }

    /// A run is at rest: what was kept for it goes.
    pub(crate) fn forget(&self, run: &RunId) {
        self.runs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .shift_remove(run);
    }
}

/// A load that the definition doesn't have, which only a coordinator of another release could ask for.
pub(super) fn unknown_load(load: &LoadName) -> Failure {
    Failure::permanent(format!(
        "the pipeline has no load {load}; run the same release on coordinator and nodes"
    ))
}

/// The cell under `key`; to make room for a new one, the oldest goes.
fn bounded<K: Hash + Eq, T>(cells: &mut IndexMap<K, Cell<T>>, key: K) -> Cell<T> {
    if cells.len() >= RUNS && !cells.contains_key(&key) {
        cells.shift_remove_index(0);
    }
    cells.entry(key).or_default().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let mut cells: IndexMap<usize, Cell<()>> = IndexMap::new();
        let first = bounded(&mut cells, 0);
        assert!(Arc::ptr_eq(&first, &bounded(&mut cells, 0)));
        for key in 1..=RUNS {
            bounded(&mut cells, key);
        }
        assert_eq!(cells.len(), RUNS);
        assert!(!cells.contains_key(&0) && cells.contains_key(&1));
    }
}
