//! Parquet: what is written is read, by row groups and from every checkpoint; damage is a failure or other values, and
//! never a row more or less, a panic that gets out, or memory without end.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use haulage_plan::definition::{ParquetSource, SourceKind};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{WriterProperties, WriterVersion};

use crate::corpus::Corpus;
use crate::files::{self, UNCUT};
use crate::random::Random;

/// Files of other writers may be added by folder; those that are made here are always new.
pub(crate) fn corpus(folders: &[&Path]) -> Result<Corpus> {
    Corpus::new(&["PAR1"], folders, &[".parquet"])
}

fn any_column(random: &mut Random, rows: usize) -> ArrayRef {
    let holes = random.within(2, 9);
    let kind = random.below(8);
    let spread = random.within(1, 64);
    let mut numbers: Vec<Option<i64>> = Vec::with_capacity(rows);
    for _ in 0..rows {
        let number = random.next() as i64 >> (64 - spread);
        numbers.push((!random.once_in(holes)).then_some(number));
    }
    let numbers = numbers.into_iter();
    match kind {
        0 => Arc::new(numbers.map(|n| n.map(|n| n as i32)).collect::<Int32Array>()),
        1 => Arc::new(numbers.collect::<Int64Array>()),
        2 => Arc::new(numbers.map(|n| n.map(|n| n as f64 / 7.0)).collect::<Float64Array>()),
        3 => Arc::new(numbers.map(|n| n.map(|n| n % 2 == 0)).collect::<BooleanArray>()),
        4 => Arc::new(numbers.map(|n| n.map(|n| (n % 40_000) as i32)).collect::<Date32Array>()),
        5 => Arc::new(
            numbers
                .map(|n| n.map(|n| n % 4_000_000_000_000_000))
                .collect::<TimestampMicrosecondArray>(),
        ),
        6 => Arc::new(numbers.map(|n| n.map(i128::from)).collect::<Decimal128Array>()),
        _ => {
            let text = |n: i64| {
                ["é", "\"", "a\n", ""][(n & 3) as usize].repeat((n.unsigned_abs() % 9) as usize) + &n.to_string()
            };
            Arc::new(numbers.map(|n| n.map(text)).collect::<StringArray>())
        }
    }
}

/// A file and how many rows it has.
fn made(random: &mut Random) -> Result<(Vec<u8>, usize)> {
    let rows = random.below(600);
    let columns: Vec<_> = (0..random.within(1, 6))
        .map(|number| (format!("c{number}"), any_column(random, rows), true))
        .collect();
    let batch = RecordBatch::try_from_iter_with_nullable(columns)?;
    let compression = match random.below(4) {
        0 => Compression::UNCOMPRESSED,
        1 => Compression::SNAPPY,
        2 => Compression::ZSTD(Default::default()),
        _ => Compression::LZ4_RAW,
    };
    let version = if random.once_in(2) {
        WriterVersion::PARQUET_1_0
    } else {
        WriterVersion::PARQUET_2_0
    };
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_writer_version(version)
        .set_dictionary_enabled(random.once_in(2))
        .set_data_page_row_count_limit(random.within(1, 200))
        .set_write_batch_size(random.within(1, 100))
        .set_max_row_group_row_count(Some(random.within(1, 300)))
        .build();
    let mut data = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut data, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok((data, rows))
}

pub(crate) async fn case(random: &mut Random, corpus: &Corpus, folder: &Path) -> Result<usize> {
    let path = folder.join("a.parquet");
    let source = |chunk_bytes: u64| {
        SourceKind::Parquet(ParquetSource {
            path: "a.parquet".to_owned(),
            columns: Vec::new(),
            chunk_bytes,
        })
    };
    let checkpoint_rows = random.within(1, 200) as u64;
    let foreign = corpus.len() > 1 && random.once_in(10);
    let (mut data, rows) = if foreign {
        (corpus.whole(random).to_vec(), None)
    } else {
        let (data, rows) = made(random)?;
        (data, Some(rows))
    };
    if !foreign && random.once_in(4) {
        std::fs::write(&path, &data)?;
        let whole = files::all_rows(&*files::bound(folder, source(UNCUT), UNCUT)?).await??;
        ensure!(Some(whole.len()) == rows, "{} rows, {rows:?} were written", whole.len());
        ensure!(
            whole.iter().all(|(_, _, values)| values.is_ok()),
            "a row that was written can't be read"
        );
        let chunk = random.within(1, data.len()) as u64;
        files::check_cut(
            "cut",
            &*files::bound(folder, source(chunk), checkpoint_rows)?,
            &whole,
            random,
        )
        .await?;
        return Ok(data.len());
    }
    // Half of the damage goes to the end, where the footer is.
    for _ in 0..random.within(1, 4) {
        let from = if random.once_in(2) {
            data.len().saturating_sub(1_500)
        } else {
            0
        };
        let at = from + random.below(data.len() - from);
        match random.below(10) {
            0 => data.truncate(at),
            1 => drop(data.splice(at..at, [0xff; 3])),
            _ if at < data.len() => data[at] = u8::try_from(random.below(256)).unwrap_or(0),
            _ => {}
        }
    }
    std::fs::write(&path, &data)?;
    match files::all_rows(&*files::bound(folder, source(UNCUT), checkpoint_rows)?).await? {
        Ok(found) => {
            // What a damaged footer says of the rows may be another number, but it is read as said, cut or uncut.
            let chunk = random.within(1, data.len().max(1)) as u64;
            files::check_cut(
                "cut",
                &*files::bound(folder, source(chunk), checkpoint_rows)?,
                &found,
                random,
            )
            .await?;
        }
        Err(failure) => files::check_failure(&failure, "a.parquet")?,
    }
    Ok(data.len())
}
