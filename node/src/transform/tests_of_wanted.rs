//! Row groups that no load needs a row of: with them passed over, a pass gives the same rows and the same accounts as
//! without, from any checkpoint; and they are not read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use datafusion::arrow::array::{
    ArrayRef, AsArray, Decimal128Array, Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{Int32Type, UInt64Type};
use haulage_core::checkpoint::{ChunkSpec, LoadCounts, Position};
use haulage_core::failure::Failure;
use haulage_plan::{compile, parse_and_bind};
use proptest::prelude::*;

use super::tests::pass;
use super::*;
use crate::source::{Binding, Source, bind};
use crate::store::S3Settings;

const GROUP: usize = 10;

/// The columns of `n` rows that are in the order of their ids, so that row groups differ.
fn columns(n: i32) -> Vec<(&'static str, ArrayRef)> {
    let ids = || 0..n;
    let at = ids().map(|id| (id % 9 != 0).then_some(i64::from(id) * 3_600_000_000));
    let text = ids().map(|id| (id % 7 != 0).then(|| format!("t{:04}", id / 4)));
    let amount = ids().map(|id| (id / GROUP as i32 != 2).then_some(i128::from(id) * 25));
    let ratio = ids().map(|id| if id == 15 { f64::NAN } else { f64::from(id) / 8.0 });
    let amount = Decimal128Array::from_iter(amount).with_precision_and_scale(9, 2);
    vec![
        ("id", Arc::new(Int32Array::from_iter_values(ids()))),
        ("at", Arc::new(TimestampMicrosecondArray::from_iter(at))),
        ("text", Arc::new(StringArray::from_iter(text))),
        ("amount", Arc::new(amount.unwrap())),
        ("ratio", Arc::new(Float64Array::from_iter_values(ratio))),
    ]
}

fn write(path: &Path, n: i32, properties: WriterProperties) {
    let named = columns(n).into_iter().map(|(name, array)| (name, array, true));
    let batch = RecordBatch::try_from_iter_with_nullable(named).unwrap();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn groups() -> ::parquet::file::properties::WriterPropertiesBuilder {
    WriterProperties::builder().set_max_row_group_row_count(Some(GROUP))
}

struct Given {
    compiled: Compiled,
    source: Box<dyn Source>,
    chunk: ChunkSpec,
}

/// A pipeline over `rows.parquet` in the folder; `steps` and `loads` are YAML.
async fn given(folder: &Path, id: &str, steps: &str, loads: &str, checkpoint_rows: u64) -> Given {
    let text = format!(
        "pipeline: p\nsources:\n  raw: {{parquet: rows.parquet, columns: {{id: {id}, at: timestamp, text: text, amount: \
         'decimal(9,2)', ratio: double}}}}\n  \
         kinds: {{csv: k.csv, lookup: true, columns: {{kind: int!}}}}\nsteps:\n{steps}\nloads:\n{loads}\n"
    );
    let definition = parse_and_bind(&text, "p.yaml", &BTreeMap::new()).unwrap_or_else(|error| panic!("{error}"));
    let compiled = compile(&definition, &BTreeMap::new()).unwrap_or_else(|error| panic!("{error}"));
    let binding = Binding {
        base: folder.to_str().unwrap().to_owned(),
        s3: S3Settings::default(),
        checkpoint_rows,
        databases: Default::default(),
    };
    let source = bind(&definition.sources["raw"], binding).unwrap();
    let mut chunks = source.discover(StageId(0)).await.unwrap();
    assert_eq!(chunks.len(), 1);
    Given {
        compiled,
        source,
        chunk: chunks.remove(0),
    }
}

impl Given {
    async fn pass(&self) -> StagePass {
        let stage = &self.compiled.stages[0];
        let lookups = stage.lookups.iter().map(|name| (name.clone(), Vec::new())).collect();
        pass(&self.compiled, lookups).await
    }

    /// The rows of each load and what its rules reject, and its account; then the rows that were given to the pass, and the
    /// places of its checkpoints.
    async fn outcome(
        &self,
        from: Position,
        only: bool,
    ) -> Result<(BTreeMap<String, Outcome>, u64, Vec<Position>), Failure> {
        let pass = self.pass().await;
        let mut reader = self.source.open(&self.chunk, from).await?;
        if let Some(wanted) = pass.wanted().filter(|_| only) {
            reader.only(wanted)?;
        }
        let (mut outcomes, mut given, mut places) = (BTreeMap::<String, Outcome>::new(), 0, vec![from]);
        let mut first = from.offset;
        while let Some(segment) = reader.next().await? {
            given += segment.batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
            assert!(segment.raw.row(segment.rows).is_none());
            for load in &self.compiled.stages[0].loads {
                let outcome = outcomes.entry(load.to_string()).or_default();
                let mut run = pass.run(load, segment.batches.clone()).await?;
                let mut tally = RowTally::new(segment.rows);
                while let Some(batch) = run.next().await {
                    let batch = batch.map_err(Failure::from)?;
                    tally.add(&batch)?;
                    let ids = batch.column(0).as_primitive::<Int32Type>();
                    outcome.ids.extend(ids.values());
                    let rows = batch.columns().last().unwrap().as_primitive::<UInt64Type>();
                    for (id, row) in ids.values().iter().zip(rows.values()) {
                        // Their text and line is that of the row, whatever was passed over before it.
                        let (line, text) = segment.raw.row(*row).unwrap();
                        assert_eq!(line, first + row + 1);
                        assert!(std::str::from_utf8(text).unwrap().contains(&format!("\"id\":{id},")));
                    }
                }
                let rejects = run.rejects();
                outcome.rejected.extend(rejects.iter().map(|reject| first + reject.row));
                let unreadable = segment.unreadable.iter().map(|bad| first + bad.row);
                outcome.rejected.extend(unreadable);
                outcome.counts += &tally.finish(segment.unreadable.len() as u64, &rejects, 0, 0);
            }
            first += segment.rows;
            assert_eq!(first, segment.next.offset);
            places.push(segment.next);
        }
        Ok((outcomes, given, places))
    }
}

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    ids: Vec<i32>,
    rejected: Vec<u64>,
    counts: LoadCounts,
}

