//! The pass, run on flights-like rows: cutting a source differently changes nothing, every row is accounted for, and
//! rejects don't hang on what later steps do.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, Int32Array, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool, UnboundedMemoryPool};
use datafusion::physical_plan::displayable;
use datafusion::prelude::SessionContext;
use haulage_core::checkpoint::LoadCounts;
use haulage_core::failure::Class;
use haulage_plan::compile::source_schema;
use haulage_plan::{compile, parse_and_bind};
use proptest::prelude::*;

use super::*;

const STARTED: Millis = Millis(1_700_000_000_000);

pub(super) fn compiled(steps: &str) -> Compiled {
    let text = format!(
        "pipeline: p\nparams: {{least: {{type: int, default: 5}}}}\nsources:\n  \
         raw: {{csv: f.csv, columns: {{id: int!, carrier: text, tailnum: text, delay: int, fare: double}}}}\n  \
         airlines: {{csv: a.csv, lookup: true, columns: {{carrier: text!, name: text}}}}\n  \
         planes: {{csv: p.csv, lookup: true, columns: {{tailnum: text, seats: int}}}}\n\
         steps:\n{steps}\nloads:\n  l: {{from: s, to: w, table: t, mode: append}}\n"
    );
    let definition = parse_and_bind(&text, "p.yaml", &BTreeMap::new()).unwrap_or_else(|error| panic!("{error}"));
    compile(&definition, &BTreeMap::new()).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn one(sql: &str) -> Compiled {
    compiled(&format!("  s: |\n    {sql}"))
}

/// Flights whose values follow from their number. Every third has no carrier, every seventh no delay.
fn flights(ids: std::ops::Range<i32>) -> Vec<ArrayRef> {
    let carriers = ["AA", "UA", "ZZ", "DL"];
    let ids: Vec<i32> = ids.collect();
    let carrier = |id: &i32| (id % 3 != 0).then(|| carriers[*id as usize % 4]);
    let tail = |id: &i32| (id % 5 != 0).then(|| format!("N{}", id % 6));
    let delay = |id: &i32| (id % 7 != 0).then_some(id * 37 % 200 - 50);
    vec![
        Arc::new(Int32Array::from(ids.clone())),
        Arc::new(StringArray::from(ids.iter().map(carrier).collect::<Vec<_>>())),
        Arc::new(StringArray::from(ids.iter().map(tail).collect::<Vec<_>>())),
        Arc::new(Int32Array::from(ids.iter().map(delay).collect::<Vec<_>>())),
        Arc::new(Float64Array::from(
            ids.iter().map(|id| f64::from(*id) / 8.0).collect::<Vec<_>>(),
        )),
    ]
}

/// One segment of these flights, in batches of `size`; rows count from 0.
pub(super) fn segment(compiled: &Compiled, ids: std::ops::Range<i32>, size: usize) -> Vec<RecordBatch> {
    let schema = compiled.chunk_schema("raw").expect("raw is a source");
    let mut columns = flights(ids.clone());
    columns.push(Arc::new(UInt64Array::from((0..ids.len() as u64).collect::<Vec<_>>())));
    let whole = RecordBatch::try_new(schema, columns).expect("the columns of raw");
    (0..whole.num_rows())
        .step_by(size)
        .map(|at| whole.slice(at, size.min(whole.num_rows() - at)))
        .collect()
}

pub(super) fn lookup_batches(compiled: &Compiled) -> HashMap<String, Vec<RecordBatch>> {
    let batch = |source: &str, columns: Vec<ArrayRef>| {
        let schema = source_schema(&compiled.columns[source]);
        vec![RecordBatch::try_new(schema, columns).expect("the columns of the lookup")]
    };
    let airlines: Vec<ArrayRef> = vec![
        // Two rows for UA: a join with it multiplies.
        Arc::new(StringArray::from(vec!["AA", "UA", "UA", "DL"])),
        Arc::new(StringArray::from(vec![
            Some("American"),
            Some("United"),
            None,
            Some("Delta"),
        ])),
    ];
    let planes: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![Some("N1"), Some("N2"), Some("N3"), None])),
        Arc::new(Int32Array::from(vec![Some(100), None, Some(300), Some(9)])),
    ];
    HashMap::from([
        ("airlines".into(), batch("airlines", airlines)),
        ("planes".into(), batch("planes", planes)),
    ])
}

