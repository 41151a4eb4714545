//! Points in time are microseconds, in every year that a column can have.
//!
//! DataFusion takes what it makes itself (`now()`, a CAST, a text or a date beside a timestamp) as nanoseconds, and those end
//! in the year 2262: `9999-12-31`, which many tables have for "still", would be an error, or NULL in a TRY_CAST. So its
//! timestamps are made microseconds, and what is compared with one becomes one. A date minus a date is a number of days, as in
//! PostgreSQL.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::{Between, InList};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, LogicalPlan, Operator, TryCast, cast};

use TimeUnit::{Microsecond, Nanosecond};

/// The same plan, in microseconds. To run before types are coerced.
pub(crate) fn exact(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|plan| {
        let schema = merge_schema(&plan.inputs());
        // A column that has no name but its expression keeps it.
        let names = NamePreserver::new(&plan);
        let exact = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let exact = exact_expr(expr, &schema)?;
            Ok(exact.update_data(|expr| name.restore(expr)))
        })?;
        match exact.transformed {
            true => exact.map_data(LogicalPlan::recompute_schema),
            false => Ok(exact),
        }
    })
    .map(|plan| plan.data)
}

/// The same of an expression over columns.
pub(crate) fn exact_expr(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| one(expr, schema))
}

fn one(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    // What has no type yet is judged when types are coerced.
    let type_of = |expr: &Expr| expr.get_type(schema).ok();
    Ok(match expr {
        Expr::Cast(Cast { expr, field }) if micros(field.data_type()).is_some() => {
            let field = field.as_ref().clone().with_data_type(micros_of(field.data_type()));
            Transformed::yes(Expr::Cast(Cast {
                expr,
                field: field.into(),
            }))
        }
        Expr::TryCast(TryCast { expr, field }) if micros(field.data_type()).is_some() => {
            let field = field.as_ref().clone().with_data_type(micros_of(field.data_type()));
            Transformed::yes(Expr::TryCast(TryCast {
                expr,
                field: field.into(),
            }))
        }
        Expr::ScalarFunction(_) => match type_of(&expr).as_ref().and_then(micros) {
            Some(exact) => Transformed::yes(cast(expr, exact)),
            None => Transformed::no(expr),
        },
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let types = (type_of(&left), type_of(&right));
            let (Some(of_left), Some(of_right)) = types else {
                return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
            };
            if op == Operator::Minus && (&of_left, &of_right) == (&DataType::Date32, &DataType::Date32) {
                let days = |date: Box<Expr>| Box::new(cast(*date, DataType::Int32));
                let (left, right) = (days(left), days(right));
                return Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op, right })));
            }
            let compares = matches!(
                op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::IsDistinctFrom
                    | Operator::IsNotDistinctFrom
            );
            if !compares {
                return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
            }
            let mut changed = false;
            let right = Box::new(alike(&of_left, *right, schema, &mut changed));
            let left = Box::new(alike(&of_right, *left, schema, &mut changed));
            let made = Expr::BinaryExpr(BinaryExpr { left, op, right });
            Transformed::new_transformed(made, changed)
        }
        Expr::Between(Between {
            expr,
            negated,
            low,
            high,
        }) => {
            let (of, mut changed) = (type_of(&expr).unwrap_or(DataType::Null), false);
            let made = Expr::Between(Between {
                expr,
                negated,
                low: Box::new(alike(&of, *low, schema, &mut changed)),
                high: Box::new(alike(&of, *high, schema, &mut changed)),
            });
            Transformed::new_transformed(made, changed)
        }
        Expr::InList(InList { expr, list, negated }) => {
            let (of, mut changed) = (type_of(&expr).unwrap_or(DataType::Null), false);
            let list = list.into_iter().map(|item| alike(&of, item, schema, &mut changed));
            let list = list.collect();
            Transformed::new_transformed(Expr::InList(InList { expr, list, negated }), changed)
        }
        other => Transformed::no(other),
    })
}

/// What is compared with a value of a type, made like that where it has to be.
fn alike(of: &DataType, other: Expr, schema: &DFSchema, changed: &mut bool) -> Expr {
    match other.get_type(schema).ok().and_then(|own| beside(of, &own)) {
        Some(exact) => {
            *changed = true;
            cast(other, exact)
        }
        None => other,
    }
}

/// What nanoseconds become.
fn micros(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Timestamp(Nanosecond, zone) => Some(DataType::Timestamp(Microsecond, zone.clone())),
        _ => None,
    }
}

fn micros_of(data_type: &DataType) -> DataType {
    micros(data_type).unwrap_or_else(|| data_type.clone())
}

/// What another value becomes that is compared with one of a type.
fn beside(of: &DataType, other: &DataType) -> Option<DataType> {
    match (of, other) {
        (
            DataType::Timestamp(Microsecond, _),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Date32,
        ) => Some(of.clone()),
        (DataType::Timestamp(Microsecond, _), DataType::Timestamp(unit, zone)) if *unit != Microsecond => {
            Some(DataType::Timestamp(Microsecond, zone.clone()))
        }
        _ => None,
    }
}
