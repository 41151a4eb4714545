//! Questions about what is staged, for checks.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use sqlx::{AssertSqlSafe, Connection, Row};

use super::Sqlite;
use super::aside::bound;
use super::bookkeeping::{Area, ended};
use crate::sink::name::quote;
use crate::sink::question::Question;
use crate::sink::{LoadContext, staged_as};

impl Sqlite {
    /// On a connection that can't write, whatever the question holds.
    pub(super) async fn ask_load(
        &self,
        load: &LoadContext,
        question: &Question,
    ) -> Result<Vec<Option<String>>, Failure> {
        let doing = format!("checking load {}", load.load);
        let Some(mut reader) = self.file.reader().await? else {
            return Err(ended(load, "gone with its file"));
        };
        let stage = quote(&Area::of(load).stage);
        let sql = match question.as_numbers {
            true => format!(
                "WITH staged AS (SELECT {} FROM {stage}) {}",
                numbers(load),
                question.sql
            ),
            false => staged_as(load, &stage, &question.sql),
        };
        let query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        let row = bound(query, &question.values).fetch_one(&mut reader).await;
        let values = row.and_then(|row| (0..row.len()).map(|at| row.try_get(at)).collect());
        let values = values.map_err(|error| self.file.failure(&doing, error))?;
        // An error means that it is closed already.
        drop(reader.close().await);
        Ok(values)
    }
}

/// The load's columns, of which decimals, which are kept as texts, become numbers.
fn numbers(load: &LoadContext) -> String {
    let columns = load.schema.fields().iter().map(|field| match field.data_type() {
        DataType::Decimal128(..) => format!("CAST({name} AS NUMERIC) AS {name}", name = quote(field.name())),
        _ => quote(field.name()),
    });
    columns.collect::<Vec<_>>().join(", ")
}
