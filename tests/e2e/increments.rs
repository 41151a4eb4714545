//! The rejected rows of an older increment are replayed although newer ones stand: they belong to that increment alone. What
//! has come later isn't overwritten by what comes late, the watermark stays, and each of the runs can be taken back.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, PgPool, SqliteConnection};

use super::support::cluster::run_of;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_run};

const WRONG: &str = "note LIKE '%bad%'";
const MENDED: &str = "note LIKE '%worse%'";

/// Where the rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Warehouse {
    Postgres,
    Sqlite,
}

/// A table in PostgreSQL that is read night by night.
struct Shop {
    folder: tempfile::TempDir,
    postgres: Postgres,
    here: PgPool,
    kind: Warehouse,
    load: String,
}

impl Shop {
    async fn open(kind: Warehouse, load: &str) -> Result<Self> {
        let postgres = Postgres::start().await?;
        let here = postgres.create("warehouse").await?;
        let sql = "CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text)";
        postgres.execute("postgres", sql).await?;
        let shop = Self {
            folder: tempfile::tempdir()?,
            postgres,
            here,
            kind,
            load: load.to_owned(),
        };
        shop.write("shop.yaml", WRONG, load)?;
        Ok(shop)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, file: &str, rule: &str, load: &str) -> Result<()> {
        let text = format!(
            "pipeline: shop\nsources:\n  orders: {{postgres: crm, table: orders, incremental: at, columns: {{id: bigint!, \
             at: timestamptz, note: text}}}}\nsteps:\n  sound:\n    sql: SELECT * FROM orders\n    reject: {{bad: \"{rule}\"}}\n\
             loads:\n  orders: {{from: sound, to: warehouse, table: orders, keep_previous: 9, {load}}}\n"
        );
        Ok(std::fs::write(self.path().join(file), text)?)
    }

    async fn verb(&self, args: &[&str]) -> Result<Output> {
        let mut verb = Verb::new(self.path())
            .args(args.iter().copied())
            .env("HAULAGE_SOURCE_CRM", self.postgres.url("postgres"));
        if self.kind == Warehouse::Postgres {
            verb = verb.env("HAULAGE_DESTINATION_WAREHOUSE", self.postgres.url("warehouse"));
        }
        verb.output().await
    }

    /// Writes rows of a day: id and note.
    async fn write_rows(&self, day: u32, rows: &[(i64, &str)]) -> Result<()> {
        for (id, note) in rows {
            let sql = format!(
                "INSERT INTO orders VALUES ({id}, '2024-01-{day:02}Z', '{note}')
                 ON CONFLICT (id) DO UPDATE SET at = excluded.at, note = excluded.note"
            );
            self.postgres.execute("postgres", &sql).await?;
        }
        Ok(())
    }

    /// The run of a night, after rows of that day were written.
    async fn night(&self, day: u32, rows: &[(i64, &str)]) -> Result<String> {
        self.write_rows(day, rows).await?;
        self.verb(&["run", "shop.yaml"]).await?.success()?;
        newest_run(self.path()).await
    }

    async fn try_replay(&self, run: &str) -> Result<Output> {
        self.try_replay_as(run, &self.load.clone()).await
    }

    async fn try_replay_as(&self, run: &str, load: &str) -> Result<Output> {
        self.write("mended.yaml", MENDED, load)?;
        self.verb(&["replay", run, "mended.yaml"]).await
    }

    async fn replay(&self, run: &str) -> Result<String> {
        self.try_replay(run).await?.success()?;
        newest_run(self.path()).await
    }

    /// `id note`, in order.
    async fn rows(&self) -> Result<Vec<String>> {
        let sql = "SELECT id || ' ' || note FROM orders ORDER BY id, note";
        if self.kind == Warehouse::Postgres {
            return Ok(sqlx::query_scalar(sql).fetch_all(&self.here).await?);
        }
        let file = SqliteConnectOptions::new().filename(self.path().join(".haulage/warehouse.db"));
        let mut connection = SqliteConnection::connect_with(&file).await?;
        let rows = sqlx::query_scalar(sql).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(rows)
    }

    async fn check_rows(&self, expected: &[&str]) -> Result<()> {
        let rows = self.rows().await?;
        ensure!(rows == expected, "{:?}: {rows:?}, not {expected:?}", self.kind);
        Ok(())
    }

