//! From where on a run reads an incremental source, as the destinations of its loads have it.

use haulage_core::event::PlannedStage;
use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::watermark::{Advance, Watermark};
use haulage_plan::definition::{DatabaseRows, Definition, Incremental, Lag, Mode, QueryPart, SourceKind};
use sha2::{Digest as _, Sha256};

use super::Toolbox;
use super::run::RunContext;
use crate::sink::{Destination, LoadContext};
use crate::source::database::HELD_BACK;

/// From where on a stage reads, and what becomes of the watermarks of its loads. Where they lead to is not known yet.
pub(super) struct ReadFrom {
    pub(super) low: Option<String>,
    pub(super) advances: Vec<Advance>,
}

/// See the module. Permanent failure if loads would get rows that they have, or miss some.
pub(super) async fn read_from(
    tools: &Toolbox,
    definition: &Definition,
    stage: &PlannedStage,
    how: &Incremental,
    loads: &[LoadContext],
) -> Result<ReadFrom, Failure> {
    let source = &stage.source;
    let of = what_is_read(definition, stage);
    let mut advances = Vec::new();
    for load in loads {
        let destination = tools.destination(definition, &load.load).await?;
        let to = definition.loads.get(&load.load).map_or("", |load| load.to.as_str());
        advances.push(advance((to, destination.as_ref()), load, source, how, &of).await?);
    }
    // A value can't be compared here, only its column's database can. One that differs from the others is one too many.
    let mut lows: Vec<&Option<String>> = Vec::new();
    for advance in &advances {
        if !lows.contains(&&advance.low) {
            lows.push(&advance.low);
        }
    }
    let adds = loads.iter().find(|load| load.mode == Mode::Append);
    let low = match (lows.as_slice(), adds) {
        ([], _) => None,
        ([low], _) => (*low).clone(),
        // Whoever updates by key or replaces all takes rows a second time.
        (_, None) => None,
        (_, Some(load)) => {
            let each: Vec<String> = advances
                .iter()
                .map(|advance| {
                    format!(
                        "{} from {}",
                        advance.load,
                        advance.low.as_deref().unwrap_or("the first row")
                    )
                })
                .collect();
            return Err(Failure::permanent(format!(
                "source {}: its loads go on from different places ({}), so load {}, which appends, would get rows a \
                 second time; if another run of the pipeline is publishing, wait for it; else use mode merge there, or read \
                 the source a second time under another name",
                source,
                each.join(", "),
                load.load
            )));
        }
    };
    for advance in &mut advances {
        advance.low.clone_from(&low);
    }
    Ok(ReadFrom { low, advances })
}

async fn advance(
    (to, destination): (&str, &dyn Destination),
    load: &LoadContext,
    source: &str,
    how: &Incremental,
    of: &str,
) -> Result<Advance, Failure> {
    if how.lag != Lag::None && load.mode == Mode::Append {
        return Err(Failure::permanent(format!(
            "load {} appends, and source {source} has a `lag`, which reads rows a second time; use mode merge, or leave the \
             lag out where rows are committed in the order of `{}`",
            load.load, how.column
        )));
    }
    let Some(marks) = destination.watermarks_of(load).await? else {
        return Err(Failure::permanent(format!(
            "load {}: its destination keeps no watermarks, which source {source} needs (`incremental`); load it into a \
             database, or leave `incremental` out",
            load.load
        )));
    };
    let others: Vec<String> = marks.iter().map(|mark| mark.source.clone()).collect();
    let mark = marks.into_iter().find(|mark| mark.source == source);
    let named = format!("{} {source} {}", load.pipeline, load.table);
    let more = format!("--to {to} --column {}", how.column);
    if mark.is_none() && !others.is_empty() && load.mode == Mode::Append {
        return Err(Failure::permanent(format!(
            "load {}: {} was read from {} so far, and {source} has no watermark; if that is another name for it, say from \
             where on: haulage state set {named} VALUE {more}; to read all of it: haulage state forget {named} {more}",
            load.load,
            load.table,
            others.join(", "),
        )));
    }
    if mark.is_none()
        && load.mode == Mode::Append
        && let Some(run) = destination.published_before(load).await?
    {
        return Err(Failure::permanent(format!(
            "load {}: {} has rows of run {run}, and {source} has no watermark, so they would be appended again; say up to \
             where they are there: haulage state set {named} VALUE {more}; to read all of it: haulage state forget {named} \
             {more}",
            load.load, load.table
        )));
    }
    if let Some(mark) = mark
        .as_ref()
        .filter(|mark| mark.value.is_some() && load.mode != Mode::Replace)
    {
        let value = mark.value.as_deref().unwrap_or_default();
        let (what, why) = if !mark.replaced_by.is_empty() {
            let why = format!(
                "run {} has replaced {} since, without {source}",
                mark.replaced_by, load.table
            );
            (why, "so nobody knows what of it is there")
        } else if mark.column != how.column {
            (
                format!("{source} was read up to {value} of column `{}`", mark.column),
                "and now by another",
            )
        } else if !mark.of.is_empty() && mark.of != of {
            let why = format!(
                "{source} was read up to {value} from another connection, table or query, or with other parameters"
            );
            (why, "which says nothing about this one")
        } else {
            (String::new(), "")
        };
        if !what.is_empty() {
            return Err(Failure::permanent(format!(
                "load {}: {what}, {why}; say from where on to read: haulage state set {named} VALUE --column {}; or read \
                 everything again: haulage state forget {named}",
                load.load, how.column
            )));
        }
    }
    let found = mark.and_then(|mark: Watermark| mark.value);
    if let Some(value) = &found
        && load.mode != Mode::Replace
        && !destination.inspect(load).await?.exists
    {
        return Err(Failure::permanent(format!(
            "load {}: {} isn't there, and its watermark says that {source} was read up to {value}: what came before would be \
             missing; to read everything again, forget it: haulage state forget {} {source} {}",
            load.load, load.table, load.pipeline, load.table
        )));
    }
    let low = match (load.mode, &load.replaces) {
        // A replacement holds everything.
        (Mode::Replace, _) => None,
        (_, None) => found.clone(),
        (_, Some(replaced)) => again(destination, load, replaced, source, &found).await?,
    };
    Ok(Advance {
        load: load.load.clone(),
        source: source.to_owned(),
        column: how.column.clone(),
        found,
        low,
        to: None,
        of: of.to_owned(),
        held_back: 0,
        below: None,
    })
}

