//! `haulage validate`: everything that can be found wrong with a pipeline file before anything runs.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use haulage_plan::Diagnostics;
use haulage_plan::definition::Definition;
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::cli::pipeline_options::PipelineOptions;
use crate::exit::Exit;
use crate::pipeline::Document;

const AFTER_HELP: &str = "\
Examples:
  haulage validate pipeline.yaml
  haulage validate pipeline.yaml --param day=2013-01-31
  haulage validate pipeline.yaml --output json    {\"valid\": false, \"errors\": [{\"line\": 12, \"column\": 5, ...}]}

Finds unknown keys, wrong parameters, cycles, unknown tables and columns, type errors in the SQL, and SQL that a chunk
can't answer alone, and says where and what to do. Reads the headers of sources whose columns are not declared, and
nothing else; `haulage plan` also looks at the sources and destinations.";

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pipeline: PipelineOptions,
}

/// What was found.
enum Verdict {
    /// Everything was checked.
    Sound,
    /// All but the SQL over these sources, whose columns only a node that reads them knows.
    Partly(Vec<String>),
}

/// Checks.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let (document, params) = args.pipeline.load()?;
    let verdict = check(&document, &params).await;
    if !output.is_json() {
        match verdict? {
            Verdict::Sound => output.line(format!("{} is sound", document.file))?,
            Verdict::Partly(sources) => output.line(format!(
                "{} is sound, as far as can be told from here: the SQL over {} is checked when it is read, because its \
                 columns are not declared",
                document.file,
                sources.join(", ")
            ))?,
        }
        return Ok(Exit::Success);
    }
    let (exit, unchecked, errors) = match verdict {
        Ok(Verdict::Sound) => (Exit::Success, Vec::new(), Vec::new()),
        Ok(Verdict::Partly(sources)) => (Exit::Success, sources, Vec::new()),
        Err(error) => (Exit::Failed, Vec::new(), errors(&document.file, &error)),
    };
    output.json(&json!({
        "file": document.file,
        "valid": errors.is_empty(),
        "errors": errors,
        "unchecked_sources": unchecked,
    }))?;
    Ok(exit)
}

/// The pipeline with its parameters bound, or everything that is wrong with it. No SQL is looked at.
pub(crate) fn parse(document: &Document, params: &BTreeMap<String, String>) -> Result<Definition> {
    Ok(haulage_plan::parse_and_bind(&document.text, &document.file, params)?)
}

async fn check(document: &Document, params: &BTreeMap<String, String>) -> Result<Verdict> {
    let definition = parse(document, params)?;
    let mut columns = BTreeMap::new();
    let mut unknown = Vec::new();
    let looked_up = haulage_node::check::columns_for_validate(&definition, &document.base).await;
    for (source, found) in looked_up {
        match found {
            Some(Ok(found)) => {
                columns.insert(source, found);
            }
            Some(Err(failure)) => {
                bail!("the columns of source {source} are not declared, and its header can't be read: {failure}")
            }
            None => unknown.push(source),
        }
    }
    if unknown.is_empty() {
        haulage_plan::compile(&definition, &columns)?;
        return Ok(Verdict::Sound);
    }
    haulage_plan::compile_if_declared(&definition)?;
    Ok(Verdict::Partly(unknown))
}

fn errors(file: &str, error: &anyhow::Error) -> Vec<Value> {
    let Some(diagnostics) = error.downcast_ref::<Diagnostics>() else {
        return vec![json!({"file": file, "message": format!("{error:#}")})];
    };
    let one = |found: &haulage_plan::Diagnostic| {
        json!({
            "file": found.file,
            "line": found.place.line,
            "column": found.place.column,
            "message": found.message,
            "suggestion": found.suggestion,
        })
    };
    diagnostics.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn mistakes_become_objects_with_their_place() {
        let document = Document {
            text: "pipeline: p\nsorces: {}\n".into(),
            file: "p.yaml".into(),
            base: "/".into(),
        };
        let error = check(&document, &BTreeMap::new()).await.err().expect("unsound");
        let found = errors("p.yaml", &error);
        let wrong_key = found
            .iter()
            .find(|one| one["line"] == 2)
            .expect("the second line is wrong");
        assert_eq!(wrong_key["file"], "p.yaml");
        assert!(
            wrong_key["suggestion"]
                .as_str()
                .is_some_and(|text| text.contains("sources")),
            "{wrong_key}"
        );
    }
}
