//! What is wrong with a pipeline file, each with its place, the line it stands on, and what to do about it.
//!
//! Everything that can be found at once is reported at once: a person fixes a file in one round, not one error a run.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::definition::{Definition, Place};

/// The widest excerpt of a source line that is shown, in characters.
const EXCERPT: usize = 110;

/// So many errors are shown; nobody reads more in one round.
const SHOWN: usize = 50;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// What to call the file.
    pub file: String,
    /// Where in it. Line 0 stands for the file as a whole.
    pub place: Place,
    /// What is wrong, lowercase, without a full stop.
    pub message: String,
    /// What to do about it.
    pub suggestion: Option<String>,
}

/// Everything that is wrong with a pipeline file, in the order of the file. Never empty when returned as an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    text: Arc<str>,
}

impl Diagnostics {
    /// What somebody else has found wrong with what a pipeline declares at these places.
    pub fn of(definition: &Definition, found: impl IntoIterator<Item = (Place, String)>) -> Self {
        let mut report = Report::new(&definition.file, Arc::clone(&definition.text));
        for (place, message) in found {
            report.error(place, message);
        }
        report.finish()
    }

    /// What is wrong, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

// The text of the file is left out: a debug line is no place for a whole file.
impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.list).finish()
    }
}

impl std::error::Error for Diagnostics {}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.list.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write_one(f, diagnostic, &self.text)?;
        }
        match self.list.len() {
            0..=SHOWN => Ok(()),
            all => write!(f, "\n\nand {} more errors", all - SHOWN),
        }
    }
}

fn write_one(f: &mut fmt::Formatter<'_>, diagnostic: &Diagnostic, text: &str) -> fmt::Result {
    let Diagnostic {
        file,
        place,
        message,
        suggestion,
    } = diagnostic;
    let message = calm(message);
    if place.line == 0 {
        write!(f, "{file}: error: {message}")?;
    } else {
        write!(f, "{file}:{}:{}: error: {message}", place.line, place.column)?;
        let line = usize::try_from(place.line - 1)
            .ok()
            .and_then(|line| lines(text).nth(line));
        if let Some(line) = line.filter(|line| !line.trim().is_empty()) {
            let (excerpt, caret) = excerpt(line, usize::try_from(place.column.saturating_sub(1)).unwrap_or(0));
            let number = place.line.to_string();
            let gutter = " ".repeat(number.len());
            write!(f, "\n {number} | {excerpt}\n {gutter} | {}^", " ".repeat(caret))?;
        }
    }
    match suggestion {
        Some(suggestion) => write!(f, "\nhelp: {}", calm(suggestion)),
        None => Ok(()),
    }
}

/// The line with the user and password of any address in it replaced by as many stars: an excerpt is printed and logged.
fn without_credentials(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(found) = rest.find("://") {
        let (before, after) = rest.split_at(found + 3);
        shown.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | ','))
            .unwrap_or(after.len());
        let credentials = after[..end].rfind('@').unwrap_or(0);
        shown.extend(after[..credentials].chars().map(|_| '*'));
        rest = &after[credentials..];
    }
    shown.push_str(rest);
    shown
}

/// The lines of a text as YAML counts them: a carriage return ends one, too.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n')
        .flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// A message without what steers a terminal: it may repeat names and values of a file that somebody else has written.
