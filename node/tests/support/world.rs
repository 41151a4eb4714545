//! A destination of each kind, empty, and a way to look into it that is not its own.

use std::sync::Arc;

use haulage_node::sink::{Destination, registry};
use haulage_test_support::postgres::Postgres;
use haulage_test_support::s3::S3;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};
use tempfile::TempDir;

use super::files;

/// An empty database, and the destination that leads to it.
pub(crate) struct World {
    pub(crate) destination: Arc<dyn Destination>,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Postgres {
        cluster: Arc<Postgres>,
        url: String,
    },
    Sqlite {
        folder: TempDir,
    },
    /// Files in the folder `lake`, which is a bucket if there is a server.
    Files {
        folder: Option<TempDir>,
        server: Option<S3>,
    },
}

impl World {
    pub(crate) async fn postgres() -> Self {
        Self::on(Postgres::shared().await.expect("PostgreSQL")).await
    }

    /// A new database of this cluster.
    pub(crate) async fn on(cluster: Arc<Postgres>) -> Self {
        let url = cluster.url(&cluster.database().await.expect("a database"));
        let destination = registry::open("warehouse", &url).await.expect("a destination");
        Self {
            destination,
            kind: Kind::Postgres { cluster, url },
        }
    }

    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("new")).expect("a folder");
        let url = format!("sqlite:{}", folder.path().join("new/warehouse.db").display());
        let destination = registry::open("warehouse", &url).await.expect("a destination");
        Self {
            destination,
            kind: Kind::Sqlite { folder },
        }
    }

    /// Files in a folder.
    pub(crate) async fn folder() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("lake")).expect("a folder");
        Self::of_files(Kind::Files {
            folder: Some(folder),
            server: None,
        })
        .await
    }

    /// Files in S3. The credentials have to be in the environment.
    pub(crate) async fn s3() -> Self {
        let server = S3::start(&["lake"]).await.expect("a server");
        Self::of_files(Kind::Files {
            folder: None,
            server: Some(server),
        })
        .await
    }

    async fn of_files(kind: Kind) -> Self {
        let destination = files::open(&kind).await;
        Self { destination, kind }
    }

    pub(crate) fn is_files(&self) -> bool {
        matches!(self.kind, Kind::Files { .. })
    }

    /// Another destination that leads to the same place, as a node that was started again has it.
    pub(crate) async fn reopened(&self) -> Arc<dyn Destination> {
        let url = match &self.kind {
            Kind::Files { .. } => return files::open(&self.kind).await,
            Kind::Postgres { url, .. } => url.clone(),
            Kind::Sqlite { folder } => format!("sqlite:{}", folder.path().join("new/warehouse.db").display()),
        };
        registry::open("warehouse", &url).await.expect("a destination")
    }

    /// The server, and the address of the database in it.
    pub(crate) fn server(&self) -> (&Postgres, &str) {
        match &self.kind {
            Kind::Postgres { cluster, url } => (cluster, url),
            Kind::Sqlite { .. } | Kind::Files { .. } => panic!("only for PostgreSQL"),
        }
    }

    /// The folder of files.
    pub(crate) fn lake(&self) -> std::path::PathBuf {
        match &self.kind {
            Kind::Files {
                folder: Some(folder), ..
            } => folder.path().join("lake"),
            Kind::Files {
                server: Some(server), ..
            } => server.folder("lake"),
            Kind::Postgres { .. } | Kind::Sqlite { .. } | Kind::Files { .. } => panic!("only for files"),
        }
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.kind, Kind::Postgres { .. })
    }

    /// Runs statements.
    pub(crate) async fn run(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.kind {
            Kind::Files { .. } => panic!("files know no SQL"),
            Kind::Postgres { url, .. } => {
                let mut connection = PgConnection::connect(url).await.expect("a connection");
                sqlx::raw_sql(sql).execute(&mut connection).await.expect("sound SQL");
            }
            Kind::Sqlite { folder } => {
                let path = folder.path().join("new/warehouse.db");
                let mut connection = SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", path.display()))
                    .await
                    .expect("a connection");
                sqlx::raw_sql(sql).execute(&mut connection).await.expect("sound SQL");
                connection.close().await.expect("a closed connection");
            }
        }
    }

    /// The only column, text, of a query's rows, sorted; `None` if the query fails.
    pub(crate) async fn texts(&self, sql: &str) -> Option<Vec<String>> {
        let sql = AssertSqlSafe(sql.to_owned());
        let mut rows: Vec<String> = match &self.kind {
            Kind::Files { .. } => panic!("files know no SQL"),
            Kind::Postgres { url, .. } => {
                let mut connection = PgConnection::connect(url).await.expect("a connection");
                let rows = sqlx::raw_sql(sql).fetch_all(&mut connection).await.ok()?;
                rows.iter().map(|row| row.get(0)).collect()
            }
            Kind::Sqlite { folder } => {
                let path = folder.path().join("new/warehouse.db");
                let mut connection = SqliteConnection::connect(&format!("sqlite:{}", path.display()))
                    .await
                    .ok()?;
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.ok()?;
                rows.iter().map(|row| row.get(0)).collect()
            }
        };
        rows.sort();
        Some(rows)
    }

    /// The rows of a table with columns id, name and amount; `None` if there is no such table.
    pub(crate) async fn rows(&self, table: &str) -> Option<Vec<String>> {
        if self.is_files() {
            return files::rows(&self.lake(), table);
        }
        self.texts(&format!(
            "SELECT CAST(id AS TEXT) || ' ' || coalesce(name, '~') || ' ' || coalesce(CAST(amount AS TEXT), '~') \
             FROM {table}"
        ))
        .await
    }

    /// What Haulage has left besides its three tables of records: staging areas and before-images.
    pub(crate) async fn left_over(&self) -> Vec<String> {
        let sql = match self.kind {
            Kind::Files { .. } => return files::left_over(&self.lake()),
            Kind::Postgres { .. } => {
                "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('haulage') AND relkind = 'r' \
                 AND relname NOT IN ('loads', 'fences', 'targets')"
            }
            Kind::Sqlite { .. } => {
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE '\\_haulage\\_%' ESCAPE '\\' \
                 AND name NOT IN ('_haulage_loads', '_haulage_fences', '_haulage_markers')"
            }
        };
        self.texts(sql).await.expect("a catalog")
    }
}
