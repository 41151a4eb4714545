//! The example that reads from everywhere: an API that misbehaves, files in S3, PostgreSQL and MariaDB, into one warehouse.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use haulage_test_support::http::{Answer, Ends, Http, Request};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use super::support::mariadb::Mariadb;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_rejects};
use super::support::s3::S3;

const KEY: &str = "open+sesame/9";
const ORDERS: u64 = 1_230;
const PAGE: u64 = 50;

/// An order; every 60th has no amount. `cents` are added to each.
fn order(id: u64, cents: u64) -> Value {
    let amount = if id % 60 == 59 {
        Value::Null
    } else {
        json!(format!("{}.{:02}", id, cents).parse::<f64>().unwrap_or(0.0))
    };
    let currency = ["EUR", "USD", "CHF"][id as usize % 3];
    json!({"id": id, "customer": id % 40, "amount": amount, "currency": currency, "placed_at": "2024-03-01T10:00:00Z"})
}

/// What the API does wrong beside what it always does.
#[derive(Default)]
struct Mood {
    /// Pages overlap: what was on one comes again on the next.
    shifts: AtomicBool,
    cents: AtomicU64,
}

/// Every fourth request fails in one of five ways, and then comes.
fn api(mood: Arc<Mood>) -> impl Fn(&Request, usize) -> Answer + Send + Sync + 'static {
    let ill = AtomicU64::new(0);
    let asked = std::sync::Mutex::new(std::collections::HashMap::<String, u32>::new());
    move |request, _| {
        if request.header("authorization") != Some(&format!("Bearer {KEY}")) {
            return Answer::new(401, "no");
        }
        let from: u64 = request.query("after").and_then(|after| after.parse().ok()).unwrap_or(0);
        let mut begin = from;
        if mood.shifts.load(Ordering::SeqCst) && from > 0 {
            begin -= 1;
        }
        let end = (from + PAGE).min(ORDERS);
        let cents = mood.cents.load(Ordering::SeqCst);
        let data: Vec<Value> = (begin..end).map(|id| order(id, cents)).collect();
        let next = (end < ORDERS).then(|| end.to_string());
        let answer = Answer::new(200, json!({"data": data, "next": next}).to_string());
        let mut asked = asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let times = asked.entry(request.target.clone()).or_default();
        *times += 1;
        if times.is_multiple_of(2) || (from / PAGE) % 4 != 3 {
            return answer;
        }
        match ill.fetch_add(1, Ordering::SeqCst) % 5 {
            0 => Answer::new(429, "slowly").header("Retry-After", "1"),
            1 => Answer::new(500, "oh"),
            2 => answer.ends(Ends::CutAfter(500)),
            3 => answer.ends(Ends::Drips(Duration::from_micros(50))),
            _ => Answer::new(200, "{\"data\": [{\"id\": 1, \"amo"),
        }
    }
}

struct Shop {
    folder: tempfile::TempDir,
    mood: Arc<Mood>,
    api: Http,
    s3: S3,
    crm: Postgres,
    erp: Mariadb,
    database: String,
    here: PgPool,
}

impl Shop {
    async fn open() -> Result<Self> {
        let mood = Arc::new(Mood::default());
        let (crm, erp, s3) = tokio::try_join!(Postgres::start(), Mariadb::start(), S3::start(&["lake"]))?;
        let here = crm.create("warehouse").await?;
        let database = erp.database().await?;
        crm.execute(
            "postgres",
            "CREATE SCHEMA billing;
             CREATE TABLE billing.payments (id bigint PRIMARY KEY, order_id bigint, paid numeric(12,2), changed_at timestamptz);
             INSERT INTO billing.payments SELECT id, id, id / 100.0, '2024-03-01Z'::timestamptz + id * interval '1 second'
                FROM generate_series(1, 3000) id;
             CREATE TABLE customers (id bigint PRIMARY KEY, name text, country text, hidden boolean NOT NULL DEFAULT false);
             INSERT INTO customers SELECT id, 'customer ' || id, CASE id % 2 WHEN 0 THEN 'CH' ELSE 'DE' END FROM generate_series(0, 39) id",
        )
        .await?;
        erp.execute(
            &database,
            "CREATE TABLE rates (currency varchar(3) PRIMARY KEY, rate decimal(12,6) NOT NULL);
             INSERT INTO rates VALUES ('EUR', 1), ('USD', 0.923400), ('CHF', 1.041)",
        )
        .await?;
        let shop = Self {
            folder: tempfile::tempdir()?,
            api: Http::start(api(Arc::clone(&mood))).await?,
            mood,
            s3,
            crm,
            erp,
            database,
            here,
        };
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop/pipeline.yaml");
        let text = std::fs::read_to_string(example)?;
        let elsewhere = "https://shop.example.com";
        ensure!(
            text.contains(&format!("rest: \"{elsewhere}/")),
            "the example reads its API elsewhere"
        );
        let text = text.replace(&format!("\"{elsewhere}"), &format!("\"{}", shop.api.address()));
        std::fs::write(shop.folder.path().join("pipeline.yaml"), text)?;
        for (day, from) in [("2024-03-01", 0), ("2024-03-02", 1_000)] {
            for part in 0..3 {
                let rows = (from + part * 400..from + part * 400 + 400).map(|id| {
                    format!(
                        "{id},{},{},{day} 12:00:00Z\n",
                        ["dhl", "NA", "ups"][id % 3],
                        (id % 50) as f64 / 2.0
                    )
                });
                let text = format!("order_id,carrier,kg,shipped_at\n{}", rows.collect::<String>());
                shop.upload(&format!("shipments/{day}"), &format!("part-{part}.csv"), &text)?;
            }
        }
        Ok(shop)
    }

