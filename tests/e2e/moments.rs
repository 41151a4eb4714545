//! Points in time in SQL: every year that a source can have, and microseconds wherever they are written.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::support::flights::sqlite;
use super::support::process::Verb;

const ROWS: &str = "id,s,ts,tz,d\n1,2024-02-29T12:00:00+01:00,2024-02-29 11:00:00.123456,2024-02-29 11:00:00,2024-02-29\n\
                    2,9999-12-31T23:59:59Z,9999-12-31,9999-12-31,9999-12-31\n3,0001-01-01T00:00:00Z,0001-01-01,0001-01-01,0001-01-01\n4,,,,\n";

const STEPS: &str = "  cast: SELECT id, CAST(s AS timestamptz) AS a, TRY_CAST(s AS timestamptz) AS b, CAST(d AS timestamp) AS c,
    CAST(tz AS timestamp) AS e, coalesce(ts, now()) AS f, d - DATE '2024-01-01' AS days, tz AT TIME ZONE 'Europe/Zurich' AS g FROM raw
  compared: SELECT id, ts >= '2024-02-29' AS a, tz = s AS b, d > now() AS c, ts BETWEEN d AND '9999-12-31' AS e, ts IS DISTINCT FROM $far AS f
    FROM raw
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_year_is_one_in_sql_and_microseconds_are_what_is_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let lake = folder.path().join("lake");
    std::fs::create_dir(&lake)?;
    std::fs::write(folder.path().join("rows.csv"), ROWS)?;
    let text = format!(
        "pipeline: p\nparams: {{far: {{type: timestamptz, default: \"9999-12-31\"}}}}\nsources:\n  raw: {{csv: rows.csv, columns: \
         {{id: int!, s: text, ts: timestamp, tz: timestamptz, d: date}}}}\nsteps:\n{STEPS}loads:\n  \
         cast: {{from: cast, to: warehouse, table: casts, mode: replace}}\n  \
         compared: {{from: compared, to: warehouse, table: compared, mode: replace}}\n  \
         lake: {{from: cast, to: lake, table: casts, mode: replace}}\n"
    );
    std::fs::write(folder.path().join("p.yaml"), text)?;
    let destination = format!("lake=file://{}", lake.display());
    let verb = Verb::new(folder.path()).args(["run", "p.yaml", "--destination", &destination]);
    verb.output().await?.success()?;

    let warehouse = folder.path().join(".haulage/warehouse.db");
    let all = |columns: &str, table: &str| {
        let columns = columns.split(' ').map(|column| format!("coalesce({column}, '-')"));
        let columns = columns.collect::<Vec<_>>().join(" || '|' || ");
        format!("SELECT id || '|' || {columns} FROM {table} ORDER BY id")
    };
    let casts = sqlite(&warehouse, &all("a b c e days g", "casts")).await?;
    let line = |id: u32, at: &str, day: &str, tz: &str, days: &str| {
        format!("{id}|{at}+00:00|{at}+00:00|{day} 00:00:00|{tz}|{days}|{tz}+00:00")
    };
    let expected = [
        line(1, "2024-02-29 11:00:00", "2024-02-29", "2024-02-29 11:00:00", "59"),
        line(2, "9999-12-31 23:59:59", "9999-12-31", "9999-12-31 00:00:00", "2913173"),
        line(3, "0001-01-01 00:00:00", "0001-01-01", "0001-01-01 00:00:00", "-738885"),
        "4|-|-|-|-|-|-".to_owned(),
    ];
    ensure!(casts == expected, "{casts:?}");
    let compared = sqlite(&warehouse, &all("a b c e f", "compared")).await?;
    ensure!(
        compared == ["1|1|1|0|1|1", "2|1|0|1|1|0", "3|0|1|0|1|1", "4|-|-|-|-|1"],
        "{compared:?}"
    );

    let area = std::fs::read_dir(lake.join("casts/data"))?
        .next()
        .context("an area")??;
    let file = std::fs::read_dir(area.path())?.next().context("a file")??;
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file.path())?)?;
    let times = reader
        .schema()
        .fields()
        .iter()
        .filter(|field| matches!(field.data_type(), DataType::Timestamp(_, _)));
    let told: Vec<_> = times
        .map(|field| (field.name().as_str(), field.data_type().clone()))
        .collect();
    let plain = DataType::Timestamp(TimeUnit::Microsecond, None);
    let zoned = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let expected = [
        ("a", &zoned),
        ("b", &zoned),
        ("c", &plain),
        ("e", &plain),
        ("f", &plain),
        ("g", &zoned),
    ];
    ensure!(told.iter().map(|(name, of)| (*name, of)).eq(expected), "{told:?}");
    Ok(())
}
