//! Source and checkpoint store against a server that speaks the S3 protocol.
//!
//! Each test runs itself again in a process of its own, because credentials come from the environment and from nowhere
//! else, and a developer's own must not leak in.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use haulage_core::checkpoint::ChunkSpec;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::StageId;
use haulage_node::source::{Binding, Source, bind};
use haulage_node::store::{self, S3Settings};
use haulage_plan::definition::{Compression, CsvSource, Source as Declared, SourceKind};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

#[path = "support/s3.rs"]
mod support;

use support::{ACCESS_KEY, S3Server, SECRET_KEY};

/// Runs the test `name` in a process with these credentials. True in that process; false, after it succeeded, outside.
fn is_inside(name: &str, secret: &str) -> bool {
    const INSIDE: &str = "HAULAGE_S3_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(key);
    }
    let nothing = if cfg!(windows) { "NUL" } else { "/dev/null" };
    command.envs([("AWS_CONFIG_FILE", nothing), ("AWS_SHARED_CREDENTIALS_FILE", nothing)]);
    command.envs([
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", secret),
        (INSIDE, "1"),
    ]);
    let output = command.output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert!(!said.contains(SECRET_KEY), "a secret was printed: {said}");
    false
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

fn settings(address: &str) -> S3Settings {
    S3Settings {
        endpoint: Some(format!("http://{address}")),
        path_style: true,
    }
}

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
        place: Default::default(),
    };
    bind(
        &declared(csv),
        Binding {
            base: base.to_owned(),
            s3: s3.clone(),
            checkpoint_rows: 1000,
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
        let server = S3Server::start(&["checkpoints"]).await;
        let s3 = settings(server.address());
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
        let part = format!("s3://none/haulage/a does not exist at http://{}", server.address());
        assert!(missing.message.contains(&part), "{missing}");
    });
}

#[test]
fn a_source_lists_cuts_and_reads_objects() {
    if !is_inside("a_source_lists_cuts_and_reads_objects", SECRET_KEY) {
        return;
    }
    run(async {
        let server = S3Server::start(&["data"]).await;
        let folder = server.folder("data").join("in");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        let (text, expected) = table(20_000);
        std::fs::write(folder.join("b.csv"), &text).unwrap();
        std::fs::write(folder.join("a.csv.zst"), zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
        std::fs::write(folder.join("sub/c.csv"), "n,t\n").unwrap();
        let s3 = settings(server.address());

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
        let server = S3Server::start(&["data"]).await;
        let s3 = settings(server.address());
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
        let server = S3Server::start(&["data"]).await;
        for path in ["s3://data/a.csv", "s3://data/*.csv"] {
            let failure = source(path, "/nowhere", &settings(server.address()))
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
        // Bound and dropped again: nobody listens there.
        let address = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let store = store::open("s3://checkpoints/x", &settings(&address)).await.unwrap();
        let failure = store.get("a").await.unwrap_err();
        assert_eq!(failure.class, Class::Transient);
        assert!(
            failure.message.contains(&format!("http://{address} can't be reached")),
            "{failure}"
        );
    });
}

/// Passes connections on to `server`, and cuts each after `most` bytes of answers.
async fn cutting_proxy(server: String, most: u64) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cuts);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (server, cuts) = (server.clone(), Arc::clone(&counted));
            tokio::spawn(async move {
                let Ok(upstream) = TcpStream::connect(server).await else {
                    return;
                };
                let (mut from_client, mut to_client) = client.into_split();
                let (from_server, mut to_server) = upstream.into_split();
                let asks = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let answered = tokio::io::copy(&mut from_server.take(most), &mut to_client).await;
                if answered.is_ok_and(|bytes| bytes == most) {
                    cuts.fetch_add(1, Ordering::Relaxed);
                }
                asks.abort();
            });
        }
    });
    (address, cuts)
}

#[test]
fn a_reading_goes_on_where_the_connection_was_cut() {
    if !is_inside("a_reading_goes_on_where_the_connection_was_cut", SECRET_KEY) {
        return;
    }
    run(async {
        let server = S3Server::start(&["data"]).await;
        let (text, expected) = table(30_000);
        std::fs::write(server.folder("data").join("a.csv"), &text).unwrap();
        let (proxy, cuts) = cutting_proxy(server.address().to_owned(), 150_000).await;
        let found = source("s3://data/a.csv", "/nowhere", &settings(&proxy));
        assert_eq!(all_rows(&*found).await.unwrap(), expected);
        assert!(cuts.load(Ordering::Relaxed) > 5, "{cuts:?}");
    });
}
