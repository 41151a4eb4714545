//! Quarantine of a segment: its rejected rows with everything needed to find out why.

use std::sync::Arc;

use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, RunId};
use haulage_core::quarantine::{Form, Kept, Reject};

use crate::source::{NOT_REPLAYABLE, RawRows, printable};
use crate::store::Store;
use crate::store::rejects::Packer;

/// The most bytes of a raw row that are kept. As JSON a byte may take eight.
pub(crate) const RAW_BYTES: usize = 128 * 1024;

/// Where the rows of a segment come from.
pub(crate) struct Origin<'a> {
    pub(crate) pipeline: &'a str,
    pub(crate) run: &'a RunId,
    pub(crate) source: &'a str,
    pub(crate) file: &'a str,
    pub(crate) raw: &'a dyn RawRows,
    /// Its columns, which all of its rows share.
    pub(crate) columns: Arc<[String]>,
}

/// Why a row is rejected.
pub(crate) struct Cause {
    /// Its place in the segment.
    pub(crate) row: u64,
    pub(crate) column: Option<String>,
    pub(crate) step: Option<String>,
    pub(crate) reason: String,
    pub(crate) detail: String,
    /// The loads that it is rejected for.
    pub(crate) loads: Vec<LoadName>,
    /// Those of them that other rows have reached which a join made of it.
    pub(crate) reached: Vec<LoadName>,
}

impl Origin<'_> {
    /// The rejected row as it is kept.
    pub(crate) fn reject(&self, cause: Cause) -> Reject {
        if let Some(before) = self.raw.rejected(cause.row) {
            return self.again(before, cause);
        }
        let (line, raw) = self.raw.row(cause.row).unwrap_or((0, b""));
        let mut detail = cause.detail;
        let kept = raw.get(..RAW_BYTES).unwrap_or(raw);
        if kept.len() < raw.len() {
            detail = format!(
                "{detail} (the first {RAW_BYTES} of {} bytes of the row are kept)",
                raw.len()
            );
        }
        Reject {
            pipeline: self.pipeline.to_owned(),
            run: self.run.clone(),
            source: self.source.to_owned(),
            file: self.file.to_owned(),
            line,
            column: cause.column,
            step: cause.step,
            reason: cause.reason,
            detail,
            raw: printable(kept),
            kept: Some(Kept {
                loads: cause.loads,
                reached: cause.reached,
                columns: Some(Arc::clone(&self.columns)),
                tabbed: self.raw.is_tabbed(),
                form: self.form(cause.row, raw),
            }),
        }
    }

    /// How the row is kept, so that it can be read again.
    fn form(&self, row: u64, raw: &[u8]) -> Form {
        if raw.len() > RAW_BYTES {
            return Form::Partly(format!(
                "only the first {RAW_BYTES} of its {} bytes are kept",
                raw.len()
            ));
        }
        if !self.raw.is_whole(row) {
            return Form::Partly(self.raw.gap().to_owned());
        }
        if let Some(values) = self.raw.values(row) {
            let text = |value: Option<&[u8]>| value.map(|value| String::from_utf8(value.to_vec())).transpose();
            return match values.into_iter().map(text).collect() {
                Ok(values) => Form::Values(values),
                Err(_) => Form::Partly("it holds bytes that are no text".to_owned()),
            };
        }
        match printable(raw).as_bytes() == raw {
            true => Form::Raw,
            false => Form::hex(raw),
        }
    }

    /// A row that was rejected before and is again: where it stood and how it is kept stay as they were.
    fn again(&self, before: &Reject, cause: Cause) -> Reject {
        // Of one that can't be read again, also which loads it is for: that may be what isn't known. One that others get
        // stays rejected for those that have reached it.
        let is_lost = cause.reason == NOT_REPLAYABLE && cause.reached.is_empty();
        let kept = before.kept.clone().filter(|_| !is_lost);
        let (columns, tabbed, form) =
            kept.map_or((None, false, Form::Raw), |kept| (kept.columns, kept.tabbed, kept.form));
        Reject {
            pipeline: self.pipeline.to_owned(),
            run: self.run.clone(),
            column: cause.column,
            step: match cause.reason.as_str() {
                NOT_REPLAYABLE => before.step.clone(),
                _ => cause.step,
            },
            reason: cause.reason,
            detail: cause.detail,
            kept: match is_lost {
                true => before.kept.clone(),
                false => Some(Kept {
                    loads: cause.loads,
                    reached: cause.reached,
                    columns,
                    tabbed,
                    form,
                }),
            },
            ..before.clone()
        }
    }
}

