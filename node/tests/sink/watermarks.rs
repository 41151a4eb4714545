//! A watermark moves with the rows: in the publish, and back in its revert. A publish that would leave a gap or come twice
//! is refused.

use std::time::Duration;

use haulage_core::failure::Class;
use haulage_core::watermark::{Advance, Watermark};
use haulage_node::sink::{Expected, LoadContext};
use haulage_plan::definition::Mode;
use tokio::time::timeout;

use super::files;
use super::later::{all_of, asked, existing, kept, take_back, whole};
use super::load::TestRow;
use super::world::World;

crate::on_all!(
    it_moves_with_the_publish_and_back_with_the_revert,
    a_publish_from_elsewhere_is_refused,
    who_reads_on_waits_for_a_run_that_may_go_back,
    it_is_set_and_forgotten_by_hand,
    a_replacement_without_the_source_leaves_it_void,
    a_table_that_is_gone_is_not_made_anew_with_a_part,
    an_earlier_release_gets_it_too,
    two_that_read_on_from_one_place_do_not_both_publish,
);

crate::on_files!(
    it_moves_with_the_publish_and_back_with_the_revert,
    a_publish_from_elsewhere_is_refused,
    who_reads_on_waits_for_a_run_that_may_go_back,
    it_is_set_and_forgotten_by_hand,
    a_replacement_without_the_source_leaves_it_void,
    a_table_that_is_gone_is_not_made_anew_with_a_part,
    an_earlier_release_gets_it_too,
    two_that_read_on_from_one_place_do_not_both_publish,
    an_earlier_release_refuses_what_it_would_lose,
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
        of: "x".to_owned(),
        held_back: 0,
        below: None,
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
        of: String::new(),
        replaced_by: String::new(),
    };
    let none = world
        .destination
        .set_watermark(&mark(Some("5")), None)
        .await
        .expect_err("there is none");
    assert!(
        none.class == Class::Permanent && none.message.contains("no watermark of pipeline p, source s"),
        "{none}"
    );
    whole(world, &first, FIRST).await;
    let set = async |value, was| world.destination.set_watermark(&mark(value), was).await;
    let moved = set(Some("5"), Some("7")).await.expect_err("it stands at 10");
    assert!(moved.message.contains("has moved meanwhile"), "{moved}");
    set(Some("5"), Some("10")).await.expect("set");
    assert_eq!(stands(world).await, at("5", ""));
    let refused = world.publish(&reads("b", Mode::Append, Some("10"), "20"), SECOND).await;
    let refused = refused.expect_err("it stands elsewhere");
    assert!(
        refused.message.contains("is 5 by now, since somebody has set it"),
        "{refused}"
    );
    // What goes has to be read again, wherever somebody has put the watermark meanwhile.
    take_back(world, &first).await;
    assert_eq!(stands(world).await, vec![(None, String::new())]);
    set(Some("15"), None).await.expect("set");
    set(None, Some("15")).await.expect("forgotten");
    assert_eq!(stands(world).await, vec![(None, String::new())]);
    whole(world, &reads("c", Mode::Append, None, "20"), SECOND).await;
    assert_eq!(stands(world).await, at("20", "c"));
    // One that no run has made is made with a column.
    let other = Watermark {
        source: "t".to_owned(),
        column: "at".to_owned(),
        ..mark(Some("3"))
    };
    world.destination.set_watermark(&other, None).await.expect("made");
    let again = world.destination.set_watermark(&other, None).await;
    assert!(again.is_err_and(|failure| failure.message.contains("has moved meanwhile")));
    let marks = world.destination.watermarks(Some("p")).await.expect("watermarks");
    assert_eq!(marks.len(), 2);
}

async fn a_replacement_without_the_source_leaves_it_void(world: &World) {
    existing(world).await;
    whole(world, &reads("a", Mode::Append, None, "10"), FIRST).await;
    let void = async || {
        let marks = world.destination.watermarks(None).await.expect("watermarks");
        marks
            .into_iter()
            .map(|mark| (mark.value, mark.replaced_by))
            .collect::<Vec<_>>()
    };
    let ten = Some("10".to_owned());
    let other = LoadContext {
        pipeline: "q".into(),
        ..kept("b", Mode::Replace, &["id"], 5)
    };
    whole(world, &other, SECOND).await;
    assert_eq!(void().await, [(ten.clone(), "b".to_owned())]);
    take_back(world, &other).await;
    assert_eq!(void().await, [(ten, String::new())]);
    // Its own replacement holds everything up to where it leads.
    let own = LoadContext {
        key: vec!["id".into()],
        ..reads("c", Mode::Replace, Some("10"), "30")
    };
    whole(world, &own, SECOND).await;
    assert_eq!(void().await, [(Some("30".to_owned()), String::new())]);
}

