//! Integer arithmetic that fails instead of wrapping round.
//!
//! DataFusion computes `smallint * smallint` as a smallint and drops what doesn't fit: 300 * 300 is 24464 there, and no
//! error tells. Here +, - and * of integers, and a sign before one, become functions that fail, as PostgreSQL does.
//! Only integers: floats have infinity, and decimals fail by themselves.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Datum};
use datafusion::arrow::compute::kernels::numeric;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::arrow::error::ArrowError;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue, internal_err};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr_common::datum;

/// Puts the functions in the place of the operators. To run after types are coerced: both sides are of one type then.
#[derive(Debug)]
pub(crate) struct CheckedArithmetic;

impl AnalyzerRule for CheckedArithmetic {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            // A column that has no name but its expression keeps it.
            let names = NamePreserver::new(&plan);
            let checked = plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let checked = expr.transform_up(|expr| check(expr, &schema))?;
                Ok(checked.update_data(|expr| name.restore(expr)))
            })?;
            checked.map_data(LogicalPlan::recompute_schema)
        })
        .map(|plan| plan.data)
    }
}

fn check(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let operation = match &expr {
        Expr::BinaryExpr(BinaryExpr { op: Operator::Plus, .. }) => Operation::Add,
        Expr::BinaryExpr(BinaryExpr {
            op: Operator::Minus, ..
        }) => Operation::Subtract,
        Expr::BinaryExpr(BinaryExpr {
            op: Operator::Multiply, ..
        }) => Operation::Multiply,
        Expr::Negative(_) => Operation::Negate,
        _ => return Ok(Transformed::no(expr)),
    };
    if !expr.get_type(schema)?.is_integer() {
        return Ok(Transformed::no(expr));
    }
    let args = match expr {
        Expr::BinaryExpr(BinaryExpr { left, right, .. }) => vec![*left, *right],
        Expr::Negative(value) => vec![*value],
        other => return Ok(Transformed::no(other)),
    };
    let function = ScalarUDF::new_from_impl(Checked::new(operation));
    Ok(Transformed::yes(function.call(args)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operation {
    Add,
    Subtract,
    Multiply,
    Negate,
}

/// One of the functions.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    operation: Operation,
    signature: Signature,
}

impl Checked {
    fn new(operation: Operation) -> Self {
        let args = if operation == Operation::Negate { 1 } else { 2 };
        Self {
            operation,
            signature: Signature::any(args, Volatility::Immutable),
        }
    }

    fn kernel(&self) -> fn(&dyn Datum, &dyn Datum) -> Result<ArrayRef, ArrowError> {
        match self.operation {
            Operation::Add => numeric::add,
            Operation::Subtract | Operation::Negate => numeric::sub,
            Operation::Multiply => numeric::mul,
        }
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        match self.operation {
            Operation::Add => "checked_add",
            Operation::Subtract => "checked_subtract",
            Operation::Multiply => "checked_multiply",
            Operation::Negate => "checked_negate",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [only] => Ok(only.clone()),
            [left, right] if left == right => Ok(left.clone()),
            _ => internal_err!("{} of {types:?}", self.name()),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.as_slice() {
            [value] => {
                let zero = ColumnarValue::Scalar(ScalarValue::new_zero(&value.data_type())?);
                datum::apply(&zero, value, self.kernel())
            }
            [left, right] => datum::apply(left, right, self.kernel()),
            other => internal_err!("{} of {} values", self.name(), other.len()),
        }
    }
}
