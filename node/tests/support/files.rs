//! Looks into a destination of files as a reader does: manifest, then Parquet. And [`ForFiles`], through which the suite of
//! all destinations runs over files: what files don't take (merge, a key over appends) becomes what they do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int32Type};
use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, RunId};
use haulage_core::receipt::Looked;
use haulage_core::watermark::{Advance, Watermark};
use haulage_node::sink::{
    Aside, Destination, Dialect, Expected, Inspection, LoadContext, Question, SegmentWriter, Standing, registry,
};
use haulage_node::store::S3Settings;
use haulage_plan::definition::Mode;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::inside::settings;
use super::world::Kind;

/// The destination as nodes have it.
pub(crate) async fn plain(kind: &Kind) -> Arc<dyn Destination> {
    let (url, settings) = match kind {
        Kind::Files {
            folder: Some(folder), ..
        } => (
            format!("file://{}", folder.path().join("lake").display()),
            S3Settings::default(),
        ),
        Kind::Files {
            server: Some(server), ..
        } => ("s3://lake".to_owned(), settings(&server.endpoint())),
        Kind::Postgres { .. } | Kind::Sqlite { .. } | Kind::Files { .. } => panic!("only for files"),
    };
    let opened = registry::open_with("lake", &url, 4, None, &settings).await;
    opened.expect("a destination")
}

pub(crate) async fn open(kind: &Kind) -> Arc<dyn Destination> {
    Arc::new(ForFiles(plain(kind).await))
}

struct ForFiles(Arc<dyn Destination>);

/// A load of the suite, as it makes sense of files.
fn of_files(load: &LoadContext) -> LoadContext {
    let mode = match load.mode {
        Mode::Merge => Mode::Replace,
        other => other,
    };
    let key = if mode == Mode::Append {
        Vec::new()
    } else {
        load.key.clone()
    };
    LoadContext {
        mode,
        key,
        ..load.clone()
    }
}

#[async_trait]
impl Destination for ForFiles {
    async fn inspect(&self, load: &LoadContext) -> Result<Inspection, Failure> {
        self.0.inspect(&of_files(load)).await
    }

    async fn prepare(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.0.prepare(&of_files(load)).await
    }

    async fn begin(&self, load: &LoadContext, chunk: ChunkId, attempt: Attempt) -> Result<Vec<Marker>, Failure> {
        self.0.begin(&of_files(load), chunk, attempt).await
    }

    async fn reserve(&self, segments: usize) -> Result<Arc<dyn Destination>, Failure> {
        Ok(Arc::new(ForFiles(self.0.reserve(segments).await?)))
    }

