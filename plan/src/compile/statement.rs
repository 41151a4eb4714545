//! One SELECT: parsed, looked at for what a step may not be, and for what it refers to.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, Query, Select, SelectItem, SetExpr, Spanned, Statement as SqlStatement, Value, Visit, Visitor,
    visit_expressions, visit_relations,
};
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, Span};

use super::dialect::Sql;
use super::errors::{self, Found};
use super::{depth, refuse};
use crate::diagnostics::did_you_mean;

/// The longest expression that a suggestion repeats.
const MAX_WRITTEN: usize = 200;

/// A query and the tables it reads.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) statement: SqlStatement,
    /// Every table that is no CTE, with where it is first named.
    pub(crate) reads: Vec<(String, Option<(u64, u64)>)>,
}

/// Parses the SQL of a step.
pub(crate) fn parse(sql: &str, params: &BTreeMap<String, ScalarValue>) -> Result<Parsed, Vec<Found>> {
    depth::check_text(sql).map_err(one)?;
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&Sql)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| unreadable(sql, &error))?;
    let (Some(statement), None) = (statements.pop_front(), statements.front()) else {
        let at = sql.find(';').map(|end| line_and_column(sql, end + 1));
        return Err(vec![Found::new(
            at,
            "a step is one SELECT",
            "make each further statement a step of its own",
        )]);
    };
    let Statement::Statement(inner) = &statement else {
        return Err(vec![not_a_select(None)]);
    };
    let SqlStatement::Query(query) = inner.as_ref() else {
        return Err(vec![not_a_select(None)]);
    };
    // First: whatever else looks at the tree may look at all of it.
    depth::check_tree(inner.as_ref()).map_err(one)?;
    let mut found = Vec::new();
    check_query(query, &mut found);
    check_params(inner.as_ref(), params, &mut found);
    refuse::look(sql, inner.as_ref(), &mut found);
    if !found.is_empty() {
        return Err(found);
    }
    let (tables, _) = resolve_table_references(&statement, true).map_err(|error| errors::explain(&error))?;
    let mut reads = Vec::new();
    for table in tables {
        let place = first_named(inner, table.table());
        if table.schema().is_some() {
            let message = format!("`{table}` names a schema; tables here are the pipeline's own sources and steps");
            found.push(Found::new(place, message, format!("write `{}`", table.table())));
        }
        reads.push((table.table().to_owned(), place));
    }
    // In the order in which the SQL names them, so that the order of steps doesn't hang on the alphabet.
    reads.sort_by_key(|(_, place)| *place);
    if found.is_empty() {
        Ok(Parsed {
            statement: *inner.clone(),
            reads,
        })
    } else {
        Err(found)
    }
}

/// Parses one expression: a reject rule.
pub(crate) fn parse_rule(sql: &str, params: &BTreeMap<String, ScalarValue>) -> Result<Expr, Vec<Found>> {
    depth::check_text(sql).map_err(one)?;
    let mut parser = DFParserBuilder::new(sql)
        .with_dialect(&Sql)
        .build()
        .map_err(|error| unreadable(sql, &error))?;
    let parsed = parser.parse_into_expr().map_err(|error| unreadable(sql, &error))?;
    depth::check_tree(&parsed.expr).map_err(one)?;
    let mut found = Vec::new();
    check_params(&parsed.expr, params, &mut found);
    refuse::look(sql, &parsed.expr, &mut found);
    let subquery = visit_expressions(&parsed.expr, |expr| match expr {
        Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => ControlFlow::Break(start(expr.span())),
        _ => ControlFlow::Continue(()),
    });
    if let ControlFlow::Break(place) = subquery {
        let message = "a reject rule looks at the columns of its own step alone, not at a subquery";
        found.push(Found::new(
            place,
            message,
            "join what the rule needs in the step, and name its columns here",
        ));
    }
    if parsed.alias.is_some() {
        found.push(Found::new(
            None,
            "a reject rule is a condition without AS",
            "its name is its key",
        ));
    }
    if found.is_empty() { Ok(parsed.expr) } else { Err(found) }
}

fn one(found: Found) -> Vec<Found> {
    vec![found]
}

/// What the parser says; where it is nested too deep it doesn't say.
fn unreadable(sql: &str, error: &DataFusionError) -> Vec<Found> {
    match error.find_root() {
        DataFusionError::SQL(parser, _) if matches!(**parser, ParserError::RecursionLimitExceeded) => {
            vec![depth::innermost(sql)]
        }
        _ => errors::explain(error),
    }
}

fn not_a_select(place: Option<(u64, u64)>) -> Found {
    let help = "what makes or changes tables is left to the loads";
    Found::new(
        place,
        "a step is one SELECT, and this is another kind of statement",
        help,
    )
}

fn check_query(query: &Query, found: &mut Vec<Found>) {
    match first_select(&query.body) {
        Ok(Some(select)) => check_select(select, found),
        Ok(None) => {}
        Err(place) => found.push(not_a_select(place)),
    }
    if !query.locks.is_empty() {
        found.push(Found::new(
            None,
            "a step can't lock rows",
            "leave out FOR UPDATE or FOR SHARE",
        ));
    }
}

