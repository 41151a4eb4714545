//! A pipeline file as far as it could be read: for those who want to know everything that is wrong with it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{definition, params};
use crate::compile;
use crate::definition::{Column, Definition, Place, Source};
use crate::diagnostics::{Diagnostics, Report};

/// What a definition that could not be read whole is missing, so that one mistake isn't reported twice.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// Every source and step that stands in the file, in its order, also those that could not be read.
    pub(crate) names: Vec<String>,
    /// Sources with a mistake: SQL over them is not looked at.
    pub(crate) broken: BTreeSet<String>,
    /// Sources whose path names a parameter without a value.
    pub(crate) pathless: BTreeSet<String>,
    /// Parameters without a value, and where they are declared. They are NULL in the definition.
    pub(crate) open: BTreeMap<String, Place>,
}

/// A pipeline file, read as far as its mistakes allow.
pub struct Draft {
    definition: Option<Definition>,
    gaps: Gaps,
    report: Report,
}

/// A pipeline file in which nothing wrong was found.
#[derive(Debug)]
pub struct Sound {
    /// The pipeline. Parameters without a value are NULL.
    pub definition: Definition,
    /// Parameters without a value. SQL that names them was checked by their types.
    pub open: Vec<String>,
    /// Sources whose columns are not known: SQL over them was only checked for its syntax and what it reads.
    pub unchecked: Vec<String>,
}

impl Draft {
    /// Reads a pipeline file and binds its parameters, given as text. `file` is what errors call it.
    pub fn of(text: &str, file: &str, params: &BTreeMap<String, String>) -> Self {
        let text: Arc<str> = Arc::from(text);
        let mut report = Report::new(file, Arc::clone(&text));
        let mut gaps = Gaps::default();
        let definition = definition(&mut report, &text, file, params, &mut gaps);
        Self {
            definition,
            gaps,
            report,
        }
    }

    /// From now on it is a mistake that a parameter has no value.
    #[must_use]
    pub fn require_values(mut self) -> Self {
        params::report_open(&mut self.report, &self.gaps.open);
        self
    }

    /// The sources whose files can be looked for: without mistakes, and with a whole path.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        let sources = self
            .definition
            .iter()
            .flat_map(|definition| definition.sources.values());
        sources.filter(|source| !self.gaps.broken.contains(&source.name) && !self.gaps.pathless.contains(&source.name))
    }

    /// Source rows between two checkpoints of a chunk.
    pub fn checkpoint_rows(&self) -> u64 {
        self.definition
            .as_ref()
            .map_or(1, |definition| definition.checkpoint_rows)
    }

    /// What somebody else has found wrong with what the file declares at a place.
    pub fn wrong(&mut self, source: &str, place: Place, message: impl Into<String>) {
        self.report.error(place, message);
        self.gaps.broken.insert(source.to_owned());
    }

    /// Checks the SQL as far as columns are known: declared, or by source in `found`. Everything that is wrong with the
    /// file is reported at once; SQL over a source that is itself wrong, or over a step that is, is not looked at.
    pub fn check(mut self, found: &BTreeMap<String, Vec<Column>>) -> Result<Sound, Diagnostics> {
        let mut unchecked = Vec::new();
        // Without its sources or steps every table of the file would be unknown.
        if let Some(definition) = self.definition.as_ref().filter(|found| !found.sources.is_empty()) {
            unchecked = compile::check_known(definition, found, &self.gaps, &mut self.report);
        }
        let open = self.gaps.open.keys().cloned().collect();
        self.definition_alone().map(|definition| Sound {
            definition,
            open,
            unchecked,
        })
    }

    /// The definition, if nothing was found wrong with it so far.
    pub(super) fn definition_alone(self) -> Result<Definition, Diagnostics> {
        match self.definition {
            Some(definition) if self.report.is_empty() => Ok(definition),
            _ => Err(self.report.finish()),
        }
    }
}