    async fn segment(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Box<dyn SegmentWriter>, Failure> {
        self.0.segment(&of_files(load), chunk, attempt).await
    }

    async fn verify(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        self.0.verify(&of_files(load), expected).await
    }

    fn dialect(&self) -> Dialect {
        self.0.dialect()
    }

    async fn ask(
        &self,
        load: &LoadContext,
        expected: Expected,
        question: &Question,
    ) -> Result<Vec<Option<String>>, Failure> {
        self.0.ask(&of_files(load), expected, question).await
    }

    async fn seal(&self, load: &LoadContext, expected: Expected) -> Result<Option<Aside>, Failure> {
        self.0.seal(&of_files(load), expected).await
    }

    async fn name_rows(
        &self,
        load: &LoadContext,
        expected: Expected,
        conditions: &[Question],
    ) -> Result<Vec<u64>, Failure> {
        self.0.name_rows(&of_files(load), expected, conditions).await
    }

    async fn set_aside(&self, load: &LoadContext, expected: Expected, what: &Aside) -> Result<Aside, Failure> {
        self.0.set_aside(&of_files(load), expected, what).await
    }

    async fn publish(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        self.0.publish(&of_files(load), expected).await
    }

    async fn watermarks_of(&self, load: &LoadContext) -> Result<Option<Vec<Watermark>>, Failure> {
        self.0.watermarks_of(&of_files(load)).await
    }

    async fn advanced_by(&self, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, Failure> {
        self.0.advanced_by(run, &of_files(load)).await
    }

    async fn watermarks(&self, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
        self.0.watermarks(pipeline).await
    }

    async fn set_watermark(&self, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
        self.0.set_watermark(mark, was).await
    }

    async fn recall(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.0.recall(&of_files(load)).await
    }

    async fn release(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.0.release(&of_files(load)).await
    }

    async fn revert(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.0.revert(&of_files(load)).await
    }

    async fn discard(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.0.discard(&of_files(load)).await
    }

    async fn cleanup(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.0.cleanup(&of_files(load)).await
    }

    async fn standing(&self, load: &LoadContext) -> Result<Standing, Failure> {
        self.0.standing(&of_files(load)).await
    }

    async fn look_up(&self, table: &str, key: &[(String, String)], limit: u32) -> Result<Looked, Failure> {
        self.0.look_up(table, key, limit).await
    }
}

pub(crate) fn json(path: &Path) -> Option<Value> {
    let text = std::fs::read(path).ok()?;
    Some(serde_json::from_slice(&text).expect("JSON"))
}

/// A table's state.
pub(crate) fn state(lake: &Path, table: &str) -> Option<Value> {
    json(&lake.join(table).join("_haulage/table.json"))
}

/// The newest version's manifest; none if there is no table.
pub(crate) fn manifest(lake: &Path, table: &str) -> Option<Value> {
    let state = state(lake, table)?;
    let name = state["head"]["manifest"].as_str()?;
    Some(json(&lake.join(table).join(name)).expect("the manifest that the state names"))
}

/// The files of the newest version, each with what the manifest says of it. None if there is no table.
pub(crate) fn files(lake: &Path, table: &str) -> Option<Vec<(PathBuf, Value)>> {
    let manifest = manifest(lake, table)?;
    let files = manifest["files"].as_array().expect("a list").clone();
    let place = |file: Value| (lake.join(table).join(file["path"].as_str().expect("a path")), file);
    Some(files.into_iter().map(place).collect())
}

pub(crate) fn parquet(path: &Path) -> Vec<RecordBatch> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet").build();
    reader.expect("a reader").collect::<Result<_, _>>().expect("batches")
}

/// The rows of a table with columns id, name and amount, sorted; none if there is no table.
pub(crate) fn rows(lake: &Path, table: &str) -> Option<Vec<String>> {
    let mut rows = Vec::new();
    for (path, said) in files(lake, table)? {
        let before = rows.len();
        for batch in parquet(&path) {
            let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
            let (ids, names, amounts) = (column("id"), column("name"), column("amount"));
            for row in 0..batch.num_rows() {
                let name = if names.is_null(row) {
                    "~"
                } else {
                    names.as_string::<i32>().value(row)
                };
                let (id, amount) = (ids.as_primitive::<Int32Type>(), amounts.as_primitive::<Float64Type>());
                rows.push(format!("{} {name} {}", id.value(row), amount.value(row)));
            }
        }
        assert_eq!(said["rows"], rows.len() - before, "{}", path.display());
        assert_eq!(said["bytes"], std::fs::metadata(&path).expect("a file").len());
    }
    let manifest = manifest(lake, table)?;
    assert_eq!(manifest["rows"], rows.len());
    rows.sort();
    Some(rows)
}

/// Everything that a reader sees of a table.
pub(crate) fn all_of(lake: &Path, table: &str) -> Vec<String> {
    let Some(manifest) = manifest(lake, table) else {
        return Vec::new();
    };
    let mut all = rows(lake, table).expect("a table");
    for key in ["columns", "format", "partition_by"] {
        all.push(manifest[key].to_string());
    }
    all
}

/// What Haulage has left of runs that are over, besides records and manifests: staging, files that no version needs, lists.
pub(crate) fn left_over(lake: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let mut folders = vec![lake.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().expect("a type").is_dir()
                && entry.file_name() != "_haulage"
                && entry.file_name() != "data"
            {
                folders.push(entry.path());
            }
        }
        let Some(state) = json(&folder.join("_haulage/table.json")) else {
            continue;
        };
        let live: BTreeSet<String> = state["head"]["parts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|part| part["area"].as_str().expect("an area").to_owned())
            .collect();
        for (below, live) in [
            ("data", &live),
            ("_haulage/loads", &BTreeSet::new()),
            ("_haulage/lists", &live),
        ] {
            for file in all_files(&folder.join(below)) {
                let path = file
                    .strip_prefix(folder.join(below))
                    .expect("below")
                    .display()
                    .to_string();
                if !live.iter().any(|area| path.starts_with(area)) {
                    left.push(format!("{below}/{path}"));
                }
            }
        }
        left.extend(state["garbage"].as_array().into_iter().flatten().map(Value::to_string));
    }
    left
}

/// All files in a folder and its folders.
pub(crate) fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().expect("a type").is_dir() {
            found.extend(all_files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Takes one file of what is staged away, as a disk does that dies.
pub(crate) fn lose_a_file(lake: &Path, table: &str) {
    let live: BTreeSet<PathBuf> = files(lake, table).into_iter().flatten().map(|(path, _)| path).collect();
    let staged = all_files(&lake.join(table).join("data"));
    let lost = staged.iter().find(|file| !live.contains(*file)).expect("a staged file");
    std::fs::remove_file(lost).expect("it is removed");
}

/// Makes every publish older than a run that is given up keeps its table.
pub(crate) fn an_hour_later(lake: &Path, table: &str) {
    let path = lake.join(table).join("_haulage/table.json");
    let mut state = json(&path).expect("a state");
    for record in state["records"].as_array_mut().expect("records") {
        if let Some(at) = record["published_at"].as_str() {
            let at: chrono::DateTime<chrono::Utc> = at.parse().expect("a moment");
            record["published_at"] = Value::String((at - chrono::TimeDelta::minutes(61)).to_rfc3339());
        }
    }
    std::fs::write(&path, serde_json::to_vec(&state).expect("JSON")).expect("written");
}
