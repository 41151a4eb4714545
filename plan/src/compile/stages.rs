//! Which chunked source feeds which loads, and by which steps: one stage for each.

use std::collections::BTreeSet;

use haulage_core::ids::{LoadName, StageId};
use indexmap::IndexMap;

use super::steps::Planner;
use super::{LoadPlan, Loaded, Stage, StepPlan};
use crate::definition::Definition;

pub(super) fn stages(
    definition: &Definition,
    planner: &Planner<'_>,
    steps: &IndexMap<String, StepPlan>,
    loaded: IndexMap<LoadName, Loaded>,
) -> (Vec<Stage>, IndexMap<LoadName, LoadPlan>) {
    let mut stages: Vec<Stage> = Vec::new();
    let mut loads = IndexMap::new();
    for source in definition.sources.keys() {
        let fed: Vec<&LoadName> = loaded
            .iter()
            .filter(|(_, load)| load.source == *source)
            .map(|(name, _)| name)
            .collect();
        if fed.is_empty() {
            continue;
        }
        let mut needed = BTreeSet::new();
        let mut lookups = BTreeSet::new();
        for from in fed
            .iter()
            .filter_map(|name| definition.loads.get(*name))
            .map(|load| load.from.as_str())
        {
            reach(from, steps, &mut needed);
            lookups.extend(
                planner
                    .known
                    .get(from)
                    .map(|known| known.lookups.clone())
                    .unwrap_or_default(),
            );
        }
        stages.push(Stage {
            id: StageId(u32::try_from(stages.len()).unwrap_or(u32::MAX)),
            source: source.clone(),
            steps: steps
                .keys()
                .filter(|step| needed.contains(step.as_str()))
                .cloned()
                .collect(),
            loads: fed.into_iter().cloned().collect(),
            lookups,
        });
    }
    for (name, load) in loaded {
        let Some(stage) = stages.iter().find(|stage| stage.source == load.source) else {
            continue;
        };
        let from = definition
            .loads
            .get(&name)
            .and_then(|load| planner.known.get(&load.from));
        let (lookups, rejects) = from
            .map(|known| (known.lookups.clone(), known.rejects.clone()))
            .unwrap_or_default();
        let rejects = rejects
            .into_iter()
            .filter(|step| planner.rejects.contains_key(step))
            .collect();
        let plan = LoadPlan {
            stage: stage.id,
            schema: load.schema,
            plan: load.plan,
            lookups,
            rejects,
        };
        loads.insert(name, plan);
    }
    (stages, loads)
}

fn reach<'s>(from: &'s str, steps: &'s IndexMap<String, StepPlan>, needed: &mut BTreeSet<&'s str>) {
    if let Some(step) = steps.get(from)
        && needed.insert(from)
    {
        for read in &step.reads {
            reach(read, steps, needed);
        }
    }
}
