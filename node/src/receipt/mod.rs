//! Receipts, on the side of the rows: the checksum over what a load writes, and what the target says about it afterwards.
//!
//! * While rows are staged they are [summed up](Digest), in whatever batches they come.
//! * [`verify`] reads a published run's rows back from their target, as any table is read as a source, and sums them up again.
//! * [`look_up`] finds rows by their key, with where they are from.
//!
//! Nothing is ever written here.

mod digest;
mod types;
mod verify;

use datafusion::arrow::datatypes::DataType;
use haulage_plan::PROVENANCE;

pub use self::digest::Digest;
pub use self::types::Back;
pub(crate) use self::types::{name_of, read_as_text};
pub(crate) use self::verify::examine;
pub use self::verify::{look_up, verify};
use crate::sink::LoadContext;

/// The load's columns with their types, as a publish reports them: without those that provenance adds.
pub(crate) fn columns(load: &LoadContext) -> Vec<(String, String)> {
    let fields = load.schema.fields().iter();
    fields
        .filter(|field| !(load.provenance && PROVENANCE.contains(&field.name().as_str())))
        .map(|field| (field.name().clone(), name_of(field.data_type())))
        .collect()
}

/// A type as a publish has reported it; `None` if this release doesn't know it.
pub(crate) fn type_of(text: &str) -> Option<DataType> {
    text.parse().ok()
}
