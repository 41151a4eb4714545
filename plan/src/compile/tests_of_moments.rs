//! What SQL makes of points in time, and how far operators reach.

use super::tests::{compiled, step};
use crate::types;

/// The types of a query's columns.
#[track_caller]
fn types_of(sql: &str) -> Vec<String> {
    let compiled = compiled(&step(sql)).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let fields = compiled.loads[0].schema.fields().iter();
    fields.map(|field| types::name(field.data_type())).collect()
}

#[test]
fn a_zone_in_sql_is_the_one_that_columns_have() {
    let sql = "SELECT id, CAST(carrier AS timestamptz) AS a, carrier::timestamp with time zone AS b, \
               CAST(carrier AS timestamp) AS c, now() AS d, to_timestamp(carrier) AS e, \
               CAST(carrier AS timestamptz) AT TIME ZONE 'America/New_York' AS f FROM raw";
    assert_eq!(
        types_of(sql),
        [
            "int",
            "timestamptz",
            "timestamptz",
            "timestamp",
            "timestamp",
            "timestamp",
            "timestamptz"
        ]
    );
}

#[test]
fn every_year_that_a_column_can_have_is_one_in_sql() {
    for condition in [
        "at = '9999-12-31'",
        "at < TIMESTAMP '9999-12-31 00:00:00'",
        "at BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'",
        "at IN ('9999-12-31', '2024-01-01')",
        "at IS DISTINCT FROM '9999-12-31'",
        "at::timestamptz = '9999-12-31T00:00:00Z'",
        "TRY_CAST('9999-12-31' AS timestamp) IS NOT NULL",
        "DATE '9999-12-31' > now()",
        "coalesce(at, now()) < DATE '9999-12-31'",
        "CAST(DATE '9999-12-31' AS timestamptz) > at",
    ] {
        types_of(&format!("SELECT id FROM raw WHERE {condition}"));
    }
    // What is constant is computed here already.
    let sql = "SELECT id, CAST('9999-12-31' AS timestamp) AS a, TRY_CAST('0001-01-01' AS timestamptz) AS b FROM raw";
    let compiled = compiled(&step(sql)).expect("they are microseconds");
    let plan = compiled.loads[0].plan.display_indent().to_string();
    assert!(!plan.contains("ns"), "{plan}");
}

#[test]
fn a_date_minus_a_date_is_a_number_of_days() {
    let sql = "SELECT id, at::date - DATE '2024-01-01' AS days, current_date - $day AS since, \
               (at::date - $day) * 24 AS hours FROM raw WHERE at::date - $day > 3";
    assert_eq!(types_of(sql), ["int", "int", "int", "bigint"]);
}

#[test]
fn arrows_bind_closer_than_what_compares_and_what_joins_texts() {
    for (plain, bracketed) in [
        ("carrier->>'a' = '1'", "(carrier->>'a') = '1'"),
        ("'1' = carrier->>'a'", "'1' = (carrier->>'a')"),
        (
            "carrier->>'a' IS NULL AND id > 1",
            "((carrier->>'a') IS NULL) AND (id > 1)",
        ),
        ("carrier->>'a' LIKE '1%'", "(carrier->>'a') LIKE '1%'"),
        ("carrier->>'a' IN ('1', '2')", "(carrier->>'a') IN ('1', '2')"),
        (
            "carrier->>'a' BETWEEN '1' AND '2'",
            "(carrier->>'a') BETWEEN '1' AND '2'",
        ),
        ("NOT carrier->>'a' = '1'", "NOT ((carrier->>'a') = '1')"),
        (
            "carrier->>'a' || '-' || tailnum = 'x'",
            "((carrier->>'a') || '-' || tailnum) = 'x'",
        ),
        (
            "tailnum || carrier->'a'->>'b' = 'x'",
            "(tailnum || ((carrier->'a')->>'b')) = 'x'",
        ),
        ("(carrier->>'a')::int + 1 = 2", "(((carrier->>'a')::int) + 1) = 2"),
        (
            "tailnum IS DISTINCT FROM 'x' AND id > 1 OR id = 0",
            "((tailnum IS DISTINCT FROM 'x') AND (id > 1)) OR (id = 0)",
        ),
        (
            "carrier->>'a' IS NOT DISTINCT FROM carrier->>'b' AND id > 1",
            "((carrier->>'a') IS NOT DISTINCT FROM (carrier->>'b')) AND (id > 1)",
        ),
    ] {
        let plan = |condition: &str| {
            let text = step(&format!("SELECT id FROM raw WHERE {condition}"));
            let compiled = compiled(&text).unwrap_or_else(|error| panic!("{condition}\n{error}"));
            compiled.loads[0].plan.display_indent().to_string()
        };
        assert_eq!(plan(plain), plan(bracketed), "{plain}");
    }
}

#[test]
fn operators_for_json_that_are_not_there_are_refused() {
    super::tests::refused(&[
        (
            "SELECT ^carrier #>> '{a,b}' AS x FROM raw",
            "`#>>` can't be used in a step | take JSON apart",
        ),
        (
            "SELECT id FROM raw WHERE ^carrier @> '{}'",
            "`@>` can't be used in a step",
        ),
    ]);
}
