//! Quarantine of a segment: its rejected rows with everything needed to find out why, and reading them back in pages.

use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, RunId};
use haulage_core::quarantine::{Form, Kept, Reject};

use super::Toolbox;
use crate::source::{NOT_REPLAYABLE, RawRows, printable};
use crate::store::rejects;

/// The most bytes of rows in one page, as JSON.
const PAGE_BYTES: usize = 1024 * 1024;
/// The most bytes of a raw row that are kept. As JSON a byte may take six, and one row always fits a page.
pub(crate) const RAW_BYTES: usize = 128 * 1024;

/// Where the rows of a segment come from.
pub(crate) struct Origin<'a> {
    pub(crate) pipeline: &'a str,
    pub(crate) run: &'a RunId,
    pub(crate) source: &'a str,
    pub(crate) file: &'a str,
    pub(crate) raw: &'a dyn RawRows,
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
                columns: Some(self.raw.columns().to_vec()),
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
        let (columns, form) = kept.map_or((None, Form::Raw), |kept| (kept.columns, kept.form));
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
                    form,
                }),
            },
            ..before.clone()
        }
    }
}

/// A page of the object under `key`, without its first `skip` rows. At least one row, if there is one left.
pub(crate) async fn page(tools: &Toolbox, key: &str, skip: u64) -> Result<Vec<Reject>, Failure> {
    let data = tools.store().await?.get(key).await?;
    let all = rejects::decode(key, &data)?;
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let mut page = Vec::new();
    let mut bytes = 0;
    for mut reject in all.into_iter().skip(skip) {
        // For whoever reads the rows again, and not for who looks at them.
        reject.kept = None;
        let size = serde_json::to_vec(&reject).map_or(0, |json| json.len());
        if !page.is_empty() && bytes + size > PAGE_BYTES {
            break;
        }
        bytes += size;
        page.push(reject);
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::NodeConfig;

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
        assert!(serde_json::to_vec(&long).unwrap().len() < PAGE_BYTES);
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
    async fn pages_hold_at_least_one_row_and_end_empty() {
        let folder = tempfile::tempdir().unwrap();
        let tools = Toolbox::new(NodeConfig::new("n", folder.path().to_str().unwrap()));
        let rows: Vec<Reject> = (0..5)
            .map(|_| reject(vec![b'x'; RAW_BYTES]))
            .chain([reject(vec![0; RAW_BYTES])])
            .collect();
        let data: Bytes = rejects::encode(&rows).unwrap();
        tools.store().await.unwrap().put("k", data).await.unwrap();
        let mut got = Vec::new();
        let mut pages = 0;
        loop {
            let page = page(&tools, "k", got.len() as u64).await.unwrap();
            if page.is_empty() {
                break;
            }
            pages += 1;
            got.extend(page);
        }
        let shown = rows.into_iter().map(|row| Reject { kept: None, ..row });
        assert!(
            got == shown.collect::<Vec<_>>() && pages > 1,
            "{} rows in {pages} pages",
            got.len()
        );
        assert!(page(&tools, "none", 0).await.is_err());
    }
}
