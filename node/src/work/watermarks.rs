//! From where on a run reads an incremental source, as the destinations of its loads have it.

use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::watermark::{Advance, Watermark};
use haulage_plan::definition::{Definition, Incremental, Mode};

use super::Toolbox;
use crate::sink::{Destination, LoadContext};

/// From where on a stage reads, and what becomes of the watermarks of its loads. Where they lead to is not known yet.
pub(super) struct ReadFrom {
    pub(super) low: Option<String>,
    pub(super) advances: Vec<Advance>,
}

/// See the module. Permanent failure if loads would get rows that they have, or miss some.
pub(super) async fn read_from(
    tools: &Toolbox,
    definition: &Definition,
    source: &str,
    how: &Incremental,
    loads: &[LoadContext],
) -> Result<ReadFrom, Failure> {
    let mut advances = Vec::new();
    for load in loads {
        let destination = tools.destination(definition, &load.load).await?;
        advances.push(advance(destination.as_ref(), load, source, how).await?);
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
                 second time; use mode merge there, set one watermark to the other with `haulage state set`, or read the \
                 source a second time under another name",
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
    destination: &dyn Destination,
    load: &LoadContext,
    source: &str,
    how: &Incremental,
) -> Result<Advance, Failure> {
    let Some(marks) = destination.watermarks_of(load).await? else {
        return Err(Failure::permanent(format!(
            "load {}: its destination keeps no watermarks, which source {source} needs (`incremental`); load it into a \
             database, or leave `incremental` out",
            load.load
        )));
    };
    let mark = marks.into_iter().find(|mark| mark.source == source);
    if let Some(other) = mark
        .as_ref()
        .filter(|mark| mark.value.is_some() && mark.column != how.column)
    {
        return Err(Failure::permanent(format!(
            "load {}: {} was read up to {} of column `{}`, and now `{}` is to be its watermark; to read everything again, \
             forget it: haulage state forget {} {source} {}",
            load.load,
            source,
            other.value.as_deref().unwrap_or_default(),
            other.column,
            how.column,
            load.pipeline,
            load.table
        )));
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
    })
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
            "load {}: run {replaced} has read {source} up to {}, and the watermark is {} by now; a run on which others \
             have built can't be replaced: revert the later ones first, or submit without --rerun to read what is new",
            load.load,
            made.to.as_deref().unwrap_or("nothing"),
            found.as_deref().unwrap_or("not there")
        )));
    }
    Ok(made.low)
}
