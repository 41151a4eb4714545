//! What PostgreSQL's errors mean: which class, in words that name the destination and what to do.
//!
//! A connection string never gets here: only its parts that are no secret.

use std::fmt;
use std::io;

use haulage_core::failure::{Class, Failure};
use sqlx::postgres::PgDatabaseError;

use crate::source::excerpt;
use crate::tls;

/// Characters of the server's own words that an error repeats.
const SAID: usize = 400;

/// Where a server is, without the password.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// What it is to us, with its name in the node's configuration: `destination warehouse`.
    pub(crate) what: String,
    /// Host name, address, or the folder of a socket.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
    /// Database.
    pub(crate) database: String,
    /// User.
    pub(crate) user: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (PostgreSQL at {}:{}, database {}, user {})",
            self.what, self.host, self.port, self.database, self.user
        )
    }
}

/// What the server said.
struct Said<'a> {
    code: &'a str,
    message: &'a str,
    detail: Option<&'a str>,
    context: Option<&'a str>,
}

impl Place {
    /// Turns an error into a failure. `doing` completes "while ...": `staging rows of load flights`.
    pub(crate) fn failure(&self, doing: &str, error: sqlx::Error) -> Failure {
        match &error {
            sqlx::Error::Database(database) => match database.try_downcast_ref::<PgDatabaseError>() {
                Some(said) => self.said(
                    doing,
                    &Said {
                        code: said.code(),
                        message: said.message(),
                        detail: said.detail(),
                        context: said.r#where(),
                    },
                ),
                None => Failure::permanent(format!("{self}: {} while {doing}", database.message())),
            },
            sqlx::Error::Io(cause) => self.io(doing, cause),
            sqlx::Error::Tls(cause) => Failure::permanent(format!(
                "{self}: no TLS connection while {doing}: {cause}; check sslmode and sslrootcert in its address"
            )),
            // The connection is in a state that the driver doesn't know: a new one may work.
            sqlx::Error::Protocol(cause) => {
                Failure::transient(format!("{self}: the connection broke while {doing}: {cause}"))
            }
            other => Failure::permanent(format!("{self}: {other} while {doing}")),
        }
    }

    fn io(&self, doing: &str, cause: &io::Error) -> Failure {
        let text = cause.to_string();
        if cause.kind() == io::ErrorKind::ConnectionRefused {
            return Failure::transient(format!(
                "{self}: connection refused while {doing}; check that the server runs and listens there"
            ));
        }
        if let Some(wrong) = tls::certificate(cause) {
            return Failure::permanent(format!(
                "{self}: no TLS connection while {doing}: {wrong}; name the file of the CA that vouches for the server with \
                 sslrootcert in its address, and the host that its certificate is for"
            ));
        }
        if text.contains("lookup address") {
            let message = format!(
                "{self}: host {} is not known ({text}); check the host in its address",
                self.host
            );
            // "Temporary failure in name resolution" is a name server that doesn't answer, not a name that isn't there.
            return if text.contains("emporary") {
                Failure::transient(message)
            } else {
                Failure::permanent(message)
            };
        }
        if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) {
            let what = match self.host.starts_with('/') {
                true => "the socket's path",
                false => "the paths of sslrootcert, sslcert and sslkey",
            };
            return Failure::permanent(format!("{self}: {text} while {doing}; check {what} in its address"));
        }
        Failure::transient(format!("{self}: the connection was lost while {doing} ({text})"))
    }

    fn said(&self, doing: &str, said: &Said<'_>) -> Failure {
        let code = said.code;
        // Both may hold values of rows.
        let message = excerpt(said.message.as_bytes(), SAID);
        let detail = said
            .detail
            .map(|detail| format!(": {}", excerpt(detail.as_bytes(), SAID)));
        let detail = detail.unwrap_or_default();
        let context = said.context.map(|context| format!(" ({context})")).unwrap_or_default();
        let text = match code {
            "28P01" => format!("{self}: wrong password; check the user and password in its address"),
            "28000" => format!("{self}: login refused ({message}); check the user and the server's pg_hba.conf"),
            "3D000" => format!("{self}: the database does not exist; create it or correct its address"),
            "42501" => format!(
                "{self}: permission denied while {doing}: {message}; grant it to user {}",
                self.user
            ),
            "53100" => format!("{self}: the server's disk is full while {doing}: {message}; free space there"),
            "53300" => format!(
                "{self}: the server has no connection left ({message}); start nodes with a lower --max-connections, or \
                 raise the server's max_connections"
            ),
            "25006" => format!("{self}: the server is read-only while {doing}; name the primary in its address"),
            "25P03" | "57P01" | "57P02" => format!("{self}: the server ended the connection while {doing} ({message})"),
            "57P03" => format!("{self}: the server does not accept connections now ({message})"),
            "40001" | "40P01" => format!("{self}: {message} while {doing}"),
            "55P03" => format!("{self}: a lock was not free in time while {doing} ({message})"),
            _ => format!("{self}: {message}{detail} while {doing}{context} (SQLSTATE {code})"),
        };
        Failure {
            class: class_of(code),
            message: text,
        }
    }
}

/// Whether an SQLSTATE may pass by itself.
fn class_of(code: &str) -> Class {
    match code {
        // Serialization failure, deadlock, lock not available, cancelled, no memory, too many connections.
        "40001" | "40P01" | "55P03" | "57014" | "53200" | "53300" => Class::Transient,
        "25P03" | "57P01" | "57P02" | "57P03" | "57P05" | "58030" => Class::Transient,
        code if code.starts_with("08") => Class::Transient,
        _ => Class::Permanent,
    }
}