/// The SELECT that names the columns of a query, if one does.
fn first_select(body: &SetExpr) -> Result<Option<&Select>, Option<(u64, u64)>> {
    match body {
        SetExpr::Select(select) => Ok(Some(select)),
        SetExpr::Query(query) => first_select(&query.body),
        SetExpr::SetOperation { left, right, .. } => first_select(right).and_then(|_| first_select(left)),
        SetExpr::Values(_) | SetExpr::Table(_) => Ok(None),
        other => Err(start(other.span())),
    }
}

/// Columns have to be named by the file: DataFusion's names for expressions are long, and no release keeps them.
fn check_select(select: &Select, found: &mut Vec<Found>) {
    if select.into.is_some() {
        found.push(not_a_select(start(select.span())));
    }
    for (index, item) in select.projection.iter().enumerate() {
        let SelectItem::UnnamedExpr(expr) = item else { continue };
        let mut inner = expr;
        while let Expr::Nested(nested) = inner {
            inner = nested;
        }
        if !matches!(inner, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) {
            let message = format!("column {} of the step has no name", index + 1);
            // Said in full only where it is short enough to be read.
            let written = expr.to_string();
            let written = if written.len() > MAX_WRITTEN { "..." } else { &written };
            found.push(Found::new(
                start(expr.span()),
                message,
                format!("write `{written} AS name`"),
            ));
        }
    }
}

fn check_params<V: Visit>(sql: &V, params: &BTreeMap<String, ScalarValue>, found: &mut Vec<Found>) {
    let flow = visit_expressions(sql, |expr| {
        if let Expr::Value(value) = expr
            && let Value::Placeholder(name) = &value.value
        {
            let bare = name.trim_start_matches('$');
            if !params.contains_key(bare) || !name.starts_with('$') {
                found.push(unknown_param(name, start(value.span), params));
            }
        }
        if let Expr::Identifier(ident) = expr
            && ident.quote_style.is_none()
            && ident.value.starts_with('@')
        {
            found.push(unknown_param(&ident.value, start(ident.span), params));
        }
        ControlFlow::<()>::Continue(())
    });
    debug_assert!(flow.is_continue());
}

/// A parameter that is not declared, or that is written as other systems do: `:day`, `@day`, `?`.
fn unknown_param(written: &str, place: Option<(u64, u64)>, params: &BTreeMap<String, ScalarValue>) -> Found {
    let bare = written.trim_start_matches(['$', ':', '@', '?']);
    let help = if params.contains_key(bare) {
        format!("write `${bare}`")
    } else if bare.is_empty() {
        "parameters have names: write `$day` and declare `params: {day: {type: date}}`".to_owned()
    } else {
        did_you_mean(bare, params.keys().map(String::as_str))
            .unwrap_or_else(|| format!("declare it: `params: {{{bare}: {{type: text}}}}`"))
    };
    Found::new(place, format!("unknown parameter `{written}`"), help)
}

fn first_named(statement: &SqlStatement, table: &str) -> Option<(u64, u64)> {
    let place = visit_relations(statement, |name: &ObjectName| {
        let last = name.0.last().and_then(|part| part.as_ident());
        match last {
            Some(ident) if named(&ident.value, ident.quote_style, table) => ControlFlow::Break(start(ident.span)),
            _ => ControlFlow::Continue(()),
        }
    });
    place.break_value().flatten()
}

fn named(ident: &str, quote: Option<char>, table: &str) -> bool {
    if quote.is_some() {
        ident == table
    } else {
        ident.to_lowercase() == table
    }
}

pub(crate) fn start(span: Span) -> Option<(u64, u64)> {
    let Location { line, column } = span.start;
    (line > 0).then_some((line, column))
}

fn line_and_column(sql: &str, byte: usize) -> (u64, u64) {
    let before = &sql[..byte.min(sql.len())];
    let line = before.matches('\n').count() as u64 + 1;
    (
        line,
        before.rsplit('\n').next().unwrap_or_default().chars().count() as u64 + 1,
    )
}

/// Where a column stands in a query, by its name, if it is named there.
pub(crate) fn where_named(statement: &SqlStatement, word: &str) -> Option<(u64, u64)> {
    struct Finder<'w>(&'w str);
    impl Visitor for Finder<'_> {
        type Break = Option<(u64, u64)>;
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
            let ident = match expr {
                Expr::Identifier(ident) => Some(ident),
                Expr::CompoundIdentifier(idents) => idents.last(),
                Expr::Function(function) => function.name.0.last().and_then(|part| part.as_ident()),
                _ => None,
            };
            match ident {
                Some(ident) if ident.value.eq_ignore_ascii_case(self.0) => ControlFlow::Break(start(ident.span)),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    statement.visit(&mut Finder(word)).break_value().flatten()
}
