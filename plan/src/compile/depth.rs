//! How long and how deep SQL may be, found before anything recursive touches it.
//!
//! Two looks. [`check_text`] is at the tokens, before the parser: their number bounds the depth of every tree that can be
//! made of them, and so the stack that parsing and dropping it take (see [`crate::deep`]); what the parser itself
//! recurses into without counting is bounded there as well. [`check_tree`] is at the parsed statement: a chain of
//! operators is as deep as it is long, and DataFusion recurses into it in places that no stack protects, on the
//! coordinator and on nodes. A CTE counts as often as it is named, because DataFusion puts it in as often.
//!
//! What becomes deep only when steps are put into one another is the business of [`super::bounds`].

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, ObjectName, Query, SetExpr, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use super::errors::Found;
use super::statement::start;

/// Tokens of one SQL text, white space and comments not counted. A table has at most some 1,600 columns, and a column
/// rarely takes more than 20.
pub(crate) const MAX_TOKENS: usize = 50_000;
/// Levels of an expression. A chain of operators has one for each.
pub(crate) const MAX_DEPTH: usize = 200;
/// Brackets inside one another. The parser stops at about 50 of most kinds, without saying where.
const MAX_BRACKETS: usize = 60;
/// CASE inside CASE; signs, NOT and INTERVAL in a row; types inside types (`ARRAY<ARRAY<int>>`, `int[][]`) and EXPLAIN in
/// one text. Too deep in the first, the parser takes words for names; the others it recurses into without counting.
const MAX_NESTED: usize = 20;
/// Tables that a query reads, each CTE counted as often as it is named.
const MAX_RELATIONS: u64 = 200;

type Place = Option<(u64, u64)>;

/// Refuses a text that is too long or too deep to be parsed. A text that is no SQL is left to the parser.
pub(crate) fn check_text(sql: &str) -> Result<(), Found> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location() else {
        return Ok(());
    };
    let (mut brackets, mut cases, mut types, mut signs) = (0_usize, 0_usize, 0_usize, 0_usize);
    let mut before: Option<&Token> = None;
    let significant = tokens
        .iter()
        .filter(|token| !matches!(token.token, Token::Whitespace(_)));
    for (number, token) in significant.enumerate() {
        let Location { line, column } = token.span.start;
        let place = Some((line, column));
        if number >= MAX_TOKENS {
            return Err(Found::new(
                place,
                format!("this SQL has more than {MAX_TOKENS} words and signs"),
                "keep long lists of values in a file, and join it as a lookup",
            ));
        }
        let sign = match &token.token {
            Token::Word(word) if word.quote_style.is_none() => matches!(word.keyword, Keyword::NOT | Keyword::INTERVAL),
            other => matches!(other, Token::Minus | Token::Plus | Token::Tilde),
        };
        signs = if sign { signs + 1 } else { 0 };
        match &token.token {
            Token::LBracket | Token::LParen | Token::LBrace => brackets += 1,
            Token::RParen | Token::RBrace | Token::RBracket => brackets = brackets.saturating_sub(1),
            Token::Word(word) if word.quote_style.is_none() && word.keyword == Keyword::CASE => cases += 1,
            Token::Word(word) if word.quote_style.is_none() && word.keyword == Keyword::END => {
                cases = cases.saturating_sub(1);
            }
            _ => {}
        }
        types += usize::from(match (&token.token, before) {
            (Token::RBracket, Some(Token::LBracket)) => true,
            (Token::Lt, Some(Token::Word(word))) => {
                matches!(word.keyword, Keyword::ARRAY | Keyword::STRUCT | Keyword::MAP)
            }
            // DataFusion's own part of the parser calls itself for each of these.
            (Token::Word(word), _) => word.quote_style.is_none() && word.keyword == Keyword::EXPLAIN,
            _ => false,
        });
        if brackets > MAX_BRACKETS || cases.max(types).max(signs) > MAX_NESTED {
            return Err(too_deep(place));
        }
        before = Some(&token.token);
    }
    Ok(())
}

/// What is said of SQL that the parser gave up on for its depth: the place is its innermost bracket or CASE.
pub(crate) fn innermost(sql: &str) -> Found {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location();
    let (mut depth, mut deepest, mut place) = (0_i64, 0, None);
    for token in tokens.unwrap_or_default() {
        depth += match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => 1,
            Token::Word(word) if word.keyword == Keyword::CASE => 1,
            Token::RParen | Token::RBracket | Token::RBrace => -1,
            Token::Word(word) if word.keyword == Keyword::END => -1,
            _ => 0,
        };
        if depth > deepest {
            (deepest, place) = (depth, Some((token.span.start.line, token.span.start.column)));
        }
    }
    too_deep(place)
}

fn too_deep(place: Place) -> Found {
    Found::new(
        place,
        "the SQL is nested too deep",
        "compute inner parts in a step of their own",
    )
}

