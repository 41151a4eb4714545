//! What went wrong while SQL ran, as a failure that says what to do next.

use datafusion::common::DataFusionError;
use haulage_core::failure::Failure;

/// A failure of `what` ("load flights"). Data that doesn't fit will not fit the next time either, so it is permanent;
/// only a disk or a cancelled task may pass by itself.
pub(super) fn of(what: &str, error: &DataFusionError) -> Failure {
    let root = error.find_root();
    let text = text(root);
    match root {
        DataFusionError::ResourcesExhausted(_) => Failure::permanent(format!(
            "{what}: its SQL needs more memory than this node allows ({text}); give the node a larger memory budget, \
             run fewer chunks at once, or make the lookups smaller"
        )),
        DataFusionError::IoError(_) | DataFusionError::ExecutionJoin(_) => {
            Failure::transient(format!("{what}: its SQL could not go on: {text}"))
        }
        _ => {
            let lower = text.to_lowercase();
            let advice = if lower.contains("divide by zero") {
                "; keep the zero out with nullif(x, 0), or reject such rows in an earlier step"
            } else if lower.contains("overflow") || lower.contains("out of range") {
                "; cast to a wider type first, or reject such rows in an earlier step"
            } else if lower.contains("cast") || lower.contains("pars") {
                "; use TRY_CAST, or reject such rows in an earlier step"
            } else {
                ""
            };
            Failure::permanent(format!(
                "{what}: its SQL failed on the rows of this chunk: {text}{advice}"
            ))
        }
    }
}

/// The error's first line without DataFusion's prefixes.
fn text(error: &DataFusionError) -> String {
    let full = error.strip_backtrace();
    let mut text = full.as_str();
    for prefix in [
        "Arrow error: ",
        "Execution error: ",
        "Resources exhausted: ",
        "Internal error: ",
        "External error: ",
    ] {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    let text = text.split("\n\nbacktrace").next().unwrap_or(text);
    let text = text
        .split(".\nThis issue was likely caused by a bug")
        .next()
        .unwrap_or(text);
    let mut chars = text.trim().trim_end_matches('.').chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => "no reason was given".to_owned(),
    }
}
