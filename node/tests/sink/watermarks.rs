//! A watermark moves with the rows: in the publish, and back in its revert. A publish that would leave a gap or come twice
//! is refused.

use std::time::Duration;

use haulage_core::failure::Class;
use haulage_core::watermark::{Advance, Watermark};
use haulage_node::sink::{Expected, LoadContext};
use haulage_plan::definition::Mode;
use tokio::time::timeout;

use super::later::{all_of, asked, existing, kept, take_back, whole};
use super::load::TestRow;
use super::world::World;

crate::on_all!(
    it_moves_with_the_publish_and_back_with_the_revert,
    a_publish_from_elsewhere_is_refused,
    who_reads_on_waits_for_a_run_that_may_go_back,
    it_is_set_and_forgotten_by_hand,
    an_earlier_release_gets_it_too,
);

const FIRST: &[TestRow] = &[(3, Some("three"), 2.5), (6, None, 3.5)];
const SECOND: &[TestRow] = &[(4, Some("four"), 9.5), (5, None, 5.5)];

/// A load that reads on from `found` to `to`.
fn reads(run: &str, mode: Mode, found: Option<&str>, to: &str) -> LoadContext {
    let key: &[&str] = if mode == Mode::Merge { &["id"] } else { &[] };
    let load = kept(run, mode, key, 5);
    let advance = Advance {
        load: load.load.clone(),
        source: "s".to_owned(),
        column: "at".to_owned(),
        found: found.map(str::to_owned),
        low: found.map(str::to_owned),
        to: Some(to.to_owned()),
    };
    LoadContext {
        advances: vec![advance],
        ..load
    }
}

async fn stands(world: &World) -> Vec<(Option<String>, String)> {
    let marks = world.destination.watermarks(Some("p")).await.expect("watermarks");
    assert!(
        marks.iter().all(|mark| mark.source == "s" && mark.column == "at"),
        "{marks:?}"
    );
    assert_eq!(world.destination.watermarks(Some("q")).await, Ok(Vec::new()));
    marks.into_iter().map(|mark| (mark.value, mark.run)).collect()
}

fn at(value: &str, run: &str) -> Vec<(Option<String>, String)> {
    vec![(Some(value.to_owned()), run.to_owned())]
}

async fn it_moves_with_the_publish_and_back_with_the_revert(world: &World) {
    existing(world).await;
    for mode in [Mode::Append, Mode::Merge] {
        let start = all_of(world).await;
        let run = |n: u32| format!("{mode:?}-{n}").to_lowercase();
        let first = reads(&run(1), mode, None, "10");
        whole(world, &first, FIRST).await;
        assert_eq!(stands(world).await, at("10", &run(1)));
        let between = all_of(world).await;
        let second = reads(&run(2), mode, Some("10"), "20");
        whole(world, &second, SECOND).await;
        assert_eq!(stands(world).await, at("20", &run(2)));
        assert_eq!(
            world.destination.advanced_by(&second.run, &second).await,
            Ok(second.advances.clone())
        );
        // What the second has read on from doesn't go before it, though appended rows are no others' business.
        let refused = world
            .destination
            .recall(&asked(&first, 1))
            .await
            .expect_err("the second has built on it");
        assert!(
            refused.class == Class::Permanent && refused.message.contains(&run(2)),
            "{refused}"
        );
        take_back(world, &second).await;
        assert_eq!((stands(world).await, all_of(world).await), (at("10", ""), between));
        take_back(world, &first).await;
        assert_eq!(
            (stands(world).await, all_of(world).await),
            (vec![(None, String::new())], start)
        );
    }
}

