//! `haulage infer`: the columns of a source with their types, ready to be put into a pipeline file.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use haulage_node::config::NodeConfig;
use haulage_node::source::infer::{self, Inferred};
use haulage_plan::definition::{
    Column, Compression, CsvSource, DatabaseKind, DatabaseRows, DatabaseSource, JsonSource, Pagination, ParquetSource,
    Paths, Place, RestAuth, RestSource, RestUser, SecretName, Source, SourceKind,
};
use haulage_plan::types;
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::cli::node_options::NodeOptions;
use crate::config::Home;
use crate::embedded;
use crate::exit::{Exit, Usage};
use crate::output::{human, note};
use crate::pipeline;

const AFTER_HELP: &str = "\
Examples:
  haulage infer 'data/flights-*.csv'              a path or glob; quotes keep the shell from filling it in
  haulage infer events.jsonl.gz
  haulage infer s3://bucket/trips/2024-*.parquet
  haulage infer postgres:crm/public.orders --source crm=postgres://reader@db/crm
  haulage infer 'https://api.example.com/v1/orders?limit=100' --records data.items --bearer api_key
  haulage infer https://api.example.com/v1/users --header X-Client=haulage --header X-Key=secret://api_key
  haulage infer data.txt --as csv --delimiter ';' > source.yaml

Prints a `sources:` section. A column gets a type where every value is plainly of it: int, bigint, decimal for amounts
(all values with the same two to four digits behind the point), double, bool, date, timestamp, timestamptz, and text in
doubt. What begins with a zero or a plus stays text. Words such as NA that stand in a column of numbers or times become
`null:`. A column is required (!) if every row of the source was read and has a value there; with --rows fewer are read.
Of a table of PostgreSQL or MySQL no row is read: (!) is a column that takes no NULL.
Parquet files and databases say themselves what their columns are. Of an API the answer to this one request is looked at;
how it goes on from page to page (`pagination`) is for you to write.";

/// Before the name of a secret.
const SECRET: &str = "secret://";

/// Letters of a source's name, as a pipeline file takes them.
const NAME_LENGTH: usize = 63;

/// Delimiters that are tried.
const DELIMITERS: [u8; 4] = *b",;\t|";
/// Rows by which they are tried.
const TRIED_ROWS: u64 = 1_000;

/// Arguments of `infer`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// A path, glob or s3://bucket/key, or postgres:CONNECTION/TABLE, mysql:CONNECTION/TABLE, or sqlite:PATH/TABLE, or http(s)://...
    #[arg(value_name = "SOURCE")]
    at: String,
    /// What kind of file it is, where its name doesn't say so
    #[arg(long = "as", value_name = "KIND", value_enum)]
    kind: Option<Kind>,
    /// What to call the source [default: from the file's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Between fields of CSV, one character [default: a comma, or what the header has]
    #[arg(long, value_name = "CHAR")]
    delimiter: Option<char>,
    /// Of an API: the keys that lead from an answer to its array of records, with dots between [default: the answer is it]
    #[arg(long, value_name = "PATH")]
    records: Option<String>,
    /// Of an API: the name of the secret that is sent as a bearer token
    #[arg(long, value_name = "SECRET")]
    bearer: Option<String>,
    /// Of an API: a user, and the name of the secret that is the password
    #[arg(long, value_name = "USER:SECRET", conflicts_with = "bearer")]
    basic: Option<String>,
    /// Of an API: a header of the request, whose value may be secret://NAME; as often as there are headers
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// Read so many rows at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rows: Option<u64>,
    #[command(flatten)]
    node: NodeOptions,
}

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Csv,
    Json,
    Parquet,
}