fn empty_lookups(compiled: &Compiled) -> HashMap<String, Vec<RecordBatch>> {
    lookup_batches(compiled)
        .into_keys()
        .map(|name| (name, Vec::new()))
        .collect()
}

pub(super) async fn pass(compiled: &Compiled, lookups: HashMap<String, Vec<RecordBatch>>) -> StagePass {
    let memory: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
    StagePass::new(compiled, StageId(0), Arc::new(lookups), STARTED, memory, None)
        .await
        .expect("the stage is planned")
}

/// A batch's rows as text, without the row column.
fn rows(batch: &RecordBatch, hidden: usize) -> Vec<String> {
    let columns = &batch.columns()[..batch.num_columns() - hidden];
    let cell = |column: &ArrayRef, row| array_value_to_string(column, row).expect("a printable value");
    (0..batch.num_rows())
        .map(|row| columns.iter().map(|c| cell(c, row)).collect::<Vec<_>>().join("|"))
        .collect()
}

struct Outcome {
    rows: Vec<String>,
    /// `row step.reason`
    rejects: Vec<String>,
    counts: LoadCounts,
}

async fn run(pass: &StagePass, batches: Vec<RecordBatch>) -> Outcome {
    let source_rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    let mut tally = RowTally::new(source_rows);
    let mut run = pass.run(&LoadName::from("l"), batches).await.expect("the pass starts");
    let mut found = Vec::new();
    while let Some(batch) = run.next().await {
        let batch = batch.unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(Some(batch.schema()), pass.schema(&LoadName::from("l")));
        tally.add(&batch).expect("rows of this segment");
        found.extend(rows(&batch, 1));
    }
    let rejects = run.rejects();
    let counts = tally.clone().finish(0, &rejects, tally.output_rows(), 0);
    assert_eq!(counts.passed + counts.filtered + counts.rejected, source_rows);
    assert_eq!(counts.loaded, counts.passed + counts.multiplied);
    found.sort();
    let rejects = rejects
        .iter()
        .map(|r| format!("{} {}.{}", r.row, r.step, r.reason))
        .collect();
    Outcome {
        rows: found,
        rejects,
        counts,
    }
}

const ACCEPTED: [&str; 16] = [
    "SELECT * FROM raw",
    "SELECT id, upper(carrier) AS c, delay + 1 AS d FROM raw WHERE delay > 5 OR delay IS NULL",
    "SELECT r.id, a.name FROM raw r JOIN airlines a ON a.carrier = r.carrier",
    "SELECT r.id, a.name, p.seats FROM raw r LEFT JOIN airlines a ON a.carrier = r.carrier LEFT JOIN planes p ON p.tailnum = r.tailnum",
    "SELECT r.id, a.name FROM airlines a RIGHT JOIN raw r ON a.carrier = r.carrier AND a.name <> 'Delta'",
    "SELECT r.id, a.name FROM raw r, airlines a WHERE a.carrier = r.carrier AND r.delay > 0",
    "SELECT r.id, p.seats FROM raw r CROSS JOIN planes p",
    "SELECT r.id, p.seats FROM raw r LEFT JOIN planes p ON r.delay < p.seats",
    "SELECT id FROM raw WHERE carrier IN (SELECT carrier FROM airlines)",
    "SELECT id FROM raw WHERE carrier NOT IN (SELECT carrier FROM airlines)",
    "SELECT id FROM raw WHERE tailnum NOT IN (SELECT tailnum FROM planes)",
    "SELECT id FROM raw r WHERE NOT EXISTS (SELECT 1 FROM airlines a WHERE a.carrier = r.carrier)",
    "SELECT id FROM raw r WHERE delay > 100 OR EXISTS (SELECT 1 FROM planes p WHERE p.tailnum = r.tailnum)",
    "SELECT id, (SELECT max(seats) FROM planes) AS most, (SELECT sum(seats) FROM planes p WHERE p.tailnum = r.tailnum) AS seats FROM raw r",
    "SELECT id, delay AS d FROM raw UNION ALL SELECT id, -1 FROM raw WHERE delay IS NULL",
    "SELECT r.id, c.n FROM raw r LEFT JOIN (SELECT carrier, count(*) AS n FROM airlines GROUP BY carrier) c USING (carrier)",
];