async fn a_publish_from_elsewhere_is_refused(world: &World) {
    existing(world).await;
    whole(world, &reads("a", Mode::Append, None, "10"), FIRST).await;
    let before = all_of(world).await;
    for (run, found) in [("b", None), ("c", Some("7"))] {
        let refused = world.publish(&reads(run, Mode::Append, found, "20"), SECOND).await;
        let refused = refused.expect_err("its rows would be there twice, or some never");
        assert!(
            refused.class == Class::Permanent && refused.message.contains("is 10 by now, since run a has published"),
            "{refused}"
        );
        assert_eq!(
            (all_of(world).await, stands(world).await),
            (before.clone(), at("10", "a"))
        );
    }
}

async fn who_reads_on_waits_for_a_run_that_may_go_back(world: &World) {
    existing(world).await;
    let first = reads("a", Mode::Append, None, "10");
    world.publish(&first, FIRST).await.expect("published");
    // Its run is not over. An append with nothing to do with the watermark passes, and one that reads on doesn't.
    let while_waiting = Duration::from_secs(3);
    let other = kept("b", Mode::Append, &[], 5);
    world.publish(&other, &[(9, None, 0.5)]).await.expect("published");
    let second = reads("c", Mode::Append, Some("10"), "20");
    let early = timeout(while_waiting, world.publish(&second, SECOND)).await;
    assert!(early.is_err(), "{early:?}");
    world.destination.cleanup(&first).await.expect("its run is over");
    let again = LoadContext {
        run: "c-2".into(),
        ..second
    };
    world.publish(&again, SECOND).await.expect("published");
    assert_eq!(stands(world).await, at("20", "c-2"));
}

async fn it_is_set_and_forgotten_by_hand(world: &World) {
    existing(world).await;
    let first = reads("a", Mode::Append, None, "10");
    let mark = |value: Option<&str>| Watermark {
        destination: "w".to_owned(),
        pipeline: "p".to_owned(),
        source: "s".to_owned(),
        table: "things".to_owned(),
        column: String::new(),
        value: value.map(str::to_owned),
        run: String::new(),
        by: "somebody".to_owned(),
        at: String::new(),
    };
    let none = world
        .destination
        .set_watermark(&mark(Some("5")))
        .await
        .expect_err("there is none");
    assert!(
        none.class == Class::Permanent && none.message.contains("no watermark of pipeline p, source s"),
        "{none}"
    );
    whole(world, &first, FIRST).await;
    world.destination.set_watermark(&mark(Some("5"))).await.expect("set");
    assert_eq!(stands(world).await, at("5", ""));
    let refused = world.publish(&reads("b", Mode::Append, Some("10"), "20"), SECOND).await;
    let refused = refused.expect_err("it stands elsewhere");
    assert!(
        refused.message.contains("is 5 by now, since somebody has set it"),
        "{refused}"
    );
    // Who takes back what it has read leaves what somebody has set.
    take_back(world, &first).await;
    assert_eq!(stands(world).await, at("5", ""));
    world.destination.set_watermark(&mark(None)).await.expect("forgotten");
    assert_eq!(stands(world).await, vec![(None, String::new())]);
    whole(world, &reads("c", Mode::Append, None, "20"), SECOND).await;
    assert_eq!(stands(world).await, at("20", "c"));
}

async fn an_earlier_release_gets_it_too(world: &World) {
    existing(world).await;
    whole(world, &kept("a", Mode::Append, &[], 5), FIRST).await;
    world
        .run(if world.is_postgres() {
            "DROP TABLE haulage.watermarks; ALTER TABLE haulage.loads DROP COLUMN advances;"
        } else {
            "DROP TABLE _haulage_watermarks; ALTER TABLE _haulage_loads DROP COLUMN advances;"
        })
        .await;
    let reopened = world.reopened().await;
    let second = reads("b", Mode::Append, None, "20");
    assert_eq!(reopened.watermarks_of(&second).await, Ok(Some(Vec::new())));
    let nothing = Expected { rows: 0, segments: 0 };
    reopened.prepare(&second).await.expect("prepared");
    reopened.verify(&second, nothing).await.expect("verified");
    reopened.publish(&second, nothing).await.expect("published");
    assert_eq!(stands(world).await, at("20", "b"));
}
