//! Source and checkpoint store against a server that speaks the S3 protocol.
//!
//! Each test runs itself again in a process of its own, see [`inside`].

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

#[path = "support/inside.rs"]
mod inside;

use bytes::Bytes;
use haulage_core::checkpoint::ChunkSpec;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::StageId;
use haulage_node::source::{Binding, Source, bind};
use haulage_node::store::{self, S3Settings, Store};
use haulage_plan::definition::{Compression, CsvSource, Source as Declared, SourceKind};
use haulage_test_support::free_port;
use haulage_test_support::proxy::Proxy;
use haulage_test_support::s3::{ACCESS_KEY, S3, SECRET_KEY};

use self::inside::{is_inside, run, settings};

fn source(path: &str, base: &str, s3: &S3Settings) -> Box<dyn Source> {
    let csv = CsvSource {
        path: path.to_owned(),
        columns: Vec::new(),
        null: Vec::new(),
        delimiter: b',',
        quote: b'"',
        header: true,
        compression: Compression::Auto,
        chunk_bytes: 200_000,
        quoted_newlines: true,
    };
    let declared = |csv| Declared {
        name: "raw".to_owned(),
        lookup: false,
        kind: SourceKind::Csv(csv),
        contract: Default::default(),
        partitions: Vec::new(),
        planned: None,
        place: Default::default(),
    };
    bind(
        &declared(csv),
        Binding {
            base: base.to_owned(),
            s3: s3.clone(),
            checkpoint_rows: 1000,
            databases: Default::default(),
        },
    )
    .unwrap()
}

/// The texts of all rows of a chunk, each with its line.
async fn rows(source: &dyn Source, chunk: &ChunkSpec) -> Result<Vec<(u64, String)>, Failure> {
    let mut reader = source.open(chunk, chunk.start).await?;
    let mut rows = Vec::new();
    while let Some(segment) = reader.next().await? {
        for row in 0..segment.rows {
            let (line, text) = segment.raw.row(row).unwrap();
            rows.push((line, String::from_utf8(text.to_vec()).unwrap()));
        }
    }
    Ok(rows)
}

async fn all_rows(source: &dyn Source) -> Result<Vec<(u64, String)>, Failure> {
    let mut all = Vec::new();
    for chunk in source.discover(StageId(0)).await? {
        all.extend(rows(source, &chunk).await?);
    }
    Ok(all)
}

fn table(rows: u64) -> (String, Vec<(u64, String)>) {
    let rows: Vec<_> = (0..rows)
        .map(|row| (row + 2, format!("{row},some text that makes the row longer {row}")))
        .collect();
    let lines: String = rows.iter().map(|(_, text)| format!("{text}\n")).collect();
    (format!("n,t\n{lines}"), rows)
}

#[test]
fn the_store_keeps_objects_below_its_prefix() {
    if !is_inside("the_store_keeps_objects_below_its_prefix", SECRET_KEY) {
        return;
    }
    run(async {
        let server = S3::start(&["checkpoints"]).await.unwrap();
        let s3 = settings(&server.endpoint());
        let store = store::open("s3://checkpoints/haulage/", &s3).await.unwrap();
        store.put("runs/r/s0.json", Bytes::from_static(b"first")).await.unwrap();
        store
            .put("runs/r/s0.json", Bytes::from_static(b"second"))
            .await
            .unwrap();
        assert_eq!(
            store.get("runs/r/s0.json").await.unwrap(),
            Bytes::from_static(b"second")
        );
        assert_eq!(
            std::fs::read(server.folder("checkpoints").join("haulage/runs/r/s0.json")).unwrap(),
            b"second"
        );

        let missing = store.get("runs/r/s1.json").await.unwrap_err();
        assert_eq!(missing.class, Class::Permanent);
        assert!(
            missing
                .message
                .contains("s3://checkpoints/haulage/runs/r/s1.json does not exist"),
            "{missing}"
        );
        let nowhere = store::open("s3://none/haulage", &s3).await.unwrap();
        let missing = nowhere.get("a").await.unwrap_err();
        assert_eq!(missing.class, Class::Permanent);
        let part = format!("s3://none/haulage/a does not exist at {}", server.endpoint());
        assert!(missing.message.contains(&part), "{missing}");
    });
}

