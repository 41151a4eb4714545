//! What a role may not do is said by the inspection, before a run exists.

use haulage_node::sink::registry;
use haulage_plan::contract::Evolution;
use haulage_plan::definition::Mode;

use super::load::load;
use super::world::World;

#[tokio::test]
async fn what_the_role_may_not_do_is_named_with_its_remedy() {
    let world = World::postgres().await;
    world
        .run(
            "DO $$ BEGIN CREATE ROLE stranger LOGIN; EXCEPTION WHEN duplicate_object THEN END $$;
             REVOKE CREATE ON SCHEMA public FROM PUBLIC;
             CREATE TABLE things (id integer PRIMARY KEY, name text, _haulage_run text);
             GRANT ALL ON things TO stranger",
        )
        .await;
    let url = world.server().1.replace("postgres@", "stranger@");
    let destination = registry::open("warehouse", &url).await.expect("a destination");
    let adding = |mode| haulage_node::sink::LoadContext {
        evolution: Evolution {
            adds_columns: true,
            on_wider_type: None,
        },
        ..load("r", mode, &["id"])
    };
    let found = destination.inspect(&adding(Mode::Merge)).await.expect("an inspection");
    let [haulage, owner] = found.misfits.as_slice() else {
        panic!("{found:?}");
    };
    assert!(
        haulage.contains("may not make schema haulage") && haulage.contains("GRANT CREATE ON DATABASE"),
        "{haulage}"
    );
    assert!(
        owner.contains("public.things belongs to role postgres") && owner.contains("adds column amount"),
        "{owner}"
    );
    world
        .run("CREATE SCHEMA haulage; ALTER TABLE things ADD COLUMN amount double precision")
        .await;
    let found = destination.inspect(&adding(Mode::Merge)).await.expect("an inspection");
    assert!(
        found.misfits.len() == 1 && found.misfits[0].contains("GRANT USAGE, CREATE ON SCHEMA haulage TO \"stranger\""),
        "{found:?}"
    );
    world.run("GRANT USAGE, CREATE ON SCHEMA haulage TO stranger").await;
    let found = destination.inspect(&adding(Mode::Merge)).await.expect("an inspection");
    assert_eq!(found.misfits, Vec::<String>::new());
    // Nor does a replacement need more, which a new table would.
    let found = destination
        .inspect(&load("r", Mode::Replace, &["id"]))
        .await
        .expect("an inspection");
    assert_eq!(found.misfits, Vec::<String>::new());
    assert!(found.changes[0].contains("by DELETE and INSERT"), "{found:?}");
    world.run("DROP TABLE things").await;
    let found = destination.inspect(&adding(Mode::Merge)).await.expect("an inspection");
    assert!(
        found.misfits.len() == 1 && found.misfits[0].contains("GRANT CREATE ON SCHEMA \"public\""),
        "{found:?}"
    );
    world.run("GRANT CREATE ON SCHEMA public TO stranger").await;
    let found = destination.inspect(&adding(Mode::Merge)).await.expect("an inspection");
    assert_eq!(found.misfits, Vec::<String>::new());
}

#[tokio::test]
async fn names_that_the_server_keeps_are_refused() {
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    let world = World::postgres().await;
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int32, false),
        Field::new("ctid", DataType::Utf8, true),
    ]);
    let load = haulage_node::sink::LoadContext {
        schema: std::sync::Arc::new(schema),
        evolution: Evolution {
            adds_columns: true,
            on_wider_type: None,
        },
        ..load("r", Mode::Merge, &["id"])
    };
    for existing in [false, true] {
        if existing {
            world.run("CREATE TABLE things (id integer PRIMARY KEY)").await;
        }
        let found = world.destination.inspect(&load).await.expect("an inspection");
        assert!(
            found.misfits.len() == 1 && found.misfits[0].contains("column ctid is a name"),
            "{found:?}"
        );
    }
}
