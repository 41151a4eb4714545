//! What MySQL's and MariaDB's errors mean: which class, in words that name the connection and what to do.
//!
//! An address never gets here: only its parts that are no secret. Errors are told by their number, which both servers
//! share; a SQLSTATE is too coarse.

use std::fmt;
use std::io;

use haulage_core::failure::{Class, Failure};
use sqlx::mysql::MySqlDatabaseError;

use crate::source::excerpt;
use crate::tls;

/// Characters of the server's own words that an error repeats.
const SAID: usize = 400;

/// Where a server is, without the password.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The connection's name in the node's configuration.
    pub(super) connection: String,
    /// Host name, address, or the path of a socket.
    pub(super) host: String,
    /// TCP port.
    pub(super) port: u16,
    /// Database, if the address names one.
    pub(super) database: Option<String>,
    /// User.
    pub(super) user: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (&self.host, self.port);
        write!(f, "connection {} (MySQL at {host}:{port}", self.connection)?;
        if let Some(database) = &self.database {
            write!(f, ", database {database}")?;
        }
        write!(f, ", user {})", self.user)
    }
}

impl Place {
    /// Turns an error into a failure. `doing` completes "while ...": `reading rows`.
    pub(super) fn failure(&self, doing: &str, error: &sqlx::Error) -> Failure {
        match error {
            sqlx::Error::Database(database) => match database.try_downcast_ref::<MySqlDatabaseError>() {
                Some(said) => self.said(doing, said.number(), said.message()),
                None => Failure::permanent(format!("{self}: {} while {doing}", database.message())),
            },
            sqlx::Error::Io(cause) => self.io(doing, cause),
            sqlx::Error::Tls(cause) => Failure::permanent(format!(
                "{self}: no TLS connection while {doing}: {cause}; check ssl-mode and ssl-ca in its address"
            )),
            sqlx::Error::Protocol(cause) if cause.contains("authentication plugin") => Failure::permanent(format!(
                "{self}: the server asks for a way to log in that isn't supported ({cause}); give the user \
                 caching_sha2_password, sha256_password or mysql_native_password"
            )),
            sqlx::Error::Protocol(cause) if cause.contains("unknown column type") => Failure::permanent(format!(
                "{self}: a column has a type that isn't known here ({cause}); write a `query` that leaves it out or casts it"
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
                 ssl-ca in its address, and the host that its certificate is for"
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
                false => "the paths of ssl-ca, ssl-cert and ssl-key",
            };
            return Failure::permanent(format!("{self}: {text} while {doing}; check {what} in its address"));
        }
        Failure::transient(format!("{self}: the connection was lost while {doing} ({text})"))
    }

    fn said(&self, doing: &str, number: u16, message: &str) -> Failure {
        // It may hold values of rows.
        let message = excerpt(message.as_bytes(), SAID);
        let text = match number {
            1045 | 1698 => format!("{self}: wrong password or user ({message}); check both in its address"),
            1130 => format!("{self}: the server lets nobody in from here ({message}); grant it to the user and host"),
            1129 => format!("{self}: the server blocks this host ({message}); run FLUSH HOSTS there"),
            1044 => format!(
                "{self}: the user may not use the database ({message}); grant it to user {}",
                self.user
            ),
            1049 => format!("{self}: the database does not exist ({message}); create it or correct its address"),
            1046 => {
                format!("{self}: no database is named; write mysql://user:password@host:port/database or `table: db.t`")
            }
            1142 | 1143 | 1227 | 1370 => format!(
                "{self}: permission denied while {doing} ({message}); grant SELECT to user {}",
                self.user
            ),
            1040 | 1203 | 1226 => format!("{self}: the server has no connection left for it ({message})"),
            1146 | 1051 | 1176 | 1356 => {
                format!("{self}: {message} while {doing}; correct the `table` or the `query` of the source")
            }
            1054 | 1064 | 1052 | 1055 | 1140 | 1305 | 1630 => {
                format!("{self}: {message} while {doing}; correct the `columns` or the `query` of the source")
            }
            1792 => format!("{self}: {message} while {doing}; a `query` only reads, so write a SELECT"),
            1053 | 1927 | 1317 | 4031 => format!("{self}: the server ended the connection while {doing} ({message})"),
            _ => format!("{self}: {message} while {doing} (error {number})"),
        };
        Failure {
            class: class_of(number),
            message: text,
        }
    }
}

/// Whether an error may pass by itself.
fn class_of(number: u16) -> Class {
    match number {
        // Too many connections, of all or of one user, or in an hour; no memory or no thread for one more.
        1040 | 1203 | 1226 | 1037 | 1038 | 1041 | 1135 => Class::Transient,
        // Shutdown, a killed connection or query, a connection that was idle for too long.
        1053 | 1927 | 1317 | 4031 => Class::Transient,
        // The network between.
        1042 | 1043 | 1152..=1161 | 1184 => Class::Transient,
        // A lock that wasn't free in time, a deadlock, a table that was altered under the snapshot.
        1205 | 1213 | 1412 => Class::Transient,
        // A node of a Galera cluster that isn't ready.
        1047 => Class::Transient,
        // Room for a temporary table.
        1021 | 1114 => Class::Transient,
        _ => Class::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_class_and_its_words() {
        let place = Place {
            connection: "shop".into(),
            host: "db".into(),
            port: 3306,
            database: Some("orders".into()),
            user: "reader".into(),
        };
        for (number, message, class, words) in [
            (
                1045,
                "Access denied for user 'reader'",
                Class::Permanent,
                "wrong password",
            ),
            (1049, "Unknown database 'x'", Class::Permanent, "does not exist"),
            (
                1146,
                "Table 'x.t' doesn't exist",
                Class::Permanent,
                "correct the `table`",
            ),
            (1054, "Unknown column 'a'", Class::Permanent, "correct the `columns`"),
            (
                1142,
                "SELECT command denied",
                Class::Permanent,
                "grant SELECT to user reader",
            ),
            (1040, "Too many connections", Class::Transient, "no connection left"),
            (
                1053,
                "Server shutdown in progress",
                Class::Transient,
                "ended the connection",
            ),
            (1927, "Connection was killed", Class::Transient, "ended the connection"),
            (1412, "Table definition has changed", Class::Transient, "error 1412"),
            (1792, "Cannot execute statement", Class::Permanent, "write a SELECT"),
        ] {
            let failure = place.said("reading rows", number, message);
            assert_eq!(failure.class, class, "{number}");
            assert!(
                failure.message.contains(words) && failure.message.contains("connection shop (MySQL at db:3306"),
                "{number}: {failure}"
            );
        }
    }
}
