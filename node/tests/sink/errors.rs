//! Loads that don't fit, and destinations that can't be reached: what the message says, and its class.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use haulage_core::failure::{Class, Failure};
use haulage_node::sink::registry;
use haulage_plan::definition::Mode;
use haulage_test_support::postgres::PASSWORD;

use super::load::load;
use super::world::World;

crate::on_all!(misfits_name_column_and_types, a_view_is_no_target);

async fn misfits_name_column_and_types(world: &World) {
    world
        .run("CREATE TABLE things (id integer NOT NULL, name integer, needed text NOT NULL, filled text NOT NULL DEFAULT '')")
        .await;
    let load = load("a", Mode::Merge, &["id", "nothing"]);
    let failure = world
        .destination
        .prepare(&load)
        .await
        .expect_err("hardly anything fits");
    assert_eq!(failure.class, Class::Permanent);
    for words in [
        "key column nothing is not among the load's columns",
        "column name is text in the load and integer in ",
        "column amount (double) is not in ",
        "column needed (text) of ",
        "no unique index on its key",
    ] {
        assert!(
            failure.message.to_lowercase().contains(&words.to_lowercase()),
            "{words}: {failure}"
        );
    }
    assert!(!failure.message.contains("filled"), "{failure}");
    let inspection = world.destination.inspect(&load).await.expect("an inspection");
    assert_eq!(inspection.misfits.len(), 5, "{:?}", inspection.misfits);
    assert!(world.left_over().await.is_empty());

    let mut odd = super::load::load("b", Mode::Replace, &[]);
    odd.table = "new".to_owned();
    let list = DataType::new_list(DataType::Int32, true);
    odd.schema = Arc::new(Schema::new(vec![Field::new("many", list, true)]));
    let failure = world.destination.prepare(&odd).await.expect_err("no type for a list");
    assert!(failure.message.contains("column many"), "{failure}");
}

async fn a_view_is_no_target(world: &World) {
    world
        .run("CREATE VIEW things AS SELECT 1 AS id, 'a' AS name, 0.5 AS amount")
        .await;
    let failure = world
        .destination
        .prepare(&load("a", Mode::Replace, &[]))
        .await
        .expect_err("a view");
    assert!(failure.message.contains("load into a table, or drop it"), "{failure}");
}

async fn refused(url: &str) -> Failure {
    let destination = registry::open("warehouse", url)
        .await
        .expect("opening connects to nothing");
    let failure = destination
        .prepare(&load("a", Mode::Replace, &[]))
        .await
        .expect_err("nobody lets us in");
    // The password, as it is and as it stands in an address.
    for secret in [PASSWORD, "%20", "guess"] {
        assert!(!format!("{failure} {failure:?}").contains(secret), "{failure}");
    }
    assert!(
        failure.message.contains("destination warehouse (PostgreSQL at "),
        "{failure}"
    );
    failure
}

#[tokio::test]
async fn each_way_of_not_getting_in() {
    let world = World::postgres().await;
    let server = world.server().0;
    let port = server.port();
    for (url, class, words) in [
        (server.url_with_password("guess"), Class::Permanent, "wrong password"),
        (
            format!("postgres://locked@127.0.0.1:{port}/postgres"),
            Class::Permanent,
            "password",
        ),
        (
            format!("postgres://postgres:guess@127.0.0.1:{port}/nowhere"),
            Class::Permanent,
            "database does not exist",
        ),
        (
            format!("postgres://nobody:guess@127.0.0.1:{port}/postgres"),
            Class::Permanent,
            "login refused",
        ),
        (
            server.url_with_password(&PASSWORD.replace(' ', "%20")),
            Class::Permanent,
            "permission denied",
        ),
        (
            "postgres://u:guess@127.0.0.1:1/d".to_owned(),
            Class::Transient,
            "connection refused",
        ),
        (
            "postgres://u:guess@no-such-host.invalid/d".to_owned(),
            Class::Permanent,
            "is not known",
        ),
    ] {
        let failure = refused(&url).await;
        // A machine without a name server can't tell a wrong name from a name server that is away.
        if !failure.message.contains("emporary") {
            assert_eq!(failure.class, class, "{failure}");
        }
        assert!(failure.message.contains(words), "{words}: {failure}");
    }
}

