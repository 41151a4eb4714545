//! Which table a name stands for: two names of one table are found to be one, whatever the names are.

use std::path::Path;
use std::sync::Arc;

use haulage_node::sink::{Destination, Identity, registry};
use haulage_plan::definition::Mode;

use super::load::load;
use super::world::{Kind, World};

async fn identity(destination: &Arc<dyn Destination>, table: &str) -> Identity {
    let mut load = load("a", Mode::Replace, &["id"]);
    load.table = table.to_owned();
    destination.inspect(&load).await.expect("an inspection").identity
}

async fn at(url: &str, table: &str) -> Identity {
    identity(&registry::open("other", url).await.expect("a destination"), table).await
}

const THINGS: &str = "(id integer PRIMARY KEY, name text, amount double precision)";

#[tokio::test]
async fn of_postgres() {
    let world = World::postgres().await;
    let another = World::postgres().await;
    world.run("CREATE SCHEMA stock").await;
    let (server, url) = world.server();
    let by_name = url.replace("127.0.0.1", "localhost");
    let on_path = format!("{url}?options=-c%20search_path%3Dstock");
    let long = "t".repeat(63);
    for exists in [false, true] {
        if exists {
            let table = format!("CREATE TABLE things {THINGS}; CREATE TABLE stock.things {THINGS}");
            world.run(&table).await;
        }
        let things = identity(&world.destination, "things").await;
        for (url, table, same) in [
            (url, "things", true),
            (url, "public.things", true),
            (url, "\"public\".\"things\"", true),
            (&by_name, "things", true),
            (&by_name, "public.things", true),
            (&on_path, "public.things", true),
            (&on_path, "things", false),
            (url, "stock.things", false),
            (url, "Things", false),
            (another.server().1, "things", false),
            (&server.url("postgres"), "things", false),
        ] {
            assert_eq!(at(url, table).await == things, same, "{url} {table}, exists: {exists}");
        }
        let stock = identity(&world.destination, "stock.things").await;
        assert_eq!(at(&on_path, "things").await, stock, "exists: {exists}");
    }
    // The server cuts longer names.
    assert_eq!(at(url, &long).await, at(url, &format!("{long}1")).await);
}

#[cfg(unix)]
#[tokio::test]
async fn of_sqlite() {
    let world = World::sqlite().await;
    let Kind::Sqlite { folder } = &world.kind else {
        panic!("it is SQLite");
    };
    let at_path = |path: &str| format!("sqlite:{}", folder.path().join(path).display());
    std::os::unix::fs::symlink(folder.path().join("new"), folder.path().join("link")).expect("a link");
    for exists in [false, true] {
        if exists {
            world.run(&format!("CREATE TABLE things {THINGS}")).await;
            let file = folder.path().join("new/warehouse.db");
            std::os::unix::fs::symlink(&file, folder.path().join("file.db")).expect("a link");
            std::fs::hard_link(&file, folder.path().join("hard.db")).expect("a link");
        }
        let things = identity(&world.destination, "things").await;
        for (path, table, same) in [
            ("new/warehouse.db", "things", true),
            ("new/warehouse.db", "main.things", true),
            ("new/warehouse.db", "public.Things", true),
            ("link/warehouse.db", "THINGS", true),
            ("new/../new/warehouse.db", "things", true),
            ("file.db", "things", exists),
            ("hard.db", "things", exists),
            ("new/warehouse.db", "others", false),
            ("new/other.db", "things", false),
            ("warehouse.db", "things", false),
        ] {
            let found = at(&at_path(path), table).await;
            assert_eq!(found == things, same, "{path} {table}, exists: {exists}");
        }
    }
    assert!(!Path::new(&folder.path().join("other.db")).exists(), "it made a file");
}
