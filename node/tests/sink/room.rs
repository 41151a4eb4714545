//! Room for open segments: taken all at once, kept until the last of them has ended, and never in the way of a step.

use futures::FutureExt as _;
use haulage_core::ids::Attempt;
use haulage_node::sink::registry;
use haulage_plan::definition::Mode;
use haulage_test_support::wait_for;

use crate::load::{CHUNK, batch, load, marker};
use crate::world::World;

#[tokio::test]
async fn segments_wait_for_room_and_steps_do_not() {
    let world = World::postgres().await;
    let (_, url) = world.server();
    let narrow = registry::open_with("warehouse", url, 2, None, &Default::default())
        .await
        .expect("a destination");
    let first = load("first", Mode::Append, &[]);
    narrow.prepare(&first).await.expect("prepared");
    narrow.begin(&first, CHUNK, Attempt(1)).await.expect("begun");

    // More than there is: all of it.
    let room = narrow.reserve(3).await.expect("it is free");
    let mut writer = room.segment(&first, CHUNK, Attempt(1)).await.expect("a writer");
    writer.write(&batch(&first, &[(1, None, 0.5)])).await.expect("written");
    // The room stays with the segment.
    drop(room);
    assert!(narrow.reserve(1).now_or_never().is_none(), "a segment is still open");

    // Everything that is no segment goes on.
    let second = load("second", Mode::Append, &[]);
    narrow.prepare(&second).await.expect("prepared");
    narrow.begin(&second, CHUNK, Attempt(1)).await.expect("begun");
    narrow.inspect(&second).await.expect("inspected");
    narrow.discard(&second).await.expect("discarded");

    writer.commit(marker(CHUNK, 0, Attempt(1))).await.expect("committed");
    wait_for("room again", || narrow.reserve(2).now_or_never())
        .await
        .expect("room");

    // So does a segment that is dropped before its commit.
    let room = narrow.reserve(2).await.expect("it is free");
    let writer = room.segment(&first, CHUNK, Attempt(1)).await.expect("a writer");
    drop((room, writer));
    wait_for("room again", || narrow.reserve(2).now_or_never())
        .await
        .expect("room");
}