/// The SQLSTATE, if the server sent one.
pub(crate) fn code(error: &sqlx::Error) -> Option<&str> {
    match error {
        sqlx::Error::Database(database) => database.try_downcast_ref::<PgDatabaseError>().map(|said| said.code()),
        _ => None,
    }
}

/// The detail, such as `Key (id)=(7) already exists.`, without its full stop and in lower case.
pub(crate) fn detail(error: &sqlx::Error) -> Option<String> {
    match error {
        sqlx::Error::Database(database) => {
            let detail = database.try_downcast_ref::<PgDatabaseError>()?.detail()?;
            let detail = excerpt(detail.trim_end_matches('.').as_bytes(), SAID);
            Some(match detail.strip_prefix("Key ") {
                Some(rest) => format!("key {rest}"),
                None => detail,
            })
        }
        _ => None,
    }
}

/// The column that the server blames.
pub(crate) fn column(error: &sqlx::Error) -> Option<&str> {
    match error {
        sqlx::Error::Database(database) => database
            .try_downcast_ref::<PgDatabaseError>()
            .and_then(|said| said.column()),
        _ => None,
    }
}

/// A row of a COPY that the server didn't take.
pub(crate) struct CopyRow<'e> {
    pub(crate) code: &'e str,
    pub(crate) message: &'e str,
    /// Its place among the rows of that COPY, from 1.
    pub(crate) line: u64,
    pub(crate) column: Option<&'e str>,
}

/// The row that an error of a COPY is about: the data of one, or a constraint that it breaks. A full disk has a line
/// too, and is not about it.
pub(crate) fn row_of_copy(error: &sqlx::Error) -> Option<CopyRow<'_>> {
    let sqlx::Error::Database(database) = error else {
        return None;
    };
    let said = database.try_downcast_ref::<PgDatabaseError>()?;
    let code = said.code();
    // Data exceptions, broken constraints, limits such as the size of a row, and what functions of domains raise.
    if !["22", "23", "54", "P0"].iter().any(|class| code.starts_with(class)) {
        return None;
    }
    let (line, column) = place_in_copy(said.r#where()?)?;
    Some(CopyRow {
        code,
        message: said.message(),
        line,
        column: said.column().or(column),
    })
}

/// Line and column of `COPY stage_0a, line 3, column id`. Servers may say it in other languages, so the words don't count.
fn place_in_copy(context: &str) -> Option<(u64, Option<&str>)> {
    let copy = context.lines().find(|line| line.starts_with("COPY "))?;
    let mut parts = copy.splitn(3, ", ").skip(1);
    let line = parts
        .next()?
        .split(|c: char| !c.is_ascii_digit())
        .find(|digits| !digits.is_empty())?;
    // A name may hold everything but the space behind the word in front of it.
    let column = parts.next().and_then(|rest| rest.split_once(' ')).map(|(_, name)| name);
    Some((line.parse().ok().filter(|line| *line > 0)?, column))
}

/// Whether nobody knows if the server did what it was asked.
pub(crate) fn outcome_unknown(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => true,
        error => matches!(code(error), Some("57P01" | "57P02" | "08006" | "08003" | "08000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            what: "destination warehouse".into(),
            host: "db".into(),
            port: 5432,
            database: "dwh".into(),
            user: "loader".into(),
        }
    }

    #[test]
    fn the_line_of_a_copy_is_read_in_any_language() {
        for (context, expected) in [
            ("COPY stage_e4301a, line 3", Some((3, None))),
            (
                "COPY stage_e4301a, line 12, column big one",
                Some((12, Some("big one"))),
            ),
            ("COPY stage_1, Zeile 7, Spalte id", Some((7, Some("id")))),
            (
                "PL/pgSQL function f(integer)\nCOPY stage_1, line 2, column id",
                Some((2, Some("id"))),
            ),
            ("COPY stage_1", None),
            ("SQL statement \"x\"", None),
        ] {
            assert_eq!(place_in_copy(context), expected, "{context}");
        }
    }

    #[test]
    fn each_error_has_its_class_and_its_words() {
        for (code, message, class, words) in [
            (
                "53100",
                "could not extend file \"base/1/2\"",
                Class::Permanent,
                "disk is full",
            ),
            (
                "28P01",
                "password authentication failed",
                Class::Permanent,
                "wrong password",
            ),
            (
                "3D000",
                "database \"dwh\" does not exist",
                Class::Permanent,
                "does not exist; create it",
            ),
            (
                "42501",
                "permission denied for schema x",
                Class::Permanent,
                "permission denied",
            ),
            (
                "57P01",
                "terminating connection",
                Class::Transient,
                "ended the connection",
            ),
            (
                "57P03",
                "the database system is starting up",
                Class::Transient,
                "starting up",
            ),
            (
                "53300",
                "sorry, too many clients already",
                Class::Transient,
                "a lower --max-connections",
            ),
            ("40P01", "deadlock detected", Class::Transient, "deadlock"),
            ("40001", "could not serialize access", Class::Transient, "serialize"),
            ("22003", "integer out of range", Class::Permanent, "SQLSTATE 22003"),
        ] {
            let said = Said {
                code,
                message,
                detail: None,
                context: None,
            };
            let failure = place().said("staging rows", &said);
            assert_eq!(failure.class, class, "{code}");
            assert!(failure.message.contains(words), "{code}: {failure}");
            assert!(
                failure.message.contains("destination warehouse (PostgreSQL at db:5432"),
                "{failure}"
            );
        }
    }
}