fn calm(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    for letter in message.chars() {
        if letter.is_control() && letter != '\n' {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// The part of a line around a character, and where that character stands in it. Tabs become one space and other control
/// characters one sign, so that the caret stands below its character.
fn excerpt(line: &str, caret: usize) -> (String, usize) {
    let line = &without_credentials(line);
    let chars: Vec<char> = line
        .trim_end()
        .chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect();
    let caret = caret.min(chars.len());
    if chars.len() <= EXCERPT {
        return (chars.into_iter().collect(), caret);
    }
    let start = caret.saturating_sub(EXCERPT / 2).min(chars.len() - EXCERPT);
    let end = start + EXCERPT;
    let mut shown = String::new();
    let mut at = caret - start;
    if start > 0 {
        shown.push('…');
        at += 1;
    }
    shown.extend(&chars[start..end]);
    if end < chars.len() {
        shown.push('…');
    }
    (shown, at)
}

/// Gathers what is wrong while a file is read.
pub(crate) struct Report {
    file: String,
    text: Arc<str>,
    found: BTreeSet<(Place, String, Option<String>)>,
}

impl Report {
    pub(crate) fn new(file: &str, text: Arc<str>) -> Self {
        Self {
            file: file.to_owned(),
            text,
            found: BTreeSet::new(),
        }
    }

    pub(crate) fn error(&mut self, place: Place, message: impl Into<String>) {
        self.found.insert((place, message.into(), None));
    }

    pub(crate) fn help(&mut self, place: Place, message: impl Into<String>, suggestion: impl Into<String>) {
        self.found.insert((place, message.into(), Some(suggestion.into())));
    }

    /// An error with a suggestion only where there is one.
    pub(crate) fn maybe(&mut self, place: Place, message: impl Into<String>, suggestion: Option<String>) {
        self.found.insert((place, message.into(), suggestion));
    }

    /// Takes over what another report of the same file has found.
    pub(crate) fn take(&mut self, other: Report) {
        self.found.extend(other.found);
    }

    /// [`Report::take`] of a finished report.
    pub(crate) fn take_all(&mut self, other: Diagnostics) {
        let found = other.list.into_iter();
        self.found
            .extend(found.map(|found| (found.place, found.message, found.suggestion)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn finish(self) -> Diagnostics {
        let list = self
            .found
            .into_iter()
            .map(|(place, message, suggestion)| Diagnostic {
                file: self.file.clone(),
                place,
                message,
                suggestion,
            })
            .collect();
        Diagnostics { list, text: self.text }
    }
}

/// The candidate that was probably meant by `word`, if one is close enough.
pub(crate) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase();
    // Of one letter, every other letter would be near.
    let limit = match wanted.chars().count() {
        0 | 1 => 0,
        length => (length / 3).clamp(1, 4),
    };
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= limit && *candidate != word)
        .min_by_key(|(distance, candidate)| (*distance, *candidate))
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`?", or else what there is to choose from.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    if let Some(near) = closest(word, candidates.iter().copied()) {
        return Some(format!("did you mean `{near}`?"));
    }
    match candidates.len() {
        0 => None,
        1..=14 => Some(format!("there is: {}", candidates.join(", "))),
        more => Some(format!(
            "there is: {}, and {} more",
            candidates[..12].join(", "),
            more - 12
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: u64, column: u64) -> Place {
        Place { line, column }
    }

    #[test]
    fn shows_place_line_caret_and_help() {
        let mut report = Report::new("p.yaml", "pipeline: x\n  colums: 1\n".into());
        report.help(at(2, 3), "unknown key `colums`", "did you mean `columns`?");
        report.error(at(0, 0), "nothing to load");
        assert_eq!(
            report.finish().to_string(),
            "p.yaml: error: nothing to load\n\n\
             p.yaml:2:3: error: unknown key `colums`\n 2 |   colums: 1\n   |   ^\nhelp: did you mean `columns`?"
        );
    }

    #[test]
    fn shows_the_line_that_yaml_counted() {
        let mut report = Report::new("p.yaml", "a: 1\rb: 2\r\nc: 3\n".into());
        report.error(at(3, 1), "x");
        report.error(at(2, 4), "a \u{1b}[31m name");
        let said = report.finish().to_string();
        assert!(said.contains(" 3 | c: 3\n") && said.contains(" 2 | b: 2\n"), "{said}");
        assert!(said.contains("a \\u{1b}[31m name"), "{said}");
    }

    #[test]
    fn the_same_error_twice_is_one() {
        let mut report = Report::new("p.yaml", "a".into());
        report.error(at(1, 1), "x");
        report.error(at(1, 1), "x");
        assert_eq!(report.finish().len(), 1);
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let line = format!("{}X{}", "a".repeat(300), "b".repeat(300));
        let (shown, caret) = excerpt(&line, 300);
        assert!(shown.chars().count() <= EXCERPT + 2);
        assert_eq!(shown.chars().nth(caret), Some('X'));
        assert_eq!(excerpt("ab", 9), ("ab".to_owned(), 2));
        assert_eq!(excerpt("a\u{1b}[31m\tb", 6), ("a\u{fffd}[31m b".to_owned(), 6));
    }

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(closest("colums", ["columns", "csv"]), Some("columns"));
        assert_eq!(closest("Year", ["year"]), Some("year"));
        assert_eq!(closest("zzz", ["columns", "csv"]), None);
        assert_eq!(did_you_mean("zzz", ["b", "a"]), Some("there is: b, a".to_owned()));
    }
}
