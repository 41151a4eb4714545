//! Where a chunk goes on: after the last segment whose marker stands at every load of its stage. Those segments are not
//! read again; what they counted stands in their manifests.

use std::collections::BTreeMap;

use haulage_core::checkpoint::{ChunkSpec, Counts, Manifest, Marker, Position};
use haulage_core::failure::Failure;
use haulage_core::words::counted;

use crate::store::{Store, rejects};

/// What an earlier attempt, or an earlier worker of this one, has left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// The next segment to work on.
    pub(crate) segment: u32,
    /// Where it starts.
    pub(crate) from: Position,
    /// The name of that place, if it has one.
    pub(crate) cursor: Option<String>,
    /// Whether there is none.
    pub(crate) done: bool,
    /// The sum over the segments that stand.
    pub(crate) counts: Counts,
    /// Their quarantined rows, in order.
    pub(crate) rejects: Vec<String>,
}

/// The markers that stand at one load, by segment.
pub(crate) type Standing = BTreeMap<u32, Marker>;

/// Reads the manifests of the segments that stand at all `loads`, in order from the first. Permanent failure if a
/// manifest doesn't fit its marker: then rows stand that nobody can account for.
pub(crate) async fn resume(
    store: &dyn Store,
    spec: &ChunkSpec,
    loads: &[(&str, &Standing)],
) -> Result<Resumed, Failure> {
    let mut resumed = Resumed {
        segment: 0,
        from: spec.start,
        cursor: None,
        done: false,
        counts: Counts::default(),
        rejects: Vec::new(),
    };
    while !resumed.done {
        let Some(markers) = standing(loads, resumed.segment) else {
            break;
        };
        // Loads may have got the segment from different attempts; all of them counted the same, and the highest
        // attempt has put its manifest last.
        let Some(newest) = markers
            .iter()
            .map(|(_, marker)| *marker)
            .max_by_key(|marker| marker.attempt)
        else {
            break;
        };
        let manifest = rejects::decode_manifest(&newest.manifest, &store.get(&newest.manifest).await?)?;
        check(&manifest, spec, resumed.segment, &markers)?;
        resumed.counts += &manifest.counts;
        resumed.rejects.extend(manifest.rejects);
        resumed.from = manifest.next;
        resumed.cursor = manifest.cursor;
        resumed.done = manifest.last;
        resumed.segment += 1;
    }
    Ok(resumed)
}

/// The segment's marker at every load, if it stands at all of them.
fn standing<'a>(loads: &[(&'a str, &'a Standing)], segment: u32) -> Option<Vec<(&'a str, &'a Marker)>> {
    loads
        .iter()
        .map(|(load, markers)| markers.get(&segment).map(|marker| (*load, marker)))
        .collect()
}

