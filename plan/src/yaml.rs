//! A YAML document as a tree in which every key and value knows its place.
//!
//! It is built from the parser's events rather than deserialized into structs, because a struct stops at the first
//! error and forgets how a text was written; here all errors are found, and a place in SQL can be followed back into a
//! folded or literal block. What a pipeline file has no use for is refused: several documents, tags, merge keys.

use std::collections::HashMap;
use std::sync::Arc;

use serde_saphyr::granit_parser::{self, Event, Marker, Parser, ScalarStyle, Span};

use crate::definition::Place;
use crate::diagnostics::Report;

/// Bounds against files that are no pipeline files.
const MAX_BYTES: usize = 4 << 20;
const MAX_NODES: usize = 200_000;
const MAX_DEPTH: usize = 32;

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) place: Place,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// `content` is where the text's first character stands: after a quote, or on the line after `|` or `>`.
    Scalar {
        text: String,
        plain: bool,
        content: Place,
    },
    Map(Vec<(Key, Node)>),
    List(Vec<Node>),
}

impl Node {
    /// Whether nothing was written: an empty value, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true, .. } if matches!(text.as_str(), "" | "~" | "null"))
    }

    pub(crate) fn describe(&self) -> &'static str {
        match &self.value {
            Value::Map(_) => "a mapping",
            Value::List(_) => "a list",
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { .. } => "a single value",
        }
    }

    /// The node at a path of keys and list indexes.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Node> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.text == *first)?.1.at(rest),
            Value::List(items) => items.get(first.parse::<usize>().ok()?)?.at(rest),
            Value::Scalar { .. } => None,
        }
    }
}

/// The place of the value at a path of keys and list indexes, in a text that has been read before.
pub(crate) fn locate(text: &str, path: &[&str]) -> Option<Place> {
    let mut report = Report::new("", Arc::from(""));
    let node = read(text, &mut report)?;
    node.at(path).map(|node| match node.value {
        Value::Scalar { content, .. } => content,
        Value::Map(_) | Value::List(_) => node.place,
    })
}

/// The place of a key of the mapping at a path, in a text that has been read before.
pub(crate) fn locate_key(text: &str, path: &[&str], key: &str) -> Option<Place> {
    let mut report = Report::new("", Arc::from(""));
    match &read(text, &mut report)?.at(path)?.value {
        Value::Map(entries) => entries
            .iter()
            .find(|(found, _)| found.text == key)
            .map(|(key, _)| key.place),
        Value::List(_) | Value::Scalar { .. } => None,
    }
}

/// Reads a text. `None` if it is no YAML, or no single document; why stands in the report.
pub(crate) fn read(text: &str, report: &mut Report) -> Option<Node> {
    let start = Place { line: 1, column: 1 };
    if text.len() > MAX_BYTES {
        report.error(
            start,
            format!(
                "the file holds {} bytes; a pipeline file holds at most {MAX_BYTES}",
                text.len()
            ),
        );
        return None;
    }
    let options = granit_parser::options! { emit_comments: false };
    let mut reader = Reader {
        events: Parser::new_from_str_with_options(text, options),
        lines: text.split('\n').collect(),
        anchors: HashMap::new(),
        nodes: 0,
        repeated: 0,
        report,
    };
    reader.document()
}

struct Reader<'t, 'r, E> {
    events: E,
    lines: Vec<&'t str>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    /// Bytes of text that aliases have repeated.
    repeated: usize,
    report: &'r mut Report,
}

