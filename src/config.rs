//! Settings that several verbs share: the home folder and its lock, `name=value` arguments, sizes, the cluster cookie.
//!
//! Addresses may hold passwords: nothing here puts one into an error, and no type here prints one with `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::exit::Usage;

/// No cookie is longer than this; a bigger file is another file.
const COOKIE_BYTES: u64 = 4096;

/// Environment variables with this prefix bind a destination: `HAULAGE_DESTINATION_WAREHOUSE=postgres://...`.
const DESTINATION_PREFIX: &str = "HAULAGE_DESTINATION_";
/// And with this one a connection of sources: `HAULAGE_SOURCE_CRM=postgres://...`.
const SOURCE_PREFIX: &str = "HAULAGE_SOURCE_";

/// The folder in which `haulage run` keeps its ledger, its checkpoints and its default warehouse.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    root: PathBuf,
}

/// Held by the one process that may write in a home. Released when dropped, and by the system when the process dies.
#[derive(Debug)]
pub(crate) struct HomeLock {
    _file: File,
}

impl Home {
    /// A home at `root`, made absolute so that a later change of folder doesn't move it. Touches nothing.
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).with_context(|| format!("no such home folder: {}", root.display()))?;
        Ok(Self { root })
    }

    /// The folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The ledger's file.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.root.join("ledger.db")
    }

    /// The default warehouse's file.
    pub(crate) fn warehouse(&self) -> PathBuf {
        self.root.join("warehouse.db")
    }

    /// The folder of checkpoints and quarantined rows.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The cluster's cookie, when none is given otherwise.
    pub(crate) fn cookie(&self) -> PathBuf {
        self.root.join("cookie")
    }

    /// Makes the folder, and keeps it out of version control.
    pub(crate) fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.root)
            .with_context(|| format!("can't make the home folder {}", self.root.display()))?;
        let ignore = self.root.join(".gitignore");
        if !ignore.exists() {
            std::fs::write(&ignore, "*\n").with_context(|| format!("can't write {}", ignore.display()))?;
        }
        Ok(())
    }

    /// Whether another process works in the home now. Makes nothing.
    pub(crate) fn is_busy_elsewhere(&self) -> bool {
        let Ok(mut file) = File::open(self.root.join("lock")) else {
            return false;
        };
        let held = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        let mut holder = String::new();
        let read = Read::by_ref(&mut file).take(32).read_to_string(&mut holder);
        held && read.is_ok() && holder.trim() != std::process::id().to_string()
    }

    /// Takes the home for this process: two writers would each believe to be the leader of the same ledger.
    pub(crate) fn lock(&self) -> Result<HomeLock> {
        self.create()?;
        let path = self.root.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("can't open the lock {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who holds it is a courtesy: a lock that can't be read is still held.
                let read = Read::by_ref(&mut file).take(32).read_to_string(&mut holder);
                let pid = match read {
                    Ok(_) if !holder.trim().is_empty() => format!("pid {}", holder.trim()),
                    _ => "pid unknown".to_owned(),
                };
                bail!(
                    "another haulage process ({pid}) is working in {}; wait until it has ended, or give this one a \
                     home of its own with --home DIR",
                    self.root.display()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("can't lock {}", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("can't write the lock {}", path.display()))?;
        Ok(HomeLock { _file: file })
    }
}

/// A SQLite address of a file. `%` and `?` mean something in an address, so they are escaped.
pub(crate) fn sqlite_url(path: &Path) -> String {
    format!(
        "sqlite:{}",
        path.display().to_string().replace('%', "%25").replace('?', "%3F")
    )
}

/// `name=value`, as `--param` takes it. The value may hold further `=` and may be empty.
pub(crate) fn parse_param(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
        _ => Err(format!(
            "{text:?} is not name=value, for example --param day=2013-01-31"
        )),
    }
}

/// Parameters by name; the same name twice is a mistake, not a choice.
pub(crate) fn params(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut params = BTreeMap::new();
    for (name, value) in pairs {
        if params.insert(name.clone(), value.clone()).is_some() {
            return Err(Usage(format!("--param {name} is given twice; keep one of them")).into());
        }
    }
    Ok(params)
}

/// `--destination name=url` or `--source name=url`, unchecked: an error of the argument parser would print the address with its password.
#[derive(Clone)]
pub(crate) struct AddressArg(String);

impl fmt::Debug for AddressArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.split_once('=').map_or("?", |(name, _)| name);
        write!(f, "AddressArg({name}=...)")
    }
}

