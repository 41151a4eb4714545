//! Rows that are made as they are written: of `write` nothing stays in memory but a row group.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use datafusion::arrow::array::{
    ArrayRef, Decimal128Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

/// Rows of a row group.
const GROUP: usize = 250_000;
/// Rows that are made at a time.
const BATCH: u64 = 10_000;
const KINDS: [&str; 8] = [
    "order", "return", "refund", "exchange", "gift", "sample", "warranty", "internal",
];

/// What was written, and what has to come out of it.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) rows: u64,
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Rows with a quantity.
    pub(crate) loaded: u64,
    /// The sum of their ids.
    pub(crate) ids: u128,
    /// The sum of their amounts, in cents.
    pub(crate) cents: i128,
    /// How many of them have a note.
    pub(crate) notes: u64,
}

/// Numbers that look random: one for each row, from which all of it is made.
fn mixed(seed: u64, row: u64) -> u64 {
    let mut mixed = (row + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Writes `rows-N.parquet` and the lookup `kinds.csv` into a folder.
pub(crate) fn write(folder: &Path, seed: u64, rows: u64, files: u64) -> Result<Made> {
    ensure!(files > 0, "at least one file");
    let mut kinds = File::create(super::kinds(folder))?;
    writeln!(kinds, "kind,label,weight")?;
    for (number, kind) in KINDS.iter().enumerate() {
        writeln!(kinds, "{kind},\"{kind}, the {number}. of all\",{number}.25")?;
    }
    let mut made = Made {
        rows,
        ..Made::default()
    };
    for file in 0..files {
        let path = folder.join(format!("rows-{file:03}.parquet"));
        let (from, to) = (rows * file / files, rows * (file + 1) / files);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_row_count(Some(GROUP))
            .build();
        let schema = batch(seed, 0..1, &mut Made::default())?.schema();
        let mut writer = ArrowWriter::try_new(BufWriter::new(File::create(&path)?), schema, Some(properties))?;
        let mut next = from;
        while next < to {
            let end = (next + BATCH).min(to);
            writer.write(&batch(seed, next..end, &mut made)?)?;
            next = end;
        }
        writer.close()?;
        made.bytes += path.metadata()?.len();
    }
    Ok(made)
}

fn batch(seed: u64, rows: std::ops::Range<u64>, made: &mut Made) -> Result<RecordBatch> {
    let mut ids = Vec::new();
    let (mut at, mut customers, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    let (mut amounts, mut quantities, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let random = mixed(seed, row);
        let cents = i128::from(random % 10_000_000);
        let quantity = (!random.is_multiple_of(97)).then_some((random >> 7) as i16 & 0xff);
        let note = (random & 3 > 0).then(|| format!("note {:x}, né {row}", random >> 20));
        if quantity.is_some() {
            made.loaded += 1;
            made.ids += u128::from(row);
            made.cents += cents;
            made.notes += u64::from(note.is_some());
        }
        ids.push(row as i64);
        at.push(1_700_000_000_000_000 + row as i64 * 1_370_000);
        customers.push((random >> 33) as i32 % 100_000);
        kinds.push(KINDS[(random >> 13) as usize & 7]);
        amounts.push(cents);
        quantities.push(quantity);
        notes.push(note);
    }
    let amounts = Decimal128Array::from(amounts).with_precision_and_scale(12, 2)?;
    let columns: [(&str, ArrayRef); 7] = [
        ("id", Arc::new(Int64Array::from(ids))),
        ("at", Arc::new(TimestampMicrosecondArray::from(at).with_timezone("UTC"))),
        ("customer", Arc::new(Int32Array::from(customers))),
        ("kind", Arc::new(StringArray::from(kinds))),
        ("amount", Arc::new(amounts)),
        ("quantity", Arc::new(Int16Array::from(quantities))),
        ("note", Arc::new(StringArray::from(notes))),
    ];
    let columns = columns.map(|(name, column)| (name, column, true));
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}