/// Refuses a parsed statement or rule that is too deep, or that reads too many tables.
pub(crate) fn check_tree<T: Visit>(tree: &T) -> Result<(), Found> {
    match tree.visit(&mut Depth::default()) {
        ControlFlow::Break(found) => Err(found),
        ControlFlow::Continue(()) => Ok(()),
    }
}

#[derive(Default)]
struct Depth {
    depth: usize,
    /// Where the outermost of the open expressions starts.
    outermost: Place,
    /// Tables read so far by each of the open queries.
    reads: Vec<u64>,
    /// What each CTE reads, by its name; of two with one name, the larger.
    ctes: HashMap<String, u64>,
    /// The names of CTEs whose queries are still to come, by the query's address.
    names: HashMap<usize, String>,
}

impl Visitor for Depth {
    type Break = Found;

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Found> {
        if self.depth == 0 {
            self.outermost = leftmost(expr);
        }
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            return ControlFlow::Continue(());
        }
        let message =
            format!("this expression has more than {MAX_DEPTH} operators in a row or levels inside one another");
        ControlFlow::Break(Found::new(self.outermost, message, advice(expr)))
    }

    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<Found> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Found> {
        self.reads.push(0);
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            let address = std::ptr::from_ref::<Query>(&cte.query).addr();
            self.names.insert(address, cte.alias.name.value.to_lowercase());
        }
        let depth = set_depth(&query.body);
        if depth > MAX_DEPTH {
            let message = format!("{depth} queries are put together with UNION; at most {MAX_DEPTH} can be");
            let help = "read many files with a glob in one source; put the values of short queries into a lookup";
            return ControlFlow::Break(Found::new(None, message, help));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<Found> {
        let reads = self.reads.pop().unwrap_or_default();
        match self.names.remove(&std::ptr::from_ref(query).addr()) {
            Some(name) => {
                let known = self.ctes.entry(name).or_default();
                *known = reads.max(*known).max(1);
                ControlFlow::Continue(())
            }
            None => self.add(reads),
        }
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<Found> {
        let name = name.0.last().and_then(|part| part.as_ident());
        let reads = name.and_then(|name| self.ctes.get(&name.value.to_lowercase())).copied();
        self.add(reads.unwrap_or(1))
    }
}

impl Depth {
    fn add(&mut self, more: u64) -> ControlFlow<Found> {
        let Some(reads) = self.reads.last_mut() else {
            return ControlFlow::Continue(());
        };
        *reads = reads.saturating_add(more);
        if *reads <= MAX_RELATIONS {
            return ControlFlow::Continue(());
        }
        let message =
            format!("this query reads more than {MAX_RELATIONS} tables, each WITH counted as often as it is named");
        let help = "make what is needed several times a step of its own, or divide the query into steps";
        ControlFlow::Break(Found::new(None, message, help))
    }
}

/// Where an expression starts, without recursion.
fn leftmost(mut expr: &Expr) -> Place {
    loop {
        expr = match expr {
            Expr::BinaryOp { left, .. } => left,
            Expr::Nested(inner)
            | Expr::IsNull(inner)
            | Expr::IsNotNull(inner)
            | Expr::UnaryOp { expr: inner, .. }
            | Expr::Cast { expr: inner, .. }
            | Expr::Like { expr: inner, .. }
            | Expr::InList { expr: inner, .. }
            | Expr::Between { expr: inner, .. } => inner,
            Expr::Identifier(ident) => return start(ident.span),
            Expr::CompoundIdentifier(idents) => return idents.first().and_then(|ident| start(ident.span)),
            Expr::Value(value) => return start(value.span),
            Expr::Function(function) => {
                let name = function.name.0.first().and_then(|part| part.as_ident());
                return name.and_then(|ident| start(ident.span));
            }
            _ => return None,
        };
    }
}

fn advice(expr: &Expr) -> &'static str {
    use datafusion::sql::sqlparser::ast::BinaryOperator;
    match expr {
        Expr::BinaryOp { op, .. } => match op {
            BinaryOperator::Or => "write `x IN (a, b, ...)`, or join a lookup that holds the values",
            BinaryOperator::And => "write `x NOT IN (a, b, ...)`, or put part of the conditions into an earlier step",
            BinaryOperator::StringConcat => "write `concat(a, b, ...)`",
            _ => "compute parts of it in earlier steps",
        },
        _ => "compute parts of it in earlier steps",
    }
}

/// Levels of set operations in a query, without recursion.
fn set_depth(body: &SetExpr) -> usize {
    let mut open = vec![(body, 1)];
    let mut deepest = 1;
    while let Some((body, depth)) = open.pop() {
        deepest = deepest.max(depth);
        if let SetExpr::SetOperation { left, right, .. } = body {
            open.push((left, depth + 1));
            open.push((right, depth + 1));
        }
    }
    deepest
}
