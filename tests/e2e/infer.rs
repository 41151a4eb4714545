//! `haulage infer`: what it prints of a source is a source, with which every row of it is read.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use datafusion::arrow::array::{
    ArrayRef, BinaryArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type};
use haulage_test_support::http::{Answer, Http};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use super::rest::{SECRET, is_allowed, page};
use super::support::cluster::run_of;
use super::support::flights;
use super::support::process::{Verb, newest_run};

/// What it says of a source, as a program reads it: the document, and `name: type!` of every column.
async fn said(folder: &Path, args: &[&str]) -> Result<(Value, Vec<String>)> {
    let verb = Verb::new(folder)
        .args(["infer"])
        .args(args.to_vec())
        .args(["--output", "json"]);
    let document = verb.output().await?.success()?.json()?;
    let columns = document["columns"].as_array().context("columns")?;
    let line = |column: &Value| {
        let bang = if column["required"] == true { "!" } else { "" };
        format!(
            "{}: {}{bang}",
            column["name"].as_str().unwrap_or_default(),
            column["type"].as_str().unwrap_or_default()
        )
    };
    let lines = columns.iter().map(line).collect();
    Ok((document, lines))
}

/// Loads the source that it prints, and returns the run's counts.
async fn loaded(folder: &Path, args: &[&str], source: &str) -> Result<Value> {
    let printed = Verb::new(folder)
        .args(["infer"])
        .args(args.to_vec())
        .output()
        .await?
        .success()?
        .stdout;
    let pipeline = format!(
        "pipeline: inferred\n{printed}loads:\n  all: {{from: {source}, to: warehouse, table: {source}, mode: replace}}\n"
    );
    std::fs::write(folder.join("pipeline.yaml"), &pipeline)?;
    let ran = Verb::new(folder).args(["run", "pipeline.yaml"]).output().await?;
    ran.success().context(pipeline)?;
    let run = newest_run(folder).await?;
    let shown = Verb::new(folder).args(["show", &run, "--output", "json"]);
    let shown = shown.output().await?.success()?.json()?;
    Ok(run_of(&shown)["counts"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_flights_every_row_is_read_with_what_it_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for file in std::fs::read_dir(flights::data())? {
        let file = file?;
        std::fs::copy(file.path(), folder.path().join(file.file_name()))?;
    }
    let (document, columns) = said(folder.path(), &["flights-*.csv"]).await?;
    ensure!(
        columns
            == [
                "year: int!",
                "month: int!",
                "day: int!",
                "dep_time: int",
                "sched_dep_time: int!",
                "dep_delay: int",
                "arr_time: int",
                "sched_arr_time: int!",
                "arr_delay: int",
                "carrier: text!",
                "flight: int!",
                "tailnum: text",
                "origin: text!",
                "dest: text!",
                "air_time: int",
                "distance: int!",
                "hour: int!",
                "minute: int!",
                "time_hour: timestamptz!"
            ],
        "{columns:?}"
    );
    ensure!(
        document["null"] == json!(["NA"]) && document["is_sample"] == false,
        "{document}"
    );
    let rows = document["rows"].as_u64().context("rows")?;
    let counts = loaded(folder.path(), &["flights-*.csv"], "flights").await?;
    ensure!(
        counts["read"] == rows && counts["loaded"] == rows && counts["rejected"] == 0,
        "{counts}"
    );
    // The other tables of the example, without a word of help.
    for (file, name) in [
        ("planes.csv", "planes"),
        ("airports.csv", "airports"),
        ("airlines.csv", "airlines"),
    ] {
        let counts = loaded(folder.path(), &[file], name).await?;
        ensure!(
            counts["loaded"] == counts["read"] && counts["rejected"] == 0,
            "{file}: {counts}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_csv_what_is_plain_has_a_type_and_what_is_not_stays_text() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let text = "no;zip;amount;share;born;at;ok;\"a; b\";id\n\
                1;01234;10.50;0.5;2024-01-31;2024-01-31T05:00:00+01:00;true;x;1\n\
                2;98765;-3.25;12;;2024-01-31 05:00:00;false;NA;2\n\
                NA;00001;0.00;1e3;2023-12-31;2024-02-01;no;y;3000000000\n";
    std::fs::write(path.join("data.csv"), text)?;
    let (document, columns) = said(path, &["data.csv"]).await?;
    let expected = [
        "no: int",
        "zip: text!",
        "amount: decimal(18,2)!",
        "share: double!",
        "born: date",
        "at: timestamptz!",
        "ok: bool!",
        "a; b: text",
        "id: bigint!",
    ];
    ensure!(columns == expected, "{columns:?}");
    ensure!(
        document["columns"][7]["note"]
            .as_str()
            .is_some_and(|note| note.contains("NA (1 times)")),
        "{document}"
    );
    let counts = loaded(path, &["data.csv"], "data").await?;
    ensure!(counts["loaded"] == 3 && counts["rejected"] == 0, "{counts}");

    // Of a part of the rows nothing is promised about the rest.
    let (document, columns) = said(path, &["data.csv", "--rows", "1"]).await?;
    ensure!(
        document["is_sample"] == true && columns.iter().all(|column| !column.ends_with('!')),
        "{columns:?}"
    );

    // A row that can't be read is said, and makes no column optional or text.
    std::fs::write(path.join("ragged.csv"), "a,b\n1,2\n3\n4,5\n")?;
    let verb = Verb::new(path)
        .args(["infer", "ragged.csv"])
        .output()
        .await?
        .success()?;
    ensure!(
        verb.stderr.contains("1 row can't be read") && verb.stderr.contains("line 3"),
        "{}",
        verb.stderr
    );
    ensure!(verb.stdout.contains("      a: int\n"), "{}", verb.stdout);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_kinds_of_sources_say_what_they_are() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let lines = "{\"id\": 1, \"zip\": \"01234\", \"at\": \"2024-01-31T05:00:00Z\", \"ok\": true, \"more\": {\"a\": 1}}\n\
                 {\"id\": 2, \"zip\": \"1\", \"at\": \"2024-01-31T06:00:00Z\", \"share\": 0.5, \"ok\": null}\n";
    std::fs::write(path.join("events.jsonl"), lines)?;
    let (_, mut columns) = said(path, &["events.jsonl"]).await?;
    columns.sort();
    let expected = [
        "at: timestamptz!",
        "id: int!",
        "more: text",
        "ok: bool",
        "share: double",
        "zip: text!",
    ];
    ensure!(columns == expected, "{columns:?}");
    let counts = loaded(path, &["events.jsonl"], "events").await?;
    ensure!(counts["loaded"] == 2 && counts["rejected"] == 0, "{counts}");

    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
        ("name", Arc::new(StringArray::from(vec![Some("a"), None])) as ArrayRef),
    ])?;
    let mut writer = ArrowWriter::try_new(File::create(path.join("things.parquet"))?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    let (_, columns) = said(path, &["things.parquet"]).await?;
    ensure!(
        columns.iter().any(|column| column.starts_with("id: bigint")),
        "{columns:?}"
    );
    let counts = loaded(path, &["things.parquet"], "things").await?;
    ensure!(counts["loaded"] == 2, "{counts}");

    let url = format!("sqlite:{}?mode=rwc", path.join("notes.db").display());
    let mut connection = SqliteConnection::connect(&url).await?;
    sqlx::raw_sql("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL); INSERT INTO notes VALUES (1, 'x')")
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    let (_, columns) = said(path, &["sqlite:notes.db/notes"]).await?;
    ensure!(columns.iter().any(|column| column == "body: text"), "{columns:?}");
    let counts = loaded(path, &["sqlite:notes.db/notes"], "notes").await?;
    ensure!(counts["loaded"] == 1, "{counts}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_looked_at_is_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("data.txt"), "a\n1\n")?;
    for (args, words) in [
        (&["missing.csv"][..], &["missing.csv"][..]),
        (&["data.txt"], &["doesn't say what kind of file it is", "--as csv"]),
        (&["postgres://u:secret@h/db"], &["give it as --source"]),
        (
            &["mariadb://u:secret@h/db"],
            &["give it as --source", "mysql:crm/TABLE"],
        ),
        (&["mysql:shop"], &["mysql:CONNECTION/TABLE", "CONNECTION=mysql://"]),
        (&["postgres:crm"], &["postgres:CONNECTION/TABLE"]),
        (&["postgres:crm/orders"], &["crm", "--source"]),
        (
            &["data.txt", "--as", "csv", "--delimiter", "é"],
            &["one ASCII character"],
        ),
        (&["data.txt", "--as", "parquet"], &["data.txt"]),
    ] {
        let verb = Verb::new(folder.path()).args(["infer"]).args(args.to_vec());
        let said = verb.output().await?.failure(words)?;
        ensure!(
            !format!("{}{}", said.stdout, said.stderr).contains("secret"),
            "a password was printed"
        );
    }
    let said = Verb::new(folder.path())
        .args(["infer", "data.txt", "--as", "csv"])
        .output()
        .await?;
    ensure!(said.success()?.stdout.contains("      a: int!\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_columns_of_all_files_are_found() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    std::fs::write(path.join("a1.csv"), "id,n\n1,1\n2,2\n")?;
    std::fs::write(path.join("a2.csv"), "n,extra,id\n3,x,3\n")?;
    let (document, columns) = said(path, &["a*.csv"]).await?;
    ensure!(columns == ["id: int!", "n: int!", "extra: text"], "{columns:?}");
    ensure!(document["lacking"] == true, "{document}");
    let counts = loaded(path, &["a*.csv"], "a").await?;
    ensure!(counts["loaded"] == 3 && counts["rejected"] == 0, "{counts}");

    let write = |name: &str, columns: Vec<(&str, ArrayRef)>| -> Result<()> {
        let batch = RecordBatch::try_from_iter(columns)?;
        let mut writer = ArrowWriter::try_new(File::create(path.join(name))?, batch.schema(), None)?;
        writer.write(&batch)?;
        writer.close()?;
        Ok(())
    };
    write("b1.parquet", vec![("n", Arc::new(Int32Array::from(vec![1])))])?;
    write(
        "b2.parquet",
        vec![
            ("n", Arc::new(Int64Array::from(vec![1_i64 << 40]))),
            ("t", Arc::new(StringArray::from(vec!["x"]))),
        ],
    )?;
    let (_, columns) = said(path, &["b*.parquet"]).await?;
    ensure!(columns == ["n: bigint", "t: text"], "{columns:?}");
    let counts = loaded(path, &["b*.parquet"], "b").await?;
    ensure!(counts["loaded"] == 2 && counts["rejected"] == 0, "{counts}");

    // Of two types that don't hold each other neither is printed without a word.
    let id = || ("id", Arc::new(Int32Array::from(vec![1])) as ArrayRef);
    write("c1.parquet", vec![id(), ("n", Arc::new(Int32Array::from(vec![1])))])?;
    write("c2.parquet", vec![id(), ("n", Arc::new(StringArray::from(vec!["x"])))])?;
    let printed = Verb::new(path)
        .args(["infer", "c*.parquet"])
        .output()
        .await?
        .success()?;
    let line = printed
        .stdout
        .lines()
        .find(|line| line.trim_start().starts_with("# \"n\""))
        .unwrap_or_default();
    ensure!(
        line.contains("neither holds the other") && line.contains("c2.parquet"),
        "{}",
        printed.stdout
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delimiter_is_one_by_which_rows_can_be_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    for (text, expected) in [
        (
            "id;name;price, net\n1;a;2\n2;b;3\n",
            &["id: int!", "name: text!", "price, net: int!"][..],
        ),
        ("id,a;b,c\n1,2,3\n", &["id: int!", "a;b: int!", "c: int!"]),
        ("id\tname\n1\ta,b\n2\tc,d\n", &["id: int!", "name: text!"]),
        ("only\n1\n2\n", &["only: int!"]),
        // One row of three is ragged by the comma, and by no other is any better.
        ("a,b\n1,2\n3,4,5\n6,7\n", &["a: int", "b: int"]),
        ("a;b\n", &["a: text", "b: text"]),
    ] {
        std::fs::write(path.join("x.csv"), text)?;
        let (_, columns) = said(path, &["x.csv"]).await?;
        ensure!(columns == expected, "{text:?}: {columns:?}");
    }
    // Of two files by the comma, whose headers differ.
    std::fs::write(path.join("z1.csv"), "a,b,c\n1,2,3\n4,5\n6,7,8\n")?;
    std::fs::write(path.join("z2.csv"), "a,b,c,d\n3,2,1,7\n6,5,4,7\n")?;
    let (_, columns) = said(path, &["z*.csv"]).await?;
    ensure!(columns.len() == 4, "{columns:?}");
    for text in ["# a comment\nid,name\n1,a\n", "id,name\n1,a,\n2,b,\n"] {
        std::fs::write(path.join("x.csv"), text)?;
        let output = Verb::new(path).args(["infer", "x.csv"]).output().await?;
        let output = output.failure(&["none of the 2 rows can be read", "x.csv, line 2", "--delimiter"])?;
        ensure!(output.stdout.is_empty(), "{}", output.stdout);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_api_the_source_can_be_read_in_each_way_to_say_who_asks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Http::start(|request, _| match is_allowed(request) {
        true => page(request),
        false => Answer::new(401, ""),
    })
    .await?;
    let url = format!("{}/orders?at=10", server.address());
    for (args, auth) in [
        (["--bearer", "api"], "bearer: \"secret://api\""),
        (["--basic", "me:api"], "basic: {user: \"me\""),
        (["--header", "X-Key=secret://api"], "header: \"X-Key\""),
    ] {
        let verb = |args: &[&str]| {
            let verb = Verb::new(folder.path()).args(args);
            verb.env("HAULAGE_SECRET_api", SECRET)
        };
        let infer = [
            "infer",
            &url,
            "--records",
            "data.items",
            args[0],
            args[1],
            "--header",
            "X-Client=me",
        ];
        let printed = verb(&infer).output().await?.success()?.stdout;
        let client = "    headers: {\"X-Client\": \"me\"}\n";
        for line in [
            "  orders:",
            auth,
            client,
            "amount: int",
            "at: timestamptz",
            "tags: text",
        ] {
            ensure!(printed.contains(line), "{line:?} is missing: {printed}");
        }
        let to = "{all: {from: orders, to: warehouse, table: orders, mode: replace}}";
        let pipeline = format!("pipeline: inferred\n{printed}loads: {to}\n");
        std::fs::write(folder.path().join("api.yaml"), pipeline)?;
        verb(&["run", "api.yaml"]).output().await?.success()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_can_not_be_read_is_left_out_and_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let write = |name: &str, columns: Vec<(&str, ArrayRef)>| -> Result<()> {
        let batch = RecordBatch::try_from_iter(columns)?;
        let mut writer = ArrowWriter::try_new(File::create(path.join(name))?, batch.schema(), None)?;
        writer.write(&batch)?;
        writer.close()?;
        Ok(())
    };
    let bytes = || Arc::new(BinaryArray::from(vec![&b"x"[..]])) as ArrayRef;
    let number = || Arc::new(Int32Array::from(vec![1])) as ArrayRef;
    let list = || Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])])) as ArrayRef;
    let group = StructArray::from(vec![(Arc::new(Field::new("x", DataType::Int32, true)), number())]);
    let columns = vec![
        ("bin", bytes()),
        ("id", number()),
        ("the list", list()),
        ("group", Arc::new(group)),
    ];
    write("a1.parquet", columns)?;
    let printed = Verb::new(path).args(["infer", "a1.parquet"]).output().await?;
    let printed = printed.success()?.stdout;
    let expected = "    columns:\n      id: int\n      # bin: holds bytes; declare it as text if they are UTF-8\n      \
                    # \"the list\": is a list, which no type holds\n      # group: is a group of fields, which no type holds\n";
    ensure!(printed.ends_with(expected), "{printed}");
    let (document, columns) = said(path, &["a1.parquet"]).await?;
    ensure!(columns == ["id: int"], "{columns:?}");
    let bin = json!({"name": "bin", "why": "holds bytes; declare it as text if they are UTF-8"});
    ensure!(
        document["left_out"][0] == bin && document["left_out"].as_array().map(Vec::len) == Some(3),
        "{document}"
    );
    let counts = loaded(path, &["a1.parquet"], "a1").await?;
    ensure!(counts["loaded"] == 1 && counts["rejected"] == 0, "{counts}");

    // In one of several files.
    write("b1.parquet", vec![("id", number()), ("n", number())])?;
    let text = Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
    write("b2.parquet", vec![("id", number()), ("n", text), ("bin", bytes())])?;
    let (document, columns) = said(path, &["b*.parquet"]).await?;
    ensure!(columns == ["id: int"] && document["lacking"] == false, "{document}");
    let why = |place: usize| document["left_out"][place]["why"].as_str().unwrap_or_default();
    ensure!(
        why(0).contains("is text (in ") && why(0).contains("b2.parquet) and int in another file"),
        "{document}"
    );
    ensure!(why(1).starts_with("holds bytes; declare it as text"), "{document}");
    let counts = loaded(path, &["b*.parquet"], "b").await?;
    ensure!(counts["loaded"] == 2 && counts["rejected"] == 0, "{counts}");

    write("c.parquet", vec![("bin", bytes())])?;
    let verb = Verb::new(path).args(["infer", "c.parquet"]);
    let words = ["no column can be read", "\"bin\" holds bytes; declare it as text"];
    verb.output().await?.failure(&words)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_file_is_called_its_source_has_a_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    for file in ["n.csv", "y.csv", "ON.csv", "null.csv", "true.csv", "No.csv"] {
        std::fs::write(path.join(file), "id\n1\n")?;
        let counts = loaded(path, &[file], "raw").await.context(file)?;
        ensure!(counts["loaded"] == 1, "{file}: {counts}");
    }
    // A name that is given is taken as it is, if a pipeline takes it.
    let printed = Verb::new(path).args(["infer", "n.csv", "--name", "y"]).output().await?;
    let printed = printed.success()?.stdout;
    ensure!(printed.contains("\n  \"y\":\n"), "{printed}");
    let counts = loaded(path, &["n.csv", "--name", "y"], "y").await?;
    ensure!(counts["loaded"] == 1, "{counts}");
    for name in ["Orders", "1st", "a-b", ""] {
        let verb = Verb::new(path).args(["infer", "n.csv", "--name", name]);
        verb.output()
            .await?
            .failure(&["is no source's name", "a-z, 0-9 and _"])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_above_those_that_a_path_names_are_no_partitions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let here = folder.path().join("env=prod");
    std::fs::create_dir_all(here.join("in/day=2024-01-01"))?;
    std::fs::write(here.join("in/day=2024-01-01/a.csv"), "id\n1\n")?;
    let absolute = here.join("in/*/*.csv").display().to_string();
    for (args, expected) in [
        (["in/day=2024-01-01/a.csv"], &["day"][..]),
        (["in/**/*.csv"], &["day"]),
        (["../*/in/*/*.csv"], &["day", "env"]),
        (["../env=prod/in/*/*.csv"], &["day", "env"]),
        // Here the path says it.
        ([&absolute], &["day", "env"]),
    ] {
        let (document, _) = said(&here, &args).await?;
        let partitions = document["partitions"].as_array().context("partitions")?;
        let names: Vec<&str> = partitions.iter().filter_map(|column| column["name"].as_str()).collect();
        ensure!(names == expected, "{args:?}: {document}");
    }
    let counts = loaded(&here, &["in/**/*.csv"], "raw").await?;
    ensure!(counts["loaded"] == 1, "{counts}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposed_column_can_be_added_beside_those_that_are_printed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    std::fs::write(
        path.join("e.jsonl"),
        "{\"user\": {\"id\": 1, \"name\": \"x\"}, \"user_id\": 2}\n",
    )?;
    let printed = Verb::new(path).args(["infer", "e.jsonl"]).output().await?;
    let printed = printed.success()?.stdout;
    let proposed = "user_name: {type: text, path: user.name}";
    ensure!(
        printed.contains(proposed) && !printed.contains("path: user.id"),
        "{printed}"
    );
    let pipeline = format!(
        "pipeline: p\n{printed}      {proposed}\nloads: {{all: {{from: e, to: warehouse, table: e, mode: replace}}}}\n"
    );
    std::fs::write(path.join("p.yaml"), &pipeline)?;
    let ran = Verb::new(path).args(["run", "p.yaml"]).output().await?;
    ran.success().context(pipeline)?;
    Ok(())
}
