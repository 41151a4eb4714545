//! Receipts of files: `verify` finds whatever is changed by hand in a folder or in S3, in every format, and nothing where
//! nothing is; `why` names the line that a row of a file is from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use datafusion::arrow::array::{ArrayRef, AsArray as _, Int64Array, RecordBatch, UInt32Array};
use datafusion::arrow::compute::{cast, concat_batches, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use super::receipts;
use super::support::process::{Output, Verb, newest_run};
use super::support::s3::S3;

const COLUMNS: &str = "{id: int!, small: smallint, big: bigint, f: float, d: double, yes: bool, day: date, at: timestamp, \
    zoned: timestamptz, amount: \"decimal(12,2)\", note: text}";

const LOADS: &str = r#"
  parquet: {from: valid, to: lake, table: t/parquet, mode: append, provenance: true}
  csv: {from: valid, to: lake, table: t/csv, mode: append, format: csv, partition_by: [yes], provenance: true}
  lines: {from: valid, to: lake, table: t/lines, mode: append, format: jsonl, partition_by: [yes], provenance: true}
  packed: {from: valid, to: lake, table: packed, mode: append, format: csv, compression: gzip}
  fresh: {from: valid, to: lake, table: fresh, mode: replace, key: [id], partition_by: [yes], format: jsonl, compression: zstd}
  narrow: {from: notes, to: lake, table: narrow, mode: append, format: csv, partition_by: [yes]}
"#;

/// A home, with a lake in a folder or in S3.
struct Lake {
    home: tempfile::TempDir,
    s3: Option<S3>,
}

impl Lake {
    async fn open(in_s3: bool) -> Result<Self> {
        let home = tempfile::tempdir()?;
        std::fs::create_dir(home.path().join("lake"))?;
        receipts::source(home.path())?;
        let s3 = match in_s3 {
            true => Some(S3::start(&["lake"]).await?),
            false => None,
        };
        Ok(Self { home, s3 })
    }

    fn folder(&self, table: &str) -> PathBuf {
        let lake = match &self.s3 {
            Some(s3) => s3.folder("lake").join("deep"),
            None => self.home.path().join("lake"),
        };
        lake.join(table)
    }

    fn verb(&self, args: &[&str]) -> Verb {
        let lake = match &self.s3 {
            Some(_) => "s3://lake/deep".to_owned(),
            None => format!("file://{}", self.folder("").display()),
        };
        let envs = self.s3.as_ref().map(S3::envs).unwrap_or_default();
        let verb = Verb::new(self.home.path()).args(args.iter().copied()).envs(&envs);
        verb.env("HAULAGE_DESTINATION_LAKE", lake)
    }

    async fn run(&self, loads: &str, shift: &str) -> Result<String> {
        let text = format!(
            "pipeline: types\ncheckpoint_rows: 1000\nparams: {{shift: {{type: int, default: 0}}}}\nsources:\n  raw: {{csv: raw.csv, \
             chunk_size: 200kB, columns: {COLUMNS}}}\nsteps:\n  some: SELECT *, to_timestamp_nanos(id) AS nano, id + $shift AS \
             moved FROM raw WHERE id % 10 <> 0\n  valid: {{from: some, reject: {{seven: id % 7 = 0}}}}\n  notes: SELECT note, \
             yes FROM valid\nloads:{loads}"
        );
        std::fs::write(self.home.path().join("pipeline.yaml"), text)?;
        let args = ["run", "pipeline.yaml", "--param", &format!("shift={shift}")];
        self.verb(&args).output().await?.success()?;
        newest_run(self.home.path()).await
    }

    async fn verify(&self, run: &str, load: &str) -> Result<Output> {
        self.verb(&["verify", run, "--load", load]).output().await
    }

    async fn revert(&self, run: &str) -> Result<()> {
        let args = ["revert", run, "--watch", "--reason", "wrong"];
        self.verb(&args).output().await?.success()?;
        Ok(())
    }

    async fn why(&self, args: &[&str]) -> Result<Output> {
        self.verb(&[&["why"][..], args, &["--to", "lake"]].concat())
            .output()
            .await
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// The newest manifest's place, and what it holds.
fn manifest(table: &Path) -> Result<(PathBuf, Value)> {
    let state: Value = serde_json::from_slice(&std::fs::read(table.join("_haulage/table.json"))?)?;
    let path = table.join(state["head"]["manifest"].as_str().context("no manifest")?);
    let manifest = serde_json::from_slice(&std::fs::read(&path)?)?;
    Ok((path, manifest))
}

fn edit_manifest(table: &Path, edit: impl FnOnce(&mut Vec<Value>)) -> Result<()> {
    let (path, mut manifest) = manifest(table)?;
    edit(manifest["files"].as_array_mut().context("no files")?);
    Ok(std::fs::write(path, serde_json::to_vec(&manifest)?)?)
}

/// The file in which the row with id 23 is.
fn a_file(table: &Path) -> Result<PathBuf> {
    let (_, manifest) = manifest(table)?;
    for file in manifest["files"].as_array().context("no files")? {
        let path = table.join(file["path"].as_str().context("no path")?);
        let has = match path.extension().is_some_and(|ending| ending == "parquet") {
            true => place(&parquet(&path)?, 23)?.is_some(),
            false => std::fs::read_to_string(&path)?.lines().any(|line| is_row(line, 23)),
        };
        if has {
            return Ok(path);
        }
    }
    anyhow::bail!("no file has the row")
}

fn parquet(path: &Path) -> Result<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path)?)?.build()?;
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    Ok(concat_batches(&batches.first().context("no rows")?.schema(), &batches)?)
}