/// Puts rejected rows away, in as many objects as they need, each under the key that its number has; their keys in order.
/// The same rows come into the same objects, so an attempt that is made again writes what it wrote.
pub(crate) async fn keep(
    store: &dyn Store,
    key: impl Fn(u32) -> String,
    rows: impl Iterator<Item = Reject>,
) -> Result<Vec<String>, Failure> {
    let mut keys = Vec::new();
    let mut packer = Packer::new()?;
    let mut part = 0;
    for row in rows {
        if let Some(object) = packer.add(row)? {
            keys.push(key(part));
            store.put(&key(part), object).await?;
            part += 1;
        }
    }
    if let Some(object) = packer.finish()? {
        keys.push(key(part));
        store.put(&key(part), object).await?;
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::store::rejects::{OBJECT_BYTES, each};
    use crate::store::{self, S3Settings};

    struct One(Vec<u8>);

    impl RawRows for One {
        fn row(&self, row: u64) -> Option<(u64, &[u8])> {
            (row == 0).then_some((7, self.0.as_slice()))
        }
    }

    fn reject(raw: Vec<u8>) -> Reject {
        let (run, raw) = (RunId::from("r"), One(raw));
        let origin = Origin {
            pipeline: "p",
            run: &run,
            source: "s",
            file: "a.csv",
            raw: &raw,
            columns: Arc::from([]),
        };
        let cause = Cause {
            row: 0,
            column: None,
            step: None,
            reason: "why".into(),
            detail: "what".into(),
            loads: vec![LoadName::from("l")],
            reached: Vec::new(),
        };
        origin.reject(cause)
    }

    #[test]
    fn raw_rows_are_readable_and_bounded() {
        assert_eq!(reject(b"a\xff,\xc3\xbc\xc3".to_vec()).raw, "a\\xff,ü\\xc3");
        let long = reject(vec![0; RAW_BYTES + 1]);
        assert_eq!((long.line, long.raw.len()), (7, RAW_BYTES * "\\x00".len()));
        assert!(long.detail.contains("of 131073 bytes"), "{}", long.detail);
    }

    #[test]
    fn rows_are_kept_so_that_they_can_be_read_again() {
        let form = |raw: &[u8]| reject(raw.to_vec()).kept.expect("kept").form;
        assert_eq!(form("1,ü\\x00".as_bytes()), Form::Raw);
        assert_eq!(form(b"1,\xff"), Form::Hex("312cff".into()));
        assert_eq!(form(b"\0"), Form::Hex("00".into()));
        let Form::Partly(why) = form(&vec![b'x'; RAW_BYTES + 1]) else {
            panic!("not all of it is kept");
        };
        assert!(why.contains("131072 of its 131073 bytes"), "{why}");
    }

    #[tokio::test]
    async fn rows_that_are_too_many_for_an_object_begin_another() {
        let folder = tempfile::tempdir().unwrap();
        let settings = S3Settings::default();
        let store = store::open(folder.path().to_str().unwrap(), &settings);
        let store = store.await.unwrap();
        let columns: Arc<[String]> = ["a".to_owned(), "b".to_owned()].into();
        let mut long = reject(vec![0; RAW_BYTES]);
        long.kept.as_mut().unwrap().columns = Some(Arc::clone(&columns));
        let row = |line| Reject { line, ..long.clone() };
        let rows = 80;
        let mut found = Vec::new();
        for _ in 0..2 {
            let keys = keep(store.as_ref(), |part| format!("k{part}"), (0..rows).map(row)).await;
            let mut objects = Vec::new();
            for key in keys.unwrap() {
                let data = store.get(&key).await.unwrap();
                let unpacked = zstd::decode_all(&data[..]).unwrap().len();
                assert!(unpacked <= OBJECT_BYTES, "{unpacked}");
                let mut lines = Vec::new();
                each(&key, &data, |row| {
                    assert_eq!(row.kept.unwrap().columns.as_ref(), Some(&columns));
                    lines.push(row.line);
                    ControlFlow::Continue(())
                })
                .unwrap();
                objects.push((key, lines));
            }
            found.push(objects);
        }
        assert!(found[0].len() > 1, "one object holds all of it");
        assert_eq!(found[0], found[1], "an attempt that is made again");
        let lines: Vec<u64> = found[0].iter().flat_map(|(_, lines)| lines.clone()).collect();
        assert_eq!(lines, (0..rows).collect::<Vec<_>>());
        let none = keep(store.as_ref(), |part| format!("k{part}"), std::iter::empty()).await;
        assert_eq!(none.unwrap(), Vec::<String>::new());
    }
}