/// The same SQL over the whole source, by DataFusion as it comes.
async fn oracle(compiled: &Compiled, sql: &str, ids: std::ops::Range<i32>) -> Vec<String> {
    let context = SessionContext::new();
    let raw = RecordBatch::try_new(source_schema(&compiled.columns["raw"]), flights(ids)).expect("the columns of raw");
    context.register_batch("raw", raw).expect("registered");
    for (name, batches) in lookup_batches(compiled) {
        context.register_batch(&name, batches[0].clone()).expect("registered");
    }
    let batches = context
        .sql(sql)
        .await
        .expect("planned")
        .collect()
        .await
        .expect("executed");
    let mut all: Vec<String> = batches.iter().flat_map(|batch| rows(batch, 0)).collect();
    all.sort();
    all
}

#[tokio::test]
async fn every_segment_of_every_cut_gives_the_rows_of_the_whole() {
    for sql in ACCEPTED {
        let compiled = one(sql);
        let expected = oracle(&compiled, sql, 0..210).await;
        // A NULL in the list of NOT IN leaves no row, which is worth a look too.
        assert_eq!(expected.is_empty(), sql.contains("tailnum NOT IN"), "{sql}");
        for cuts in [vec![0, 210], vec![0, 1, 2, 100, 100, 210], vec![0, 70, 140, 210]] {
            // One pass for all segments, as a chunk has it.
            let pass = pass(&compiled, lookup_batches(&compiled)).await;
            let mut found = Vec::new();
            for ends in cuts.windows(2) {
                found.extend(run(&pass, segment(&compiled, ends[0]..ends[1], 16)).await.rows);
            }
            found.sort();
            assert_eq!(found, expected, "{sql}\ncut at {cuts:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn cutting_anywhere_changes_neither_rows_nor_rejects(
        total in 1..300_i32,
        cuts in prop::collection::vec(0..300_i32, 0..6),
        size in 1..64_usize,
    ) {
        let compiled = compiled(
            "  v: {from: raw, reject: {no_carrier: carrier IS NULL, late: delay > 100}}\n  \
             w: SELECT v.*, a.name FROM v JOIN airlines a ON a.carrier = v.carrier WHERE v.delay > -20\n  \
             s: {from: w, reject: {odd: id % 11 = 0}}",
        );
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut ends: Vec<i32> = cuts.into_iter().filter(|cut| *cut < total).chain([0, total]).collect();
        ends.sort_unstable();
        runtime.block_on(async {
            let pass = pass(&compiled, lookup_batches(&compiled)).await;
            let whole = run(&pass, segment(&compiled, 0..total, 1000)).await;
            let (mut rows, mut rejects, mut rejected) = (Vec::new(), Vec::new(), 0);
            for ends in ends.windows(2) {
                let part = run(&pass, segment(&compiled, ends[0]..ends[1], size)).await;
                rows.extend(part.rows);
                rejected += part.counts.rejected;
                rejects.extend(part.rejects.iter().map(|reject| {
                    let (row, rest) = reject.split_once(' ').expect("row and reason");
                    format!("{} {rest}", row.parse::<i32>().expect("a number") + ends[0])
                }));
            }
            rows.sort();
            assert_eq!(rows, whole.rows);
            assert_eq!(rejects, whole.rejects);
            assert_eq!(rejected, whole.counts.rejected);
        });
    }
}

#[tokio::test]
async fn a_later_step_never_swallows_a_reject() {
    let reject = "  v: {from: raw, reject: {no_carrier: carrier IS NULL, late: delay > 100}}\n  s: |\n    ";
    let expected: Vec<String> = (0..100)
        .filter_map(|id| match id {
            id if id % 3 == 0 => Some(format!("{id} v.no_carrier")),
            id if id % 7 != 0 && id * 37 % 200 - 50 > 100 => Some(format!("{id} v.late")),
            _ => None,
        })
        .collect();
    for sql in [
        "SELECT * FROM v",
        "SELECT id FROM v WHERE delay < 0",
        "SELECT id FROM v WHERE carrier IS NOT NULL",
        "SELECT id FROM v WHERE 1 = 2",
        "SELECT id FROM v WHERE id IS NULL",
        "SELECT id FROM v WHERE $least > 100",
        "SELECT v.id, a.name FROM v JOIN airlines a ON a.carrier = v.carrier",
        "SELECT v.id, a.name FROM v JOIN airlines a ON a.carrier = v.carrier AND 1 = 2",
        "SELECT id FROM v WHERE carrier IN (SELECT carrier FROM airlines)",
        "SELECT id FROM v WHERE carrier NOT IN (SELECT carrier FROM airlines)",
        "SELECT id FROM v WHERE EXISTS (SELECT 1 FROM airlines a WHERE a.carrier = v.carrier)",
        "SELECT id FROM v UNION ALL SELECT id FROM v WHERE id < 10",
        "SELECT v.id, p.seats FROM v CROSS JOIN planes p",
    ] {
        let compiled = compiled(&format!("{reject}{sql}"));
        for lookups in [lookup_batches(&compiled), empty_lookups(&compiled)] {
            let pass = pass(&compiled, lookups).await;
            for _ in 0..2 {
                let outcome = run(&pass, segment(&compiled, 0..100, 7)).await;
                assert_eq!(outcome.rejects, expected, "{sql}");
                assert_eq!(outcome.counts.rejected, expected.len() as u64, "{sql}");
            }
        }
    }
}

#[tokio::test]
async fn the_first_true_rule_counts_and_guards_those_after_it() {
    let compiled = compiled(
        "  s:\n    from: raw\n    reject:\n      zero: id = 0\n      big: 1000 / id > 100\n      null_rule: delay > NULL\n      also_big: id < 5\n",
    );
    let pass = pass(&compiled, lookup_batches(&compiled)).await;
    let outcome = run(&pass, segment(&compiled, 0..20, 20)).await;
    let expected: Vec<String> = (0..20)
        .filter(|id| *id < 10)
        .map(|id| {
            if id == 0 {
                "0 s.zero".to_owned()
            } else {
                format!("{id} s.big")
            }
        })
        .collect();
    assert_eq!(outcome.rejects, expected);
    assert_eq!(outcome.rows.len(), 10);
}

#[tokio::test]
async fn rows_that_a_join_multiplies_are_accounted_for() {
    let compiled = compiled(
        "  j: SELECT r.id, r.carrier, a.name FROM raw r JOIN airlines a ON a.carrier = r.carrier\n  s: {from: j, reject: {no_name: name IS NULL}}",
    );
    let pass = pass(&compiled, lookup_batches(&compiled)).await;
    let outcome = run(&pass, segment(&compiled, 0..120, 10)).await;
    let carrier = |id: &i32| {
        if id % 3 == 0 {
            ""
        } else {
            ["AA", "UA", "ZZ", "DL"][*id as usize % 4]
        }
    };
    let of = |wanted: &str| (0..120).filter(|id| carrier(id) == wanted).count() as u64;
    // Each UA row is made two, of which one has no name: the row is rejected, and its other half is one too many.
    assert_eq!(outcome.counts.rejected, of("UA"));
    assert_eq!(outcome.counts.passed, of("AA") + of("DL"));
    assert_eq!(outcome.counts.multiplied, of("UA"));
    assert_eq!(outcome.counts.filtered, of("ZZ") + of(""));
    assert_eq!(outcome.counts.loaded, of("AA") + of("DL") + of("UA"));
}

#[tokio::test]
async fn lookups_are_hashed_and_chunks_stream_past_them() {
    for sql in ACCEPTED {
        let compiled = one(sql);
        let pass = pass(&compiled, lookup_batches(&compiled)).await;
        let load = &pass.loads[&LoadName::from("l")];
        // NOT IN is the one join that exists in one direction only.
        assert_eq!(load.physical.is_some(), !sql.contains("NOT IN"), "{sql}");
        if let Some(physical) = &load.physical {
            let shown = displayable(physical.as_ref()).indent(false).to_string();
            assert!(!shown.contains("RepartitionExec"), "{shown}");
        }
    }
}

#[tokio::test]
async fn errors_of_the_data_name_the_load_and_the_way_out() {
    for (sql, part) in [
        (
            "SELECT id, 10 / (id - 5) AS x FROM raw",
            "divide by zero error; keep the zero out with nullif(x, 0)",
        ),
        ("SELECT id, CAST(carrier AS int) AS x FROM raw", "use TRY_CAST"),
        ("SELECT id, CAST(id * 100000 AS smallint) AS x FROM raw", "use TRY_CAST"),
        // DataFusion's own operators would wrap round here, and load numbers that are wrong.
        (
            "SELECT id, (id + 32748::smallint)::smallint * id::smallint AS x FROM raw",
            "cast to a wider type first",
        ),
        (
            "SELECT id, id + 2147483640::int AS x FROM raw",
            "cast to a wider type first",
        ),
        (
            "SELECT id, id * 922337203685477580 AS x FROM raw",
            "cast to a wider type first",
        ),
        (
            "SELECT id, -2147483647::int - id AS x FROM raw",
            "cast to a wider type first",
        ),
        (
            "SELECT id, -(-2147483647::int - id / id) AS x FROM raw",
            "cast to a wider type first",
        ),
        (
            "SELECT id FROM raw WHERE id * 1000000000::int > 5",
            "cast to a wider type first",
        ),
    ] {
        let compiled = one(sql);
        let pass = pass(&compiled, lookup_batches(&compiled)).await;
        let mut run = pass
            .run(&LoadName::from("l"), segment(&compiled, 1..20, 20))
            .await
            .expect("the pass starts");
        let failure = loop {
            match run.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break Failure::from(error),
                None => panic!("{sql} did not fail"),
            }
        };
        assert_eq!(failure.class, Class::Permanent);
        assert!(
            failure
                .message
                .starts_with("load l: its SQL failed on the rows of this chunk: "),
            "{failure}"
        );
        assert!(failure.message.contains(part), "{failure}");
    }
}

#[tokio::test]
async fn a_rule_that_overflows_fails_and_what_fits_is_computed() {
    let wrong = compiled("  s:\n    from: raw\n    reject:\n      big: id * 1000000000::int > 5\n");
    let pass_of_wrong = pass(&wrong, lookup_batches(&wrong)).await;
    let mut run_of_wrong = pass_of_wrong
        .run(&LoadName::from("l"), segment(&wrong, 1..20, 20))
        .await
        .expect("the pass starts");
    let mut failed = false;
    while let Some(batch) = run_of_wrong.next().await {
        failed |= batch.is_err_and(|error| error.to_string().contains("overflow"));
    }
    assert!(failed, "the rule judged numbers that wrapped round");

    let compiled = one(
        "SELECT id, id - 5 AS minus, -id AS negated, id::smallint * 1638::smallint AS times, id * NULL AS nothing, \
         CASE WHEN id < 3 THEN id * 700000000::int ELSE 0 END AS guarded FROM raw",
    );
    let pass = pass(&compiled, lookup_batches(&compiled)).await;
    let outcome = run(&pass, segment(&compiled, 1..20, 20)).await;
    assert_eq!(outcome.rows.len(), 19);
    assert!(
        outcome.rows.contains(&"2|-3|-2|3276||1400000000".to_owned()),
        "{:?}",
        outcome.rows
    );
}

#[tokio::test]
async fn a_lookup_too_large_for_the_node_is_said_to_be() {
    let compiled = one("SELECT r.id, a.name FROM raw r JOIN airlines a ON a.carrier = r.carrier");
    let mut lookups = lookup_batches(&compiled);
    let codes: Vec<String> = (0..20_000).map(|n| format!("carrier-{n}")).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(codes.clone())),
        Arc::new(StringArray::from(codes)),
    ];
    let schema = source_schema(&compiled.columns["airlines"]);
    lookups.insert(
        "airlines".into(),
        vec![RecordBatch::try_new(schema, columns).expect("the columns of airlines")],
    );
    let memory: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(64 << 10));
    let pass = StagePass::new(&compiled, StageId(0), Arc::new(lookups), STARTED, memory, None)
        .await
        .expect("planned");
    let mut run = pass
        .run(&LoadName::from("l"), segment(&compiled, 0..9, 9))
        .await
        .expect("the pass starts");
    let failure = Failure::from(run.next().await.expect("an answer").expect_err("too large"));
    assert_eq!(failure.class, Class::Permanent);
    assert!(
        failure.message.contains("give the node a larger memory budget"),
        "{failure}"
    );
}

