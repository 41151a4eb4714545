//! What SQL can see: the pipeline's own tables, and DataFusion's functions.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DataFusionError, Result, TableReference, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, TypePlanner};
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF};
use datafusion::optimizer::{Optimizer, OptimizerRule};
use datafusion::prelude::SessionConfig;

use super::arithmetic::CheckedArithmetic;
use crate::ROW_COLUMN;
use crate::definition::Column;

/// Rules that answer "no row can come of this" by not reading the input at all. Then a reject rule below would never
/// see its rows, and they would count as filtered; so nodes don't use them.
const LEFT_OUT_RULES: [&str; 3] = ["eliminate_filter", "propagate_empty_relation", "eliminate_join"];

/// How a table of a plan gets its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// The rows of a segment; the last column is [`ROW_COLUMN`].
    Chunk,
    /// The whole of a lookup.
    Lookup,
    /// What the reject rules of a step let pass; the last column is [`ROW_COLUMN`]. See [`super::RejectPlan`].
    Passed,
    /// A step, while the file is checked. Never in a finished plan.
    Step,
}

/// A table of a plan: a name, and the columns it has. Nodes put rows behind it.
#[derive(Debug, Clone)]
pub struct PlanTable {
    /// Its name in the pipeline file.
    pub name: String,
    /// How it gets its rows.
    pub kind: TableKind,
    /// Its columns.
    pub schema: SchemaRef,
}

impl TableSource for PlanTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// The columns of a source as Arrow has them.
pub fn source_schema(columns: &[Column]) -> SchemaRef {
    let fields = columns
        .iter()
        .map(|column| Field::new(&column.name, column.data_type.clone(), !column.required));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A schema with the hidden row column as its last.
pub fn with_row(schema: &Schema) -> SchemaRef {
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(ROW_COLUMN, DataType::UInt64, false)));
    Arc::new(Schema::new(fields))
}

/// The settings under which SQL is planned and run: the same for the check and on every node.
pub fn session_config() -> SessionConfig {
    let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(8192);
    let options = config.options_mut();
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    // A filter that a join derives from its lookup must not reach below a step that rejects rows.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.prefer_hash_join = true;
    options.optimizer.skip_failed_rules = false;
    config
}

/// A session with those settings: DataFusion's functions, those for JSON, and the rules that nodes use. `configure` gets it
/// before it is built.
pub fn session(configure: impl FnOnce(SessionStateBuilder) -> SessionStateBuilder) -> SessionState {
    let rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = Optimizer::new()
        .rules
        .into_iter()
        .filter(|rule| !LEFT_OUT_RULES.contains(&rule.name()))
        .collect();
    let builder = SessionStateBuilder::new()
        .with_config(session_config())
        .with_default_features()
        .with_optimizer_rules(rules)
        // After DataFusion's own rules, of which the last coerces types.
        .with_analyzer_rule(Arc::new(CheckedArithmetic));
    let mut state = configure(builder).build();
    // They join the session's maps and lists, which take everything.
    let registered = datafusion_functions_json::register_all(&mut state);
    debug_assert!(registered.is_ok(), "{registered:?}");
    state
}

/// The tables that one step may name.
pub(crate) struct Context {
    pub(crate) state: SessionState,
    /// What the planner goes by.
    options: ConfigOptions,
    pub(crate) tables: HashMap<String, Arc<PlanTable>>,
}

impl Context {
    pub(crate) fn new() -> Self {
        let state = session(|builder| builder);
        let mut options = state.config_options().as_ref().clone();
        // `timestamptz` in SQL is the type that columns have. The session itself has no zone: it would give one to what
        // `now()` and `to_timestamp()` answer.
        options.execution.time_zone = Some("UTC".to_owned());
        Self {
            state,
            options,
            tables: HashMap::new(),
        }
    }

    pub(crate) fn add(&mut self, name: &str, kind: TableKind, schema: SchemaRef) {
        self.tables.insert(
            name.to_owned(),
            Arc::new(PlanTable {
                name: name.to_owned(),
                kind,
                schema,
            }),
        );
    }
}

impl ContextProvider for Context {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        match self.tables.get(name.table()) {
            Some(table) if name.schema().is_none() => Ok(Arc::clone(table) as Arc<dyn TableSource>),
            _ => plan_err!("unknown table `{name}`"),
        }
    }

    fn get_table_function_source(
        &self,
        name: &str,
        _args: Vec<datafusion::logical_expr::Expr>,
    ) -> Result<Arc<dyn TableSource>> {
        Err(DataFusionError::Plan(format!(
            "the table function `{name}` can't be used in a step"
        )))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        None
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.state.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _variable_names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}
