//! How a verb reaches runs: through a coordinator, or by reading the ledger of the home when there is none.

use anyhow::{Context as _, Result};

use haulage_coordinator::Reader;

use crate::api::{self, Client};
use crate::cli::Globals;
use crate::config::{self, Home};
use crate::exit::Usage;

/// A client that can look at runs, with what has to live as long as it does.
pub(crate) struct Reach {
    /// The client.
    pub(crate) client: Client,
    _reader: Option<Reader>,
}

/// A client of the coordinators that were named: of the first that answers, and when that fails of the next.
pub(crate) async fn coordinator(addresses: &str) -> Result<Client> {
    let addresses: Vec<&str> = addresses
        .split(',')
        .filter(|address| !address.trim().is_empty())
        .collect();
    api::connect(&addresses).await
}

/// A client that can look at runs: of the coordinator if one is named, else of the home's ledger, which it only reads.
pub(crate) async fn reader(globals: &Globals) -> Result<Reach> {
    if let Some(addresses) = &globals.coordinator {
        return Ok(Reach {
            client: coordinator(addresses).await?,
            _reader: None,
        });
    }
    let home = existing_home(globals)?;
    let reader = haulage_coordinator::open_readonly(&config::sqlite_url(&home.ledger()))
        .await
        .with_context(|| format!("can't read the ledger {}", home.ledger().display()))?;
    Ok(Reach {
        client: api::over(reader.channel()),
        _reader: Some(reader),
    })
}

/// The home, if `haulage run` has ever worked in it.
pub(crate) fn existing_home(globals: &Globals) -> Result<Home> {
    let home = Home::new(&globals.home)?;
    if home.ledger().is_file() {
        return Ok(home);
    }
    Err(Usage(format!(
        "there is no coordinator to ask and no run to look at in {}; name a coordinator with --coordinator URL, another \
         home with --home DIR, or run a pipeline first: haulage run FILE",
        home.root().display()
    ))
    .into())
}

/// The coordinator's client, for verbs that mean nothing without one.
pub(crate) async fn required(globals: &Globals, otherwise: &str) -> Result<Client> {
    match &globals.coordinator {
        Some(addresses) => coordinator(addresses).await,
        None => Err(Usage(format!(
            "no coordinator is named; give --coordinator URL or set HAULAGE_COORDINATOR{otherwise}"
        ))
        .into()),
    }
}