fn place(batch: &RecordBatch, id: i64) -> Result<Option<usize>> {
    let moved = cast(batch.column_by_name("moved").context("no column")?, &DataType::Int64)?;
    let moved = moved.as_primitive::<Int64Type>();
    Ok((0..moved.len()).find(|row| moved.value(*row) == id))
}

/// Whether this is the whole line of a row, in CSV or JSON; notes of some have line ends.
fn is_row(line: &str, id: u32) -> bool {
    line.starts_with(&format!("{id},")) || line.starts_with(&format!("{{\"id\":{id},"))
}

/// What happens to a row of a file.
#[derive(Clone, Copy)]
enum Change {
    Alters,
    Goes,
    Doubles,
    Moves,
}

/// Changes the row with id 23. No other row is touched.
fn change(path: &Path, change: Change) -> Result<()> {
    if path.extension().is_some_and(|ending| ending == "parquet") {
        return change_parquet(path, change);
    }
    let text = std::fs::read_to_string(path)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let place = lines.iter().position(|line| is_row(line, 23)).context("no row")?;
    let row = lines[place].clone();
    match change {
        Change::Alters => lines[place] = row.replace("note 23", "note 24"),
        Change::Goes => drop(lines.remove(place)),
        Change::Doubles => lines.insert(place, row),
        Change::Moves => {
            lines.remove(place);
            lines.push(row);
        }
    }
    Ok(std::fs::write(path, lines.join("\n") + "\n")?)
}

