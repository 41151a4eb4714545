//! Reading sources as a run does, and what must hold of every one.

use std::collections::BTreeMap;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::array_value_to_string;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::StageId;
use haulage_node::NodeConfig;
use haulage_node::source::database::Databases;
use haulage_node::source::{Binding, Source, Unreadable, bind};
use haulage_node::store::S3Settings;

/// A row: its line, and its values as text.
pub(crate) type Row = (u64, Vec<Option<String>>);

/// A node, as far as sources see it, in one run.
pub(crate) struct Node {
    pub(crate) base: String,
    pub(crate) databases: Databases,
    pub(crate) checkpoint_rows: u64,
}

impl Node {
    /// With these connections, by name.
    pub(crate) fn new(connections: &[(&str, &str)]) -> Self {
        let mut config = NodeConfig::new("n1", "nowhere");
        for (name, address) in connections {
            config.sources.insert((*name).to_owned(), (*address).to_owned());
        }
        Self {
            base: "/nowhere".to_owned(),
            databases: Databases::of(&config),
            checkpoint_rows: 7,
        }
    }

    /// The source that a pipeline file declares like this.
    pub(crate) fn source(&self, declared: &str) -> Box<dyn Source> {
        self.source_with(declared, "", &[])
    }

    /// The same, with parameters.
    pub(crate) fn source_with(&self, declared: &str, params: &str, given: &[(&str, &str)]) -> Box<dyn Source> {
        let file = format!(
            "pipeline: p\nparams: {{{params}}}\nsources:\n  s: {declared}\nsteps: {{a: SELECT * FROM s}}\nloads: \
             {{l: {{from: a, to: w, table: t, mode: append}}}}\n"
        );
        let given: BTreeMap<String, String> = given.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let definition =
            haulage_plan::parse_and_bind(&file, "p.yaml", &given).unwrap_or_else(|wrong| panic!("{wrong}"));
        let binding = Binding {
            base: self.base.clone(),
            s3: S3Settings::default(),
            checkpoint_rows: self.checkpoint_rows,
            databases: self.databases.clone(),
        };
        bind(&definition.sources["s"], binding).unwrap()
    }
}

/// What was read of a chunk from a place on.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Read {
    /// Rows that could be read.
    pub(crate) rows: Vec<Row>,
    /// Rows that could not, with their text.
    pub(crate) unreadable: Vec<(Unreadable, String)>,
    /// After each segment: how many rows there were, of both kinds, and where the next one starts, with its name.
    checkpoints: Vec<(usize, usize, Position, Option<String>)>,
}

/// Reads a chunk from a place to its end.
pub(crate) async fn read(source: &dyn Source, chunk: &ChunkSpec, from: Position) -> Result<Read, Failure> {
    read_at(source, chunk, from, None).await
}

/// The same, from a place that has a name.
pub(crate) async fn read_at(
    source: &dyn Source,
    chunk: &ChunkSpec,
    from: Position,
    cursor: Option<&str>,
) -> Result<Read, Failure> {
    let mut reader = source.open_at(chunk, from, cursor).await?;
    let mut read = Read::default();
    let mut last = false;
    while let Some(segment) = reader.next().await? {
        assert!(!last, "nothing comes after the last segment");
        last = segment.last;
        let readable: usize = segment.batches.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(segment.rows as usize, readable + segment.unreadable.len());
        for batch in &segment.batches {
            let places = batch.num_columns() - 1;
            for row in 0..batch.num_rows() {
                let place = array_value_to_string(batch.column(places), row)
                    .unwrap()
                    .parse()
                    .unwrap();
                let (line, _) = segment.raw.row(place).expect("every row has a line");
                let value = |column: usize| {
                    let column = batch.column(column);
                    (!column.is_null(row)).then(|| array_value_to_string(column, row).unwrap())
                };
                read.rows.push((line, (0..places).map(value).collect()));
            }
        }
        for unreadable in segment.unreadable {
            let (_, raw) = segment.raw.row(unreadable.row).expect("its text");
            let raw = String::from_utf8_lossy(raw).into_owned();
            read.unreadable.push((unreadable, raw));
        }
        read.checkpoints
            .push((read.rows.len(), read.unreadable.len(), segment.next, segment.cursor));
    }
    assert!(last, "a chunk ends with its last segment");
    Ok(read)
}

/// All rows of all chunks, and the number of chunks.
pub(crate) async fn all(source: &dyn Source) -> Result<(Vec<Row>, usize), Failure> {
    let chunks = source.discover(StageId(0)).await?;
    let mut rows = Vec::new();
    for chunk in &chunks {
        rows.extend(read(source, chunk, chunk.start).await?.rows);
    }
    Ok((rows, chunks.len()))
}

/// The values alone, sorted.
pub(crate) fn values(rows: Vec<Row>) -> Vec<Vec<Option<String>>> {
    let mut values: Vec<_> = rows.into_iter().map(|(_, values)| values).collect();
    values.sort();
    values
}

/// Reads every chunk whole and from each of its checkpoints, by a source and by `other`, which another node has made from
/// the same declaration: what comes after a checkpoint is always the same. Returns all rows.
pub(crate) async fn resumes_anywhere(source: &dyn Source, other: &dyn Source) -> Vec<Row> {
    let chunks = source.discover(StageId(0)).await.unwrap();
    let mut rows = Vec::new();
    for (index, chunk) in (0..).zip(&chunks) {
        assert_eq!(chunk.chunk.index, index);
        let whole = read(source, chunk, chunk.start).await.unwrap();
        // All of a chunk of a few segments, and of a long one some.
        let step = whole.checkpoints.len().div_ceil(12);
        let last = whole.checkpoints.len() - 1;
        for (rows, unreadable, at, cursor) in whole.checkpoints[..last].iter().step_by(step) {
            let rest = read_at(other, chunk, *at, cursor.as_deref()).await.unwrap();
            assert_eq!(rest.rows, whole.rows[*rows..], "after {at:?} of chunk {index}");
            let left: Vec<_> = rest.unreadable.iter().map(|(_, raw)| raw).collect();
            let expected: Vec<_> = whole.unreadable[*unreadable..].iter().map(|(_, raw)| raw).collect();
            assert_eq!(left, expected);
        }
        rows.extend(whole.rows);
    }
    rows
}
