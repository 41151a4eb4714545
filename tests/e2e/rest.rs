//! From an HTTP API into a warehouse, through the binary: against a server that misbehaves, with nodes that die.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use haulage_test_support::http::{Answer, Ends, Http, Request};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgPool, SqliteConnection};

use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::postgres::Postgres;
use super::support::process::{PATIENCE, Verb, newest_rejects, newest_run};

/// What the API wants to hear, and nobody else may.
pub(super) const SECRET: &str = "s3same/open+up";
/// Records of the API, in pages of ten.
const RECORDS: u64 = 385;
const PAGE: u64 = 10;

/// A record; every 50th has no number.
fn record(id: u64) -> Value {
    let amount = if id % 50 == 7 { json!("none") } else { json!(id * 3) };
    json!({"id": id, "amount": amount, "at": "2013-01-01T05:00:00Z", "tags": ["a", id], "note": format!("note {id}")})
}

/// The rows that have to come of them.
fn readable() -> impl Iterator<Item = u64> {
    (0..RECORDS).filter(|id| id % 50 != 7)
}

fn number(request: &Request, name: &str) -> Option<u64> {
    request.query(name)?.parse().ok()
}

/// The first record that a request asks for, in any kind of pagination.
fn from(request: &Request) -> u64 {
    let page = number(request, "page").map(|page| (page - 1) * PAGE);
    let at = page
        .or_else(|| number(request, "after"))
        .or_else(|| number(request, "at"));
    at.or_else(|| number(request, "offset")).unwrap_or(0)
}

pub(super) fn page(request: &Request) -> Answer {
    let from = from(request).min(RECORDS);
    let to = RECORDS.min(from + PAGE);
    let items: Vec<Value> = (from..to).map(record).collect();
    let more = to < RECORDS;
    let next = match request.query("kind").as_deref() {
        Some("url") => json!(format!("{}?kind=url&at={to}", request.path())),
        _ => json!(to.to_string()),
    };
    let body = json!({"data": {"items": items}, "meta": {"next": if more { next } else { Value::Null }}});
    let answer = Answer::new(200, body.to_string());
    match more {
        true => answer.header("Link", format!("<{}?at={to}>; rel=\"next\"", request.path())),
        false => answer,
    }
}

/// Whether the request shows the secret in one of the ways that there are.
pub(super) fn is_allowed(request: &Request) -> bool {
    // me:s3same/open+up
    let basic = "Basic bWU6czNzYW1lL29wZW4rdXA=";
    let bearer = format!("Bearer {SECRET}");
    let sent = request.header("authorization");
    sent == Some(bearer.as_str()) || sent == Some(basic) || request.header("x-key") == Some(SECRET)
}

/// An API that answers every third request for the first time with a failure, each of another kind.
fn moody() -> impl Fn(&Request, usize) -> Answer + Send + Sync + 'static {
    let ill = AtomicUsize::new(0);
    let asked = Mutex::new(std::collections::HashSet::new());
    move |request, before| {
        if !is_allowed(request) {
            let sent = request.header("authorization").unwrap_or("nothing");
            return Answer::new(401, format!("who are you? you sent {sent}"));
        }
        let is_new = asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(request.target.clone());
        if !is_new || before % 3 != 1 {
            return page(request);
        }
        match ill.fetch_add(1, Ordering::SeqCst) % 5 {
            0 => Answer::new(500, format!("you sent {SECRET}")),
            1 => Answer::new(429, "slowly").header("Retry-After", "0"),
            2 => page(request).ends(Ends::CutAfter(100)),
            3 => page(request).ends(Ends::Closed),
            _ => Answer::new(200, "{\"data\": {\"items\": [{\"id\": 1, \"amo"),
        }
    }
}

const COLUMNS: &str = "columns: {id: bigint!, amount: int, at: timestamptz, tags: text, note: text}";