impl From<String> for AddressArg {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Destinations by name: those of the environment, and over them those of the command line.
pub(crate) fn destinations(
    arguments: &[AddressArg],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>> {
    addresses("destination", "warehouse", DESTINATION_PREFIX, arguments, environment)
}

/// Connections of sources by name, likewise.
pub(crate) fn sources(
    arguments: &[AddressArg],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>> {
    addresses("source", "crm", SOURCE_PREFIX, arguments, environment)
}

fn addresses(
    what: &str,
    example: &str,
    prefix: &str,
    arguments: &[AddressArg],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for (variable, url) in environment {
        if let Some(name) = variable.strip_prefix(prefix)
            && !name.is_empty()
            && !url.is_empty()
        {
            found.insert(name.to_ascii_lowercase(), url);
        }
    }
    let mut given = std::collections::BTreeSet::new();
    for AddressArg(text) in arguments {
        let Some((name, url)) = text.split_once('=') else {
            return Err(Usage(format!(
                "--{what} needs name=url, for example --{what} {example}=postgres://user@host/db"
            ))
            .into());
        };
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
        // The text before the `=` may be part of an address (`postgres://u:p@h/db?a=b`), so it is never shown.
        if name.is_empty() || !name.chars().all(plain) {
            return Err(Usage(format!(
                "the part of --{what} before the = must be the {what}'s name in the pipeline file: letters, digits, _ \
                 and -"
            ))
            .into());
        }
        if url.is_empty() {
            return Err(Usage(format!("--{what} {name}= has no address")).into());
        }
        if !given.insert(name.to_owned()) {
            return Err(Usage(format!("--{what} {name} is given twice; keep one of them")).into());
        }
        found.insert(name.to_owned(), url.to_owned());
    }
    Ok(found)
}

/// The environment as text; a variable that isn't UTF-8 can't be one of ours.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// A size with an optional unit, in bytes: `512MiB`, `2GiB`, `1g`, `500MB`, `1048576`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size, for example 512MiB or 2GiB");
    let trimmed = text.trim();
    let split = trimmed
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    let bytes = number * factor as f64;
    if bytes < 1.0 || bytes >= u64::MAX as f64 {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// The cookie of `file`, without its line end.
pub(crate) fn read_cookie(file: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(file)
        .and_then(|open| open.take(COOKIE_BYTES).read_to_string(&mut text))
        .with_context(|| format!("can't read the cluster cookie from {}", file.display()))?;
    let cookie = text.trim();
    if cookie.is_empty() {
        bail!(
            "the cookie file {} is empty; put the cluster's shared secret into it",
            file.display()
        );
    }
    Ok(cookie.to_owned())
}

/// Reads the cookie of `file`, or makes one there that only this user can read.
pub(crate) fn read_or_make_cookie(file: &Path) -> Result<String> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(file) {
        Ok(mut new) => {
            let cookie = crate::chance::secret();
            writeln!(new, "{cookie}").with_context(|| format!("can't write the cookie file {}", file.display()))?;
            Ok(cookie)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => read_cookie(file),
        Err(error) => Err(error).with_context(|| format!("can't make the cookie file {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(texts: &[&str]) -> Vec<AddressArg> {
        texts.iter().map(|text| AddressArg((*text).to_owned())).collect()
    }

    #[test]
    fn params_split_at_the_first_equals_sign() {
        assert_eq!(parse_param("day=2013-01-31"), Ok(("day".into(), "2013-01-31".into())));
        assert_eq!(parse_param("filter=a=b"), Ok(("filter".into(), "a=b".into())));
        assert_eq!(parse_param("empty="), Ok(("empty".into(), String::new())));
        assert!(parse_param("day").is_err());
        assert!(parse_param("=x").is_err());
        let twice = params(&[("a".into(), "1".into()), ("a".into(), "2".into())]);
        assert!(twice.is_err_and(|error| error.is::<Usage>()));
    }

    #[test]
    fn sizes_know_binary_and_decimal_units() {
        let cases = [
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("2g", 2 << 30),
            ("1.5k", 1536),
            ("500MB", 500_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "0", "1.2.3", "5 apples", "99999999999999999999"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_environment() {
        let environment = [
            ("HAULAGE_DESTINATION_WAREHOUSE".to_owned(), "sqlite:env.db".to_owned()),
            ("HAULAGE_DESTINATION_LAKE".to_owned(), "sqlite:lake.db".to_owned()),
            ("HAULAGE_DESTINATION_".to_owned(), "sqlite:none.db".to_owned()),
            ("HAULAGE_SOURCE_CRM".to_owned(), "postgres://env/crm".to_owned()),
            ("PATH".to_owned(), "/bin".to_owned()),
        ];
        let found = destinations(&arguments(&["warehouse=sqlite:flag.db"]), environment.into_iter()).expect("valid");
        assert_eq!(found.len(), 2);
        assert_eq!(found["warehouse"], "sqlite:flag.db");
        assert_eq!(found["lake"], "sqlite:lake.db");
        let environment = [("HAULAGE_SOURCE_CRM".to_owned(), "postgres://env/crm".to_owned())];
        let found = sources(&arguments(&["shop=postgres://flag/shop"]), environment.into_iter()).expect("valid");
        assert_eq!(found["crm"], "postgres://env/crm");
        assert_eq!(found["shop"], "postgres://flag/shop");
    }

    #[test]
    fn a_wrong_destination_never_shows_its_password() {
        for text in [
            "postgres://app:hunter2@db/warehouse",
            "postgres://app:hunter2@db/warehouse?sslmode=require",
            "=postgres://app:hunter2@db/warehouse",
        ] {
            let error = destinations(&arguments(&[text]), std::iter::empty()).expect_err("invalid");
            assert!(error.is::<Usage>());
            assert!(!format!("{error:?} {error:#}").contains("hunter2"), "{error:?}");
        }
        assert!(!format!("{:?}", arguments(&["a=postgres://app:hunter2@db/x"])).contains("hunter2"));
    }

    #[test]
    fn a_home_has_one_writer_and_names_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let home = Home::new(&dir.path().join("home")).expect("a home");
        let first = home.lock().expect("free");
        let error = home.lock().expect_err("taken").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        home.lock().expect("free again");
    }

    #[test]
    fn a_cookie_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("cookie");
        let made = read_or_make_cookie(&file).expect("made");
        assert_eq!(made.len(), 32);
        assert_eq!(read_or_make_cookie(&file).expect("read"), made);
        std::fs::write(&file, "\n").expect("written");
        assert!(read_cookie(&file).is_err());
    }
}