fn change_parquet(path: &Path, change: Change) -> Result<()> {
    let batch = parquet(path)?;
    let place = place(&batch, 23)?.context("no row")? as u32;
    let all = 0..batch.num_rows() as u32;
    let others = all.clone().filter(|row| *row != place);
    let rows: Vec<u32> = match change {
        Change::Alters => all.collect(),
        Change::Goes => others.collect(),
        Change::Doubles | Change::Moves => {
            let kept: Vec<u32> = match change {
                Change::Doubles => all.collect(),
                _ => others.collect(),
            };
            [kept, vec![place]].concat()
        }
    };
    let mut batch = take_record_batch(&batch, &UInt32Array::from(rows))?;
    if matches!(change, Change::Alters) {
        let at = batch.schema().index_of("moved")?;
        let was = cast(batch.column(at), &DataType::Int64)?;
        let moved = was.as_primitive::<Int64Type>().iter();
        let moved: Int64Array = moved
            .map(|value| value.map(|value| if value == 23 { 24 } else { value }))
            .collect();
        let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
        columns[at] = cast(&(Arc::new(moved) as ArrayRef), batch.column(at).data_type())?;
        batch = RecordBatch::try_new(batch.schema(), columns)?;
    }
    let mut writer = ArrowWriter::try_new(std::fs::File::create(path)?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}

fn truncate(path: &Path) -> Result<()> {
    let data = std::fs::read(path)?;
    Ok(std::fs::write(path, &data[..data.len() / 2])?)
}

/// What is done to a table by hand, and what verify has to say of it.
type Tampering = (&'static str, fn(&Path) -> Result<()>, &'static [&'static str]);

const TAMPERINGS: &[Tampering] = &[
    (
        "a file goes",
        |t| Ok(std::fs::remove_file(a_file(t)?)?),
        &["is gone, with its", "missing", "chunk 0.0"],
    ),
    (
        "a file is cut off",
        |t| truncate(&a_file(t)?),
        &["can't be read", "were written", "missing"],
    ),
    (
        "a file is emptied",
        |t| Ok(std::fs::write(a_file(t)?, "")?),
        &["has 0 bytes", "missing"],
    ),
    (
        "a file is of another kind",
        |t| Ok(std::fs::write(a_file(t)?, "\0\u{1}binary\n")?),
        &["can't be read", "missing"],
    ),
    (
        "a row is altered",
        |t| change(&a_file(t)?, Change::Alters),
        &[
            "its values are not those that were published",
            "chunk 0.0",
            "other values",
            "were written",
        ],
    ),
    (
        "a row goes",
        |t| change(&a_file(t)?, Change::Goes),
        &["1 row is missing", "rows, and", "were written"],
    ),
    (
        "a row is doubled",
        |t| change(&a_file(t)?, Change::Doubles),
        &["1 row is too many"],
    ),
    (
        "a file leaves the manifest",
        |t| edit_manifest(t, |files| drop(files.remove(0))),
        &["is no longer in the manifest", "missing"],
    ),
    (
        "a file of somebody else's is in the manifest",
        |t| {
            let mut other = manifest(t)?.1["files"][0].clone();
            other["area"] = json!("0123456789abcdef0123");
            edit_manifest(t, |files| files.push(other))
        },
        &["is in the manifest, and no run has brought it"],
    ),
    (
        "a file is said to be the run's",
        |t| {
            let mut other = manifest(t)?.1["files"][0].clone();
            let path = other["path"].as_str().context("no path")?.to_owned();
            let (folder, name) = path.rsplit_once('/').context("no folder")?;
            let copy = format!("{folder}/copy-{name}");
            std::fs::copy(t.join(&path), t.join(&copy))?;
            other["path"] = json!(copy);
            edit_manifest(t, |files| files.push(other))
        },
        &["which has not written it", "too many"],
    ),
    (
        "the manifest counts a file twice",
        |t| edit_manifest(t, |files| files.push(files[0].clone())),
        &["is in the manifest twice", "too many"],
    ),
    (
        "the manifest says other rows of a file",
        |t| edit_manifest(t, |files| files[0]["rows"] = json!(1)),
        &["what the manifest says of file"],
    ),
    (
        "the manifest leads out of the table",
        |t| edit_manifest(t, |files| files[0]["path"] = json!("data/../../../../raw.csv")),
        &["can be no file of the table", "is no longer in the manifest"],
    ),
    (
        "the manifest is cut off",
        |t| truncate(&manifest(t)?.0),
        &["is damaged", "missing"],
    ),
    (
        "the manifest goes",
        |t| Ok(std::fs::remove_file(manifest(t)?.0)?),
        &["is gone, which lists the run's files", "missing"],
    ),
];

/// Tamperings after which nothing can be said, but what is wrong with the state.
const STATES: &[Tampering] = &[
    (
        "the state is cut off",
        |t| truncate(&t.join("_haulage/table.json")),
        &["_haulage/table.json is damaged", "put back a copy"],
    ),
    (
        "the state goes",
        |t| Ok(std::fs::remove_file(t.join("_haulage/table.json"))?),
        &["_haulage/table.json is gone", "was not dropped", "put back a copy"],
    ),
];

/// A value of a partition is in the path alone.
fn into_another_partition(table: &Path) -> Result<()> {
    let (path, mut manifest) = manifest(table)?;
    let files = manifest["files"].as_array_mut().context("no files")?;
    let is_true = |file: &&mut Value| file["path"].as_str().is_some_and(|path| path.contains("yes=true"));
    let file = files.iter_mut().find(is_true).context("no such partition")?;
    let old = file["path"].as_str().context("no path")?.to_owned();
    // Files of a segment have one name in all partitions.
    let new = old.replace("yes=true/", "yes=false/moved-");
    std::fs::rename(table.join(&old), table.join(&new))?;
    file["path"] = json!(new);
    Ok(std::fs::write(path, serde_json::to_vec(&manifest)?)?)
}

async fn tampered(lake: &Lake, run: &str, load: &str) -> Result<()> {
    let table = lake.folder(&format!("t/{load}"));
    let kept = lake.home.path().join(format!("kept-{load}"));
    copy(&table, &kept)?;
    let restore = || -> Result<()> {
        std::fs::remove_dir_all(&table)?;
        copy(&kept, &table)
    };
    for (what, tamper, parts) in TAMPERINGS {
        tamper(&table).with_context(|| format!("{load}: {what}"))?;
        let said = lake.verify(run, load).await?;
        said.failure(&[&["DIFFERS"][..], parts].concat())
            .with_context(|| format!("{load}: {what}"))?;
        restore()?;
    }
    for (what, tamper, parts) in STATES {
        tamper(&table)?;
        let said = lake.verify(run, load).await?;
        said.failure(parts).with_context(|| format!("{load}: {what}"))?;
        restore()?;
    }
    if load != "parquet" {
        into_another_partition(&table)?;
        let said = lake.verify(run, load).await?;
        said.failure(&["DIFFERS", "column yes: its values", "which has not written it"])
            .with_context(|| format!("{load}: another partition"))?;
        restore()?;
    }
    // No value is another thing than an empty text.
    if load == "csv" {
        let path = a_file(&table)?;
        let text = std::fs::read_to_string(&path)?;
        let empty = text.find(",\"\",").context("no empty text")?;
        std::fs::write(&path, format!("{},,{}", &text[..empty], &text[empty + 4..]))?;
        let said = lake.verify(run, load).await?;
        said.failure(&["DIFFERS", "column note: its values"])?;
        restore()?;
    }
    // The same rows in another order are the same rows; it is said that somebody was there.
    change(&a_file(&table)?, Change::Moves)?;
    let said = lake
        .verify(run, load)
        .await?
        .success()
        .with_context(|| load.to_owned())?;
    ensure!(
        said.stdout.contains("the rows are those that were published") && said.stdout.contains("were written"),
        "{load}: {}",
        said.stdout
    );
    restore()?;
    lake.verify(run, load).await?.success()?;
    Ok(())
}

async fn every_kind_of_tampering(in_s3: bool) -> Result<()> {
    let lake = Lake::open(in_s3).await?;
    let run = lake.run(LOADS, "0").await?;
    let args = ["verify", &run, "--output", "json"];
    let all = lake.verb(&args).output().await?.success()?.json_lines()?;
    ensure!(
        all.len() == 6
            && all
                .iter()
                .all(|load| load["answer"] == "holds" && load["found"] == load["published"]),
        "{all:?}"
    );
    // The same rows are the same sum in every format.
    let of = |load: &str| {
        all.iter()
            .find(|verdict| verdict["load"] == load)
            .map(|verdict| &verdict["actual"])
    };
    for load in ["csv", "lines", "packed", "fresh"] {
        ensure!(of(load) == of("parquet"), "{load}: {all:?}");
    }
    let narrow = lake.verify(&run, "narrow").await?.success()?;
    ensure!(
        narrow.stdout.contains("column note is left out: a CSV file"),
        "{}",
        narrow.stdout
    );
    for load in ["parquet", "csv", "lines"] {
        tampered(&lake, &run, load).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_changed_in_a_folder_by_hand_is_found() -> Result<()> {
    every_kind_of_tampering(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_changed_in_s3_by_hand_is_found() -> Result<()> {
    every_kind_of_tampering(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_of_files_holds_after_other_runs_and_their_reverts() -> Result<()> {
    for in_s3 in [false, true] {
        let lake = Lake::open(in_s3).await?;
        let formats = ["parquet", "csv", "jsonl"];
        let loads = |mode: &str| -> String {
            let load = |format: &&str| {
                format!(
                    "\n  {format}: {{from: valid, to: lake, table: {format}, mode: {mode}, format: {format}, partition_by: [yes], \
                     keep_previous: 5}}"
                )
            };
            formats.iter().map(load).collect::<String>() + "\n"
        };
        let first = lake.run(&loads("append"), "0").await?;
        let second = lake.run(&loads("append"), "1").await?;
        let holds = async |run: &str| -> Result<()> {
            let said = lake.verb(&["verify", run]).output().await?.success()?;
            ensure!(said.stdout.matches("holds").count() == 3, "{}", said.stdout);
            Ok(())
        };
        holds(&first).await?;
        holds(&second).await?;
        let third = lake.run(&loads("replace"), "2").await?;
        holds(&third).await?;
        for run in [&first, &second] {
            for load in formats {
                let said = lake.verify(run, load).await?;
                let replaced = format!("replaced by run {third} (replace");
                said.failure(&["can't be told", "the run's rows are not there", &replaced])?;
            }
        }
        lake.revert(&third).await?;
        holds(&first).await?;
        holds(&second).await?;
        lake.revert(&first).await?;
        holds(&second).await?;
        let said = lake.verb(&["verify", &first]).output().await?;
        said.failure(&["is not published"])?;
        // A run that is run again replaces its own rows.
        let args = ["run", "pipeline.yaml", "--param", "shift=1", "--rerun"];
        let again = loads("append");
        let file = lake.home.path().join("pipeline.yaml");
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, text.replace(&loads("replace"), &again))?;
        lake.verb(&args).output().await?.success()?;
        let rerun = newest_run(lake.home.path()).await?;
        holds(&rerun).await?;
        let said = lake.verb(&["verify", &second]).output().await?;
        said.failure(&["the run's rows are not there", &format!("replaced by run {rerun}")])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_in_files_says_which_line_it_is_from() -> Result<()> {
    for in_s3 in [false, true] {
        let lake = Lake::open(in_s3).await?;
        let first = lake.run(LOADS, "0").await?;
        let source = std::fs::read_to_string(lake.home.path().join("raw.csv"))?;
        let line = |id: u32| {
            source
                .lines()
                .position(|line| line.starts_with(&format!("{id},")))
                .map(|at| at + 1)
        };
        for id in [1, 23, 2_222, 3_999] {
            for table in ["t/parquet", "t/csv", "t/lines"] {
                let said = lake.why(&[table, &format!("id={id}"), "--output", "json"]).await?;
                let said = said.success()?.json()?;
                let row = &said["rows"][0];
                ensure!(
                    said["rows"].as_array().map(Vec::len) == Some(1)
                        && row["run_id"] == *first
                        && row["line"].as_u64() == line(id).map(|line| line as u64)
                        && row["object"].as_str().is_some_and(|object| object.ends_with("raw.csv"))
                        && row["state"] == "published"
                        && row["definition"].is_string(),
                    "{table} {id}, line {:?}: {said}",
                    line(id)
                );
            }
        }
        // By several columns, one of which is in the path; in that partition and in no other.
        let said = lake.why(&["t/csv", "id=3", "yes=true"]).await?.success()?;
        ensure!(
            said.stdout.contains("id=3 yes=true") && said.stdout.contains("raw.csv, line"),
            "{said:?}"
        );
        lake.why(&["t/csv", "id=3", "yes=false"])
            .await?
            .failure(&["no row of t/csv has id=3"])?;
        let many = lake
            .why(&["t/lines", "yes=true", "--limit", "7", "--output", "json"])
            .await?;
        let many = many.success()?.json()?;
        ensure!(
            many["rows"].as_array().map(Vec::len) == Some(7) && many["more"] == true,
            "{many}"
        );
        // Without provenance the files still say whose they are; one key alone is that of the load.
        let said = lake.why(&["fresh", "23"]).await?;
        let said = said.failure(&["don't say where they are from", "provenance: true", &first])?;
        ensure!(
            said.stdout.contains("fresh  id=23") && said.stdout.contains("run"),
            "{said:?}"
        );
        for (args, parts) in [
            (&["packed", "23"] as &[&str], &["has no key", "COLUMN=VALUE"] as &[&str]),
            (&["packed", "idd=23"], &["no column idd", "id"]),
            (&["t/csv", "id=seven"], &["`seven` doesn't fit its column", "int"]),
            (
                &["t/lines", "amount=1.999"],
                &["doesn't fit its column", "decimal(12,2)"],
            ),
            (&["t/lines", "id=7777777"], &["no row of t/lines has id=7777777"]),
            (&["nowhere", "id=7"], &["there is no table nowhere"]),
        ] {
            lake.why(args).await?.failure(parts)?;
        }
        // Another run's rows beside them, until it is taken back; a file that is gone is no row that never was.
        let second = lake.run(LOADS, "5").await?;
        let both = lake
            .why(&["t/csv", "id=23", "--output", "json"])
            .await?
            .success()?
            .json()?;
        let runs: Vec<&str> = both["rows"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| row["run_id"].as_str())
            .collect();
        ensure!(runs == [&first, &second], "{both}");
        lake.revert(&second).await?;
        let one = lake
            .why(&["t/csv", "id=23", "--output", "json"])
            .await?
            .success()?
            .json()?;
        ensure!(
            one["rows"].as_array().map(Vec::len) == Some(1) && one["rows"][0]["run_id"] == *first,
            "{one}"
        );
        std::fs::remove_file(a_file(&lake.folder("t/csv"))?)?;
        let gone = lake.why(&["t/csv", "id=23"]).await?;
        gone.failure(&["can't be read: it is gone", &format!("haulage verify {first}")])?;
    }
    Ok(())
}