    /// The day up to which is read, and by which run that was published.
    async fn state(&self) -> Result<(String, String)> {
        let said = self
            .verb(&["state", "--output", "json"])
            .await?
            .success()?
            .json_lines()?;
        ensure!(said.len() == 1, "{said:?}");
        let text = |name: &str| said[0][name].as_str().unwrap_or_default().to_owned();
        Ok((text("value").chars().take(10).collect(), text("run_id")))
    }

    async fn shown(&self, run: &str) -> Result<Value> {
        self.verb(&["show", run, "--output", "json"]).await?.success()?.json()
    }

    async fn revert(&self, run: &str) -> Result<Output> {
        self.verb(&["revert", run]).await
    }
}

async fn on_both(load: &str, test: impl AsyncFn(&Shop) -> Result<()>) -> Result<()> {
    for kind in [Warehouse::Postgres, Warehouse::Sqlite] {
        let shop = Shop::open(kind, load).await?;
        test(&shop).await.with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_added_to_an_older_increment_once_and_each_run_goes_back_by_itself() -> Result<()> {
    on_both("mode: append", async |shop| {
        let monday = shop.night(1, &[(1, "one"), (2, "bad")]).await?;
        let tuesday = shop.night(2, &[(3, "three"), (4, "bad"), (5, "bad")]).await?;
        let wednesday = shop.night(3, &[(6, "six")]).await?;
        ensure!(monday != tuesday && tuesday != wednesday);
        let state = shop.state().await?;
        ensure!(state == ("2024-01-03".to_owned(), wednesday.clone()), "{state:?}");

        let late = shop.replay(&monday).await?;
        shop.check_rows(&["1 one", "2 bad", "3 three", "6 six"]).await?;
        let again = shop.try_replay(&monday).await?.success()?;
        ensure!(again.stderr.contains("replayed already"), "{again:?}");
        let newer = shop.replay(&tuesday).await?;
        let all = ["1 one", "2 bad", "3 three", "4 bad", "5 bad", "6 six"];
        shop.check_rows(&all).await?;
        ensure!(shop.state().await? == state);
        let counts = run_of(&shop.shown(&newer).await?)["counts"].clone();
        ensure!(counts["read"] == 2 && counts["rejected"] == 0, "{counts}");

        // The next night reads on as if nothing had been.
        let thursday = shop.night(4, &[(7, "seven")]).await?;
        let counts = run_of(&shop.shown(&thursday).await?)["counts"].clone();
        ensure!(counts["read"] == 1, "{counts}");
        shop.revert(&monday).await?.failure(&["were given to", &late])?;
        // A newer increment goes from among the replays of older ones, and is read again.
        shop.revert(&thursday).await?.success()?;
        shop.check_rows(&all).await?;
        ensure!(shop.state().await?.0 == "2024-01-03");
        let thursday = shop.night(4, &[]).await?;
        ensure!(run_of(&shop.shown(&thursday).await?)["counts"]["read"] == 1);
        // A replay goes from beneath newer ones; then the rows are Monday's rejected rows again.
        shop.revert(&late).await?.success()?;
        shop.check_rows(&["1 one", "3 three", "4 bad", "5 bad", "6 six", "7 seven"])
            .await?;
        shop.replay(&monday).await?;
        shop.check_rows(&["1 one", "2 bad", "3 three", "4 bad", "5 bad", "6 six", "7 seven"])
            .await?;
        ensure!(shop.state().await?.0 == "2024-01-04");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_comes_late_does_not_overwrite_a_newer_one() -> Result<()> {
    on_both("mode: merge, key: [id]", async |shop| {
        shop.night(1, &[(1, "sunday"), (2, "sunday")]).await?;
        let monday = shop
            .night(2, &[(1, "monday bad"), (2, "monday bad"), (3, "monday bad")])
            .await?;
        let tuesday = shop.night(3, &[(2, "tuesday"), (4, "tuesday")]).await?;
        let before = ["1 sunday", "2 tuesday", "4 tuesday"];
        shop.check_rows(&before).await?;
        let state = shop.state().await?;

        // Which of two rows is newer can't be known, and is not guessed. Nothing is left of the try.
        shop.try_replay(&monday).await?.failure(&[
            "key (id)=(",
            "is already in orders",
            &format!("run {tuesday} has published there since run {monday}"),
            "`newest: updated_at`",
        ])?;
        shop.check_rows(&before).await?;
        // The file says how it is found.
        shop.try_replay_as(&monday, "mode: merge, key: [id], newest: at")
            .await?
            .success()?;
        let late = newest_run(shop.path()).await?;
        let after = ["1 monday bad", "2 tuesday", "3 monday bad", "4 tuesday"];
        shop.check_rows(&after).await?;
        ensure!(shop.state().await? == state, "the watermark has moved");
        let page = shop.verb(&["show", &late]).await?.success()?.stdout;
        ensure!(
            page.contains("1 row of them older than what stands there, which stays"),
            "{page}"
        );
        let verdict = shop.verb(&["verify", &late]).await?;
        ensure!(
            format!("{}{}", verdict.stdout, verdict.stderr).contains("1 of its rows were older"),
            "{verdict:?}"
        );
        let again = shop
            .try_replay_as(&monday, "mode: merge, key: [id], newest: at")
            .await?
            .success()?;
        ensure!(again.stderr.contains("replayed already"), "{again:?}");

        // Newest first: the increment that the replay has merged into, after the replay.
        shop.revert(&tuesday).await?.failure(&[&late])?;
        shop.check_rows(&after).await?;
        shop.revert(&late).await?.success()?;
        shop.check_rows(&before).await?;
        shop.revert(&tuesday).await?.success()?;
        shop.check_rows(&["1 sunday", "2 sunday"]).await?;
        ensure!(shop.state().await?.0 == "2024-01-02");
        // Nothing newer stands now.
        shop.replay(&monday).await?;
        shop.check_rows(&["1 monday bad", "2 monday bad", "3 monday bad"])
            .await?;
        // The next run reads Tuesday again, which is newer than the replay.
        shop.night(4, &[]).await?;
        shop.check_rows(&["1 monday bad", "2 tuesday", "3 monday bad", "4 tuesday"])
            .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_name_their_run_need_no_column_that_says_which_is_newer() -> Result<()> {
    on_both("mode: merge, key: [id], provenance: true", async |shop| {
        shop.night(1, &[(1, "sunday"), (2, "sunday")]).await?;
        let monday = shop
            .night(2, &[(1, "monday bad"), (2, "monday bad"), (3, "monday bad")])
            .await?;
        let tuesday = shop
            .night(3, &[(2, "tuesday bad"), (3, "tuesday"), (4, "tuesday bad")])
            .await?;
        shop.night(4, &[(4, "wednesday")]).await?;
        shop.replay(&monday).await?;
        shop.check_rows(&["1 monday bad", "2 monday bad", "3 tuesday", "4 wednesday"])
            .await?;
        // Published after the replay of Monday, and newer; but older than Wednesday.
        shop.replay(&tuesday).await?;
        shop.check_rows(&["1 monday bad", "2 tuesday bad", "3 tuesday", "4 wednesday"])
            .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_run_has_replaced_is_superseded() -> Result<()> {
    on_both("mode: replace, key: [id]", async |shop| {
        let monday = shop.night(1, &[(1, "one"), (2, "bad")]).await?;
        let tuesday = shop.night(2, &[(3, "three")]).await?;
        let replaced = format!("run {tuesday} has replaced what run {monday} had published");
        let refused = shop.try_replay(&monday).await?;
        refused.failure(&[&replaced, &format!("replay the rejected rows of {tuesday}")])?;
        shop.check_rows(&["1 one", "3 three"]).await?;
        Ok(())
    })
    .await?;
    on_both("mode: append", async |shop| {
        let monday = shop.night(1, &[(1, "one"), (2, "bad")]).await?;
        let tuesday = shop.night(2, &[(3, "three"), (4, "bad")]).await?;
        shop.verb(&["run", "shop.yaml", "--rerun"]).await?.success()?;
        let again = newest_run(shop.path()).await?;
        let refused = shop.try_replay(&tuesday).await?;
        refused.failure(&[&format!("run {tuesday} was run again as {again}")])?;
        // That one is read again doesn't concern the others.
        shop.replay(&monday).await?;
        shop.replay(&again).await?;
        shop.check_rows(&["1 one", "2 bad", "3 three", "4 bad"]).await
    })
    .await
}
