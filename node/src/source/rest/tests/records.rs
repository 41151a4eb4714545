//! Records that are not what was declared, or hold what nobody may see.

use haulage_core::failure::Class;
use haulage_plan::contract::{Contract, MissingColumn, NewColumn};

use super::*;
use crate::source::testing::segments;

#[tokio::test]
async fn a_byte_that_is_no_text_costs_its_record_alone() {
    let body =
        b"{\"data\": {\"items\": [{\"id\": 1, \"word\": \"a\"}, {\"id\": 2, \"word\": \"M\xfcller\"}, {\"id\": 3}]}}";
    let server = Http::start(move |_, _| Answer::new(200, *body)).await.unwrap();
    let source = source(declared(&server), 10);
    source.check().await.unwrap();
    let all = segments(&*source, &spec(), spec().start).await.unwrap();
    let read = rows(&all[0]);
    assert!(read[0].2.is_ok() && read[2].2.is_ok(), "{read:?}");
    assert_eq!(read[1].2, Err((None, "bad_utf8")));
    assert_eq!(
        read[1].1, b"{\"id\": 2, \"word\": \"M\xfcller\"}",
        "it is kept as it came"
    );
    assert!(all[0].raw.is_whole(1));
}

#[tokio::test]
async fn columns_are_held_against_the_first_page() {
    let server = Http::start(|_, _| {
        page(
            &[json!({"id": 1, "wort": "x"}), json!({"id": 2, "wort": "y", "x": 1})],
            Value::Null,
        )
    })
    .await
    .unwrap();
    let missing = source(declared(&server), 10);
    let wrong = missing.check().await.unwrap_err();
    assert_eq!(
        (wrong.failure.class, wrong.column.as_deref()),
        (Class::Permanent, Some("word"))
    );
    for part in [
        "\"word\" is a key of none",
        "did you mean \"wort\"?",
        "`on_missing_column: null`",
    ] {
        assert!(wrong.failure.message.contains(part), "{wrong}");
    }
    assert!(missing.discover(StageId(0)).await.is_err());
    let with = |on_new_column| Contract {
        on_new_column,
        on_missing_column: Some(MissingColumn::Null),
        ..Contract::default()
    };
    let read = async |contract| {
        let source = under(declared(&server), 10, contract);
        source.discover(StageId(0)).await?;
        let all = segments(&*source, &spec(), spec().start).await?;
        let drift = source
            .drift()
            .await?
            .into_iter()
            .map(|drift| (drift.column, drift.change));
        let names = source.columns().await?.into_iter().map(|column| column.name);
        let values = flat(&all).into_iter().map(|(_, _, read)| read).collect::<Vec<_>>();
        Ok::<_, Failure>((values, names.collect::<Vec<_>>(), drift.collect::<Vec<_>>()))
    };
    let drift = |new: &'static str| -> Vec<(String, &'static str)> {
        let all = [("wort", new), ("x", new), ("word", "missing")];
        all.map(|(column, change)| (column.to_owned(), change)).to_vec()
    };
    let (values, _, found) = read(with(NewColumn::Ignore)).await.unwrap();
    assert_eq!(
        values,
        [Ok(vec!["1".into(), String::new()]), Ok(vec!["2".into(), String::new()])]
    );
    assert_eq!(found, drift("ignored"));
    let (values, _, found) = read(with(NewColumn::Quarantine)).await.unwrap();
    let new = Err((Some("wort".to_owned()), "new_column"));
    assert_eq!((values, found), (vec![new.clone(), new], drift("quarantined")));
    let (values, names, found) = read(with(NewColumn::Add)).await.unwrap();
    let row = |values: [&str; 4]| Ok(values.map(str::to_owned).to_vec());
    assert_eq!(values, [row(["1", "", "x", ""]), row(["2", "", "y", "1"])]);
    assert_eq!(names, ["id", "word", "wort", "x"]);
    assert_eq!(found, drift("added"));
    let failure = read(with(NewColumn::Fail)).await.unwrap_err();
    assert!(failure.message.contains("has the columns \"wort\", \"x\""), "{failure}");
}

#[tokio::test]
async fn a_row_that_was_blotted_is_not_whole() {
    // The secret as some writers of JSON spell it: hunter2+/ =
    let spelled = [
        "hunter2+\\/ =",
        "hunter2%2b%2F%20%3d",
        "hunter2\\u002b/ =",
        "aHVudGVyMisvID0",
        "hunter2+/ =",
    ];
    let items: Vec<String> = spelled
        .iter()
        .map(|word| format!("{{\"id\": 1, \"word\": \"{word}\"}}"))
        .chain([
            "{\"id\": 2, \"word\": \"hunter\"}".to_owned(),
            "{\"id\": \"hunter2+/ =\"}".to_owned(),
        ])
        .collect();
    let body = format!("{{\"data\": {{\"items\": [{}]}}}}", items.join(","));
    let server = Http::start(move |_, _| Answer::new(200, body.clone())).await.unwrap();
    let mut rest = declared(&server);
    rest.auth = Some(haulage_plan::definition::RestAuth::Bearer(key()));
    let source = source(rest, 10);
    let all = segments(&*source, &spec(), spec().start).await.unwrap();
    let raw = &all[0].raw;
    for row in 0..7 {
        let (_, text) = raw.row(row).unwrap();
        let text = String::from_utf8_lossy(text);
        assert_eq!(raw.is_whole(row), row == 5, "{text}");
        assert_eq!(text.contains("***"), row != 5, "{text}");
    }
    // What is loaded is what came.
    let read = rows(&all[0]);
    assert_eq!(read[0].2, Ok(vec!["1".into(), SECRET.into()]));
    assert!(all[0].unreadable[0].detail.contains("***"), "{:?}", all[0].unreadable);
}
