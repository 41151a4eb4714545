//! Where rows are that lie in no files: a table of a database, or an API with pages of ten.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use haulage_node::NodeConfig;
use haulage_node::source::database::Databases;
use haulage_node::source::{Binding, Source, bind};
use haulage_node::store::S3Settings;
use haulage_plan::contract::Contract;
use haulage_plan::definition::{
    DatabaseKind, DatabaseRows, DatabaseSource, NameEnd, Pagination, RestSource, Source as Declared, SourceKind,
};
use haulage_test_support::http::{Answer, Http, Request};
use haulage_test_support::mariadb::Mariadb;
use haulage_test_support::postgres::Postgres;
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _};
use tempfile::TempDir;

use crate::kinds::{self, Record};

/// Records of a page.
const PAGE: usize = 10;
/// Rows of an INSERT.
const ROWS: usize = 20;

/// A kind of source, for the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    Rest,
    Postgres,
    Mariadb,
    Sqlite,
}

/// A table or an API with some rows.
pub(crate) enum Stand {
    Rest(Http, Arc<Mutex<Vec<Record>>>),
    Postgres(Arc<Postgres>, String),
    Mariadb(Arc<Mariadb>, String),
    Sqlite(TempDir),
}

impl Served {
    /// Whether many rows are several chunks.
    pub(crate) fn splits(self) -> bool {
        self != Self::Rest
    }

    /// What is said of rows that aren't there.
    pub(crate) fn missing(self) -> &'static str {
        match self {
            Self::Rest => "it answers 404 Not Found: no such page; correct the URL",
            Self::Postgres => "correct the `table`",
            Self::Mariadb => "gone' doesn't exist",
            Self::Sqlite => "gone",
        }
    }

    pub(crate) async fn start(self) -> Stand {
        match self {
            Self::Rest => {
                let records: Arc<Mutex<Vec<Record>>> = Arc::default();
                let served = Arc::clone(&records);
                let server = Http::start(move |request, _| page(&served.lock().unwrap(), request)).await;
                Stand::Rest(server.unwrap(), records)
            }
            Self::Postgres => {
                let server = Postgres::shared().await.unwrap();
                let name = server.database().await.unwrap();
                Stand::Postgres(server, name)
            }
            Self::Mariadb => {
                let server = Mariadb::shared().await.unwrap();
                let name = server.database().await.unwrap();
                Stand::Mariadb(server, name)
            }
            Self::Sqlite => Stand::Sqlite(haulage_test_support::folder("sources").unwrap()),
        }
    }
}

/// The page that is asked for: its records, and the number of the next one.
fn page(records: &[Record], request: &Request) -> Answer {
    if request.path() != "/rows" {
        return Answer::new(404, "no such page");
    }
    let from: usize = request.query("at").map_or(0, |at| at.parse().unwrap());
    let to = records.len().min(from + PAGE);
    let record = |record: &Record| {
        let at = chrono::DateTime::from_timestamp(record.at, 0).unwrap().to_rfc3339();
        json!({"id": record.id, "word": record.word, "amount": record.amount, "at": at})
    };
    let items: Vec<_> = records[from..to].iter().map(record).collect();
    let next = (to < records.len()).then_some(to);
    Answer::new(200, json!({"items": items, "next": next}).to_string())
}

