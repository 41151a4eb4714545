//! Wildcards in a source's path: the same files are found on a disk and in S3, and what programs put beside data is none.

use std::path::Path;

use anyhow::{Result, ensure};

use super::support::flights::sqlite;
use super::support::process::Verb;
use super::support::s3::S3;

/// Objects, each with one row that says which it is.
const OBJECTS: [&str; 9] = [
    "ev/.hidden.json",
    "ev/.x/a.json",
    "ev/_orders.json",
    "ev/_temporary/0/dt=1/x.json",
    "ev/dt=1/_tmp/p.json",
    "ev/dt=1/a.json",
    "ev/dt=2/.part.json",
    "ev/top.json",
    "t/_haulage/table.json",
];

fn write(folder: &Path) -> Result<()> {
    for object in OBJECTS {
        let place = folder.join(object);
        std::fs::create_dir_all(place.parent().unwrap_or(folder))?;
        std::fs::write(place, format!("{{\"name\": \"{object}\"}}\n"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wildcard_finds_the_same_on_a_disk_and_in_s3_and_nothing_hidden() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let s3 = S3::start(&["lake"]).await?;
    write(folder.path())?;
    write(&s3.folder("lake"))?;
    for (pattern, expected) in [
        ("**/*.json", &["ev/_orders.json", "ev/dt=1/a.json", "ev/top.json"][..]),
        ("ev/*/*.json", &["ev/dt=1/a.json"]),
        ("ev/_temporary/**/*.json", &["ev/_temporary/0/dt=1/x.json"]),
        ("ev/*/_tmp/*.json", &["ev/dt=1/_tmp/p.json"]),
        ("ev/**/.*.json", &["ev/.hidden.json", "ev/dt=2/.part.json"]),
        ("ev/.x*/*", &["ev/.x/a.json"]),
        ("ev/.hidden.json", &["ev/.hidden.json"]),
    ] {
        for base in ["", "s3://lake/"] {
            let text = format!(
                "pipeline: p\nsources: {{raw: {{json: \"{base}{pattern}\", columns: {{name: text!}}}}}}\n\
                 loads: {{l: {{from: raw, to: warehouse, table: t, mode: replace}}}}\n"
            );
            std::fs::write(folder.path().join("p.yaml"), text)?;
            let verb = Verb::new(folder.path()).args(["run", "p.yaml"]).envs(&s3.envs());
            verb.output().await?.success()?;
            let warehouse = folder.path().join(".haulage/warehouse.db");
            let found = sqlite(&warehouse, "SELECT name FROM t ORDER BY name").await?;
            ensure!(found == expected, "{base}{pattern}: {found:?}");
        }
    }
    for pattern in ["t/*/*.json", "s3://lake/t/*/*.json"] {
        let verb = Verb::new(folder.path()).args(["infer", pattern]).envs(&s3.envs());
        let words = [pattern, "passes over folders that begin with _ or ."];
        verb.output().await?.failure(&words)?;
    }
    Ok(())
}
