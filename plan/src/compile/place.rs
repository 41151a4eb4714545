//! From a place in a SQL text to its place in the file.
//!
//! YAML strips indentation, folds lines and undoes quotes, so the two texts are walked side by side: what YAML took
//! away is white space or a quote's escape, and everything else stands in both.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::definition::{Place, Sql};

/// Where line and column (from 1, in characters) of a SQL text stand in the file.
pub(crate) fn in_file(file: &str, sql: &Sql, line: u64, column: u64) -> Place {
    let wanted: Vec<char> = sql.text.chars().collect();
    let target = offset(&wanted, line, column);
    let mut source = Source::at(file, sql.place);
    let first = wanted.iter().find(|c| !c.is_whitespace());
    if source.char() != first.copied() {
        return sql.place; // Not written like this in the file: `from: x`.
    }
    let mut at = 0;
    while at < target {
        let Some(c) = source.char() else { break };
        if c == wanted[at] {
            at += 1;
            source.step();
        } else if c.is_whitespace() || !wanted[at].is_whitespace() {
            source.step();
        } else {
            at += 1;
        }
    }
    // Over what YAML leaves out in front of the character itself.
    while let Some(c) = source.char() {
        if Some(&c) == wanted.get(target) || !(c.is_whitespace() || matches!(c, '\'' | '\\')) {
            break;
        }
        source.step();
    }
    match source.char() {
        Some(_) => source.place,
        None => sql.place,
    }
}

fn offset(chars: &[char], line: u64, column: u64) -> usize {
    let mut place = Place { line: 1, column: 1 };
    for (index, c) in chars.iter().enumerate() {
        if (place.line, place.column) >= (line, column) {
            return index;
        }
        place = after(place, *c);
    }
    chars.iter().rposition(|c| !c.is_whitespace()).unwrap_or(0)
}

fn after(place: Place, c: char) -> Place {
    match c {
        '\n' => Place {
            line: place.line + 1,
            column: 1,
        },
        _ => Place {
            column: place.column + 1,
            ..place
        },
    }
}

struct Source<'f> {
    rest: std::str::Chars<'f>,
    place: Place,
}

impl<'f> Source<'f> {
    fn at(file: &'f str, place: Place) -> Self {
        let mut source = Self {
            rest: file.chars(),
            place: Place { line: 1, column: 1 },
        };
        while source.place < place && source.char().is_some() {
            source.step();
        }
        source
    }

    fn char(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn step(&mut self) {
        if let Some(c) = self.rest.next() {
            self.place = after(self.place, c);
        }
    }
}

/// Where any of the words stands in a SQL text: each `(line, column)`, in order. Keywords and function names.
pub(crate) fn words(sql: &str, words: &[&str]) -> Vec<(u64, u64)> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    // `OVER (ORDER BY x)` orders a window, not the step: what stands in those parentheses is left out.
    let mut skip_to_depth = None;
    let (mut depth, mut after_over) = (0_i32, false);
    for token in &tokens {
        match &token.token {
            Token::LParen => {
                if after_over && skip_to_depth.is_none() {
                    skip_to_depth = Some(depth);
                }
                depth += 1;
            }
            Token::RParen => {
                depth -= 1;
                if skip_to_depth == Some(depth) {
                    skip_to_depth = None;
                }
            }
            Token::Word(word)
                if word.quote_style.is_none()
                    && skip_to_depth.is_none()
                    && words.iter().any(|w| w.eq_ignore_ascii_case(&word.value)) =>
            {
                let Location { line, column } = token.span.start;
                found.push((line, column));
            }
            _ => {}
        }
        if !matches!(token.token, Token::Whitespace(_)) {
            after_over = matches!(&token.token, Token::Word(word) if word.keyword == Keyword::OVER);
        }
    }
    found
}

/// Where a text, a number, or a name in double quotes (given with them) stands in a SQL text.
pub(crate) fn literal(sql: &str, value: &str) -> Option<(u64, u64)> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().ok()?;
    let found = tokens.iter().find(|token| match &token.token {
        Token::SingleQuotedString(text) | Token::Number(text, _) => text == value,
        Token::Word(word) => word.quote_style.is_some() && word.to_string() == value,
        _ => false,
    })?;
    Some((found.span.start.line, found.span.start.column))
}

/// Where a sign first stands in a SQL text.
pub(crate) fn sign(sql: &str, wanted: &Token) -> Option<(u64, u64)> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().ok()?;
    let found = tokens.iter().find(|token| token.token == *wanted)?;
    Some((found.span.start.line, found.span.start.column))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    /// The place in the file of the character at `marker` in the SQL under `path`.
    fn check(file: &str, path: &[&str], marker: &str, expected: (u64, u64)) {
        let place = yaml::locate(file, path).expect("the path exists");
        let mut report = crate::diagnostics::Report::new("p", file.into());
        let node = yaml::read(file, &mut report).expect("valid");
        let Some(yaml::Value::Scalar { text, .. }) = node.at(path).map(|node| node.value.clone()) else {
            panic!("{path:?} is no text")
        };
        let before = &text[..text.find(marker).expect("the marker is in the SQL")];
        let line = before.matches('\n').count() as u64 + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() as u64 + 1;
        let found = in_file(
            file,
            &Sql {
                text: text.clone(),
                place,
            },
            line,
            column,
        );
        assert_eq!((found.line, found.column), expected, "{text:?}");
    }

    #[test]
    fn follows_every_style_back_into_the_file() {
        check("s: SELECT a FROM t\n", &["s"], "FROM", (1, 13));
        check("s: SELECT a\n   FROM t\n   WHERE b\n", &["s"], "WHERE", (3, 4));
        check("s: |\n  SELECT a\n    FROM t\n", &["s"], "FROM", (3, 5));
        check("s: |\n\n  SELECT a\n\n  FROM t\n", &["s"], "t", (5, 8));
        check("s: >\n  SELECT a\n  FROM t\n", &["s"], "FROM", (3, 3));
        check("s: 'SELECT ''x'' AS y FROM t'\n", &["s"], "FROM", (1, 23));
        check("s: \"SELECT \\\"x\\\" FROM t\"\n", &["s"], "FROM", (1, 18));
        check("s: {a: [\"é SELECT\", 'SELECT b']}\n", &["s", "a", "1"], "b", (1, 29));
    }

    #[test]
    fn generated_sql_stands_where_its_name_does() {
        let sql = Sql {
            text: "SELECT * FROM x".into(),
            place: Place { line: 1, column: 7 },
        };
        assert_eq!(in_file("from: x\n", &sql, 1, 15), sql.place);
    }

    #[test]
    fn finds_words_but_not_in_windows_or_quotes() {
        let sql = "SELECT \"order\", sum(a) OVER (PARTITION BY (b) ORDER BY c)\nFROM t ORDER BY 'order'";
        assert_eq!(words(sql, &["order"]), vec![(2, 8)]);
    }
}
