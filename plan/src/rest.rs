//! A REST API as a source, as a pipeline file declares it. Secrets stand here by name alone.

use std::time::Duration;

use crate::definition::{Column, Paths};

/// Records that an HTTP server gives as JSON, page by page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestSource {
    /// `http://` or `https://`, with parameters filled in; without user, password and fragment.
    pub url: String,
    /// What is added to the URL's own query, in the order of the file, not yet encoded.
    pub query: Vec<(String, String)>,
    /// Headers of every request, beside those of [`RestSource::auth`].
    pub headers: Vec<(String, String)>,
    /// How the server is told who asks.
    pub auth: Option<RestAuth>,
    /// The keys that lead from an answer to its array of records; empty if the answer is that array.
    pub records: Vec<String>,
    /// Whether an answer without that array, or with `null` there, has no records. It is an error otherwise: so an answer
    /// looks that says what went wrong.
    pub records_optional: bool,
    /// The keys that lead to what an answer says when it is an error in spite of its status; empty if none does.
    pub error: Vec<String>,
    /// How one page leads to the next.
    pub pagination: Pagination,
    /// The least time between the beginnings of two requests.
    pub pause: Duration,
    /// The longest that one request may take, with its answer.
    pub timeout: Duration,
    /// The longest that is waited when a server asks for it, with `Retry-After`.
    pub max_wait: Duration,
    /// The longest answer, in bytes, unpacked.
    pub max_response: u64,
    /// The declared columns, which are the keys of the records, as of a [`crate::definition::JsonSource`].
    pub columns: Vec<Column>,
    /// Where those of them stand that are deeper in a record, or at another key.
    pub paths: Paths,
    /// Where its rows are, for a person: the URL without its query.
    pub location: String,
}

/// How a server is told who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestAuth {
    /// `Authorization: Bearer SECRET`.
    Bearer(SecretName),
    /// `Authorization: Basic`, of a name and a secret.
    Basic {
        /// The name, which may be a secret too.
        user: RestUser,
        /// The password.
        password: SecretName,
    },
    /// A header whose value is a secret.
    Header {
        /// The header's name.
        name: String,
        /// Its value.
        value: SecretName,
    },
}

impl RestAuth {
    /// The secrets that a node has to know.
    pub fn secrets(&self) -> Vec<&SecretName> {
        match self {
            Self::Bearer(secret) | Self::Header { value: secret, .. } => vec![secret],
            Self::Basic { user, password } => match user {
                RestUser::Text(_) => vec![password],
                RestUser::Secret(user) => vec![user, password],
            },
        }
    }
}

/// The user of basic authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestUser {
    /// As it stands in the file.
    Text(String),
    /// By its name.
    Secret(SecretName),
}

/// The name of a secret, as in `secret://NAME`; nodes know its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName(pub String);

/// How one page leads to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pagination {
    /// There is one page.
    None,
    /// A value in the answer, given back in the query.
    Cursor {
        /// The keys that lead to it; a page without it is the last.
        path: Vec<String>,
        /// The name in the query.
        param: String,
        /// What the first request gives there, if anything.
        start: Option<String>,
        /// How the only page looks.
        end: NameEnd,
    },
    /// A URL in the answer.
    Next {
        /// The keys that lead to it; a page without it is the last.
        path: Vec<String>,
        /// How the only page looks.
        end: NameEnd,
    },
    /// The URL of a `Link` header with this relation; a page without it is the last.
    Link {
        /// The relation, mostly `next`.
        rel: String,
        /// How the only page looks.
        end: NameEnd,
    },
    /// A number in the query that counts pages.
    Page(Counted),
    /// A number in the query that counts records.
    Offset(Counted),
}

/// What is made of a first page that has records and doesn't name another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameEnd {
    /// It is the only one if it says so: with `null`, `false` or an empty text, or with other `Link`s. If nothing stands
    /// there at all, the path may be wrong, and that is an error.
    #[default]
    Said,
    /// It is the only one, also if nothing stands there.
    Absent,
}

/// Pages by a number in the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The number's name in the query.
    pub param: String,
    /// The first number.
    pub start: u64,
    /// The name in the query of how many records a page may have, if the server is told.
    pub size_param: Option<String>,
    /// How many that is; `None` if neither the server is told nor the file says it.
    pub page_size: Option<u64>,
    /// Which page is the last, beside one without records.
    pub end: PageEnd,
}

/// Which of the pages that are counted is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageEnd {
    /// The first without records. It costs one more request, and no server can be misunderstood that gives fewer records
    /// than it was asked for.
    #[default]
    Empty,
    /// Also one of fewer records than `page_size`.
    Short,
    /// Also the one before a page that the server doesn't know (404).
    Missing,
    /// Also the one that the server gives again for the next number.
    Same,
}
