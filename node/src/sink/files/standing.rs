//! What stands of a publish among files. Whether it counts is known; the rows are not read back.

use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, RunId};
use haulage_core::receipt::{Looked, Publisher};
use haulage_plan::definition::Mode;

use super::Files;
use super::place::TablePlace;
use super::state::{Record, State, Table};
use crate::sink::LoadContext;
use crate::sink::standing::{Publication, Rows, Standing};

impl Files {
    pub(super) async fn stand(&self, load: &LoadContext) -> Result<Standing, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let table = match self.objects.exists().await? {
            true => self.table(&place).await?.value,
            false => Table::default(),
        };
        Ok(stand(load, &table))
    }

    /// Permanent failure: nothing finds a row among files by its key.
    pub(super) fn find(&self, table: &str) -> Result<Looked, Failure> {
        Err(Failure::permanent(format!(
            "destination {} is of files, where rows are not looked up by their key; with `provenance: true` the columns {} \
             of {table} say where each row is from, and a query over its files shows them",
            self.name,
            haulage_plan::PROVENANCE.join(", ")
        )))
    }
}

fn stand(load: &LoadContext, table: &Table) -> Standing {
    let record = table.record(load);
    let publication = match record.map(|record| record.state) {
        None => Publication::Unknown,
        Some(State::Published) => Publication::Stands,
        Some(State::Staged | State::Sealing | State::Sealed) => Publication::Not("staged and not published".to_owned()),
        Some(ended @ (State::Reverted | State::Discarded)) => Publication::Not(ended.word().to_owned()),
    };
    let since = record.map_or(u64::MAX, |record| record.sequence);
    let is_later = |other: &&Record| other.state == State::Published && other.sequence > since;
    let mut later: Vec<&Record> = table.records.iter().filter(is_later).collect();
    later.sort_by_key(|record| record.sequence);
    Standing {
        publication,
        later: later.into_iter().map(publisher).collect(),
        columns: table.head.as_ref().map(|_| Vec::new()),
        rows: Rows::Untold(
            "rows are not read back from files; the table's manifest lists its files with their rows, bytes and run"
                .to_owned(),
        ),
    }
}

fn publisher(record: &Record) -> Publisher {
    let mode = match record.mode {
        Mode::Append => "append",
        Mode::Replace => "replace",
        Mode::Merge => "merge",
    };
    Publisher {
        run: RunId::new(record.run.clone()),
        load: LoadName::new(record.load.clone()),
        mode: mode.to_owned(),
        replaces: record.replaces.clone().map(RunId::new),
        at: record
            .published_at
            .map_or_else(String::new, |at| at.format("%F %T UTC").to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::tests::load;

    #[test]
    fn a_publish_is_known_and_who_came_after_and_rows_are_not_told() {
        let first = load();
        let mut second = load();
        second.run = RunId::from("second");
        let mut table = Table::default();
        assert_eq!(stand(&first, &table).publication, Publication::Unknown);
        table.claim(&first, "prepare", State::Staged).expect("not fenced");
        let standing = stand(&first, &table);
        assert_eq!(
            standing.publication,
            Publication::Not("staged and not published".to_owned())
        );
        assert_eq!(standing.columns, None);
        for (sequence, load) in (1..).zip([&first, &second]) {
            let record = table.claim(load, "publish", State::Staged).expect("not fenced");
            (record.state, record.sequence) = (State::Published, sequence);
        }
        let standing = stand(&first, &table);
        assert_eq!(standing.publication, Publication::Stands);
        let later: Vec<&str> = standing.later.iter().map(|publisher| publisher.run.as_str()).collect();
        assert_eq!(later, ["second"]);
        assert!(stand(&second, &table).later.is_empty());
        assert!(matches!(standing.rows, Rows::Untold(_)));
        table.claim(&first, "revert", State::Staged).expect("not fenced").state = State::Reverted;
        assert_eq!(
            stand(&first, &table).publication,
            Publication::Not("reverted".to_owned())
        );
    }
}