const LOAD: &str = "  l: {from: s, to: w, table: t, mode: append}";

/// Which of 60 rows, in groups of ten, are given to the pass; that nothing changes by it, also from every checkpoint.
async fn given_rows(steps: &str, loads: &str) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("rows.parquet"), 60, groups().build());
    let mut least = 0;
    for checkpoint_rows in [7, 1000] {
        let given = given(folder.path(), "int", steps, loads, checkpoint_rows).await;
        let all = given.outcome(given.chunk.start, false).await.unwrap();
        assert_eq!(all.1, 60);
        let some = given.outcome(given.chunk.start, true).await.unwrap();
        assert_eq!(all.0, some.0, "{steps}");
        least = some.1;
        for place in all.2.into_iter().chain(some.2) {
            let (all, _, _) = given.outcome(place, false).await.unwrap();
            let (some, _, _) = given.outcome(place, true).await.unwrap();
            assert_eq!(all, some, "{steps} from {place:?}");
        }
    }
    least
}

#[tokio::test]
async fn a_group_without_a_row_that_is_needed_is_passed_over() {
    let mut wrong = Vec::new();
    for (sql, rows) in [
        ("SELECT id FROM raw WHERE id >= 35", 30),
        ("SELECT id FROM raw WHERE id BETWEEN 12 AND 14 OR id = 59", 20),
        ("SELECT id FROM raw WHERE id + 0 >= 35", 60),
        ("SELECT id FROM raw WHERE at < TIMESTAMP '1970-01-01 10:00:00'", 10),
        ("SELECT id FROM raw WHERE text LIKE 't0014%'", 10),
        ("SELECT id FROM raw WHERE text IN ('t0000', 't0009')", 20),
        ("SELECT id FROM raw WHERE amount > CAST('14.70' AS decimal(9,2))", 10),
        ("SELECT id FROM raw WHERE amount > 1000", 0),
        // Of the third group no row has one.
        ("SELECT id FROM raw WHERE amount IS NOT NULL", 50),
        ("SELECT id FROM raw WHERE amount IS NULL", 10),
        ("SELECT id FROM raw WHERE id > 1000", 0),
        // NaN is more than anything, and no bound tells of it.
        ("SELECT id FROM raw WHERE ratio > 1000", 60),
        ("SELECT id FROM raw", 60),
        (
            "SELECT id FROM raw WHERE id < 10 UNION ALL SELECT id FROM raw WHERE id > 49",
            20,
        ),
        ("SELECT id FROM raw WHERE id < 10 UNION ALL SELECT id FROM raw", 60),
        (
            "SELECT id FROM (SELECT id, id * 2 AS twice FROM raw) WHERE id < 10 AND twice > 3",
            10,
        ),
        (
            "SELECT r.id FROM raw r LEFT JOIN kinds k ON k.kind = r.id WHERE r.id < 10",
            10,
        ),
        (
            "SELECT r.id FROM raw r LEFT JOIN kinds k ON k.kind = r.id AND r.id < 10",
            60,
        ),
    ] {
        let given = given_rows(&format!("  s: \"{sql}\""), LOAD).await;
        if given != rows {
            wrong.push(format!("{sql}: {given} rows, and not {rows}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_another_load_or_a_rule_sees_is_read() {
    let steps = "  s: SELECT id FROM raw WHERE id < 10\n  other: SELECT id FROM raw WHERE id > 49";
    let both = format!("{LOAD}\n  m: {{from: other, to: w, table: u, mode: append}}");
    assert_eq!(given_rows(steps, &both).await, 20);
    let steps = "  s: SELECT id FROM raw WHERE id < 10\n  other: SELECT id FROM raw";
    assert_eq!(given_rows(steps, &both).await, 60);
    // A WHERE behind a rule hides nothing from the rule; one before it does.
    let steps = "  j: {from: raw, reject: {odd: id % 2 = 1}}\n  s: SELECT id FROM j WHERE id < 10";
    assert_eq!(given_rows(steps, LOAD).await, 60);
    let steps = "  b: SELECT * FROM raw WHERE id > 25\n  j: {from: b, reject: {odd: id % 2 = 1}}\n  \
                 s: SELECT id FROM j WHERE id < 40";
    assert_eq!(given_rows(steps, LOAD).await, 40);
}

#[tokio::test]
async fn what_has_no_bounds_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write(
        &path,
        60,
        groups().set_statistics_enabled(EnabledStatistics::None).build(),
    );
    let given = given(folder.path(), "int", "  s: SELECT id FROM raw WHERE id < 10", LOAD, 100).await;
    assert_eq!(given.outcome(given.chunk.start, true).await.unwrap().1, 60);
}

#[tokio::test]
async fn a_row_without_a_required_value_is_rejected_even_if_a_where_would_leave_it_out() {
    let folder = tempfile::tempdir().unwrap();
    let ids = (0..60).map(|id| (id != 33).then_some(id));
    let mut all = columns(60);
    all[0].1 = Arc::new(Int32Array::from_iter(ids));
    let named = all.into_iter().map(|(name, array)| (name, array, true));
    let batch = RecordBatch::try_from_iter_with_nullable(named).unwrap();
    let file = std::fs::File::create(folder.path().join("rows.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(groups().build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let given = given(
        folder.path(),
        "int!",
        "  s: SELECT id FROM raw WHERE id < 10",
        LOAD,
        100,
    )
    .await;
    let (outcome, rows, _) = given.outcome(given.chunk.start, true).await.unwrap();
    assert_eq!(outcome["l"].rejected, [33]);
    assert_eq!(rows, 19);
}

#[tokio::test]
async fn what_is_passed_over_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write(&path, 60, groups().build());
    let file = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    for column in file.metadata().row_group(4).columns() {
        let (start, length) = column.byte_range();
        bytes[start as usize..(start + length) as usize].fill(0xff);
    }
    std::fs::write(&path, bytes).unwrap();
    let given = given(
        folder.path(),
        "int",
        "  s: SELECT id FROM raw WHERE id >= 50",
        LOAD,
        100,
    )
    .await;
    let (outcome, rows, _) = given.outcome(given.chunk.start, true).await.unwrap();
    assert_eq!((outcome["l"].ids.len(), rows), (10, 10));
    let failure = given.outcome(given.chunk.start, false).await.err().unwrap();
    assert!(
        failure.message.contains("replace the damaged file"),
        "{}",
        failure.message
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nothing_changes_by_it(
        parts in proptest::collection::vec((0..5usize, 0..6usize, -5..70i32, any::<bool>()), 1..4),
        checkpoint_rows in 1..40u64,
    ) {
        let mut condition = String::new();
        for (column, operator, value, and) in parts {
            let operator = ["<", "<=", "=", "<>", ">", ">="][operator];
            let (column, value) = match column {
                0 => ("id", value.to_string()),
                1 => ("at", format!("TIMESTAMP '1970-01-0{} 01:00:00'", 1 + value.unsigned_abs() % 4)),
                2 => ("text", format!("'t{:04}'", value.unsigned_abs() / 4)),
                3 => ("amount", format!("{}.5", value / 4)),
                _ => ("ratio", format!("{}.0", value / 8)),
            };
            if !condition.is_empty() {
                condition.push_str(if and { " AND " } else { " OR " });
            }
            condition.push_str(&format!("{column} {operator} {value}"));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            write(&folder.path().join("rows.parquet"), 60, groups().build());
            let steps = format!("  s: \"SELECT id FROM raw WHERE {condition}\"");
            let given = given(folder.path(), "int", &steps, LOAD, checkpoint_rows).await;
            let all = given.outcome(given.chunk.start, false).await.unwrap().0;
            let some = given.outcome(given.chunk.start, true).await.unwrap().0;
            assert_eq!(all, some, "{condition}");
        });
    }
}
