//! One chunk: begun at every load of its stage, worked off segment by segment from where the last checkpoint stands.
//!
//! ```text
//!   begin (raises the fence) ─► markers ─► resume ─► open the source there
//!        ┌──────────────────────────────────────────────────────────────┐
//!        ▼                                                              │
//!   segment (read ahead) ─► transform and stage per load ─► manifest ─► commit per load ─► progress
//! ```
//!
//! A chunk that is wanted back, because its node leaves, ends after a commit: another node goes on behind it.

use std::sync::Arc;

use haulage_core::checkpoint::{ChunkReport, ChunkSpec};
use haulage_core::failure::Failure;
use haulage_plan::Diagnostics;
use haulage_plan::contract::{BadRow, Contract, NewColumn};
use haulage_plan::definition::Definition;
use tracing::Span;

use super::blame::{Scene, Seen};
use super::read::ReadAhead;
use super::resume::resume;
use super::segment::{Bench, Target};
use super::{Order, Toolbox};
use crate::actors::shared::Progress;
use crate::source::{NEW_COLUMN, Segment, Unreadable};

/// Works the chunk off; `None` if it was handed back before its end. Whatever it had committed when it fails, is cancelled
/// or handed back stands, and the next try goes on there.
pub(crate) async fn run(
    tools: &Toolbox,
    order: &Order,
    spec: &ChunkSpec,
    progress: &Arc<Progress>,
) -> Result<Option<ChunkReport>, Failure> {
    let attempt = order.assignment.key.attempt;
    let context = tools.context(order).await?;
    let stage = context.stage(spec.chunk.stage)?;
    let pass = context.pass(tools, spec.chunk.stage).await?;
    let store = tools.store().await?;

    let mut targets = Vec::new();
    for name in &stage.loads {
        let load = context.load(order, name)?;
        let destination = tools.destination(context.definition(), name).await?;
        let markers = destination.begin(&load, spec.chunk, attempt).await?;
        let standing = markers.into_iter().map(|marker| (marker.segment, marker)).collect();
        targets.push(Target {
            load,
            destination,
            to: context.definition().loads[name].to.clone(),
            standing,
        });
    }
    let markers = targets.iter().flat_map(|target| target.standing.values());
    let continued = markers.into_iter().any(|marker| marker.attempt < attempt);
    if continued {
        progress.continues();
    }
    let standing: Vec<_> = targets.iter().map(|target| (target.name(), &target.standing)).collect();
    let resumed = resume(store.as_ref(), spec, &standing).await?;
    let mut report = ChunkReport {
        counts: resumed.counts,
        segments: resumed.segment,
        resumed: resumed.segment,
        rejects: resumed.rejects,
        restarts: 0,
        continued,
        bytes_read_again: 0,
    };
    progress.set(&report.counts);
    if resumed.done {
        return Ok(Some(report));
    }
    if progress.is_wanted_back() {
        return Ok(None);
    }

    let source = context.source(&spec.source)?;
    let mut reader = source.open_at(spec, resumed.from, resumed.cursor.as_deref()).await?;
    if let Some(wanted) = pass.wanted() {
        reader.only(wanted)?;
    }
    if resumed.segment > 0 {
        progress.has_read(reader.passed_over());
    }
    let bench = Bench {
        tools,
        definition: context.definition(),
        order,
        spec,
        store: store.as_ref(),
        pass: &pass,
        targets,
    };
    let mut ahead = ReadAhead::new(reader, resumed.segment, Arc::clone(progress), Span::current());
    let mut ended = false;
    let (mut from, mut cursor) = (resumed.from, resumed.cursor);
    while let Some((number, segment)) = ahead.next().await? {
        if let Some(failure) = unacceptable(context.definition(), spec, &segment) {
            return Err(failure);
        }
        ended = segment.last;
        let (bytes, seen) = (segment.bytes, Seen::of(&segment));
        let staged = match Box::pin(bench.stage(number, segment)).await {
            Ok(staged) => staged,
            Err(fault) => {
                // Room for the segment that is read again.
                drop(ahead);
                let (context, pass) = (&context, bench.pass);
                let scene = Scene {
                    context,
                    pass,
                    spec,
                    from,
                    cursor: cursor.as_deref(),
                    seen: &seen,
                };
                return Err(Box::pin(scene.failure(fault)).await);
            }
        };
        (from, cursor) = (seen.next, seen.cursor);
        progress.has_committed(bytes);
        report.counts += &staged.counts;
        report.rejects.extend(staged.rejects);
        report.segments += 1;
        progress.set(&report.counts);
        if !ended && progress.is_wanted_back() {
            return Ok(None);
        }
    }
    if !ended {
        // What was never read would be missing from the run without anybody being told.
        return Err(Failure::transient(format!(
            "{} ended before the end of chunk {}",
            spec.object, spec.chunk
        )));
    }
    Ok(Some(report))
}

/// The first row that ends the run, by what the source says about such rows.
fn unacceptable(definition: &Definition, spec: &ChunkSpec, segment: &Segment) -> Option<Failure> {
    let source = definition.sources.get(&spec.source)?;
    let Contract {
        on_bad_row,
        on_new_column,
        ..
    } = source.contract;
    let ends = |row: &&Unreadable| match (row.reason == NEW_COLUMN, on_new_column) {
        (true, NewColumn::Fail) => true,
        // That they go there was asked for.
        (true, NewColumn::Quarantine) => false,
        _ => on_bad_row == BadRow::Fail,
    };
    let row = segment.unreadable.iter().find(ends)?;
    let line = segment.raw.row(row.row).map_or(0, |(line, _)| line);
    let column = row.column.as_ref().map(|column| format!(", column {column}"));
    let setting = if row.reason == NEW_COLUMN && on_new_column == NewColumn::Fail {
        "on_new_column: fail"
    } else {
        "on_bad_row: fail"
    };
    let wrong = format!(
        "source {}: {} line {line}{}: {}: {}; `{setting}` ends the run: correct the row, or write `quarantine` there",
        spec.source,
        spec.object,
        column.unwrap_or_default(),
        row.reason,
        row.detail
    );
    let place = definition.place_in_source(source, row.column.as_deref());
    Some(Failure::permanent(
        Diagnostics::of(definition, [(place, wrong)]).to_string(),
    ))
}
