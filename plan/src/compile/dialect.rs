//! How SQL is read: as DataFusion reads it, but for two things of which a reader of PostgreSQL would be surprised. `->` and
//! its like bind closer than a comparison, `||` and IS; and what follows `IS DISTINCT FROM` ends where AND and OR begin.

use std::any::TypeId;

use datafusion::sql::sqlparser::ast::Expr;
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect, Precedence};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};

/// The dialect that DataFusion has by itself, with that.
#[derive(Debug)]
pub(crate) struct Sql;

/// What that dialect answers, method by method: it can't be inherited. A version of the parser may bring more; the test
/// compares what both say.
macro_rules! as_generic {
    ($($name:ident),* $(,)?) => {
        $(fn $name(&self) -> bool { GenericDialect.$name() })*
    };
}

impl Dialect for Sql {
    fn dialect(&self) -> TypeId {
        TypeId::of::<GenericDialect>()
    }

    fn prec_value(&self, prec: Precedence) -> u8 {
        match prec {
            // Above signs of arithmetic, below `::`.
            Precedence::PgOther => GenericDialect.prec_value(Precedence::AtTz) + 1,
            other => GenericDialect.prec_value(other),
        }
    }

    fn parse_infix(&self, parser: &mut Parser, expr: &Expr, _: u8) -> Option<Result<Expr, ParserError>> {
        use Keyword::{DISTINCT, FROM, IS, NOT};
        let make: fn(Box<Expr>, Box<Expr>) -> Expr = if parser.parse_keywords(&[IS, DISTINCT, FROM]) {
            Expr::IsDistinctFrom
        } else if parser.parse_keywords(&[IS, NOT, DISTINCT, FROM]) {
            Expr::IsNotDistinctFrom
        } else {
            return None;
        };
        let other = parser.parse_subexpr(self.prec_value(Precedence::Is));
        Some(other.map(|other| make(Box::new(expr.clone()), Box::new(other))))
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        GenericDialect.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        GenericDialect.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        GenericDialect.is_identifier_part(ch)
    }

    as_generic!(
        supports_unicode_string_literal,
        supports_partition_by_after_order_by,
        supports_array_join_syntax,
        supports_group_by_expr,
        supports_group_by_with_modifier,
        supports_left_associative_joins_without_parens,
        supports_connect_by,
        supports_match_recognize,
        supports_pipe_operator,
        supports_start_transaction_modifier,
        supports_window_function_null_treatment_arg,
        supports_dictionary_syntax,
        supports_window_clause_named_window_reference,
        supports_parenthesized_set_variables,
        supports_select_wildcard_except,
        support_map_literal_syntax,
        allow_extract_custom,
        allow_extract_single_quotes,
        supports_extract_comma_syntax,
        supports_create_view_comment_syntax,
        supports_parens_around_table_factor,
        supports_values_as_table_factor,
        supports_create_index_with_clause,
        supports_explain_with_utility_options,
        supports_limit_comma,
        supports_update_order_by,
        supports_from_first_select,
        supports_projection_trailing_commas,
        supports_asc_desc_in_column_definition,
        supports_try_convert,
        supports_bitwise_shift_operators,
        supports_comment_on,
        supports_load_extension,
        supports_named_fn_args_with_assignment_operator,
        supports_struct_literal,
        supports_empty_projections,
        supports_nested_comments,
        supports_multiline_comment_hints,
        supports_user_host_grantee,
        supports_string_escape_constant,
        supports_array_typedef_with_brackets,
        supports_match_against,
        supports_set_names,
        supports_comma_separated_set_assignments,
        supports_filter_during_aggregation,
        supports_select_wildcard_exclude,
        supports_data_type_signed_suffix,
        supports_interval_options,
        supports_quote_delimited_string,
        supports_select_wildcard_replace,
        supports_select_wildcard_ilike,
        supports_select_wildcard_rename,
        supports_optimize_table,
        supports_install,
        supports_detach,
        supports_prewhere,
        supports_with_fill,
        supports_limit_by,
        supports_interpolate,
        supports_settings,
        supports_select_format,
        supports_comment_optimizer_hint,
        supports_constraint_keyword_without_name,
        supports_key_column_option,
        supports_comma_separated_trim,
        supports_cte_without_as,
        supports_select_item_multi_column_alias,
        supports_xml_expressions,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_generic_dialect_in_all_else() {
        for statement in [
            "SELECT * EXCEPT (a) FROM t",
            "SELECT * EXCLUDE (a) FROM t",
            "SELECT * REPLACE (a + 1 AS a) FROM t",
            "FROM t",
            "SELECT a, b, FROM t",
            "SELECT extract(year FROM a), extract('year' FROM a), `b`, \"c\" FROM t",
            "SELECT E'a\\n', U&'\\00fc', x'00', {'a': 1}, [1, 2] FROM t",
            "SELECT t.a << 2 >> 1, a ~ 'x', a DIV 2, a::int[], TRY_CAST(a AS int), TRY_CONVERT(a, int) FROM t",
            "SELECT a FROM t GROUP BY GROUPING SETS ((a), ()) LIMIT 1, 2",
            "SELECT count(*) FILTER (WHERE a > 1) OVER w FROM t WINDOW w AS (PARTITION BY a)",
            "SELECT a FROM t LEFT SEMI JOIN s USING (a) WHERE a IS NULL AND NOT b = 2 OR c BETWEEN 1 AND 2 AND d IN (1)",
            "WITH x AS (SELECT 1) SELECT interval '1 day', interval '1' day, DATE '2024-01-01' + a FROM x /* c */ -- d",
            "SELECT f(a => 1), trim(BOTH 'x' FROM a), position('a' IN b), substring(a FROM 1 FOR 2) FROM (VALUES (1)) v(a)",
        ] {
            let read = |dialect: &dyn Dialect| Parser::parse_sql(dialect, statement).map_err(|error| error.to_string());
            assert_eq!(read(&Sql), read(&GenericDialect), "{statement}");
        }
    }
}
