//! Rows that checks set aside: once, by who is allowed to, and not for longer than they are staged.

use haulage_core::failure::Class;
use haulage_core::ids::Attempt;
use haulage_core::quarantine::SetAside;
use haulage_node::sink::{Aside, Expected, LoadContext, Question};
use haulage_plan::definition::Mode;

use super::load::{TestRow, load};
use super::world::World;

crate::on_all!(
    rows_go_once_and_the_others_are_published,
    an_earlier_attempt_sets_nothing_aside,
    a_number_that_is_not_right_sets_nothing_aside,
    a_later_round_begins_with_all_rows,
    a_discard_leaves_nothing,
);

crate::on_files!(
    an_earlier_attempt_sets_nothing_aside,
    a_number_that_is_not_right_sets_nothing_aside,
    a_later_round_begins_with_all_rows,
);

const ROWS: &[TestRow] = &[
    (1, Some("one"), 1.5),
    (2, None, 2.5),
    (3, Some("three"), 3.5),
    (4, None, 4.5),
];

fn conditions() -> Vec<Question> {
    vec!["name IS NULL".into(), "id > 3".into()]
}

fn aside(rows: u64) -> Aside {
    Aside {
        set: SetAside {
            rows,
            reasons: [("check:x".to_owned(), rows)].into(),
            prefix: "runs/r/".to_owned(),
            objects: 1,
            checksum: None,
        },
        checks: Vec::new(),
    }
}

async fn named(world: &World, load: &LoadContext) -> Expected {
    let expected = world.stage(load, ROWS).await.expect("staged");
    assert_eq!(world.destination.seal(load, expected).await, Ok(None));
    for _ in 0..2 {
        let named = world.destination.name_rows(load, expected, &conditions()).await;
        assert_eq!(named, Ok(vec![2, 1]), "naming is repeatable");
    }
    expected
}

async fn rows_go_once_and_the_others_are_published(world: &World) {
    for (mode, key) in [
        (Mode::Replace, vec!["id"]),
        (Mode::Append, vec![]),
        (Mode::Merge, vec!["id"]),
    ] {
        let load = load(&format!("run-{mode:?}"), mode, &key);
        world.run("DROP TABLE IF EXISTS things").await;
        let expected = named(world, &load).await;
        let done = world.destination.set_aside(&load, expected, &aside(2)).await;
        assert_eq!(done, Ok(aside(2)));
        // Of another attempt: what stands is what was done.
        let again = LoadContext {
            attempt: Attempt(2),
            ..load.clone()
        };
        assert_eq!(world.destination.seal(&again, expected).await, Ok(Some(aside(2))));
        assert_eq!(
            world.destination.set_aside(&again, expected, &aside(1)).await,
            Ok(aside(2))
        );
        for _ in 0..2 {
            let verified = world.destination.verify(&again, expected).await.expect("verified");
            assert_eq!(verified.rows, 2, "{}", verified.detail);
        }
        let question = "SELECT CAST(count(*) AS text) FROM staged".into();
        let left = world.destination.ask(&again, expected, &question);
        assert_eq!(left.await, Ok(vec![Some("2".to_owned())]));
        for _ in 0..2 {
            let published = world.destination.publish(&again, expected).await.expect("published");
            assert_eq!(published.rows, 2, "{}", published.detail);
        }
        assert_eq!(
            world.destination.seal(&again, expected).await,
            Ok(Some(aside(2))),
            "for who asks late"
        );
        world.destination.cleanup(&again).await.expect("cleaned");
        let there = world
            .texts("SELECT CAST(id AS text) FROM things ORDER BY id")
            .await
            .unwrap_or_default();
        assert_eq!(there, ["1", "3"], "{mode:?}");
    }
}

async fn an_earlier_attempt_sets_nothing_aside(world: &World) {
    let first = load("run", Mode::Replace, &["id"]);
    let expected = named(world, &first).await;
    let second = LoadContext {
        attempt: Attempt(2),
        ..first.clone()
    };
    assert_eq!(world.destination.seal(&second, expected).await, Ok(None));
    let late = world.destination.set_aside(&first, expected, &aside(2)).await;
    assert_eq!(late.expect_err("it is late").class, Class::Fenced);
    let verified = world.destination.verify(&second, expected).await.expect("verified");
    assert_eq!(verified.rows, 4);
}

async fn a_number_that_is_not_right_sets_nothing_aside(world: &World) {
    let load = load("run", Mode::Append, &[]);
    let expected = named(world, &load).await;
    let wrong = world.destination.set_aside(&load, expected, &aside(3)).await;
    assert_eq!(wrong.expect_err("there are two").class, Class::Transient);
    assert_eq!(world.destination.seal(&load, expected).await, Ok(None));
    assert_eq!(
        world.destination.verify(&load, expected).await.expect("verified").rows,
        4
    );
}

async fn a_later_round_begins_with_all_rows(world: &World) {
    let first = load("run", Mode::Replace, &["id"]);
    let expected = named(world, &first).await;
    world
        .destination
        .set_aside(&first, expected, &aside(2))
        .await
        .expect("set aside");
    world.destination.verify(&first, expected).await.expect("verified");
    let later = LoadContext {
        round: 1,
        attempt: Attempt(2),
        ..first.clone()
    };
    let expected = world.stage(&later, ROWS).await.expect("staged again");
    assert_eq!(world.destination.seal(&later, expected).await, Ok(None));
    let failure = world.destination.set_aside(&first, expected, &aside(2)).await;
    assert!(failure.is_err(), "a step of the round before");
    assert_eq!(
        world.destination.verify(&later, expected).await.expect("verified").rows,
        4
    );
    assert_eq!(
        world
            .destination
            .publish(&later, expected)
            .await
            .expect("published")
            .rows,
        4
    );
}

async fn a_discard_leaves_nothing(world: &World) {
    let load = load("run", Mode::Append, &[]);
    named(world, &load).await;
    world.destination.discard(&load).await.expect("discarded");
    let tables = match world.is_postgres() {
        true => "SELECT relname::text FROM pg_class WHERE relname LIKE 'aside%' OR relname LIKE 'stage%'",
        false => "SELECT name FROM sqlite_schema WHERE name LIKE '_haulage_aside%' OR name LIKE '_haulage_stage%'",
    };
    let left = world.texts(tables).await.unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}
