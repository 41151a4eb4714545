//! A load of a test: three columns, rows given as tuples, and the steps of a run as single calls.

use std::sync::Arc;

use datafusion::arrow::array::{Float64Array, Int32Array, RecordBatch, StringViewArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, Epoch, StageId};
use haulage_node::sink::{Committed, Expected, LoadContext};
use haulage_plan::definition::Mode;

use super::world::World;

pub(crate) type TestRow = (i32, Option<&'static str>, f64);

pub(crate) const CHUNK: ChunkId = ChunkId {
    stage: StageId(0),
    index: 0,
};

/// A load into `things` with columns id (not null), name and amount.
pub(crate) fn load(run: &str, mode: Mode, key: &[&str]) -> LoadContext {
    LoadContext {
        pipeline: "p".into(),
        run: run.into(),
        epoch: Epoch(1),
        attempt: Attempt(1),
        load: "out".into(),
        table: "things".into(),
        mode,
        key: key.iter().map(|name| (*name).to_owned()).collect(),
        schema: Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int32, false),
            Field::new("name", DataType::Utf8View, true),
            Field::new("amount", DataType::Float64, true),
        ])),
        replaces: None,
        keep_previous: 0,
        provenance: false,
        evolution: Default::default(),
        layout: Default::default(),
        round: 0,
        advances: Vec::new(),
        newest: None,
        origin: None,
        read: Default::default(),
        rejects: false,
    }
}

pub(crate) fn batch(load: &LoadContext, rows: &[TestRow]) -> RecordBatch {
    RecordBatch::try_new(
        load.schema.clone(),
        vec![
            Arc::new(rows.iter().map(|row| row.0).collect::<Int32Array>()),
            Arc::new(rows.iter().map(|row| row.1).collect::<StringViewArray>()),
            Arc::new(rows.iter().map(|row| Some(row.2)).collect::<Float64Array>()),
        ],
    )
    .expect("a batch of the load's schema")
}

pub(crate) fn marker(chunk: ChunkId, segment: u32, attempt: Attempt) -> Marker {
    Marker {
        chunk,
        segment,
        attempt,
        rows: 0,
        manifest: format!("{chunk}/{segment}/{attempt}"),
    }
}

impl World {
    /// Writes and commits one segment of a chunk that has begun.
    pub(crate) async fn segment(
        &self,
        load: &LoadContext,
        segment: u32,
        attempt: Attempt,
        rows: &[TestRow],
    ) -> Result<Committed, Failure> {
        let mut writer = self.destination.segment(load, CHUNK, attempt).await?;
        writer.write(&batch(load, rows)).await?;
        Ok(writer.commit(marker(CHUNK, segment, attempt)).await?)
    }

    /// Prepares, begins and stages rows as two segments.
    pub(crate) async fn stage(&self, load: &LoadContext, rows: &[TestRow]) -> Result<Expected, Failure> {
        self.destination.prepare(load).await?;
        self.destination.begin(load, CHUNK, Attempt(1)).await?;
        let (first, second) = rows.split_at(rows.len() / 2);
        self.segment(load, 0, Attempt(1), first).await?;
        self.segment(load, 1, Attempt(1), second).await?;
        Ok(Expected {
            rows: rows.len() as u64,
            segments: 2,
        })
    }

    /// Everything up to the publish.
    pub(crate) async fn publish(&self, load: &LoadContext, rows: &[TestRow]) -> Result<StepReport, Failure> {
        let expected = self.stage(load, rows).await?;
        self.destination.verify(load, expected).await?;
        self.destination.publish(load, expected).await
    }
}