async fn a_table_that_is_gone_is_not_made_anew_with_a_part(world: &World) {
    existing(world).await;
    whole(world, &reads("a", Mode::Append, None, "10"), FIRST).await;
    if world.is_files() {
        std::fs::remove_dir_all(world.lake().join("things")).expect("a table");
    } else {
        world.run("DROP TABLE things;").await;
    }
    let refused = world.publish(&reads("b", Mode::Append, Some("10"), "20"), SECOND).await;
    let refused = refused.expect_err("what came before is missing");
    assert!(
        refused.class == Class::Permanent && refused.message.contains("things is gone since this run was planned"),
        "{refused}"
    );
    // A table of files takes its watermark along.
    let left = if world.is_files() { Vec::new() } else { at("10", "a") };
    assert_eq!((all_of(world).await, stands(world).await), (Vec::new(), left));
}

async fn an_earlier_release_gets_it_too(world: &World) {
    existing(world).await;
    whole(world, &kept("a", Mode::Append, &[], 5), FIRST).await;
    if world.is_files() {
        // Without a watermark a state is written as that release writes it.
        let state = files::state(&world.lake(), "things").expect("a state");
        assert!(state["format"] == 1 && state.get("watermarks").is_none(), "{state}");
        assert!(state["records"][0].get("advances").is_none(), "{state}");
    } else {
        world
            .run(if world.is_postgres() {
                "DROP TABLE haulage.watermarks; ALTER TABLE haulage.loads DROP COLUMN advances;"
            } else {
                "DROP TABLE _haulage_watermarks; ALTER TABLE _haulage_loads DROP COLUMN advances;"
            })
            .await;
    }
    let reopened = world.reopened().await;
    let second = reads("b", Mode::Append, None, "20");
    assert_eq!(reopened.watermarks_of(&second).await, Ok(Some(Vec::new())));
    let nothing = Expected { rows: 0, segments: 0 };
    reopened.prepare(&second).await.expect("prepared");
    reopened.verify(&second, nothing).await.expect("verified");
    reopened.publish(&second, nothing).await.expect("published");
    assert_eq!(stands(world).await, at("20", "b"));
}

async fn two_that_read_on_from_one_place_do_not_both_publish(world: &World) {
    existing(world).await;
    whole(world, &reads("base-run", Mode::Append, None, "10"), FIRST).await;
    let mut ready = Vec::new();
    for n in 0..4 {
        let load = reads(&format!("r{n}"), Mode::Append, Some("10"), &format!("2{n}"));
        // No key stands in their way.
        let rows: [TestRow; 2] = [(100 + n, None, 0.5), (200 + n, None, 1.5)];
        let expected = world.stage(&load, &rows).await.expect("staged");
        world.destination.verify(&load, expected).await.expect("verified");
        ready.push((load, expected));
    }
    let publishes = ready.iter().map(|(load, expected)| async move {
        let published = world.destination.publish(load, *expected).await;
        // Others wait until its run is over.
        if published.is_ok() {
            world.destination.cleanup(load).await.expect("cleaned");
        }
        published
    });
    let done = futures::future::join_all(publishes).await;
    let won: Vec<usize> = (0..done.len()).filter(|n| done[*n].is_ok()).collect();
    assert_eq!(won.len(), 1, "{done:?}");
    for refused in done.iter().filter_map(|done| done.as_ref().err()) {
        assert!(
            refused.class == Class::Permanent && refused.message.contains("was read from 10 on"),
            "{refused}"
        );
    }
    assert_eq!(
        stands(world).await,
        at(&format!("2{}", won[0]), &format!("r{}", won[0]))
    );
    assert_eq!(world.rows("things").await.map(|rows| rows.len()), Some(6));
}

async fn an_earlier_release_refuses_what_it_would_lose(world: &World) {
    whole(world, &reads("a", Mode::Append, None, "10"), FIRST).await;
    let state = files::state(&world.lake(), "things").expect("a state");
    // It knows the first format, and says so of any other.
    assert_eq!(state["format"], 2, "{state}");
}