#[tokio::test]
async fn what_was_refused_can_be_discarded() {
    let world = World::postgres().await;
    world
        .run("DO $$ BEGIN CREATE ROLE guest LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
        .await;
    let url = world.server().1.replace("postgres://postgres@", "postgres://guest@");
    let load = load("a", Mode::Replace, &[]);
    let failure = refused(&url).await;
    assert!(failure.message.contains("permission denied"), "{failure}");
    let guest = registry::open("warehouse", &url).await.expect("a destination");
    guest.revert(&load).await.expect("nothing to revert");
    guest.discard(&load).await.expect("nothing to discard");
}

#[tokio::test]
async fn addresses_that_make_no_sense() {
    for url in [
        "mysql://root:guess@h/d",
        "nonsense",
        "sqlite:",
        "postgres://u:gue ss@[h/d",
        "sqlite::memory:",
    ] {
        let failure = registry::open("warehouse", url).await.err().expect("no destination");
        assert_eq!(failure.class, Class::Permanent);
        assert!(failure.message.starts_with("destination warehouse: "), "{failure}");
        assert!(!failure.message.contains("gue"), "{failure}");
    }
}

#[tokio::test]
async fn a_sqlite_file_that_is_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text");
    std::fs::write(
        &path,
        "this is no database, and long enough to be read as a header of one: ".repeat(100),
    )
    .expect("a file");
    let destination = registry::open("w", &format!("sqlite:{}", path.display()))
        .await
        .expect("opening reads nothing");
    let failure = destination
        .prepare(&load("a", Mode::Replace, &[]))
        .await
        .expect_err("no database");
    assert_eq!(failure.class, Class::Permanent);
    assert!(failure.message.contains("is no SQLite database"), "{failure}");
    // Both exist, so what they hold counts as not undone.
    let folder = registry::open("w", &format!("sqlite:{}", folder.path().display()))
        .await
        .expect("opening reads nothing");
    for (destination, words) in [(destination, "is no SQLite database"), (folder, "can't be opened")] {
        let load = load("a", Mode::Replace, &[]);
        for failure in [
            destination.inspect(&load).await.map(drop).expect_err("no database"),
            destination.prepare(&load).await.map(drop).expect_err("no database"),
            destination.revert(&load).await.map(drop).expect_err("not undone"),
            destination.discard(&load).await.map(drop).expect_err("not undone"),
        ] {
            assert_eq!(failure.class, Class::Permanent, "{failure}");
            assert!(failure.message.contains(words), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_sqlite_file_that_can_not_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    std::fs::write(at("file"), "").expect("a file");
    for (path, words) in [
        (
            at("missing/x.db"),
            format!("there is no folder {}", at("missing").display()),
        ),
        (at("a/b/x.db"), format!("there is no folder {}", at("a/b").display())),
        (at("file/x.db"), format!("{} is no folder", at("file").display())),
        #[cfg(target_os = "linux")]
        ("/proc/x.db".into(), "no file can be made in folder /proc".to_owned()),
    ] {
        let destination = registry::open("w", &format!("sqlite:{}", path.display()))
            .await
            .expect("opening reads nothing");
        let load = load("a", Mode::Replace, &[]);
        let failure = destination.inspect(&load).await.expect_err("no place for a file");
        assert_eq!(failure.class, Class::Permanent, "{failure}");
        assert!(failure.message.contains(&words), "{failure}");
        destination.prepare(&load).await.expect_err("no place for a file");
        destination.revert(&load).await.expect("nothing to revert");
        destination.discard(&load).await.expect("nothing to discard");
    }
    let there: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(there.len(), 1, "{there:?}");
}

#[tokio::test]
async fn only_the_home_folder_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path().join("home");
    let load = load("a", Mode::Replace, &[]);
    for (path, made) in [("home/in/x.db", false), ("home/x.db", true)] {
        let url = format!("sqlite:{}", folder.path().join(path).display());
        let destination = registry::open_with("w", &url, 1, Some(&home), &Default::default())
            .await
            .expect("a destination");
        assert_eq!(destination.inspect(&load).await.is_ok(), made, "{path}");
        assert!(!home.exists(), "inspect made it");
        assert_eq!(destination.prepare(&load).await.is_ok(), made, "{path}");
        assert_eq!(home.exists(), made, "{path}");
    }
}