fn check(manifest: &Manifest, spec: &ChunkSpec, segment: u32, markers: &[(&str, &Marker)]) -> Result<(), Failure> {
    let mismatch = |what: String| {
        Failure::permanent(format!(
            "the checkpoint of segment {segment} of chunk {} doesn't fit what is staged: {what}; submit the run again",
            spec.chunk
        ))
    };
    if (manifest.chunk, manifest.segment) != (spec.chunk, segment) {
        return Err(mismatch(format!(
            "it is about segment {} of chunk {}",
            manifest.segment, manifest.chunk
        )));
    }
    for (load, marker) in markers {
        let reported = manifest.counts.loads.get(*load).map_or(0, |counts| counts.loaded);
        if reported != marker.rows {
            return Err(mismatch(format!(
                "load {load} holds {}, and {reported} were counted",
                counted(marker.rows, "row")
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use haulage_core::checkpoint::LoadCounts;
    use haulage_core::failure::Class;
    use haulage_core::ids::{Attempt, ChunkId, Epoch, StageId};

    use super::*;
    use crate::store;

    const CHUNK: ChunkId = ChunkId {
        stage: StageId(0),
        index: 1,
    };

    fn spec() -> ChunkSpec {
        ChunkSpec {
            chunk: CHUNK,
            source: "raw".into(),
            object: "a.csv".into(),
            version: "1".into(),
            start: Position { offset: 10, line: 2 },
            end: None,
            bytes: 100,
            window: None,
        }
    }

    fn manifest(segment: u32, attempt: u32, last: bool, rows: u64) -> Manifest {
        let counts = LoadCounts {
            loaded: rows,
            passed: rows,
            ..LoadCounts::default()
        };
        Manifest {
            chunk: CHUNK,
            segment,
            epoch: Epoch(1),
            attempt: Attempt(attempt),
            next: Position {
                offset: 100 * u64::from(segment + 1),
                line: 0,
            },
            cursor: Some(format!("after-{segment}")),
            digest: Some(format!("sum-{segment}")),
            last,
            counts: Counts {
                read: rows,
                loads: [("l".to_owned(), counts)].into(),
                ..Counts::default()
            },
            rejects: vec![format!("rejects-{segment}")],
        }
    }

    fn marker(segment: u32, attempt: u32, rows: u64) -> (u32, Marker) {
        let manifest = format!("m{segment}a{attempt}");
        (
            segment,
            Marker {
                chunk: CHUNK,
                segment,
                attempt: Attempt(attempt),
                rows,
                manifest,
            },
        )
    }

    async fn check_resume(markers: &[Standing], manifests: &[Manifest]) -> Result<Resumed, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let store = store::open(folder.path().to_str().unwrap(), &Default::default())
            .await
            .unwrap();
        for manifest in manifests {
            let key = format!("m{}a{}", manifest.segment, manifest.attempt);
            store
                .put(&key, rejects::encode_manifest(manifest).unwrap())
                .await
                .unwrap();
        }
        let loads: Vec<(&str, &Standing)> = markers.iter().map(|standing| ("l", standing)).collect();
        resume(store.as_ref(), &spec(), &loads).await
    }

    #[tokio::test]
    async fn only_what_stands_everywhere_and_without_a_gap_is_skipped() {
        let manifests = [
            manifest(0, 1, false, 5),
            manifest(1, 1, false, 7),
            manifest(1, 2, false, 7),
        ];
        let first = Standing::from([marker(0, 1, 5), marker(1, 1, 7), marker(3, 1, 1)]);
        let second = Standing::from([marker(0, 1, 5), marker(1, 2, 7)]);
        let behind = Standing::from([marker(0, 1, 5)]);

        let fresh = check_resume(&[Standing::new()], &[]).await.unwrap();
        assert_eq!((fresh.segment, fresh.from, fresh.done), (0, spec().start, false));

        let both = check_resume(&[first.clone(), second], &manifests).await.unwrap();
        assert_eq!((both.segment, both.from.offset, both.counts.read), (2, 200, 12));
        assert_eq!(both.rejects, ["rejects-0", "rejects-1"]);
        assert_eq!(both.cursor.as_deref(), Some("after-1"));

        let one = check_resume(&[first, behind], &manifests).await.unwrap();
        assert_eq!(
            (one.segment, one.from.offset, one.cursor.as_deref()),
            (1, 100, Some("after-0"))
        );
    }

    #[tokio::test]
    async fn a_finished_chunk_has_nothing_left() {
        let resumed = check_resume(&[Standing::from([marker(0, 1, 5)])], &[manifest(0, 1, true, 5)])
            .await
            .unwrap();
        assert!(resumed.done);
    }

    #[tokio::test]
    async fn a_manifest_that_does_not_fit_is_refused() {
        for (standing, manifest) in [
            (Standing::from([marker(0, 1, 4)]), manifest(0, 1, true, 5)),
            (Standing::from([marker(0, 2, 5)]), manifest(0, 1, true, 5)),
        ] {
            let failure = check_resume(&[standing], &[manifest]).await.unwrap_err();
            assert_eq!(failure.class, Class::Permanent, "{failure}");
        }
    }
}