/// A pipeline with a source of every kind of pagination, and of auth.
fn every_kind(server: &Http) -> String {
    let url = server.address();
    let bearer = "auth: {bearer: \"secret://api\"}";
    let kinds = [
        ("by_cursor", bearer, "{cursor: meta.next, param: after}"),
        (
            "by_url",
            "auth: {header: X-Key, value: \"secret://api\"}",
            "{next: meta.next}",
        ),
        (
            "by_link",
            "auth: {basic: {user: me, password: \"secret://api\"}}",
            "{link: next}",
        ),
        ("by_page", bearer, "{page: page, size: size, page_size: 10}"),
        ("by_offset", bearer, "{offset: offset, limit: limit, page_size: 50}"),
    ];
    let mut text =
        "pipeline: api\ncheckpoint_rows: 35\nparams: {word: {type: text, default: \"a&b=c/d\"}}\nsources:\n".to_owned();
    for (name, auth, pagination) in kinds {
        let query = if name == "by_url" {
            "kind: url"
        } else {
            "word: \"{{ word }}\""
        };
        text += &format!(
            "  {name}: {{rest: \"{url}/{name}\", query: {{{query}}}, {auth}, records: data.items, pagination: {pagination}, \
             {COLUMNS}}}\n"
        );
    }
    text += &format!(
        "  all: {{rest: \"{url}/all\", query: {{at: 380}}, {bearer}, records: data.items, columns: {{id: bigint, note: \
         text}}, lookup: true}}\n"
    );
    text += "steps:\n  named: SELECT p.*, a.note AS other FROM by_page p LEFT JOIN all a ON a.id = p.id\nloads:\n";
    for (name, _, _) in kinds {
        let source = if name == "by_page" { "named" } else { name };
        text += &format!("  {name}: {{from: {source}, to: warehouse, table: {name}, mode: replace}}\n");
    }
    text
}

/// Fails if the secret stands in any file.
fn check_unwritten(folder: &Path) -> Result<()> {
    let mut files = vec![folder.to_owned()];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path)?.map(|entry| Ok(entry?.path()));
            files.extend(entries.collect::<Result<Vec<_>>>()?);
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let holds = [SECRET, "s3same", "bWU6czNzYW1l"]
            .iter()
            .any(|form| text.contains(form));
        ensure!(!holds, "the secret is in {}", path.display());
        seen += 1;
    }
    ensure!(seen > 0, "nothing was looked at");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_pagination_is_read_exactly_though_the_server_is_moody_and_a_chunk_crashes() -> Result<()> {
    let (folder, secrets) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let server = Http::start(moody()).await?;
    std::fs::write(folder.path().join("api.yaml"), every_kind(&server))?;
    std::fs::write(secrets.path().join("api"), format!("{SECRET}\n"))?;
    let run = Verb::new(folder.path())
        .args(["run", "api.yaml"])
        .env("HAULAGE_SECRETS_DIR", secrets.path())
        .env("HAULAGE_FAULT", "panic@chunk:2.0:segment:3")
        .env("RUST_LOG", "debug");
    let said = run.output().await?.success()?;
    ensure!(
        !said.stderr.contains("s3same") && !said.stdout.contains("s3same"),
        "{}",
        said.stderr
    );

    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join(".haulage/warehouse.db"));
    let mut warehouse: SqliteConnection = options.connect().await?;
    let expected: Vec<(i64, i64, String)> = readable()
        .map(|id| (id as i64, 3 * id as i64, format!("[\"a\",{id}] note {id}")))
        .collect();
    for table in ["by_cursor", "by_url", "by_link", "by_page", "by_offset"] {
        let sql = format!("SELECT id, amount, tags || ' ' || note FROM {table} ORDER BY id");
        let rows: Vec<(i64, i64, String)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut warehouse).await?;
        ensure!(rows == expected, "{table}: {} rows: {:?}", rows.len(), rows.last());
    }
    let named: Vec<i64> = sqlx::query_scalar("SELECT id FROM by_page WHERE other IS NOT NULL ORDER BY id")
        .fetch_all(&mut warehouse)
        .await?;
    ensure!(named == [380, 381, 382, 383, 384], "the lookup: {named:?}");
    let rerun = newest_run(folder.path()).await?;
    let shown = Verb::new(folder.path())
        .args(["show", &rerun, "--output", "json"])
        .output()
        .await?;
    let shown = shown.success()?.json()?;
    let counts = run_of(&shown);
    ensure!(counts["counts"]["read"] == 5 * RECORDS, "{counts}");
    ensure!(
        counts["restarts"].as_u64() > Some(0),
        "no chunk was restarted: {counts}"
    );
    let (_, rejects) = newest_rejects(folder.path()).await?;
    ensure!(
        rejects.len() as u64 == 5 * (RECORDS - readable().count() as u64),
        "{} rejects",
        rejects.len()
    );
    let first = rejects
        .iter()
        .find(|one| one["line"] == 8)
        .context("the eighth record")?;
    ensure!(
        first["reason"] == "bad_int"
            && first["raw"]
                .as_str()
                .is_some_and(|raw| raw.contains("\"amount\":\"none\"")),
        "{first}"
    );
    let words: Vec<_> = server
        .requests()
        .iter()
        .filter_map(|request| request.query("word"))
        .collect();
    ensure!(
        !words.is_empty() && words.iter().all(|word| word == "a&b=c/d"),
        "{words:?}"
    );
    check_unwritten(folder.path())
}

