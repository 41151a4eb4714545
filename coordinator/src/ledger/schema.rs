//! Whether a ledger's schema is the one this release works with. The migrations themselves are SQL, in `migrations/`.
//!
//! A schema that is current is left alone, so that a coordinator whose role may not make tables still works.

use sqlx::migrate::{AppliedMigration, MigrateError, Migrator};

use super::Error;

/// The table in which sqlx keeps what was applied.
pub(super) const TABLE: &str = "_sqlx_migrations";

/// How a database's schema relates to the one this release makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is none yet, or an older one: its version, 0 for none.
    Behind(i64),
    /// The same.
    Current,
}

/// Compares. A schema of a newer release is [`Error::Schema`], a changed migration is [`Error::Migrate`].
pub(super) fn compare(applied: &[AppliedMigration], migrator: &Migrator) -> Result<Standing, Error> {
    let found = applied.iter().map(|migration| migration.version).max().unwrap_or(0);
    let known = newest(migrator);
    if found > known {
        return Err(Error::Schema { found, known });
    }
    for migration in migrator.iter() {
        match applied.iter().find(|standing| standing.version == migration.version) {
            None => return Ok(Standing::Behind(found)),
            Some(standing) if standing.checksum != migration.checksum => {
                return Err(MigrateError::VersionMismatch(migration.version).into());
            }
            Some(_) => {}
        }
    }
    Ok(Standing::Current)
}

/// The version this release makes.
pub(super) fn newest(migrator: &Migrator) -> i64 {
    migrator.iter().map(|migration| migration.version).max().unwrap_or(0)
}
