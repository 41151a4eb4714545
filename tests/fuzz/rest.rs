//! REST APIs: a server whose answers are nearly sound, and the source that reads it. What was read is what the server gave
//! in the answers that are whole and sound, page by page; else a failure says what is wrong.
//!
//! A case is some APIs at once, since most of their time goes by between two tries.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::StageId;
use haulage_node::source::Source;
use haulage_plan::definition::SourceKind;
use haulage_test_support::http::Http;
use tokio::task::JoinSet;

use crate::api::{Api, Page, any_api};
use crate::files::{self, Row};
use crate::random::Random;

/// APIs of a case.
const APIS: usize = 24;
pub(crate) async fn case(random: &mut Random) -> Result<usize> {
    let mut all = JoinSet::new();
    for _ in 0..APIS {
        let api = Arc::new(any_api(random));
        let random = Random::new(random.next(), 0);
        all.spawn(async move {
            let shown = api.shown();
            check(api, random).await.context(shown)
        });
    }
    let mut bytes = 0;
    while let Some(checked) = all.join_next().await {
        bytes += checked??;
    }
    Ok(bytes)
}

/// A segment as it is told: where the next one is, and its rows.
type Told = (Position, Option<String>, Vec<Row>);

async fn read(
    source: &dyn Source,
    chunk: &ChunkSpec,
    from: Position,
    cursor: Option<&str>,
) -> Result<Result<Vec<Told>, Failure>> {
    let mut reader = match source.open_at(chunk, from, cursor).await {
        Ok(reader) => reader,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut told = Vec::new();
    let mut is_over = false;
    loop {
        match reader.next().await {
            Ok(Some(segment)) => {
                ensure!(!is_over, "a segment behind the last one");
                is_over = segment.last;
                told.push((segment.next, segment.cursor.clone(), files::rows(&segment)?));
            }
            Ok(None) => break,
            Err(failure) => return Ok(Err(failure)),
        }
    }
    ensure!(is_over, "no segment is the last one");
    Ok(Ok(told))
}

fn check_failure(failure: &Failure) -> Result<()> {
    let said = &failure.message;
    ensure!(
        said.contains("source raw: http://127.0.0.1") && said.len() < 4_000 && !said.contains(char::is_control),
        "a failure that says not enough, or steers a terminal: {failure:?}"
    );
    Ok(())
}

/// Reads an API, and holds what came against what it gave; how much that was.
async fn check(api: Arc<Api>, mut random: Random) -> Result<usize> {
    let serving = Arc::clone(&api);
    let server = Http::start(move |request, number| serving.answer(request, number)).await?;
    let folder = std::path::Path::new("/");
    let declared = || SourceKind::Rest(Box::new(api.declared(&server.address())));
    let source = files::bound(folder, declared(), random.within(1, 30) as u64)?;
    let bytes: usize = api.records.iter().map(String::len).sum();
    let refused = |failure: Failure| {
        check_failure(&failure)?;
        ensure!(
            !api.is_honest(),
            "nothing is wrong with it, and it is refused: {failure}"
        );
        Ok(bytes)
    };
    let chunk = match source.discover(StageId(0)).await {
        // Of records that are no objects nothing can be made, and that is said.
        Err(failure) if failure.message.contains("is an object") => return Ok(bytes),
        Err(failure) => return refused(failure),
        Ok(mut chunks) => {
            ensure!(chunks.len() == 1, "{} chunks", chunks.len());
            chunks.remove(0)
        }
    };
    let before = api.logged().len();
    let told = match read(&*source, &chunk, chunk.start, None).await? {
        Err(failure) => return refused(failure),
        Ok(told) => told,
    };
    let rows: Vec<&Row> = told.iter().flat_map(|(_, _, rows)| rows).collect();
    // Of answers for one page the last one counts.
    let mut accepted: Vec<(String, Option<Page>)> = Vec::new();
    for (at, records) in api.logged().drain(before..) {
        match accepted.last_mut() {
            Some(last) if last.0 == at => last.1 = records,
            _ => accepted.push((at, records)),
        }
    }
    let mut served: Page = Vec::new();
    for (at, records) in accepted {
        served.extend(records.with_context(|| format!("the page at {at} was read, and no answer for it is one"))?);
    }
    let same = rows.iter().zip(&served).all(|(row, record)| row.1 == *record);
    ensure!(
        same && rows.len() == served.len(),
        "{} rows were read of {} that were served",
        rows.len(),
        served.len()
    );
    ensure!(
        rows.iter().zip(1..).all(|((line, _, _), number)| *line == number),
        "records are not counted one by one"
    );
    if api.is_honest() {
        ensure!(
            served.iter().eq(api.records.iter().map(|record| record.as_bytes())),
            "{} records of {} were read",
            served.len(),
            api.records.len()
        );
        api.calm.store(true, Ordering::SeqCst);
        for _ in 0..2.min(told.len() - 1) {
            let at = random.below(told.len() - 1);
            let (next, cursor, _) = &told[at];
            let rest = read(&*source, &chunk, *next, cursor.as_deref()).await??;
            let rest: Vec<&Row> = rest.iter().flat_map(|(_, _, rows)| rows).collect();
            let expected: Vec<&Row> = told[at + 1..].iter().flat_map(|(_, _, rows)| rows).collect();
            ensure!(rest == expected, "other rows from checkpoint {at} on");
        }
    }
    Ok(bytes)
}