/// A text in SQL, without what has a meaning there.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Stand {
    /// Puts these rows there, in their order.
    pub(crate) async fn fill(&self, records: &[Record]) {
        let types = match self {
            Self::Rest(_, served) => {
                *served.lock().unwrap() = records.to_vec();
                return;
            }
            Self::Postgres(..) => "n INT PRIMARY KEY, id BIGINT, word TEXT, amount DOUBLE PRECISION, at TIMESTAMPTZ",
            Self::Mariadb(..) => "n INT PRIMARY KEY, id BIGINT, word LONGTEXT, amount DOUBLE, at DATETIME",
            Self::Sqlite(_) => "n INTEGER PRIMARY KEY, id INTEGER, word TEXT, amount REAL, at TEXT",
        };
        self.execute(&format!("CREATE TABLE rows_ ({types})")).await;
        let row = |(n, record): (usize, &Record)| {
            let id = record.id.map_or("NULL".to_owned(), |id| id.to_string());
            let word = record.word.as_deref().map_or("NULL".to_owned(), quoted);
            let at = chrono::DateTime::from_timestamp(record.at, 0).unwrap().naive_utc();
            format!("({n}, {id}, {word}, {:?}, '{at}')", record.amount)
        };
        let rows: Vec<String> = records.iter().enumerate().map(row).collect();
        for rows in rows.chunks(ROWS.max(rows.len() / 100)) {
            self.execute(&format!("INSERT INTO rows_ VALUES {}", rows.join(", ")))
                .await;
        }
        if let Self::Mariadb(..) = self {
            // How many rows there are is an estimate, which chunks are cut by.
            self.execute("ANALYZE TABLE rows_").await;
        }
    }

    async fn execute(&self, sql: &str) {
        match self {
            Self::Rest(..) => {}
            Self::Postgres(server, name) => {
                let sql = format!("SET timezone = 'UTC'; {sql}");
                server.execute(name, &sql).await.unwrap();
            }
            Self::Mariadb(server, name) => server.execute(name, sql).await.unwrap(),
            Self::Sqlite(folder) => {
                use sqlx::Connection as _;
                let options = SqliteConnectOptions::new()
                    .filename(folder.path().join("rows.db"))
                    .create_if_missing(true);
                let mut connection = options.connect().await.unwrap();
                sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
                    .execute(&mut connection)
                    .await
                    .unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// The rows as a source of a node of its own.
    pub(crate) fn source(&self, chunk_bytes: u64, checkpoint_rows: u64) -> Box<dyn Source> {
        self.named("rows", None, chunk_bytes, checkpoint_rows)
    }

    /// The same of rows that aren't there.
    pub(crate) fn missing(&self) -> Box<dyn Source> {
        self.named("gone", None, 1 << 20, 10)
    }

    /// The same where nobody answers.
    pub(crate) fn away(&self) -> Box<dyn Source> {
        let free = haulage_test_support::free_port().unwrap();
        self.named("rows", Some(free), 1 << 20, 10)
    }

    fn named(&self, what: &str, port: Option<u16>, chunk_bytes: u64, checkpoint_rows: u64) -> Box<dyn Source> {
        let mut config = NodeConfig::new("n", "nowhere");
        let moved = |address: String, from: u16| match port {
            Some(port) => address.replace(&format!(":{from}"), &format!(":{port}")),
            None => address,
        };
        let (mut base, mut kind) = ("/nowhere".to_owned(), DatabaseKind::Sqlite);
        match self {
            Self::Rest(server, _) => {
                let port = port.map(|port| format!("http://127.0.0.1:{port}"));
                let address = port.unwrap_or_else(|| server.address());
                let declared = SourceKind::Rest(Box::new(rest(&format!("{address}/{what}"))));
                return bound(declared, base, Databases::of(&config), checkpoint_rows);
            }
            Self::Postgres(server, name) => {
                kind = DatabaseKind::Postgres;
                config
                    .sources
                    .insert("db".to_owned(), moved(server.url(name), server.port()));
            }
            Self::Mariadb(server, name) => {
                kind = DatabaseKind::Mysql;
                config
                    .sources
                    .insert("db".to_owned(), moved(server.url(name), server.port()));
            }
            Self::Sqlite(folder) => folder.path().to_str().unwrap().clone_into(&mut base),
        }
        let table = if what == "rows" { "rows_" } else { what };
        let at = match (kind, port) {
            (DatabaseKind::Sqlite, Some(_)) => "away.db",
            (DatabaseKind::Sqlite, None) => "rows.db",
            _ => "db",
        };
        let declared = SourceKind::Database(DatabaseSource {
            kind,
            at: at.to_owned(),
            rows: DatabaseRows::Table(table.to_owned()),
            columns: kinds::columns(),
            chunk_bytes,
            location: format!("{at}: {table}"),
            incremental: None,
        });
        bound(declared, base, Databases::of(&config), checkpoint_rows)
    }

    /// How many read here now. Of a file only Linux tells.
    pub(crate) async fn readers(&self) -> i64 {
        match self {
            Self::Rest(server, _) => server.connections() as i64,
            Self::Postgres(server, name) => {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE \
                           'COPY (SELECT%'";
                let pool = server.pool(name).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap()
            }
            Self::Mariadb(server, name) => {
                let sql = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE db = DATABASE() AND command = \
                           'Execute' AND id <> CONNECTION_ID()";
                let pool = server.pool(name).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap()
            }
            Self::Sqlite(folder) => {
                let file = folder.path().join("rows.db");
                let open = std::fs::read_dir(Path::new("/proc/self/fd"));
                let open = open.into_iter().flatten().flatten();
                open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == file))
                    .count() as i64
            }
        }
    }
}

fn rest(url: &str) -> RestSource {
    RestSource {
        url: url.to_owned(),
        query: Vec::new(),
        headers: Vec::new(),
        auth: None,
        records: vec!["items".to_owned()],
        records_optional: false,
        error: Vec::new(),
        pagination: Pagination::Cursor {
            path: vec!["next".to_owned()],
            param: "at".to_owned(),
            start: None,
            end: NameEnd::Said,
        },
        pause: Duration::ZERO,
        timeout: Duration::from_secs(30),
        max_wait: Duration::from_secs(600),
        max_response: 16 << 20,
        paths: Default::default(),
        columns: kinds::columns(),
        location: url.to_owned(),
    }
}

fn bound(kind: SourceKind, base: String, databases: Databases, checkpoint_rows: u64) -> Box<dyn Source> {
    let declared = Declared {
        name: "raw".to_owned(),
        lookup: false,
        kind,
        contract: Contract::default(),
        partitions: Vec::new(),
        planned: None,
        place: Default::default(),
    };
    let binding = Binding {
        base,
        s3: S3Settings::default(),
        checkpoint_rows,
        databases,
    };
    bind(&declared, binding).unwrap()
}