impl Kind {
    /// By a name's ending, before that of a compression.
    fn of(path: &str) -> Option<Self> {
        let lower = path.to_lowercase();
        let plain = [".gz", ".zst"].iter().find_map(|ending| lower.strip_suffix(ending));
        match plain.unwrap_or(&lower).rsplit('.').next()? {
            "csv" | "tsv" | "tab" => Some(Self::Csv),
            "json" | "jsonl" | "ndjson" => Some(Self::Json),
            "parquet" | "pq" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// Prints what the source is.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let config = embedded::node_config(&Home::new(&globals.home)?, &args.node)?;
    let base = pipeline::here()?;
    let most = args.rows.unwrap_or(u64::MAX);
    let mut source = declared(&args)?;
    if args.delimiter.is_none() {
        find_delimiter(&config, &mut source, &base).await?;
    }
    let found = infer::infer(&config, &source, &base, most).await?;
    if found.unreadable > 0 && found.unreadable == found.rows {
        let first = found.first_unreadable.as_deref().unwrap_or_default();
        bail!(
            "none of the {} can be read by the columns of {}, the first in {first}; correct the file, or say with \
             --delimiter what stands between two fields",
            human::counted(found.rows, "row"),
            args.at
        );
    }
    if let Some(first) = &found.first_unreadable {
        note(format!(
            "{} can't be read and would go to quarantine, the first in {first}",
            human::counted(found.unreadable, "row")
        ));
    }
    if output.is_json() {
        output.json(&document(&source, &found))?;
    } else {
        for line in yaml(&source, &found) {
            output.line(line)?;
        }
    }
    Ok(Exit::Success)
}

/// Sets the delimiter of a CSV file by which the most of its first rows can be read, and of those the one that makes the
/// most columns; the comma, if that is as good as any.
async fn find_delimiter(config: &NodeConfig, source: &mut Source, base: &str) -> Result<()> {
    let mut best = None;
    for delimiter in DELIMITERS {
        let SourceKind::Csv(csv) = &mut source.kind else {
            return Ok(());
        };
        csv.delimiter = delimiter;
        // What is wrong by all of them is told when all of it is read.
        let Ok(found) = infer::infer(config, source, base, TRIED_ROWS).await else {
            continue;
        };
        let columns = found.columns.len();
        // A single column is what any file has by a delimiter that isn't its own.
        let sound = if columns > 1 { found.rows - found.unreadable } else { 0 };
        // Of files whose headers differ, another delimiter makes a column of each header.
        let names = found.columns.iter().map(|column| column.column.name.as_bytes());
        let others = names
            .flatten()
            .any(|byte| *byte != delimiter && DELIMITERS.contains(byte));
        let is_sound = columns > 1 && (sound > 0 || found.rows == 0);
        let worth = (is_sound, !others, sound, columns);
        if best.is_none_or(|(most, _)| worth > most) {
            best = Some((worth, delimiter));
        }
    }
    if let SourceKind::Csv(csv) = &mut source.kind {
        csv.delimiter = best.map_or(b',', |(_, delimiter)| delimiter);
    }
    Ok(())
}

fn declared(args: &Args) -> Result<Source> {
    let text = args.at.as_str();
    let name = args.name.clone().unwrap_or_else(|| name_of(text));
    let is_sign = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(is_sign) || name.len() > NAME_LENGTH {
        let help = format!(
            "--name {name:?} is no source's name; write a letter, and behind it a-z, 0-9 and _, {NAME_LENGTH} in all at most"
        );
        return Err(Usage(help).into());
    }
    let database = |kind, at: &str, table: &str| {
        SourceKind::Database(DatabaseSource {
            kind,
            at: at.to_owned(),
            rows: DatabaseRows::Table(table.to_owned()),
            columns: Vec::new(),
            chunk_bytes: CHUNK_BYTES,
            location: format!("{at}: {table}"),
            incremental: None,
        })
    };
    let server = [("postgres", DatabaseKind::Postgres), ("mysql", DatabaseKind::Mysql)];
    let server = server.into_iter().find_map(|(word, kind)| {
        let rest = text.strip_prefix(word)?.strip_prefix(':')?;
        (!rest.starts_with("//")).then_some((word, kind, rest))
    });
    let kind = if let Some((word, kind, rest)) = server {
        let Some((at, table)) = rest
            .split_once('/')
            .filter(|(at, table)| !at.is_empty() && !table.is_empty())
        else {
            let help = format!("write {word}:CONNECTION/TABLE, and --source CONNECTION={word}://...");
            return Err(Usage(help).into());
        };
        database(kind, at, table)
    } else if let Some(rest) = text.strip_prefix("sqlite:") {
        let Some((at, table)) = rest
            .rsplit_once('/')
            .filter(|(at, table)| !at.is_empty() && !table.is_empty())
        else {
            return Err(Usage("write sqlite:PATH/TABLE".into()).into());
        };
        database(DatabaseKind::Sqlite, at, table)
    } else if let Some(word) = address_of(text) {
        let help =
            format!("an address may hold a password: give it as --source crm=ADDRESS and write {word}:crm/TABLE");
        return Err(Usage(help).into());
    } else if text.starts_with("http://") || text.starts_with("https://") {
        SourceKind::Rest(Box::new(api(args)?))
    } else {
        files(args)?
    };
    Ok(Source {
        name,
        lookup: false,
        kind,
        contract: Default::default(),
        partitions: Vec::new(),
        planned: None,
        place: Place::default(),
    })
}

/// The word for the server that an address leads to, if it is one.
fn address_of(text: &str) -> Option<&'static str> {
    let schemes = [
        ("postgres://", "postgres"),
        ("postgresql://", "postgres"),
        ("mysql://", "mysql"),
        ("mariadb://", "mysql"),
    ];
    schemes
        .into_iter()
        .find(|(scheme, _)| text.starts_with(scheme))
        .map(|(_, word)| word)
}

/// An API, of which one answer is read.
fn api(args: &Args) -> Result<RestSource> {
    let location = args.at.split(['?', '#']).next().unwrap_or_default();
    if location.split('/').nth(2).is_some_and(|host| host.contains('@')) {
        return Err(Usage("the URL holds a user or a password; a pipeline file holds none".into()).into());
    }
    let records = args.records.as_deref().unwrap_or_default();
    let (auth, headers) = sent(args)?;
    Ok(RestSource {
        // A fragment is for whoever shows a page, and no server gets it.
        url: args.at.split('#').next().unwrap_or_default().to_owned(),
        query: Vec::new(),
        headers,
        auth,
        records: records
            .split('.')
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect(),
        records_optional: false,
        error: Vec::new(),
        pagination: Pagination::None,
        pause: Duration::ZERO,
        timeout: Duration::from_secs(30),
        max_wait: Duration::from_secs(60),
        max_response: 16 << 20,
        paths: Paths::new(),
        columns: Vec::new(),
        location: location.to_owned(),
    })
}

/// Names and values.
type Headers = Vec<(String, String)>;

/// How the server is told who asks, and the headers beside that.
fn sent(args: &Args) -> Result<(Option<RestAuth>, Headers)> {
    let secret = |name: &str| SecretName(name.strip_prefix(SECRET).unwrap_or(name).to_owned());
    let mut auth = args.bearer.as_deref().map(|name| RestAuth::Bearer(secret(name)));
    if let Some(basic) = &args.basic {
        let Some((user, password)) = basic.split_once(':') else {
            return Err(Usage(format!("--basic {basic} names no secret; write USER:SECRET")).into());
        };
        auth = Some(RestAuth::Basic {
            user: RestUser::Text(user.to_owned()),
            password: secret(password),
        });
    }
    let mut headers = Vec::new();
    for header in &args.headers {
        let Some((name, value)) = header.split_once('=') else {
            return Err(Usage(format!("--header {header} has no value; write NAME=VALUE")).into());
        };
        match value.strip_prefix(SECRET) {
            Some(_) if auth.is_some() => {
                return Err(Usage(
                    "one secret can be sent; keep one of --bearer, --basic and --header NAME=secret://".to_owned(),
                )
                .into());
            }
            Some(value) => {
                auth = Some(RestAuth::Header {
                    name: name.to_owned(),
                    value: SecretName(value.to_owned()),
                });
            }
            None => headers.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok((auth, headers))
}

/// `auth` and `headers`, as a pipeline file has them.
fn sent_lines(rest: &RestSource) -> Vec<String> {
    let secret = |SecretName(name): &SecretName| quoted(&format!("{SECRET}{name}"));
    let mut lines = Vec::new();
    let headers = rest.headers.iter();
    let headers: Vec<String> = headers
        .map(|(name, value)| format!("{}: {}", key(name), quoted(value)))
        .collect();
    if !headers.is_empty() {
        lines.push(format!("    headers: {{{}}}", headers.join(", ")));
    }
    lines.extend(rest.auth.as_ref().map(|auth| {
        let auth = match auth {
            RestAuth::Bearer(token) => format!("bearer: {}", secret(token)),
            RestAuth::Basic { user, password } => {
                let user = match user {
                    RestUser::Text(user) => quoted(user),
                    RestUser::Secret(name) => secret(name),
                };
                format!("basic: {{user: {user}, password: {}}}", secret(password))
            }
            RestAuth::Header { name, value } => format!("header: {}, value: {}", quoted(name), secret(value)),
        };
        format!("    auth: {{{auth}}}")
    }));
    lines
}

/// As a pipeline file has it by default.
const CHUNK_BYTES: u64 = 16 << 20;

fn files(args: &Args) -> Result<SourceKind> {
    let path = args.at.clone();
    let Some(kind) = args.kind.or_else(|| Kind::of(&path)) else {
        let help = format!("{path:?} doesn't say what kind of file it is; add --as csv, json or parquet");
        return Err(Usage(help).into());
    };
    Ok(match kind {
        Kind::Csv => {
            let delimiter = args.delimiter.unwrap_or(',');
            let Some(delimiter) = u8::try_from(delimiter).ok().filter(u8::is_ascii) else {
                return Err(Usage(format!("--delimiter must be one ASCII character, not {delimiter:?}")).into());
            };
            SourceKind::Csv(CsvSource {
                path,
                columns: Vec::new(),
                null: Vec::new(),
                delimiter,
                quote: b'"',
                header: true,
                compression: Compression::Auto,
                chunk_bytes: CHUNK_BYTES,
                quoted_newlines: true,
            })
        }
        Kind::Json => SourceKind::Json(JsonSource {
            path,
            paths: Paths::new(),
            columns: Vec::new(),
            compression: Compression::Auto,
            chunk_bytes: CHUNK_BYTES,
        }),
        Kind::Parquet => SourceKind::Parquet(ParquetSource {
            path,
            columns: Vec::new(),
            chunk_bytes: CHUNK_BYTES,
        }),
    })
}

/// A source's name, from that of its file or table: its letters and digits up to the first wildcard or dot.
fn name_of(source: &str) -> String {
    let file = if source.starts_with("postgres:") || source.starts_with("mysql:") {
        source.rsplit(['/', '.']).next()
    } else if source.starts_with("http://") || source.starts_with("https://") {
        source.split(['?', '#']).next().and_then(|url| url.rsplit('/').next())
    } else {
        Path::new(source).file_name().and_then(|name| name.to_str())
    };
    let stem = file
        .unwrap_or_default()
        .split(['.', '*', '?', '['])
        .next()
        .unwrap_or_default();
    let mut name: String = stem
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    name = name.trim_matches('_').to_owned();
    name.truncate(40);
    // A word that would need quotes is none for a name.
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && key(&name) == name {
        name
    } else {
        "raw".to_owned()
    }
}

/// Its type as YAML has it: `int!`.
fn type_of(column: &Column) -> String {
    let bang = if column.required { "!" } else { "" };
    let name = format!("{}{bang}", types::name(&column.data_type));
    if name.contains(',') {
        format!("\"{name}\"")
    } else {
        name
    }
}

fn yaml(source: &Source, found: &Inferred) -> Vec<String> {
    let says_itself = matches!(source.kind, SourceKind::Parquet(_) | SourceKind::Database(_));
    let mut lines = vec![match found.rows {
        _ if says_itself => "# as the source itself says; ! marks a column that is never without a value".to_owned(),
        0 => "# by its header alone, since there are no rows".to_owned(),
        rows => format!(
            "# by {}{}; ! marks a column that has a value in each",
            if found.is_sample { "the first " } else { "all " },
            human::counted(rows, "row")
        ),
    }];
    lines.push("sources:".to_owned());
    lines.push(format!("  {}:", key(&source.name)));
    match &source.kind {
        SourceKind::Csv(csv) => {
            lines.push(format!("    csv: {}", quoted(&csv.path)));
            if csv.delimiter != b',' {
                let shown = if csv.delimiter == b'\t' {
                    "\\t".to_owned()
                } else {
                    char::from(csv.delimiter).to_string()
                };
                lines.push(format!("    delimiter: \"{shown}\""));
            }
            if !found.nulls.is_empty() {
                let nulls: Vec<String> = found.nulls.iter().map(|word| quoted(word)).collect();
                lines.push(format!("    null: [{}]", nulls.join(", ")));
            }
        }
        SourceKind::Json(json) => lines.push(format!("    json: {}", quoted(&json.path))),
        SourceKind::Parquet(parquet) => lines.push(format!("    parquet: {}", quoted(&parquet.path))),
        SourceKind::Rest(rest) => {
            lines.push(format!("    rest: {}", quoted(&rest.url)));
            lines.extend(sent_lines(rest));
            if !rest.records.is_empty() {
                let keys: Vec<String> = rest.records.iter().map(|key| quoted(key)).collect();
                lines.push(format!("    records: [{}]", keys.join(", ")));
            }
        }
        SourceKind::Database(database) => {
            lines.push(format!("    {}: {}", source.kind.word(), quoted(&database.at)));
            if let DatabaseRows::Table(table) = &database.rows {
                lines.push(format!("    table: {}", quoted(table)));
            }
        }
    }
    if found.lacking {
        lines.push("    on_missing_column: \"null\"    # some of its files lack some of the columns".to_owned());
    }
    if !found.partitions.is_empty() {
        lines.push("    partitions:    # in the names of the files' folders".to_owned());
        lines.extend(
            found
                .partitions
                .iter()
                .map(|column| format!("      {}: {}", key(&column.name), type_of(column))),
        );
    }
    lines.push("    columns:".to_owned());
    for column in &found.columns {
        let mut line = format!("      {}: {}", key(&column.column.name), type_of(&column.column));
        let mut notes = Vec::new();
        if column.empty > 0 && found.rows > 0 {
            notes.push(format!("{} without a value", human::count(column.empty)));
        }
        notes.extend(column.note.clone());
        if !notes.is_empty() {
            line.push_str(&format!("    # {}", notes.join("; ")));
        }
        lines.push(line);
    }
    for left in &found.left_out {
        let why = left.why.replace(char::is_control, " ");
        lines.push(format!("      # {}: {why}", key(&left.name)));
    }
    lines
}

/// A text of YAML, in double quotes: what JSON writes is YAML.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A key of YAML: quoted unless it is a plain word in every reader.
fn key(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    if plain && !words.contains(&name.to_lowercase().as_str()) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

fn document(source: &Source, found: &Inferred) -> Value {
    let columns: Vec<Value> = found
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": column.column.name,
                "type": types::name(&column.column.data_type),
                "required": column.column.required,
                "empty": column.empty,
                "note": column.note,
            })
        })
        .collect();
    let partition = |column: &Column| json!({"name": column.name, "type": types::name(&column.data_type), "required": column.required});
    let partitions: Vec<Value> = found.partitions.iter().map(partition).collect();
    json!({
        "source": source.name,
        "kind": source.kind.word(),
        "rows": found.rows,
        "is_sample": found.is_sample,
        "lacking": found.lacking,
        "unreadable": found.unreadable,
        "null": found.nulls,
        "partitions": partitions,
        "columns": columns,
        "left_out": found.left_out,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_files_and_tables() {
        for (source, expected) in [
            ("data/flights-*.csv", "flights"),
            ("s3://lake/Trips 2024.parquet", "trips_2024"),
            ("2024.csv", "raw"),
            ("*.csv", "raw"),
            ("n.csv", "raw"),
            ("On.csv", "raw"),
            ("postgres:crm/public.orders", "orders"),
            ("mysql:shop/db.orders", "orders"),
            ("sqlite:notes.db/notes", "notes"),
            ("https://api.example.com/v1/orders?limit=1/2", "orders"),
        ] {
            assert_eq!(name_of(source), expected, "{source}");
        }
    }

    #[test]
    fn keys_are_quoted_where_a_reader_of_yaml_would_read_something_else() {
        for (name, expected) in [
            ("id", "id"),
            ("no", "\"no\""),
            ("a b", "\"a b\""),
            ("1st", "\"1st\""),
            ("é", "\"é\""),
        ] {
            assert_eq!(key(name), expected);
        }
    }
}