/// What a query says, in one text.
async fn told(pool: &PgPool, sql: &str) -> Result<String> {
    Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(pool)
        .await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_is_followed_by_one_that_goes_on_behind_the_last_page() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let warehouse = Postgres::start().await?;
    let server = Http::start(moody()).await?;
    let file = folder.path().join("api.yaml");
    std::fs::write(
        &file,
        format!(
            "pipeline: api\ncheckpoint_rows: 20\nsources:\n  orders: {{rest: \"{}/orders\", auth: {{bearer: \
             \"secret://api\"}}, records: data.items, pagination: {{cursor: meta.next, param: after}}, {COLUMNS}}}\nsteps: \
             {{odd: SELECT * FROM orders WHERE id % 2 = 1}}\nloads:\n  orders: {{from: orders, to: warehouse, table: orders, \
             mode: append}}\n  odd: {{from: odd, to: warehouse, table: odd, mode: replace}}\n",
            server.address()
        ),
    )?;
    let settings = Settings {
        ledger: format!("sqlite:{}", folder.path().join("ledger.db").display()),
        warehouse: warehouse.url("postgres"),
        store: folder.path().join("store").display().to_string(),
        nodes: 2,
        envs: vec![
            ("HAULAGE_SECRET_api".to_owned(), SECRET.to_owned()),
            ("RUST_LOG".to_owned(), "debug".to_owned()),
        ],
        faults: Some("slow@segment:300ms".to_owned()),
    };
    let mut cluster = Cluster::start(folder.path(), settings).await?;
    let (run, _) = cluster.submit(&file, &[]).await?;
    let read = |shown: &Value| run_of(shown)["counts"]["read"].as_u64().unwrap_or(0);
    let shown = cluster
        .until_run(&run, "some pages are committed", PATIENCE, |shown| read(shown) >= 60)
        .await?;
    check_state(&shown, "loading")?;
    let assigned = events(&shown, "assigned");
    let chunk = assigned
        .iter()
        .find(|event| event["event"]["work"]["chunk"].is_object())
        .context("a chunk")?;
    let victim = chunk["event"]["node"].as_str().context("a node")?.to_owned();
    cluster.kill(&victim).await?;
    let (before, committed) = (server.requests().len(), read(&shown));
    cluster.watch(&run).await?.success()?;
    let shown = cluster.show(&run).await?;
    check_state(&shown, "published")?;
    ensure!(read(&shown) == RECORDS, "{}", run_of(&shown));

    // What was committed is not asked for again.
    let again: Vec<u64> = server.requests().split_off(before).iter().map(from).collect();
    let first = again.iter().min().context("nobody went on")?;
    ensure!(
        *first >= committed && *first < RECORDS,
        "{committed} were committed, and then asked for: {again:?}"
    );

    let pool = warehouse.pool("postgres").await?;
    let sum = "count(*) || ' ' || count(DISTINCT id) || ' ' || sum(id) || ' ' || sum(amount)";
    for (table, rows) in [
        ("orders", readable().collect::<Vec<_>>()),
        ("odd", readable().filter(|id| id % 2 == 1).collect()),
    ] {
        let (count, ids) = (rows.len(), rows.iter().sum::<u64>());
        let found = told(&pool, &format!("SELECT {sum} FROM {table}")).await?;
        ensure!(
            found == format!("{count} {count} {ids} {}", 3 * ids),
            "{table}: {found}"
        );
    }
    drop(cluster);
    check_unwritten(folder.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_an_api_is_said_before_a_run_exists_and_never_with_a_secret() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Http::start(|request, _| match request.path() {
        _ if !is_allowed(request) => {
            let sent = request.header("authorization").unwrap_or("nothing");
            Answer::new(401, format!("you sent {sent}"))
        }
        "/html" => Answer::new(200, format!("<html>{SECRET}</html>")),
        "/away" => Answer::new(302, "").header("Location", format!("http://127.0.0.2:1/?key={SECRET}")),
        "/loop" => Answer::new(200, "{\"data\": {\"items\": [{\"id\": 1}]}, \"meta\": {\"next\": 1}}"),
        _ => page(request),
    })
    .await?;
    let pipeline = |path: &str, records: &str| {
        format!(
            "pipeline: api\nsources:\n  orders:\n    rest: \"{}/{path}?at=1\"\n    auth: {{bearer: \"secret://api\"}}\n    \
             records: {records}\n    pagination: {{cursor: meta.next, param: after}}\n    columns: {{id: bigint}}\nloads: {{l: \
             {{from: orders, to: warehouse, table: t, mode: replace}}}}\n",
            server.address()
        )
    };
    let file = folder.path().join("api.yaml");
    for (path, records, secret, parts) in [
        ("orders", "data.items", None, &["api.yaml:3:", "HAULAGE_SECRET_api"][..]),
        (
            "orders",
            "data.items",
            Some("s3same-wrong"),
            &["api.yaml:3:", "401", "check secret://api"],
        ),
        (
            "html",
            "data.items",
            Some(SECRET),
            &["api.yaml:3:", "no JSON", "<html>***"],
        ),
        (
            "away",
            "data.items",
            Some(SECRET),
            &["api.yaml:3:", "http://127.0.0.2:1, which is not followed"],
        ),
        (
            "orders",
            "data.item",
            Some(SECRET),
            &["api.yaml:3:", "`data.item` of the answer, found nothing"],
        ),
    ] {
        std::fs::write(&file, pipeline(path, records))?;
        let mut run = Verb::new(folder.path()).args(["run", "api.yaml"]);
        if let Some(secret) = secret {
            run = run.env("HAULAGE_SECRET_api", secret);
        }
        let said = run.output().await?.failure(parts).with_context(|| path.to_owned())?;
        ensure!(
            !said.stderr.contains("s3same") && !said.stderr.contains("at=1"),
            "{}",
            said.stderr
        );
        // The file alone is sound, and nobody is asked.
        let before = server.requests().len();
        Verb::new(folder.path())
            .args(["validate", "api.yaml"])
            .output()
            .await?
            .success()?;
        ensure!(server.requests().len() == before, "validate has asked");
    }
    ensure!(!folder.path().join(".haulage").exists(), "a run was made");

    // What only comes out while it is read ends the run, and nothing is published.
    std::fs::write(&file, pipeline("loop", "data.items"))?;
    let looped = Verb::new(folder.path())
        .args(["run", "api.yaml"])
        .env("HAULAGE_SECRET_api", SECRET)
        .output()
        .await?;
    looped.failure(&["go round in a circle"])?;
    check_unwritten(folder.path())
}

/// A row that a step fails on is named, unless the API gives other rows when it is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_blamed_only_if_it_comes_again_as_it_was() -> Result<()> {
    for changes in [false, true] {
        let folder = tempfile::tempdir()?;
        let reads = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let server = Http::start({
            let (reads, asked) = (Arc::clone(&reads), Arc::clone(&asked));
            move |_, _| {
                // Twice by those who look before, then to be read, and then again.
                let before = asked.fetch_add(1, Ordering::SeqCst);
                reads.store(true, Ordering::SeqCst);
                let divisor = |id: usize| if id == 3 { 0 } else { 1 };
                let shift = if changes { before } else { 0 };
                let items: Vec<Value> = (0..5)
                    .map(|id| json!({"id": id + shift, "divisor": divisor(id)}))
                    .collect();
                Answer::new(200, Value::from(items).to_string())
            }
        })
        .await?;
        let text = format!(
            "pipeline: api\nsources: {{raw: {{rest: \"{}/rows\", columns: {{id: int, divisor: int}}}}}}\nsteps: {{s: SELECT \
             id / divisor AS n FROM raw}}\nloads: {{l: {{from: s, to: warehouse, table: t, mode: replace}}}}\n",
            server.address()
        );
        std::fs::write(folder.path().join("api.yaml"), text)?;
        let said = Verb::new(folder.path()).args(["run", "api.yaml"]).output().await?;
        let part = if changes {
            "it gives other rows when it is read again"
        } else {
            "/rows line 4: load l, step s"
        };
        said.failure(&[part])?;
        ensure!(reads.load(Ordering::SeqCst), "nobody has asked");
    }
    Ok(())
}