/// Runs are found in the order of their keys, by one after the other, and what is deleted is one of them alone.
async fn runs_are_listed_and_deleted(store: &dyn Store) {
    assert!(store.runs("").await.unwrap().is_empty());
    assert!(store.list("runs/p-1", "").await.unwrap().is_empty());
    for key in ["p-1-2/a1/s0", "p-1/a1/s0", "p-1/a1/s1", "p-1/b", "p-10/a1/s0"] {
        let key = format!("runs/{key}");
        store.put(&key, Bytes::from_static(b"four")).await.unwrap();
    }
    // As keys sort: `-` comes before `/`, and `0` after it.
    assert_eq!(store.runs("").await.unwrap(), ["p-1-2", "p-1", "p-10"]);
    assert_eq!(store.runs("p-1").await.unwrap(), ["p-10"]);
    assert!(store.runs("p-10").await.unwrap().is_empty());
    let all = store.list("runs/p-1", "").await.unwrap();
    let keys: Vec<_> = all.iter().map(|(key, bytes)| (key.as_str(), *bytes)).collect();
    assert_eq!(keys, [("runs/p-1/a1/s0", 4), ("runs/p-1/a1/s1", 4), ("runs/p-1/b", 4)]);
    let rest = store.list("runs/p-1", "runs/p-1/a1/s0").await.unwrap();
    assert_eq!(rest.len(), 2, "{rest:?}");
    for (key, _) in all {
        store.delete(&key).await.unwrap();
        store.delete(&key).await.unwrap();
    }
    assert_eq!(store.runs("").await.unwrap(), ["p-1-2", "p-10"]);
    assert!(store.get("runs/p-10/a1/s0").await.is_ok() && store.get("runs/p-1/b").await.is_err());
    assert!(store.delete("../outside").await.is_err() && store.list("..", "").await.is_err());
}

#[test]
fn what_runs_have_left_is_found_and_deleted() {
    if !is_inside("what_runs_have_left_is_found_and_deleted", SECRET_KEY) {
        return;
    }
    run(async {
        let server = S3::start(&["checkpoints"]).await.unwrap();
        let s3 = settings(&server.endpoint());
        let store = store::open("s3://checkpoints/haulage/", &s3).await.unwrap();
        runs_are_listed_and_deleted(store.as_ref()).await;
        let folder = tempfile::tempdir().unwrap();
        let store = store::open(folder.path().to_str().unwrap(), &s3).await.unwrap();
        runs_are_listed_and_deleted(store.as_ref()).await;
    });
}

