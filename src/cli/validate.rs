//! `haulage validate`: everything that can be found wrong with a pipeline file before anything runs.

use std::collections::BTreeMap;

use anyhow::Result;
use haulage_plan::definition::Definition;
use haulage_plan::{Diagnostics, Draft, Sound};
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
nothing else; `haulage plan` also looks at the sources and destinations. Parameters need no value: SQL is checked by
their types then.";

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pipeline: PipelineOptions,
}

/// Checks.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let (document, params) = args.pipeline.load()?;
    let checked = check(&document, &params).await;
    if !output.is_json() {
        output.line(verdict(&document.file, &checked?))?;
        return Ok(Exit::Success);
    }
    let (exit, open, unchecked, errors) = match checked {
        Ok(sound) => (Exit::Success, sound.open, sound.unchecked, Vec::new()),
        Err(wrong) => (Exit::Failed, Vec::new(), Vec::new(), errors(&wrong)),
    };
    output.json(&json!({
        "file": document.file,
        "valid": errors.is_empty(),
        "errors": errors,
        "params_without_value": open,
        "unchecked_sources": unchecked,
    }))?;
    Ok(exit)
}

/// What is said of a file in which nothing wrong was found.
fn verdict(file: &str, sound: &Sound) -> String {
    let mut said = format!("{file} is sound");
    if !sound.unchecked.is_empty() {
        said += &format!(
            ", as far as can be told from here: the SQL over {} is checked when it is read, because its columns are not \
             declared",
            sound.unchecked.join(", ")
        );
    }
    if !sound.open.is_empty() {
        said += &format!(
            "\nwithout a value, checked by type alone: {} (a run needs --param NAME=VALUE)",
            sound.open.join(", ")
        );
    }
    said
}

/// The pipeline with its parameters bound, or everything that is wrong with it and with its SQL, as far as columns are
/// declared.
pub(crate) fn parse(document: &Document, params: &BTreeMap<String, String>) -> Result<Definition> {
    let draft = Draft::of(&document.text, &document.file, params).require_values();
    Ok(draft.check(&BTreeMap::new())?.definition)
}

async fn check(document: &Document, params: &BTreeMap<String, String>) -> Result<Sound, Diagnostics> {
    let mut draft = Draft::of(&document.text, &document.file, params);
    let columns = haulage_node::check::columns_for_validate(&mut draft, &document.base).await;
    draft.check(&columns)
}

fn errors(wrong: &Diagnostics) -> Vec<Value> {
    let one = |found: &haulage_plan::Diagnostic| {
        json!({
            "file": found.file,
            "line": found.place.line,
            "column": found.place.column,
            "message": found.message,
            "suggestion": found.suggestion,
        })
    };
    wrong.iter().map(one).collect()
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
        let error = check(&document, &BTreeMap::new()).await.expect_err("unsound");
        let found = errors(&error);
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