/// Fails if the secret stands in a file whose name begins so.
fn check_ledger(folder: &Path) -> Result<()> {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder.join(".haulage"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("ledger") {
            let text = String::from_utf8_lossy(&std::fs::read(entry.path())?).into_owned();
            ensure!(!text.contains("s3same"), "the secret is in {}", entry.path().display());
            seen += 1;
        }
    }
    ensure!(seen > 0, "there is no ledger");
    Ok(())
}

/// A server that puts what it was sent into its records: there it is data, and in what people are told it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_stands_in_records_is_data_and_told_to_nobody() -> Result<()> {
    let server = Http::start(|_, _| {
        let encoded = SECRET.replace('/', "%2f").replace('+', "%2b");
        let items = json!([
            {"id": 1, "word": SECRET},
            {"id": 2, "word": encoded},
            {"id": 3, "word": "fine"},
            {"id": 4, "word": "odd", "n": format!("by {SECRET}")},
        ]);
        Answer::new(200, items.to_string().replace('/', "\\/"))
    })
    .await?;
    let pipeline = |step: &str, n: &str, more: &str| {
        format!(
            "pipeline: api\nsources: {{raw: {{rest: \"{}/rows\", auth: {{bearer: \"secret://api\"}}, columns: {{id: int, n: {n}, word: \
             text}}}}}}\nsteps:\n  s: {step}\nloads: {{l: {{from: s, to: warehouse, table: t, mode: merge, key: [id]}}}}\n{more}",
            server.address()
        )
    };
    let verb = |folder: &Path, args: &[&str]| {
        let verb = Verb::new(folder).args(args.iter().copied());
        verb.env("HAULAGE_SECRET_api", SECRET).env("RUST_LOG", "debug")
    };
    let all = "SELECT id, word FROM raw";
    // What fails on a row quotes it, and so does a check.
    for (step, more, part) in [
        ("SELECT id, CAST(word AS INT) AS n FROM raw", "", "its SQL failed"),
        (all, "checks:\n  - {accepted: {word: [fine]}}\n", "with another value"),
    ] {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("api.yaml"), pipeline(step, "int", more))?;
        let said = verb(folder.path(), &["run", "api.yaml"]).output().await?;
        let said = said.failure(&[part, "***"])?;
        let run = newest_run(folder.path()).await?;
        let shown = verb(folder.path(), &["show", &run, "--output", "json"])
            .output()
            .await?
            .success()?;
        for text in [&said.stderr, &said.stdout, &shown.stdout] {
            ensure!(!text.contains("s3same"), "{text}");
        }
        check_ledger(folder.path())?;
    }
    // A row that is not kept as it was can't be replayed.
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("api.yaml"), pipeline(all, "int", ""))?;
    verb(folder.path(), &["run", "api.yaml"]).output().await?.success()?;
    let (run, rejects) = newest_rejects(folder.path()).await?;
    ensure!(
        rejects.len() == 1 && rejects[0]["reason"] == "bad_int" && !rejects[0].to_string().contains("s3same"),
        "{rejects:?}"
    );
    std::fs::write(folder.path().join("fixed.yaml"), pipeline(all, "text", ""))?;
    let replayed = verb(folder.path(), &["replay", &run, "fixed.yaml"]).output().await?;
    drop(replayed.success()?);
    let (_, rejects) = newest_rejects(folder.path()).await?;
    ensure!(
        rejects.len() == 1
            && rejects[0]["reason"] == "not_replayable"
            && rejects[0]["detail"]
                .as_str()
                .is_some_and(|detail| detail.contains("a secret that stood in it was blotted out")),
        "{rejects:?}"
    );
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join(".haulage/warehouse.db"));
    let mut warehouse: SqliteConnection = options.connect().await?;
    let words: Vec<String> = sqlx::query_scalar("SELECT word FROM t ORDER BY id")
        .fetch_all(&mut warehouse)
        .await?;
    ensure!(words.len() == 3 && words[0] == SECRET, "{words:?}");
    Ok(())
}

