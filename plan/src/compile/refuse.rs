//! What no step can do, found by the look of the parsed SQL: DataFusion would not plan it, would plan it and mean something
//! else (it ignores TABLESAMPLE), or would break down (DISTINCT ON).
//!
//! What needs more than one chunk is mostly found in the plan, by [`super::feed`]; here is only what never gets that far.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Distinct, Expr, Ident, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, Spanned,
    TableFactor, Value, Visit, Visitor,
};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::errors::Found;
use super::place;
use super::statement::start;

const ALL_ROWS: &str = "do it in the warehouse after the load, or over a lookup";
const FEWER: &str = "leave it out; to try a pipeline on less, give a smaller file or glob";

/// What can't be used in a statement or a rule whose text is `sql`.
pub(crate) fn look<T: Visit>(sql: &str, tree: &T, found: &mut Vec<Found>) {
    let mut look = Look { sql, found };
    let flow: ControlFlow<()> = tree.visit(&mut look);
    debug_assert!(flow.is_continue());
}

struct Look<'l> {
    sql: &'l str,
    found: &'l mut Vec<Found>,
}

impl Look<'_> {
    /// Something at a word of the SQL; the whole, if the word is not found.
    fn word(&mut self, word: &str, message: &str, advice: &str) {
        let place = place::words(self.sql, &[word]).first().copied();
        self.found.push(Found::new(place, message, advice));
    }

    fn select(&mut self, select: &Select) {
        if let Some(Distinct::On(_)) = select.distinct {
            self.word(
                "distinct",
                "DISTINCT ON needs all rows, and a chunk sees only its own",
                ALL_ROWS,
            );
        }
        if select.top.is_some() {
            self.word("top", "TOP needs all rows, and a chunk sees only its own", FEWER);
        }
        self.names_once(&select.projection);
    }

    /// Two columns with one name can't be told apart by whatever reads them, and DataFusion says so only later, in ways
    /// that don't name the place.
    fn names_once(&mut self, items: &[SelectItem]) {
        let mut names = HashSet::new();
        let mut wildcards = HashSet::new();
        for item in items {
            let ident = match item {
                SelectItem::ExprWithAlias { alias, .. } => alias,
                SelectItem::UnnamedExpr(Expr::Identifier(ident)) => ident,
                SelectItem::UnnamedExpr(Expr::CompoundIdentifier(idents)) => match idents.last() {
                    Some(last) => last,
                    None => continue,
                },
                SelectItem::Wildcard(_) => {
                    self.wildcard("*".to_owned(), &mut wildcards);
                    continue;
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(table), _) => {
                    self.wildcard(format!("{}.*", table.to_string().to_lowercase()), &mut wildcards);
                    continue;
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::Expr(_), _)
                | SelectItem::UnnamedExpr(_)
                | SelectItem::ExprWithAliases { .. } => continue,
            };
            let name = named(ident);
            if !names.insert(name.clone()) {
                let message = format!("two columns are called `{name}`");
                let help = format!("leave one out, or give it another name: `AS {name}_2`");
                self.found.push(Found::new(start(ident.span), message, help));
            }
        }
    }

    fn wildcard(&mut self, written: String, seen: &mut HashSet<String>) {
        if seen.contains(&written) {
            let message = format!("`{written}` stands here twice, so every column would be there twice");
            self.found.push(Found::new(None, message, "leave one of them out"));
        }
        seen.insert(written);
    }
}

fn named(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

impl Visitor for Look<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if query.fetch.is_some() {
            self.word("fetch", "FETCH needs all rows, and a chunk sees only its own", FEWER);
        }
        if !query.pipe_operators.is_empty() {
            let place = place::sign(self.sql, &Token::VerticalBarRightAngleBracket);
            let help = "write a SELECT with WHERE, or a step for each";
            self.found.push(Found::new(place, "`|>` can't be used in a step", help));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.select(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<()> {
        match table {
            TableFactor::Pivot { .. } => self.word(
                "pivot",
                "PIVOT can't be used in a step",
                "it needs all rows; do it in the warehouse after the load",
            ),
            TableFactor::Unpivot { .. } => self.word(
                "unpivot",
                "UNPIVOT can't be used in a step",
                "write a UNION ALL of one SELECT for each column",
            ),
            TableFactor::UNNEST { .. } => self.unnest(),
            TableFactor::MatchRecognize { .. } => {
                self.word("match_recognize", "MATCH_RECOGNIZE can't be used in a step", ALL_ROWS)
            }
            TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => self.word(
                "tablesample",
                "TABLESAMPLE takes other rows each time, so a repeated chunk would take others",
                "decide by the row's own columns, such as `id % 10 = 0`",
            ),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::BinaryOp {
                op: BinaryOperator::Divide | BinaryOperator::Modulo,
                right,
                ..
            } => {
                if let Expr::Value(value) = right.as_ref()
                    && let Value::Number(number, _) = &value.value
                    && number.chars().all(|digit| digit == '0')
                {
                    let help = "divide by something else; a divisor that may be zero is written `nullif(x, 0)`";
                    self.found
                        .push(Found::new(start(value.span), "this divides by zero", help));
                }
            }
            Expr::BinaryOp { op, left, .. } if is_of_json(op) => {
                let message = format!("`{op}` can't be used in a step");
                let help =
                    "take JSON apart key by key: `payload->'lines'->0->>'sku'`, `json_contains(payload, 'name')`";
                self.found.push(Found::new(start(left.span()), message, help));
            }
            Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("unnest") => self.unnest(),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Whether an operator is one for JSON that isn't there, or gives NULL for whatever PostgreSQL would take.
fn is_of_json(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::HashArrow
            | BinaryOperator::HashLongArrow
            | BinaryOperator::HashMinus
            | BinaryOperator::AtArrow
            | BinaryOperator::ArrowAt
            | BinaryOperator::AtAt
            | BinaryOperator::AtQuestion
            | BinaryOperator::Question
            | BinaryOperator::QuestionAnd
            | BinaryOperator::QuestionPipe
    )
}

impl Look<'_> {
    fn unnest(&mut self) {
        self.word(
            "unnest",
            "`unnest` can't be used in a step: sources have no lists to take apart",
            "for a text with several values, name each: `split_part(tags, ';', 1) AS tag_1`, or of JSON `tags->>0 AS tag_1`; to make rows of a \
             JSON list, join it with numbers, as the README shows under SQL",
        );
    }
}
