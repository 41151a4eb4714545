//! The pipeline file as a verb finds it: its text, what to call it in errors, and what its paths are relative to.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::exit::Usage;

/// A pipeline file is written by hand; what is bigger is another file, and would not fit into a request.
const MAX_BYTES: u64 = 1 << 20;

/// A pipeline file, read but not parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// The whole text.
    pub(crate) text: String,
    /// The path as the user wrote it.
    pub(crate) file: String,
    /// An absolute folder or an `s3://bucket/prefix`.
    pub(crate) base: String,
}

impl Document {
    /// Reads `file`. Relative source paths are relative to `base`, or else to the file's folder.
    pub(crate) fn load(file: &Path, base: Option<&str>) -> Result<Self> {
        let name = file.display().to_string();
        let unreadable = |why: &dyn std::fmt::Display| Usage(format!("can't read the pipeline file {name}: {why}"));
        let mut bytes = Vec::new();
        File::open(file)
            .and_then(|open| open.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| unreadable(&error))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(unreadable(&"it is larger than 1 MiB; is it a data file?").into());
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            unreadable(&format_args!(
                "it is not UTF-8 (byte {})",
                error.utf8_error().valid_up_to() + 1
            ))
        })?;
        let base = match base {
            Some(base) => resolve_base(base)?,
            None => folder_of(file)?,
        };
        Ok(Self { text, file: name, base })
    }
}

/// The base as a submission has it: absolute.
pub(crate) fn resolve_base(base: &str) -> Result<String> {
    if let Some(rest) = base.strip_prefix("s3://") {
        if rest.split('/').next().is_none_or(str::is_empty) {
            return Err(Usage(format!("--base {base:?} names no bucket; write s3://bucket/prefix")).into());
        }
        return Ok(base.trim_end_matches('/').to_owned());
    }
    if base.contains("://") {
        return Err(Usage("--base must be a folder or s3://bucket/prefix".into()).into());
    }
    absolute(Path::new(base))
}

/// The folder that this process runs in.
pub(crate) fn here() -> Result<String> {
    absolute(Path::new("."))
}

fn folder_of(file: &Path) -> Result<String> {
    let file = std::path::absolute(file).map_err(|error| Usage(format!("{}: {error}", file.display())))?;
    absolute(file.parent().unwrap_or(Path::new("/")))
}

/// The absolute path, without links and `..`: the same folder always gives the same submission.
fn absolute(folder: &Path) -> Result<String> {
    let path: PathBuf = match folder.canonicalize() {
        Ok(path) => path,
        // A folder that only the nodes have is fine.
        Err(_) => std::path::absolute(folder).map_err(|error| Usage(format!("{}: {error}", folder.display())))?,
    };
    path.into_os_string()
        .into_string()
        .map_err(|_| Usage("the pipeline's folder has a name that is not UTF-8; give --base".into()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_files_folder_unless_told() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("p.yaml");
        std::fs::write(&file, "pipeline: p\n").expect("written");
        let folder = dir.path().canonicalize().expect("exists").display().to_string();
        assert_eq!(Document::load(&file, None).expect("loaded").base, folder);
        let dotted = dir.path().join("x/../p.yaml");
        std::fs::create_dir(dir.path().join("x")).expect("made");
        assert_eq!(Document::load(&dotted, None).expect("loaded").base, folder);
        assert_eq!(
            Document::load(&file, Some("s3://bucket/in/")).expect("loaded").base,
            "s3://bucket/in"
        );
        for wrong in ["s3://", "s3:///x", "https://host/x"] {
            assert!(
                Document::load(&file, Some(wrong)).expect_err("refused").is::<Usage>(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_no_pipeline_file_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("p.yaml");
        let check = |said: &str| {
            let error = Document::load(&file, None).expect_err("refused");
            assert!(error.is::<Usage>() && error.to_string().contains(said), "{error}");
            assert!(error.to_string().contains("p.yaml"), "{error}");
        };
        check("No such file");
        std::fs::write(&file, b"pipeline: \xff").expect("written");
        check("not UTF-8 (byte 11)");
        std::fs::write(&file, vec![b'#'; 2 << 20]).expect("written");
        check("larger than 1 MiB");
    }
}
