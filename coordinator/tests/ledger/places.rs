//! Opening: made once however many open it, found again after a restart, only looked at when only reading was asked.

use std::time::Duration;

use haulage_coordinator::ledger::{self, Error};
use haulage_core::event::Outcome;
use haulage_core::ids::Epoch;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Executor as _};
use tokio::time::timeout;

use crate::support::{NOW, Place, append, claim, event, finish, log, start, submission};

crate::over_both!(
    a_restart_sees_everything,
    many_open_a_new_ledger_at_once,
    a_reader_reads_and_changes_nothing,
    reading_makes_no_ledger,
    a_newer_schema_is_refused,
);

async fn a_restart_sees_everything(place: Place) {
    let run = {
        let (ledger, other, epoch) = place.lead().await;
        let run = start(&*ledger, epoch, 1).await;
        let done = start(&*ledger, epoch, 2).await;
        finish(&*ledger, epoch, &done, Outcome::Published).await;
        other
            .append(epoch, &[append(&run, 1, vec![event(1)])])
            .await
            .expect("an answer");
        run
    };
    let ledger = place.open().await;
    assert_eq!(ledger.epoch().await.expect("an epoch"), Epoch(1));
    assert_eq!(ledger.open_runs().await.expect("open runs"), std::slice::from_ref(&run));
    assert_eq!(log(&*ledger, &run).await.len(), 2);
    assert_eq!(claim(&*ledger, "after the restart").await.expect("an epoch"), Epoch(2));
    let attached = ledger
        .submit(Epoch(2), &submission(1), false, NOW)
        .await
        .expect("a run");
    assert_eq!(
        (attached.run, attached.disposition),
        (run, ledger::Disposition::Attached)
    );
}

async fn many_open_a_new_ledger_at_once(place: Place) {
    let mut openers = Vec::new();
    for _ in 0..8 {
        let url = place.url();
        openers.push(tokio::spawn(async move { ledger::open(&url).await.map(drop) }));
    }
    for opener in openers {
        opener.await.expect("an opener that ends").expect("a ledger");
    }
    let (ledger, _, epoch) = place.lead().await;
    start(&*ledger, epoch, 1).await;
}

/// To make a file a WAL one, SQLite needs it alone; whoever opens a ledger waits for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_somebody_reads_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = SqliteConnectOptions::new()
        .filename(folder.path().join("ledger.db"))
        .create_if_missing(true);
    let mut reading = file.connect().await.expect("a connection");
    reading
        .execute("CREATE TABLE theirs (a); BEGIN; SELECT * FROM theirs")
        .await
        .expect("a read that goes on");

    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    let mut opening = tokio::spawn(async move { ledger::open(&url).await.map(drop) });
    let early = timeout(Duration::from_millis(500), &mut opening).await;
    assert!(early.is_err(), "it has to wait, and not to give up: {early:?}");
    reading.execute("COMMIT").await.expect("the end of the read");
    opening.await.expect("an opener that ends").expect("a ledger");
}

async fn a_reader_reads_and_changes_nothing(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    let reader = place.open_read_only().await;
    assert_eq!(reader.epoch().await.expect("an epoch"), epoch);
    assert_eq!(log(&*reader, &run).await.len(), 1);
    assert_eq!(reader.open_runs().await.expect("open runs"), std::slice::from_ref(&run));
    assert_eq!(reader.list(None, 10).await.expect("a list").len(), 1);
    ledger
        .append(epoch, &[append(&run, 1, vec![event(1)])])
        .await
        .expect("an answer");
    assert_eq!(log(&*reader, &run).await.len(), 2);

    assert!(matches!(claim(&*reader, "reader").await, Err(Error::Database(_))));
    assert!(matches!(
        reader.submit(epoch, &submission(2), false, NOW).await,
        Err(Error::Database(_))
    ));
    assert!(matches!(
        reader.append(epoch, &[append(&run, 2, vec![event(1)])]).await,
        Err(Error::Database(_))
    ));
    assert_eq!(ledger.epoch().await.expect("an epoch"), epoch);
    assert_eq!(log(&*ledger, &run).await.len(), 2);
}

async fn reading_makes_no_ledger(place: Place) {
    for _ in 0..2 {
        let absent = ledger::open_read_only(&place.url()).await.err();
        assert!(matches!(absent, Some(Error::Absent { .. })), "{absent:?}");
    }
    if let Place::Sqlite { folder } = &place {
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }
}

async fn a_newer_schema_is_refused(place: Place) {
    drop(place.open().await);
    let migrations = place.table("_sqlx_migrations");
    place
        .execute(format!(
            "INSERT INTO {migrations} (version, description, success, checksum, execution_time)
             VALUES (9999, 'of a later release', true, '', 0)"
        ))
        .await;
    for refused in [
        ledger::open(&place.url()).await.err(),
        ledger::open_read_only(&place.url()).await.err(),
    ] {
        let Some(error @ Error::Schema { found: 9999, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert!(error.to_string().contains("run the release that wrote it"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_opened_says_where() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "this is not a database, and long enough to be sure of that").expect("a file");
    let not_a_ledger = ledger::open(&format!("sqlite:{}", file.display()))
        .await
        .err()
        .expect("refused")
        .to_string();
    assert!(not_a_ledger.contains(&file.display().to_string()), "{not_a_ledger}");
    let no_folder = ledger::open(&format!("sqlite:{}/ledger.db", file.display()))
        .await
        .err()
        .expect("refused");
    assert!(matches!(no_folder, Error::Folder { .. }), "{no_folder:?}");

    let nobody = ledger::open("postgres://someone:hush@127.0.0.1:1/books")
        .await
        .err()
        .expect("refused");
    assert!(nobody.is_transient(), "{nobody:?}");
    let text = format!("{nobody} {nobody:?}");
    assert!(
        text.contains("127.0.0.1:1, database books") && !text.contains("hush"),
        "{text}"
    );
}
