//! How the numbers of a column lie, for outliers: means and quantiles that stay within double precision.

use haulage_core::failure::Failure;
use haulage_core::words::counted;
use haulage_plan::checks::{Bound, Method};

use super::Found;
use super::beside::STAGED;
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
    /// In which rows, in SQL.
    among: String,
    /// 1, unless arithmetic with the numbers as they are would leave double precision.
    pub(super) scale: f64,
    /// The same, for a distance between two of them.
    pub(super) fine: f64,
}

impl Asker<'_> {
    /// The numbers of a column among some rows.
    pub(super) async fn spread(&self, column: &str, among: &str) -> Result<Spread, Failure> {
        let (number, known) = (self.number(column), self.is_number(column));
        // Neither infinite nor NaN, whichever end that stands at.
        let finite = format!("{known} AND {number} BETWEEN {:e} AND {:e}", f64::MIN, f64::MAX);
        let [all] = self
            .numbers(["count(*)"], format!("FROM {among} WHERE {known}"))
            .await?;
        let largest = format!("max(abs({number}))");
        let rest = format!("FROM {among} WHERE {finite}");
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
            among: among.to_owned(),
            scale,
            fine,
        })
    }

    /// The mean of a column of numbers.
    pub(super) async fn mean(&self, of: &Spread) -> Result<f64, Failure> {
        let rest = format!("FROM {} WHERE {}", of.among, of.finite);
        let [mean] = self.numbers([&format!("avg({})", of.number)], rest).await?;
        Ok(mean)
    }

    /// The sum of the squares of the distances from a value.
    pub(super) async fn sum_of_squares(&self, of: &Spread, from: f64) -> Result<f64, Failure> {
        let distance = format!("({} - {from:e})", of.number);
        // A distance whose square has no place is none.
        let square = format!("CASE WHEN abs({distance}) < 1e-150 THEN 0.0 ELSE {distance} * {distance} END");
        let rest = format!("FROM {} WHERE {}", of.among, of.finite);
        let [sum] = self.numbers([&format!("sum({square})")], rest).await?;
        Ok(sum)
    }

    /// The mean of the distances from a value.
    pub(super) async fn mean_deviation(&self, of: &Spread, from: f64) -> Result<f64, Failure> {
        let rest = format!("FROM {} WHERE {}", of.among, of.finite);
        let mean = format!("avg(abs({} - {from:e}))", of.number);
        let [mean] = self.numbers([&mean], rest).await?;
        Ok(mean)
    }

    /// A quantile of a column of numbers, or of their distances from a value, divided by `fine`; between two neighbours it is
    /// interpolated.
    pub(super) async fn quantile(&self, of: &Spread, from: Option<f64>, at: f64) -> Result<f64, Failure> {
        let (number, known, among) = (&of.single, &of.finite, &of.among);
        let value = from.map_or_else(|| number.clone(), |from| format!("abs({number} - {from:e})"));
        let [quantile] = match self.dialect() {
            Dialect::Postgres | Dialect::DataFusion => {
                let quantile = format!("percentile_cont({at}) WITHIN GROUP (ORDER BY {value})");
                self.numbers([&quantile], format!("FROM {among} WHERE {known}")).await?
            }
            // It has no such function: the value at a place between two counts as much as it is near.
            Dialect::Sqlite => {
                let rest = format!(
                    "FROM (SELECT {value} AS v, row_number() OVER (ORDER BY {value}) - 1 AS i, count(*) OVER () AS n
                           FROM {among} WHERE {known}) AS o"
                );
                let nearness = format!("sum(v * max(0.0, 1.0 - abs(i - {at} * (n - 1))))");
                self.numbers([&nearness], rest).await?
            }
        };
        Ok(quantile)
    }
}

/// Values that are far from the others; why that can't be told, if it can't. A replay has a few rows of a run, which are seen
/// among all that the table has.
pub(super) async fn outliers(
    asker: &Asker<'_>,
    column: &str,
    (method, beyond): (Method, f64),
    allowed: &Bound,
) -> Result<Result<Found, &'static str>, Failure> {
    let table = match asker.is_replay() {
        false => None,
        true => match asker.with_table(column).await? {
            None => return Ok(Err("what is usual isn't known of replayed rows alone")),
            table => table,
        },
    };
    let spread = asker.spread(column, table.as_deref().unwrap_or(STAGED)).await?;
    let Some((low, high)) = fences(asker, &spread, method, beyond).await? else {
        return Ok(Err("too few values to tell"));
    };
    let which = asker.beyond(column, low, high);
    let (rows, examples) = asker.outside(column, &which).await?;
    let of_all = match &table {
        Some(table) if rows > 0 => asker.count_among(&which, table).await?,
        Some(_) | None => rows,
    };
    Ok(Ok(Found {
        holds: (table.is_some() && rows == 0) || allowed.holds_of(of_all, spread.all),
        words: format!(
            "{} of {} outside {}..{}{examples}",
            counted(of_all, "value"),
            spread.all,
            shown(low),
            shown(high)
        ),
        rows: Some(which),
    }))
}

/// Between which values nothing is unusual. `None` where there are too few to tell.
async fn fences(asker: &Asker<'_>, of: &Spread, method: Method, beyond: f64) -> Result<Option<(f64, f64)>, Failure> {
    if of.all < 3 {
        return Ok(None);
    }
    // Of so few, only the infinite ones are far from the rest.
    if of.count < 3 {
        return Ok(Some((f64::MIN, f64::MAX)));
    }
    let (below, above, scale) = match method {
        Method::ZScore => {
            let mean = asker.mean(of).await?;
            let squares = asker.sum_of_squares(of, mean).await?;
            let spread = (squares / (of.count as f64 - 1.0)).sqrt();
            (mean - beyond * spread, mean + beyond * spread, of.scale)
        }
        Method::Iqr => {
            let first = asker.quantile(of, None, 0.25).await?;
            let third = asker.quantile(of, None, 0.75).await?;
            let spread = third - first;
            (first - beyond * spread, third + beyond * spread, of.fine)
        }
        Method::Mad => {
            let median = asker.quantile(of, None, 0.5).await?;
            let deviation = asker.quantile(of, Some(median), 0.5).await?;
            // More than half of the values are the same: then the mean deviation stands in, as Iglewicz and Hoaglin have it.
            let spread = if deviation > 0.0 {
                1.4826 * deviation
            } else {
                let from = median * (of.fine / of.scale);
                1.2533 * asker.mean_deviation(of, from).await? * (of.scale / of.fine)
            };
            (median - beyond * spread, median + beyond * spread, of.fine)
        }
    };
    debug_assert!(!below.is_nan(), "arithmetic over finite numbers that are small enough");
    // What no number is beyond needs no infinite fence, which has no SQL.
    let fence = |value: f64| (value * scale).clamp(f64::MIN, f64::MAX);
    Ok(Some((fence(below), fence(above))))
}

/// A fence, for a person.
fn shown(value: f64) -> String {
    if value.abs() < 1e15 && (value == 0.0 || value.abs() >= 1e-4) {
        format!("{value:.4}")
    } else {
        format!("{value:.4e}")
    }
}
