//! What a ledger's address names, and what of it may be shown.
//!
//! An address may hold a password, also in a place where nobody expects it (an unencoded `/` or `?` in a password moves
//! its rest into the path). So no error quotes the address, and sqlx, which logs settings it doesn't know together with
//! their values, never gets to see one.

use std::path::PathBuf;
use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::Error;

/// Settings of a PostgreSQL address that sqlx knows.
const SETTINGS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// A parsed address.
pub(super) enum Address {
    /// A PostgreSQL database.
    Postgres(Box<PgConnectOptions>),
    /// A SQLite file.
    Sqlite(PathBuf),
}

impl Address {
    /// Parses `postgres://...` (or `postgresql://...`) and `sqlite:PATH`.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let scheme = url.split(':').next().unwrap_or_default();
        match scheme {
            "postgres" | "postgresql" => postgres(url).map(|options| Self::Postgres(Box::new(options))),
            "sqlite" => sqlite(url).map(Self::Sqlite),
            _ => refuse("it must start with postgres:// or sqlite:"),
        }
    }
}

/// Where a PostgreSQL ledger is, for a person: host, port and database.
pub(super) fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    match options.get_socket() {
        Some(socket) => format!(
            "{} (port {}), database {database}",
            socket.display(),
            options.get_port()
        ),
        None => format!("{}:{}, database {database}", options.get_host(), options.get_port()),
    }
}

fn refuse<T>(why: &str) -> Result<T, Error> {
    Err(Error::Address(why.to_owned()))
}

fn postgres(url: &str) -> Result<PgConnectOptions, Error> {
    let Some((_, rest)) = url.split_once("://") else {
        return refuse("postgres must be followed by ://, as in postgres://user@host:5432/database");
    };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if rest[authority..].contains('@') {
        return refuse("there is an @ after the host; in a password write / as %2F, ? as %3F, # as %23 and @ as %40");
    }
    let settings = rest[authority..]
        .split_once('?')
        .map(|(_, settings)| settings)
        .unwrap_or_default();
    for setting in settings.split('&').filter(|setting| !setting.is_empty()) {
        let name = setting.split('=').next().unwrap_or_default();
        if !SETTINGS.contains(&name) && !name.starts_with("options[") {
            return refuse(&format!("unknown setting {name:?}; known are {}", SETTINGS.join(", ")));
        }
    }
    match PgConnectOptions::from_str(url) {
        Ok(options) => Ok(options),
        Err(sqlx::Error::Configuration(why)) => refuse(&format!("{why}; write postgres://user@host:5432/database")),
        Err(_) => refuse("write it as postgres://user@host:5432/database"),
    }
}

fn sqlite(url: &str) -> Result<PathBuf, Error> {
    if url.contains(":memory:") || url.contains("mode=memory") {
        return refuse("a ledger in memory would forget its runs; name a file, as in sqlite:.haulage/ledger.db");
    }
    let options = match SqliteConnectOptions::from_str(url) {
        Ok(options) => options,
        Err(why) => return refuse(&format!("{why}; write it as sqlite:PATH")),
    };
    let path = options.get_filename().to_owned();
    if path.as_os_str().is_empty() {
        return refuse("sqlite: must be followed by the path of a file");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::Address;

    fn check(url: &str, said: Option<&str>) {
        let text = Address::parse(url).err().map(|error| format!("{error} {error:?}"));
        match said {
            None => assert_eq!(text, None, "{url}"),
            Some(said) => {
                let text = text.unwrap_or_default();
                assert!(text.contains(said), "{url}: {text}");
                assert!(!text.contains("hush"), "{url}: {text}");
            }
        }
    }

    #[test]
    fn refusals_say_what_to_do_and_quote_no_password() {
        check("postgres://u:hush@h:5432/d?sslmode=prefer", None);
        check("postgresql://u@h/d", None);
        check("postgres:///d?host=/run/postgresql&port=5433", None);
        check("sqlite:.haulage/ledger.db", None);
        check("sqlite://relative.db", None);
        check("mysql://u:hush@h/d", Some("must start with postgres:// or sqlite:"));
        check("/var/lib/ledger.db", Some("must start with"));
        check("", Some("must start with"));
        check("postgres:u:hush@h", Some("followed by ://"));
        check("postgres://u:1/hush@h:5432/d", Some("as %2F"));
        check("postgres://u:1?hush@h:5432/d", Some("as %3F"));
        check(
            "postgres://u@h/d?sslpassword=hush",
            Some("unknown setting \"sslpassword\""),
        );
        check("postgres://u:hush@h:port/d", Some("invalid port"));
        check("sqlite::memory:", Some("name a file"));
        check("sqlite:", Some("path of a file"));
        check("sqlite:a.db?mode=odd", Some("unknown value"));
    }
}