    fn upload(&self, prefix: &str, name: &str, text: &str) -> Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join(name), text)?;
        self.s3.upload(folder.path(), "lake", prefix)
    }

    async fn run(&self, day: &str) -> Result<Output> {
        let verb = Verb::new(self.folder.path())
            .args(["run", "pipeline.yaml"])
            .args(["--param", &format!("day={day}")])
            .envs(&self.s3.envs())
            .env("HAULAGE_S3_PATH_STYLE", "true")
            .env("HAULAGE_SECRET_shop_api", KEY)
            .env("HAULAGE_SOURCE_CRM", self.crm.url("postgres"))
            .env("HAULAGE_SOURCE_ERP", self.erp.url(&self.database))
            .env("HAULAGE_DESTINATION_WAREHOUSE", self.crm.url("warehouse"));
        verb.output().await
    }

    async fn told(&self, sql: &str) -> Result<String> {
        Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.here)
            .await?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_its_sources_come_together_and_all_or_nothing_is_published() -> Result<()> {
    let shop = Shop::open().await?;
    let said = shop.run("2024-03-01").await?.success()?;
    ensure!(!said.stderr.contains(KEY) && !said.stdout.contains(KEY));
    let orders = "SELECT count(*) || ' ' || sum(id) || ' ' || sum(amount) || ' ' || count(customer) || ' ' || sum(amount_eur) FROM orders";
    // Reckoned here, from what the API was asked to give.
    let given: Vec<u64> = (0..ORDERS).filter(|id| id % 60 != 59).collect();
    let reckon = |cents: u64| {
        // In ten thousandths of a euro, rounded half away from zero, as SQL does.
        let eur: u64 = given
            .iter()
            .map(|id| {
                let amount = id * 100 + cents;
                let rate = [1_000_000, 923_400, 1_041_000][*id as usize % 3];
                (amount * rate + 5_000) / 10_000
            })
            .sum();
        let sum: u64 = given.iter().sum();
        let amount = sum * 100 + cents * given.len() as u64;
        format!(
            "{} {sum} {}.{:02} {} {}.{:04}",
            given.len(),
            amount / 100,
            amount % 100,
            given.len(),
            eur / 10_000,
            eur % 10_000
        )
    };
    ensure!(
        shop.told(orders).await? == reckon(0),
        "{} and not {}",
        shop.told(orders).await?,
        reckon(0)
    );
    let sent = "SELECT count(*) || ' ' || sum(order_id) || ' ' || sum(kg) || ' ' || count(carrier) FROM shipments";
    // Of 0 kg nothing is sent.
    let ids: Vec<u64> = (0..1_200).filter(|id| id % 50 != 0).collect();
    let kg: u64 = ids.iter().map(|id| id % 50).sum();
    let carried = ids.iter().filter(|id| *id % 3 != 1).count();
    let expected = format!("{} {} {} {carried}", ids.len(), ids.iter().sum::<u64>(), kg / 2);
    ensure!(
        shop.told(sent).await? == expected,
        "{} and not {expected}",
        shop.told(sent).await?
    );
    ensure!(shop.told("SELECT count(*) || ' ' || sum(paid) FROM payments").await? == "3000 45015.00");
    let (_, rejects) = newest_rejects(shop.folder.path()).await?;
    ensure!(rejects.len() == (0..ORDERS).filter(|id| id % 60 == 59).count());
    ensure!(
        rejects.iter().all(|reject| reject["reason"] == "no_amount"),
        "{rejects:?}"
    );
    // No page twice but those that failed.
    let served = shop.api.requests().len() as u64;
    ensure!(served < 2 * ORDERS / PAGE, "{served} requests");

    // The next day: other amounts, other shipments, and what is new of the payments.
    shop.mood.cents.store(25, Ordering::SeqCst);
    shop.crm
        .execute(
            "postgres",
            "INSERT INTO billing.payments VALUES (4000, 4000, 7.50, '2024-03-02Z'); UPDATE billing.payments SET paid = 1, changed_at = '2024-03-02 00:00:01Z' WHERE id = 1",
        )
        .await?;
    shop.run("2024-03-02").await?.success()?;
    ensure!(shop.told(orders).await? == reckon(25));
    ensure!(shop.told("SELECT count(*) || ' ' || sum(paid) FROM payments").await? == "3001 45023.49");
    ensure!(
        shop.told("SELECT count(*)::text FROM shipments").await?
            == (0..2_200).filter(|id| id % 50 != 0).count().to_string()
    );

    // A check that fails for one table, and an API whose pages overlap, publish nothing of any.
    let before = (shop.told(orders).await?, shop.told(sent).await?);
    shop.mood.cents.store(50, Ordering::SeqCst);
    shop.upload(
        "shipments/2024-03-03",
        "heavy.csv",
        "order_id,carrier,kg,shipped_at\n1,dhl,1000.5,2024-03-03\n",
    )?;
    shop.run("2024-03-03")
        .await?
        .failure(&["range kg 0..1000", "nothing is published"])?;
    ensure!((shop.told(orders).await?, shop.told(sent).await?) == before);
    shop.mood.shifts.store(true, Ordering::SeqCst);
    shop.upload(
        "shipments/2024-03-04",
        "one.csv",
        "order_id,carrier,kg,shipped_at\n1,dhl,1.5,2024-03-04\n",
    )?;
    shop.run("2024-03-04").await?.failure(&["load orders", "id"])?;
    ensure!((shop.told(orders).await?, shop.told(sent).await?) == before);
    shop.mood.shifts.store(false, Ordering::SeqCst);
    shop.run("2024-03-04").await?.success()?;
    ensure!(shop.told(orders).await? == reckon(50));
    Ok(())
}
