//! How the numbers of a column lie, for outliers: means and quantiles that stay within double precision.

use haulage_core::failure::Failure;

use super::questions::Asker;
use crate::sink::Dialect;

/// The square of this has room in double precision, and so has that of its inverse.
const LARGE: f64 = 1e100;

/// The numbers of a column, for arithmetic.
pub(super) struct Spread {
    /// How many there are. NaN is none.
    pub(super) all: u64,
    /// Of these, how many are finite.
    pub(super) count: u64,
    /// A number divided by `scale`, in SQL. Of numbers that are far apart the small ones are 0.
    number: String,
    /// A number divided by `fine`, in SQL, for distances between two: no number is lost.
    single: String,
    /// Where there is one that is finite, in SQL.
    finite: String,
    /// 1, unless arithmetic with the numbers as they are would leave double precision.
    pub(super) scale: f64,
    /// The same, for a distance between two of them.
    pub(super) fine: f64,
}

impl Asker<'_> {
    /// The numbers of a column.
    pub(super) async fn spread(&self, column: &str) -> Result<Spread, Failure> {
        let (number, known) = (self.number(column), self.is_number(column));
        // Neither infinite nor NaN, whichever end that stands at.
        let finite = format!("{known} AND {number} BETWEEN {:e} AND {:e}", f64::MIN, f64::MAX);
        let [all] = self.numbers(["count(*)"], format!("FROM staged WHERE {known}")).await?;
        let largest = format!("max(abs({number}))");
        let rest = format!("FROM staged WHERE {finite}");
        let [count, largest] = self.numbers(["count(*)", &largest], rest).await?;
        let (mut single, mut fine) = (number.clone(), 1.0);
        // Half of the way between the largest number and the smallest is one again.
        if largest > LARGE {
            fine = 4.0;
            single = format!("(CASE WHEN abs({number}) < 1e-300 THEN 0.0 ELSE {number} / {fine:e} END)");
        }
        let (mut number, mut scale) = (number, 1.0);
        // Squares and sums of such numbers are none any more.
        if largest > LARGE || (largest > 0.0 && largest < 1.0 / LARGE) {
            scale = largest;
            let least = largest / LARGE;
            number = format!("(CASE WHEN abs({number}) < {least:e} THEN 0.0 ELSE {number} / {scale:e} END)");
        }
        Ok(Spread {
            all: all as u64,
            count: count as u64,
            number,
            single,
            finite,
            scale,
            fine,
        })
    }

    /// The mean of a column of numbers.
    pub(super) async fn mean(&self, of: &Spread) -> Result<f64, Failure> {
        let rest = format!("FROM staged WHERE {}", of.finite);
        let [mean] = self.numbers([&format!("avg({})", of.number)], rest).await?;
        Ok(mean)
    }

    /// The sum of the squares of the distances from a value.
    pub(super) async fn sum_of_squares(&self, of: &Spread, from: f64) -> Result<f64, Failure> {
        let distance = format!("({} - {from:e})", of.number);
        // A distance whose square has no place is none.
        let square = format!("CASE WHEN abs({distance}) < 1e-150 THEN 0.0 ELSE {distance} * {distance} END");
        let rest = format!("FROM staged WHERE {}", of.finite);
        let [sum] = self.numbers([&format!("sum({square})")], rest).await?;
        Ok(sum)
    }

    /// The mean of the distances from a value.
    pub(super) async fn mean_deviation(&self, of: &Spread, from: f64) -> Result<f64, Failure> {
        let rest = format!("FROM staged WHERE {}", of.finite);
        let mean = format!("avg(abs({} - {from:e}))", of.number);
        let [mean] = self.numbers([&mean], rest).await?;
        Ok(mean)
    }

    /// A quantile of a column of numbers, or of their distances from a value, divided by `fine`; between two neighbours it is
    /// interpolated.
    pub(super) async fn quantile(&self, of: &Spread, from: Option<f64>, at: f64) -> Result<f64, Failure> {
        let (number, known) = (&of.single, &of.finite);
        let value = from.map_or_else(|| number.clone(), |from| format!("abs({number} - {from:e})"));
        let [quantile] = match self.dialect() {
            Dialect::Postgres | Dialect::DataFusion => {
                let quantile = format!("percentile_cont({at}) WITHIN GROUP (ORDER BY {value})");
                self.numbers([&quantile], format!("FROM staged WHERE {known}")).await?
            }
            // It has no such function: the value at a place between two counts as much as it is near.
            Dialect::Sqlite => {
                let rest = format!(
                    "FROM (SELECT {value} AS v, row_number() OVER (ORDER BY {value}) - 1 AS i, count(*) OVER () AS n
                           FROM staged WHERE {known}) AS o"
                );
                let nearness = format!("sum(v * max(0.0, 1.0 - abs(i - {at} * (n - 1))))");
                self.numbers([&nearness], rest).await?
            }
        };
        Ok(quantile)
    }
}