/// A digest of what is read: another connection, table, query, column or parameter is another thing. So is another value of
/// a parameter by which a step of the stage may pick rows.
fn what_is_read(definition: &Definition, stage: &PlannedStage) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    if let Some(SourceKind::Database(database)) = definition.sources.get(&stage.source).map(|source| &source.kind) {
        add(&database.at);
        match &database.rows {
            DatabaseRows::Table(table) => add(table),
            DatabaseRows::Query(parts) => parts.iter().for_each(|part| match part {
                QueryPart::Text(text) => add(text),
                QueryPart::Param { name, value, .. } => {
                    add(name);
                    add(value);
                }
            }),
        }
    }
    for (name, value) in &definition.params {
        let used = |step: &String| {
            let step = definition.steps.get(step);
            step.is_some_and(|step| step.query.text.contains(&format!("${name}")))
        };
        if stage.steps.iter().any(used) {
            add(name);
            add(&value.to_string());
        }
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What a publish says of the rows that its incremental sources held back; nothing if they did not.
pub(super) fn held_back(advances: &[Advance]) -> String {
    let mut said = String::new();
    for advance in advances.iter().filter(|advance| advance.held_back > 0) {
        let (rows, least) = (
            advance.held_back,
            if advance.held_back >= HELD_BACK {
                "at least "
            } else {
                ""
            },
        );
        let (are, lie, wait) = if rows == 1 {
            ("row", "lies", "waits")
        } else {
            ("rows", "lie", "wait")
        };
        said.push_str(&format!(
            "; {least}{rows} {are} of {} {lie} in the future by `{}` and {wait} for a later run",
            advance.source, advance.column
        ));
    }
    said
}

/// Refuses to publish a load of an incremental source without its watermark, which a leader of an earlier release would
/// have lost.
pub(super) fn complete(context: &RunContext, load: &LoadContext) -> Result<(), Failure> {
    if context.is_replay() {
        // It reads rejected rows, and moves nothing.
        return Ok(());
    }
    let fed = context.stages().iter().filter(|stage| stage.loads.contains(&load.load));
    for stage in fed {
        let declared = context.definition().sources.get(&stage.source);
        let is_incremental = declared.is_some_and(|declared| declared.kind.incremental().is_some());
        if is_incremental && !load.advances.iter().any(|advance| advance.source == stage.source) {
            return Err(Failure::permanent(format!(
                "load {}: the run's log says nothing of the watermark of source {}: a coordinator of an earlier release led \
                 it; upgrade every coordinator, and submit again",
                load.load, stage.source
            )));
        }
    }
    Ok(())
}

/// From where on the run has read that this one replaces.
async fn again(
    destination: &dyn Destination,
    load: &LoadContext,
    replaced: &RunId,
    source: &str,
    found: &Option<String>,
) -> Result<Option<String>, Failure> {
    let made = destination.advanced_by(replaced, load).await?;
    let Some(made) = made.into_iter().find(|made| made.source == source) else {
        return Ok(found.clone());
    };
    if made.to != *found {
        return Err(Failure::permanent(format!(
            "load {}: run {replaced} has read {source} up to {}, and the watermark is {} by now: a later run has read on \
             from there, or somebody has set it; revert the later ones first, or submit without --rerun to read what is new",
            load.load,
            made.to.as_deref().unwrap_or("nothing"),
            found.as_deref().unwrap_or("not there")
        )));
    }
    Ok(made.low)
}
