//! What goes to stdout: tables for people, JSON for machines. Diagnostics and progress go to stderr and are not here.
//!
//! Nothing panics when the reader goes away (`haulage rejects RUN | head`): a closed pipe comes back as an error that
//! [`crate::exit`] knows and keeps quiet about.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;

pub(crate) mod human;
pub(crate) mod json;
pub(crate) mod summary;
pub(crate) mod table;

/// The text of the error that says stdout has been closed by its reader.
pub(crate) const CLOSED: &str = "stdout was closed";

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For machines: one document, or one object a line where there are many.
    Json,
    /// For spreadsheets: the rows of `haulage rejects`.
    Csv,
}

/// Stdout, with the format that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// How results are printed.
    pub(crate) format: Format,
    color: bool,
}

/// What a word means, for its color.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
    /// Less important than the rest.
    Faint,
}

impl Output {
    /// Colors only on a terminal, and only when the user hasn't said no.
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            color: format == Format::Table && io::stdout().is_terminal() && colors_wanted(),
        }
    }

    /// Whether machines read this.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// A word in its tone; unchanged without colors.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if self.color { paint(tone, text) } else { text.to_owned() }
    }

    /// One line.
    pub(crate) fn line(self, text: impl AsRef<str>) -> io::Result<()> {
        self.write(format!("{}\n", text.as_ref()).as_bytes())
    }

    /// One record of CSV, as RFC 4180 has it.
    pub(crate) fn csv<'f>(self, fields: impl IntoIterator<Item = &'f str>) -> io::Result<()> {
        self.write(csv_record(fields).as_bytes())
    }

    /// One JSON value on one line.
    pub(crate) fn json(self, value: &serde_json::Value) -> io::Result<()> {
        self.line(value.to_string())
    }

    fn write(self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        // Flushed every time: a reader of JSON lines must see an event when it happens, not when a buffer is full.
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, CLOSED),
                _ => error,
            })
    }
}

fn csv_record<'f>(fields: impl IntoIterator<Item = &'f str>) -> String {
    let mut record = String::new();
    for (place, field) in fields.into_iter().enumerate() {
        if place > 0 {
            record.push(',');
        }
        if field.contains(['"', ',', '\r', '\n']) {
            record.push('"');
            record.push_str(&field.replace('"', "\"\""));
            record.push('"');
        } else {
            record.push_str(field);
        }
    }
    record.push_str("\r\n");
    record
}

/// Whether the environment allows colors (<https://no-color.org>).
pub(crate) fn colors_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// ANSI codes around a word.
pub(crate) fn paint(tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Warn => "33",
        Tone::Bad => "31",
        Tone::Faint => "2",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A line on stderr, above the progress bars if there are any.
pub(crate) fn note(text: impl AsRef<str>) {
    crate::progress::stderr(format!("{}\n", text.as_ref()).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_have_to_be() {
        for (fields, record) in [
            (&["a", "", "b c"][..], "a,,b c\r\n"),
            (
                &["1,2", "say \"x\"", "a\nb", "c\r"],
                "\"1,2\",\"say \"\"x\"\"\",\"a\nb\",\"c\r\"\r\n",
            ),
        ] {
            assert_eq!(csv_record(fields.iter().copied()), record);
        }
    }
}
