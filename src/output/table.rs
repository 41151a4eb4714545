//! Tables without borders, as wide as what is in them: they survive `grep`, `awk` and a narrow terminal alike.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// Which side a column is aligned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// The rows under their headings, two spaces between columns, no line ends with spaces. Empty without rows.
pub(crate) fn render(columns: &[(&str, Align)], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(name, align)| cell(name.to_uppercase(), *align)));
    for row in rows {
        table.add_row(
            row.into_iter()
                .zip(columns)
                .map(|(text, (_, align))| cell(one_line(&text), *align)),
        );
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn cell(text: String, align: Align) -> Cell {
    Cell::new(text).set_alignment(match align {
        Align::Left => CellAlignment::Left,
        Align::Right => CellAlignment::Right,
    })
}

/// The text without line ends and other control characters: what a user or a file brought must not steer a terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

/// Like [`one_line`], but what was there can still be seen: `\n`, `\t`, `\u{1b}`.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default())
        } else {
            shown.push(letter)
        }
    }
    shown
}

/// [`visible`], line by line: an error may have several, and what it quotes must not steer the terminal.
pub(crate) fn visible_lines(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_clean() {
        let rows = vec![vec!["flights".into(), "1,000".into()], vec!["a".into(), "7".into()]];
        let text = render(&[("load", Align::Left), ("rows", Align::Right)], rows);
        assert_eq!(text, "LOAD      ROWS\nflights  1,000\na            7");
    }

    #[test]
    fn no_rows_no_table() {
        assert_eq!(render(&[("load", Align::Left)], Vec::new()), "");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(one_line("a\nb\x1b[31m"), "a b [31m");
        assert_eq!(visible("a\nb\x1b"), "a\\nb\\u{1b}");
        assert_eq!(visible("naïve"), "naïve");
        assert_eq!(
            visible_lines("a: error: b\x1b[1m\n  help\x07"),
            "a: error: b\\u{1b}[1m\n  help\\u{7}"
        );
    }
}
