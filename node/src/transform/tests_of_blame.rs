//! SQL that fails is traced to the first row on which it does, to its step, and to the column or rule.

use std::sync::Arc;

use haulage_core::ids::LoadName;

use super::blame::{Blame, Part};
use super::tests::{compiled, lookup_batches, one, pass, segment};

async fn blame(compiled: &haulage_plan::Compiled, size: usize) -> Option<Blame> {
    let pass = pass(compiled, lookup_batches(compiled)).await;
    let lookups = Arc::new(lookup_batches(compiled));
    pass.blame(compiled, &lookups, &LoadName::from("l"), segment(compiled, 1..40, size))
        .await
        .expect("nothing else fails")
}

#[tokio::test]
async fn the_first_failing_row_its_step_and_its_part_are_found() {
    // Rows count from 0 and ids from 1.
    let column = |name: &str| Some(Part::Column(name.to_owned()));
    let table = [
        (
            "  s: SELECT id, CAST(CASE WHEN id % 17 = 0 THEN 'abc' ELSE '1' END AS int) AS n, delay FROM raw",
            (16, "s", column("n")),
            "abc",
        ),
        (
            "  s: SELECT delay, 100 / (id - 23) AS q FROM raw",
            (22, "s", column("q")),
            "divide by zero",
        ),
        (
            "  t: SELECT id, id * 100000000::int AS big FROM raw\n  s: SELECT id FROM t WHERE big > 0",
            (21, "t", column("big")),
            "overflow",
        ),
        (
            "  t: SELECT * FROM raw\n  s: SELECT id FROM t WHERE 7 / (id - 39) > 1000",
            (38, "s", None),
            "divide by zero",
        ),
        (
            "  t:\n    from: raw\n    reject: {never: id < 0, odd: 1 / (id - 5) > 9}\n  s: SELECT id FROM t",
            (4, "t", Some(Part::Rule("odd".to_owned()))),
            "divide by zero",
        ),
        (
            "  t:\n    sql: SELECT id, 1 / (id - 6) AS x FROM raw\n    reject: {never: x > 9}\n  \
             s: SELECT t.*, a.name FROM t LEFT JOIN airlines a ON a.carrier = 'UA'",
            (5, "t", column("x")),
            "divide by zero",
        ),
    ];
    for (steps, (row, step, part), cause) in table {
        let compiled = compiled(steps);
        for size in [40, 7, 1] {
            let blame = blame(&compiled, size)
                .await
                .unwrap_or_else(|| panic!("{steps}: nothing found"));
            assert_eq!((blame.first, blame.last), (row, row), "{steps} in batches of {size}");
            assert_eq!(blame.step.as_deref(), Some(step), "{steps}");
            assert_eq!(blame.part, part, "{steps}");
            assert!(blame.error.cause.to_lowercase().contains(cause), "{:?}", blame.error);
        }
    }
}

#[tokio::test]
async fn rows_that_only_fail_together_are_named_as_a_range() {
    // Both sides of an AND are evaluated for a whole batch; alone, id 20 is kept from the division.
    let blame = blame(&one("SELECT id FROM raw WHERE id <> 20 AND 100 / (id - 20) > 1000"), 40).await;
    let Blame { first, last, .. } = blame.expect("the division fails");
    assert!(first < last && (first..=last).contains(&19), "{first} to {last}");
    assert!(last - first < 4, "{first} to {last}");
}

#[tokio::test]
async fn no_row_is_blamed_for_sql_that_works() {
    assert_eq!(blame(&one("SELECT id FROM raw"), 10).await, None);
}