impl<'t, E> Reader<'t, '_, E>
where
    E: Iterator<Item = Result<(Event<'t>, Span), granit_parser::ScanError>>,
{
    fn document(&mut self) -> Option<Node> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_some() => {
                    self.report.error(
                        place(&span.start),
                        "the file holds a second YAML document; write one only",
                    );
                    return None;
                }
                Event::DocumentStart(..) => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, &span, 0)?);
                }
                _ => {}
            }
        }
        if root.is_none() {
            self.report.help(
                Place { line: 1, column: 1 },
                "the file is empty",
                "start with `pipeline: NAME`",
            );
        }
        root
    }

    fn next(&mut self) -> Option<(Event<'t>, Span)> {
        match self.events.next()? {
            Ok(next) => Some(next),
            Err(error) => {
                let text = error.to_string();
                // The parser appends the position to its message; ours stands in front already.
                let message = text.split(" at byte ").next().unwrap_or(&text);
                let message = message.split(" at line ").next().unwrap_or(message);
                self.report
                    .error(place(error.marker()), format!("not valid YAML: {message}"));
                None
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: &Span, depth: usize) -> Option<Node> {
        let place = place(&span.start);
        self.nodes += 1;
        if self.nodes > MAX_NODES || depth > MAX_DEPTH {
            self.report.error(
                place,
                "the file is nested too deep or holds too many values for a pipeline file",
            );
            return None;
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    self.refuse_tag(place);
                }
                let plain = matches!(style, ScalarStyle::Plain);
                let content = self.content_place(place, style);
                Some(self.keep(
                    anchor,
                    Node {
                        place,
                        value: Value::Scalar {
                            text: text.into_owned(),
                            plain,
                            content,
                        },
                    },
                ))
            }
            Event::SequenceStart(_, anchor, tag) => {
                if tag.is_some() {
                    self.refuse_tag(place);
                }
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    items.push(self.node(event, &span, depth + 1)?);
                }
                Some(self.keep(
                    anchor,
                    Node {
                        place,
                        value: Value::List(items),
                    },
                ))
            }
            Event::MappingStart(_, anchor, tag) => {
                if tag.is_some() {
                    self.refuse_tag(place);
                }
                let entries = self.mapping(depth)?;
                Some(self.keep(
                    anchor,
                    Node {
                        place,
                        value: Value::Map(entries),
                    },
                ))
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    self.report.error(place, "an alias can't stand inside of what it names");
                    return None;
                };
                let (nodes, bytes) = size(&node);
                self.nodes += nodes;
                self.repeated += bytes;
                if self.repeated > MAX_BYTES {
                    let message = format!("aliases repeat more than {MAX_BYTES} bytes of text");
                    self.report
                        .help(place, message, "make what many steps need a step of its own");
                    return None;
                }
                Some(node)
            }
            _ => {
                self.report.error(place, "not valid YAML here");
                None
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Option<Vec<(Key, Node)>> {
        let mut entries = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Some(entries);
            }
            let key = self.node(event, &span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, &span, depth + 1)?;
            match key.value {
                Value::Scalar { text, .. } => entries.push((Key { text, place: key.place }, value)),
                Value::Map(_) | Value::List(_) => {
                    self.report
                        .error(key.place, format!("a key is one word, not {}", key.describe()));
                }
            }
        }
    }

    fn refuse_tag(&mut self, place: Place) {
        self.report.help(
            place,
            "YAML tags (`!name`) have no meaning in a pipeline file",
            "a required column's `!` stands after its type: `text!`",
        );
    }

    fn keep(&mut self, anchor: usize, node: Node) -> Node {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        node
    }

    /// Where the text of a scalar starts that is written at `place`.
    fn content_place(&self, place: Place, style: ScalarStyle) -> Place {
        match style {
            ScalarStyle::Plain => place,
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Place {
                column: place.column + 1,
                ..place
            },
            ScalarStyle::Literal | ScalarStyle::Folded => {
                // The parser's mark is the first line of the text; were it the `|`, the text would start a line below.
                let marked = usize::try_from(place.line.saturating_sub(1)).unwrap_or(usize::MAX);
                let column = usize::try_from(place.column.saturating_sub(1)).unwrap_or(usize::MAX);
                let sign = self.lines.get(marked).and_then(|line| line.chars().nth(column));
                let first = if matches!(sign, Some('|' | '>')) {
                    marked + 1
                } else {
                    marked
                };
                for (offset, line) in self.lines.iter().skip(first).enumerate() {
                    let indent = line.chars().take_while(|c| c.is_whitespace()).count();
                    if indent < line.chars().count() {
                        return Place {
                            line: (first + offset) as u64 + 1,
                            column: indent as u64 + 1,
                        };
                    }
                }
                place
            }
        }
    }
}

/// Values and bytes of text in a tree.
fn size(node: &Node) -> (usize, usize) {
    let add = |(nodes, bytes): (usize, usize), (more, longer): (usize, usize)| (nodes + more, bytes + longer);
    match &node.value {
        Value::Scalar { text, .. } => (1, text.len()),
        Value::List(items) => items.iter().map(size).fold((1, 0), add),
        Value::Map(entries) => entries
            .iter()
            .map(|(key, node)| add((0, key.text.len()), size(node)))
            .fold((1, 0), add),
    }
}

fn place(marker: &Marker) -> Place {
    Place {
        line: marker.line() as u64,
        column: marker.col() as u64 + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Result<Node, String> {
        let mut report = Report::new("p.yaml", text.into());
        match read(text, &mut report) {
            Some(node) if report.is_empty() => Ok(node),
            _ => Err(report.finish().to_string()),
        }
    }

    fn content(text: &str, path: &[&str]) -> (u64, u64) {
        let place = locate(text, path).expect("the path exists");
        (place.line, place.column)
    }

    #[test]
    fn every_style_of_text_knows_where_it_starts() {
        let text = "a: plain\nb: \"quoted\"\nc: |\n\n    literal\n    more\nd: >-\n  folded\ne: [1, 'x']\n";
        assert_eq!(content(text, &["a"]), (1, 4));
        assert_eq!(content(text, &["b"]), (2, 5));
        assert_eq!(content(text, &["c"]), (5, 5));
        assert_eq!(content(text, &["d"]), (8, 3));
        assert_eq!(content(text, &["e", "1"]), (9, 9));
    }

    #[test]
    fn aliases_repeat_what_they_name_and_are_bounded() {
        let node = tree("a: &x {k: v}\nb: *x\n").expect("valid");
        assert!(node.at(&["b", "k"]).is_some());
        let mut bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned();
        for level in 1..9 {
            let below = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(","));
        }
        assert!(tree(&bomb).expect_err("too large").contains("too many values"));
        // Few values, but long ones.
        let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(100_000), ["*a"; 100].join(","));
        assert!(tree(&long).expect_err("too large").contains("2:"));
    }

    #[test]
    fn what_is_no_single_document_is_refused() {
        for (text, expected) in [
            ("", "empty"),
            ("a: 1\n---\nb: 2\n", "second YAML document"),
            ("a: !tag 1\n", "tags"),
            ("a: [1\n", "not valid YAML"),
            ("a: b: c\n", "not valid YAML"),
            ("? [a]\n: 1\n", "a key is one word"),
        ] {
            let error = tree(text).expect_err(text);
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