/// A mistyped path to the next page loads nothing, instead of the first page alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_that_would_lose_rows_or_values_is_said_before_a_run_exists() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Http::start(|request, _| match request.path() {
        "/null" => Answer::new(200, "{\"data\": {\"items\": null}, \"meta\": {\"next\": null}}"),
        _ => page(request),
    })
    .await?;
    for (path, pagination, columns, part) in [
        (
            "orders",
            "{cursor: meta.nexxt, param: after}",
            "id: bigint",
            "no `meta.nexxt`",
        ),
        ("orders", "{link: nextt}", "id: bigint", "no `Link` to `nextt`"),
        ("orders", "{link: next}", "idd: bigint", "did you mean \"id\"?"),
        ("null", "{cursor: meta.next, param: after}", "id: bigint", "found null"),
    ] {
        let text = format!(
            "pipeline: api\nsources:\n  orders: {{rest: \"{}/{path}\", records: data.items, pagination: {pagination}, \
             columns: {{{columns}}}}}\nloads: {{l: {{from: orders, to: warehouse, table: t, mode: replace}}}}\n",
            server.address()
        );
        std::fs::write(folder.path().join("api.yaml"), text)?;
        let said = Verb::new(folder.path()).args(["run", "api.yaml"]).output().await?;
        said.failure(&["api.yaml:3:", part])?;
    }
    ensure!(!folder.path().join(".haulage").exists(), "a run was made");
    Ok(())
}
