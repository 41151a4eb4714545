//! What went wrong while SQL ran, as a failure that says what to do next.

use datafusion::common::DataFusionError;
use haulage_core::failure::Failure;
use haulage_core::ids::LoadName;

use crate::source::excerpt;

/// The longest text of the SQL engine that a message repeats; it may hold a whole value.
const SAID: usize = 200;

/// Why a pass ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// The SQL failed on the rows it was given.
    #[error(transparent)]
    Rows(#[from] SqlError),
    /// Something else, which no other rows would have kept away.
    #[error(transparent)]
    Other(#[from] Failure),
}

/// SQL that failed on rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("load {load}: its SQL failed on the rows of this chunk: {cause}; {advice}")]
pub struct SqlError {
    /// The load whose pass it was.
    pub load: LoadName,
    /// What the SQL engine says, with the value if it names one.
    pub cause: String,
    /// What to do about such rows.
    pub advice: &'static str,
}

impl From<PassError> for Failure {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Rows(error) => Failure::permanent(error.to_string()),
            PassError::Other(failure) => failure,
        }
    }
}

/// What an error of a load's pass means.
pub(super) fn of_pass(load: &LoadName, error: &DataFusionError) -> PassError {
    let root = error.find_root();
    match root {
        DataFusionError::ResourcesExhausted(_) | DataFusionError::IoError(_) | DataFusionError::ExecutionJoin(_) => {
            of(&format!("load {load}"), error).into()
        }
        _ => {
            let cause = text(root);
            let advice = advice(&cause);
            let (load, cause) = (load.clone(), excerpt(cause.as_bytes(), SAID));
            SqlError { load, cause, advice }.into()
        }
    }
}

fn advice(cause: &str) -> &'static str {
    let lower = cause.to_lowercase();
    if lower.contains("divide by zero") {
        "keep the zero out with nullif(x, 0), or name such rows in a `reject` rule of an earlier step"
    } else if lower.contains("overflow") || lower.contains("out of range") {
        "cast to a wider type first, or name such rows in a `reject` rule of an earlier step"
    } else if lower.contains("cast") || lower.contains("pars") {
        "use TRY_CAST, which gives NULL, and send such rows to quarantine with a `reject` rule: \
         `TRY_CAST(x AS int) IS NULL AND x IS NOT NULL`"
    } else {
        "guard it with CASE, or name such rows in a `reject` rule of an earlier step"
    }
}

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
        _ => Failure::permanent(format!("{what}: its SQL failed: {}", excerpt(text.as_bytes(), SAID))),
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
