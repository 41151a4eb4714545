//! Files that have other columns than their source declares, under each contract.

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::StageId;
use haulage_node::source::Source;
use haulage_plan::contract::{Contract, MissingColumn, NewColumn};
use haulage_plan::definition::Column;

use crate::kinds::{self, Kind};
use crate::place::Place;
use crate::records;

/// How many rows have values, the reasons of the others, and how many values the column at a place has.
async fn read(source: &dyn Source, place: usize) -> Result<(usize, Vec<&'static str>, usize), Failure> {
    let (mut rows, mut reasons, mut values) = (0, Vec::new(), 0);
    for chunk in source.discover(StageId(0)).await? {
        let mut reader = source.open(&chunk, chunk.start).await?;
        while let Some(segment) = reader.next().await? {
            let in_batches: usize = segment.batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(segment.rows as usize, in_batches + segment.unreadable.len());
            assert!(segment.unreadable.is_sorted_by(|one, other| one.row < other.row));
            rows += in_batches;
            reasons.extend(segment.unreadable.iter().map(|row| row.reason));
            for batch in &segment.batches {
                let column = batch.column(place);
                values += column.len() - column.null_count();
            }
        }
    }
    Ok((rows, reasons, values))
}

fn contract(on_new_column: NewColumn, on_missing_column: Option<MissingColumn>) -> Contract {
    Contract {
        on_new_column,
        on_missing_column,
        ..Contract::default()
    }
}

fn gone(required: bool) -> Column {
    Column {
        name: "gone".to_owned(),
        data_type: DataType::Int32,
        required,
    }
}

pub(crate) async fn columns_are_held_to_the_contract(kind: &Kind, place: &Place) {
    // All but `word`, which the file has, and `more` besides where its kind has that.
    let declared: Vec<Column> = kinds::columns()
        .into_iter()
        .filter(|column| column.name != "word")
        .collect();
    let name = format!("a.{}", kind.ending);
    let mut all = records(0, 1_200);
    all.retain(|record| record.id.is_some());
    place.write(&name, &(kind.file)(&all));
    let source = |columns: &[Column], contract| place.under(kind, &name, columns.to_vec(), contract, None);
    let by_row = kind.ending.starts_with("jsonl");
    let rows = all.len();
    let words = all.iter().filter(|record| record.word.is_some()).count();

    let ignoring = source(&declared, contract(NewColumn::Ignore, None));
    assert_eq!(read(&*ignoring, 0).await.unwrap(), (rows, vec![], rows));
    let drift = ignoring.drift().await.unwrap();
    assert!(
        drift
            .iter()
            .any(|drift| drift.column == "word" && drift.change == "ignored"),
        "{drift:?}"
    );

    let failing = source(&declared, contract(NewColumn::Fail, None));
    for failure in [
        failing.check().await.unwrap_err().failure,
        failing.discover(StageId(0)).await.unwrap_err(),
    ] {
        assert_eq!(failure.class, Class::Permanent);
        for part in [name.as_str(), "\"word\"", "on_new_column: add"] {
            assert!(failure.message.contains(part), "{part} is not in {failure}");
        }
    }

    let aside = source(&declared, contract(NewColumn::Quarantine, None));
    assert_eq!(read(&*aside, 0).await.unwrap(), (0, vec!["new_column"; rows], 0));

    let adding = source(&declared, contract(NewColumn::Add, None));
    if kind.ending == "parquet" {
        let failure = adding.columns().await.unwrap_err();
        assert!(failure.message.contains("\"more\" is a list"), "{failure}");
    } else {
        let columns = adding.columns().await.unwrap();
        let at = columns.iter().position(|column| column.name == "word").unwrap();
        assert!(at >= declared.len() && columns[at].data_type == DataType::Utf8 && !columns[at].required);
        assert_eq!(read(&*adding, at).await.unwrap(), (rows, vec![], words));
        assert!(
            adding
                .drift()
                .await
                .unwrap()
                .iter()
                .any(|drift| drift.column == "word" && drift.change == "added")
        );
    }
    // Another node takes the columns that the run was planned with, also one that this file lacks.
    let mut planned = kinds::columns();
    planned.push(gone(false));
    if by_row {
        planned.push(Column {
            name: "more".to_owned(),
            data_type: DataType::Utf8,
            required: false,
        });
    }
    let add = contract(NewColumn::Add, None);
    let elsewhere = place.under(kind, &name, declared.clone(), add, Some(planned.clone()));
    assert_eq!(elsewhere.columns().await.unwrap(), planned);
    // `more` is in the file and was not when the run was planned: its rows are not lost.
    let expected = if kind.ending == "parquet" {
        (0, vec!["new_column"; rows], 0)
    } else {
        (rows, vec![], words)
    };
    assert_eq!(read(&*elsewhere, 1).await.unwrap(), expected);

    let with = |required| [kinds::columns(), vec![gone(required)]].concat();
    let null = contract(NewColumn::Ignore, Some(MissingColumn::Null));
    let lacking = source(&with(false), null);
    assert_eq!(read(&*lacking, 4).await.unwrap(), (rows, vec![], 0));
    assert_eq!(read(&*lacking, 1).await.unwrap(), (rows, vec![], words));
    let lookup = lacking.read_all().await.unwrap();
    assert_eq!(lookup.iter().map(RecordBatch::num_rows).sum::<usize>(), rows);
    assert!(
        lookup
            .iter()
            .all(|batch| batch.column(4).null_count() == batch.num_rows())
    );
    let drift = lacking.drift().await.unwrap();
    assert!(
        drift
            .iter()
            .any(|drift| drift.column == "gone" && drift.change == "missing"),
        "{drift:?}"
    );
    let needing = read(&*source(&with(true), null), 0).await;
    let failing = read(
        &*source(&with(false), contract(NewColumn::Ignore, Some(MissingColumn::Fail))),
        0,
    )
    .await;
    match needing {
        Ok(read) => assert_eq!((by_row, read), (true, (0, vec!["null_in_required"; rows], 0))),
        Err(failure) => assert!(!by_row && failure.message.contains("no column gone"), "{failure}"),
    }
    let failure = failing.unwrap_err();
    assert!(
        failure.message.contains("gone") && failure.message.contains("on_missing_column: null"),
        "{failure}"
    );
    let nothing = source(&[gone(false)], null);
    if !by_row {
        let failure = nothing.discover(StageId(0)).await.unwrap_err();
        assert!(failure.message.contains("none of the declared columns"), "{failure}");
    }
}