#[tokio::test]
async fn now_is_one_moment_in_all_of_a_run() {
    let compiled = compiled(
        "  v: {from: raw, reject: {past: \"now() < to_timestamp_millis(1700000000000)\"}}\n  s: SELECT id, CAST(now() AS text) AS t, current_date AS d FROM v",
    );
    let pass = pass(&compiled, lookup_batches(&compiled)).await;
    let outcome = run(&pass, segment(&compiled, 1..3, 9)).await;
    assert_eq!(outcome.rejects, Vec::<String>::new());
    for (row, id) in outcome.rows.iter().zip(1..) {
        assert!(
            row.starts_with(&format!("{id}|2023-11-14T22:13:20")) && row.ends_with("|2023-11-14"),
            "{row}"
        );
    }
}

#[tokio::test]
async fn texts_are_plain_whatever_the_sql_makes_of_them() {
    let compiled =
        one("SELECT id, arrow_cast(carrier, 'Utf8View') AS v, arrow_cast(tailnum, 'LargeUtf8') AS l FROM raw");
    let pass = pass(&compiled, lookup_batches(&compiled)).await;
    let schema = pass.schema(&LoadName::from("l")).expect("a load");
    assert_eq!(schema.field(1).data_type(), &DataType::Utf8);
    assert_eq!(schema.field(2).data_type(), &DataType::Utf8);
    assert_eq!(run(&pass, segment(&compiled, 0..4, 9)).await.rows[1], "1|UA|N1");
}

#[tokio::test]
async fn what_does_not_belong_is_refused() {
    let compiled = one("SELECT id FROM raw");
    let pass = pass(&compiled, lookup_batches(&compiled)).await;
    let error = |result: Result<PassRun, Failure>| result.err().map(|failure| failure.message).unwrap_or_default();
    assert!(error(pass.run(&LoadName::from("x"), Vec::new()).await).contains("not fed by this stage"));
    let wrong = RecordBatch::try_from_iter([("id", flights(0..1)[0].clone())]).expect("a batch");
    assert!(error(pass.run(&LoadName::from("l"), vec![wrong]).await).contains("1 columns where the plan has 6"));
    let empty = run(&pass, Vec::new()).await;
    assert_eq!((empty.rows.len(), empty.counts), (0, LoadCounts::default()));
    let none = StagePass::new(
        &compiled,
        StageId(7),
        Arc::default(),
        STARTED,
        Arc::new(UnboundedMemoryPool::default()),
        None,
    );
    assert!(
        none.await
            .err()
            .expect("no such stage")
            .message
            .contains("has no stage 7")
    );
    let mut tally = RowTally::new(1);
    let beyond = segment(&compiled, 0..2, 2).remove(0);
    assert!(tally.add(&beyond).is_err());
}