#[test]
fn a_source_lists_cuts_and_reads_objects() {
    if !is_inside("a_source_lists_cuts_and_reads_objects", SECRET_KEY) {
        return;
    }
    run(async {
        let server = S3::start(&["data"]).await.unwrap();
        let folder = server.folder("data").join("in");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        let (text, expected) = table(20_000);
        std::fs::write(folder.join("b.csv"), &text).unwrap();
        std::fs::write(folder.join("a.csv.zst"), zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
        std::fs::write(folder.join("sub/c.csv"), "n,t\n").unwrap();
        let s3 = settings(&server.endpoint());

        let found = source("*.csv*", "s3://data/in", &s3);
        let chunks = found.discover(StageId(0)).await.unwrap();
        let objects: Vec<_> = chunks.iter().map(|chunk| chunk.object.as_str()).collect();
        assert_eq!(objects[0], "s3://data/in/a.csv.zst");
        assert!(
            objects.len() > 4 && objects[1..].iter().all(|object| *object == "s3://data/in/b.csv"),
            "{objects:?}"
        );
        assert_eq!(all_rows(&*found).await.unwrap(), [expected.clone(), expected].concat());
        let deep = source("s3://data/**/c.csv", "/nowhere", &s3)
            .discover(StageId(0))
            .await
            .unwrap();
        assert_eq!(deep.len(), 1);

        // More than one page of a listing, which is 1000 objects.
        std::fs::create_dir(server.folder("data").join("many")).unwrap();
        for number in 0..1200 {
            let name = server.folder("data").join(format!("many/f-{number:04}.csv"));
            std::fs::write(name, format!("n,t\n{number},x\n")).unwrap();
        }
        let many = all_rows(&*source("many/f-*99.csv", "s3://data", &s3)).await.unwrap();
        let numbers: Vec<_> = many
            .iter()
            .map(|(_, text)| text.trim_end_matches(",x").parse::<u32>().unwrap())
            .collect();
        assert_eq!(numbers, (0..12).map(|hundred| hundred * 100 + 99).collect::<Vec<_>>());
    });
}

#[test]
fn what_is_missing_or_changed_is_named() {
    if !is_inside("what_is_missing_or_changed_is_named", SECRET_KEY) {
        return;
    }
    run(async {
        let server = S3::start(&["data"]).await.unwrap();
        let s3 = settings(&server.endpoint());
        let object = server.folder("data").join("a.csv");
        std::fs::write(&object, "n,t\n1,x\n").unwrap();
        for (path, part) in [
            ("s3://data/none.csv", "s3://data/none.csv does not exist"),
            ("s3://data/none-*.csv", "no object matches s3://data/none-*.csv"),
            ("s3://none/*.csv", "bucket none does not exist"),
            ("s3://none/a.csv", "s3://none/a.csv does not exist"),
            ("s3://data/", "names no object"),
            ("s3:///a.csv", "names no bucket"),
        ] {
            let failure = source(path, "/nowhere", &s3).discover(StageId(0)).await.unwrap_err();
            assert_eq!(failure.class, Class::Permanent, "{failure}");
            assert!(failure.message.contains(part), "{path}: {failure}");
        }

        let found = source("s3://data/a.csv", "/nowhere", &s3);
        let chunk = found.discover(StageId(0)).await.unwrap().remove(0);
        assert_eq!(rows(&*found, &chunk).await.unwrap(), [(2, "1,x".to_owned())]);
        std::fs::write(&object, "n,t\n2,x\n").unwrap();
        let failure = rows(&*found, &chunk).await.unwrap_err();
        assert_eq!(failure.class, Class::Permanent);
        assert!(
            failure
                .message
                .contains("s3://data/a.csv has changed since it was discovered"),
            "{failure}"
        );
    });
}

#[test]
fn wrong_credentials_are_named_and_not_shown() {
    if !is_inside("wrong_credentials_are_named_and_not_shown", "another-secret") {
        return;
    }
    run(async {
        let server = S3::start(&["data"]).await.unwrap();
        for path in ["s3://data/a.csv", "s3://data/*.csv"] {
            let failure = source(path, "/nowhere", &settings(&server.endpoint()))
                .discover(StageId(0))
                .await
                .unwrap_err();
            assert_eq!(failure.class, Class::Permanent, "{failure}");
            assert!(
                failure.message.contains("access denied") && failure.message.contains("credentials"),
                "{failure}"
            );
            assert!(
                !failure.message.contains("another-secret") && !failure.message.contains(ACCESS_KEY),
                "{failure}"
            );
        }
    });
}

#[test]
fn an_unreachable_server_may_come_back() {
    if !is_inside("an_unreachable_server_may_come_back", SECRET_KEY) {
        return;
    }
    run(async {
        let nobody = format!("http://127.0.0.1:{}", free_port().unwrap());
        let store = store::open("s3://checkpoints/x", &settings(&nobody)).await.unwrap();
        let failure = store.get("a").await.unwrap_err();
        assert_eq!(failure.class, Class::Transient);
        assert!(
            failure.message.contains(&format!("{nobody} can't be reached")),
            "{failure}"
        );
    });
}

#[test]
fn a_reading_goes_on_where_the_connection_was_cut() {
    if !is_inside("a_reading_goes_on_where_the_connection_was_cut", SECRET_KEY) {
        return;
    }
    run(async {
        let server = S3::start(&["data"]).await.unwrap();
        let (text, expected) = table(30_000);
        std::fs::write(server.folder("data").join("a.csv"), &text).unwrap();
        let proxy = Proxy::start(server.port()).await.unwrap();
        proxy.cut_answers_after(150_000);
        let through = settings(&format!("http://127.0.0.1:{}", proxy.port()));
        let found = source("s3://data/a.csv", "/nowhere", &through);
        assert_eq!(all_rows(&*found).await.unwrap(), expected);
        assert!(proxy.cuts() > 5, "{} answers were cut", proxy.cuts());
    });
}
