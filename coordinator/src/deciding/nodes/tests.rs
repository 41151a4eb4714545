//! Greetings, heartbeats and losses, by tables: no actor and no clock.

use std::sync::Arc;

use haulage_core::checkpoint::Counts;
use haulage_core::ids::{Attempt, ChunkId, RunId, StageId, Work};
use haulage_core::submission::Submission;
use haulage_proto::link::message::{Assignment, Task};
use haulage_proto::link::protocol::Speaks;

use super::super::board::{Awaited, Post};
use super::*;

const AGENT: AgentId = agent(1);

const fn agent(number: u64) -> AgentId {
    AgentId { session: None, number }
}

fn key(index: u32) -> AttemptKey {
    AttemptKey {
        run: RunId::from("r"),
        work: Work::Chunk(ChunkId {
            stage: StageId(0),
            index,
        }),
        attempt: Attempt(1),
    }
}

/// What a run posts of an attempt that this node has, or is to get.
pub(in super::super) fn awaited(node: &str, key: AttemptKey) -> (AttemptKey, Awaited) {
    let submission = Submission {
        pipeline: "p".into(),
        definition: String::new(),
        file: String::new(),
        base: String::new(),
        params: BTreeMap::new(),
        loads: vec![],
        places: BTreeMap::new(),
        incremental: false,
        traceparent: String::new(),
        replay: None,
    };
    let assignment = Assignment {
        key: key.clone(),
        submission,
        submitted_at: Millis(0),
        replaces: None,
        columns: Default::default(),
        task: Task::Discover,
    };
    let awaited = Awaited {
        node: NodeName::from(node),
        assignment: Arc::new(assignment),
    };
    (key, awaited)
}

fn board(node: &str, keys: &[u32]) -> Board {
    let awaited = |index: &u32| awaited(node, key(*index));
    let mut board = Board::default();
    board.post(Post {
        run: RunId::from("r"),
        life: 1,
        grants_seen: 0,
        waiting: vec![],
        awaited: keys.iter().map(awaited).collect(),
        drops: BTreeMap::new(),
        places: Arc::default(),
        trace: Arc::default(),
    });
    board
}

fn reply(boot: &str, running: &[u32]) -> HelloReply {
    HelloReply {
        node: NodeName::from("n"),
        boot: boot.into(),
        version: "1".into(),
        slots: 2,
        places: Places::new(),
        running: running.iter().map(|index| key(*index)).collect(),
        speaks: Speaks::ours(),
        draining: false,
    }
}

fn beat(boot: &str, held: &[u32]) -> Heartbeat {
    Heartbeat {
        node: NodeName::from("n"),
        boot: boot.into(),
        progress: held.iter().map(|index| (key(*index), Counts::default())).collect(),
        ahead: Vec::new(),
        draining: false,
    }
}

fn nodes() -> Nodes {
    Nodes::new(Settings {
        lease_ms: 5_000,
        ..Settings::default()
    })
}

#[test]
fn a_new_leader_adopts_what_a_node_runs_and_misses_what_it_does_not() {
    let mut nodes = nodes();
    let greeted = nodes.greeted(AGENT, &reply("b1", &[0]), &board("n", &[0, 1]), Millis(0), Millis(5));
    assert_eq!(
        greeted,
        Greeted {
            missing: vec![key(1)],
            ..Greeted::default()
        }
    );
    // A run that is recovered only after the node was greeted is held against what the node said then.
    assert!(!nodes.adopt(&NodeName::from("n"), &key(0), Millis(6)));
    assert!(nodes.adopt(&NodeName::from("n"), &key(2), Millis(6)));
}

#[test]
fn silence_makes_a_node_suspect_and_then_lost_once() {
    let mut nodes = nodes();
    let board = board("n", &[0]);
    nodes.greeted(AGENT, &reply("b1", &[0]), &board, Millis(0), Millis(0));
    assert_eq!(nodes.seats(Millis(2_999)).len(), 1);
    assert_eq!(nodes.seats(Millis(3_000)).len(), 0);
    assert_eq!(nodes.lost(&board, Millis(4_999)), []);
    assert_eq!(nodes.lost(&board, Millis(5_000)), [(NodeName::from("n"), 5_000)]);
    assert_eq!(
        nodes.heartbeat(&beat("b1", &[0]), Millis(5_001)),
        Sender::Outcast,
        "a lost boot has to be greeted again"
    );
    assert_eq!(nodes.lost(&board, Millis(5_100)), []);
    // Work that still stands there a lease later is lost again: the run may have missed it.
    assert_eq!(nodes.lost(&board, Millis(10_000)), [(NodeName::from("n"), 5_000)]);
    nodes.greeted(AGENT, &reply("b1", &[]), &board, Millis(11_000), Millis(11_000));
    assert!(matches!(
        nodes.heartbeat(&beat("b1", &[]), Millis(11_001)),
        Sender::Known(_)
    ));
}

#[test]
fn a_node_that_never_comes_back_after_a_restart_of_the_leader_is_lost() {
    let mut nodes = nodes();
    let board = board("gone", &[0]);
    assert_eq!(nodes.lost(&board, Millis(100)), []);
    assert_eq!(nodes.lost(&board, Millis(5_099)), []);
    assert_eq!(nodes.lost(&board, Millis(5_100)), [(NodeName::from("gone"), 5_000)]);
}

#[test]
fn another_boot_loses_what_the_old_one_held_and_the_old_one_stays_out() {
    let mut nodes = nodes();
    let board = board("n", &[0]);
    nodes.greeted(AGENT, &reply("b1", &[0]), &board, Millis(0), Millis(0));
    nodes.unreachable(AGENT);
    let greeted = nodes.greeted(agent(2), &reply("b2", &[]), &board, Millis(700), Millis(700));
    assert_eq!(
        greeted,
        Greeted {
            lost_boot: Some(700),
            ..Greeted::default()
        }
    );
    assert_eq!(nodes.heartbeat(&beat("b1", &[0]), Millis(800)), Sender::Rival);
    assert!(
        nodes
            .greeted(AGENT, &reply("b1", &[0]), &board, Millis(900), Millis(900))
            .superseded
    );
    assert!(matches!(
        nodes.heartbeat(&beat("b2", &[]), Millis(1_000)),
        Sender::Known(_)
    ));
    let member = nodes.same_boot(&NodeName::from("n"), "b2").expect("just greeted");
    let sent = member.sent.get(&key(0));
    assert!(
        matches!(sent, Some(Sent::Missing { .. })),
        "the same attempt never goes to another process: {sent:?}"
    );
}

#[test]
fn of_two_live_processes_under_one_name_the_later_is_refused() {
    let mut nodes = nodes();
    let board = board("n", &[0]);
    let hello = |nodes: &mut Nodes, boot: &str, now| {
        nodes.greeted(agent(2), &reply(boot, &[]), &board, Millis(now), Millis(now))
    };
    let contested = Greeted {
        contested: true,
        ..Greeted::default()
    };
    nodes.greeted(AGENT, &reply("b1", &[0]), &board, Millis(0), Millis(0));
    assert_eq!(hello(&mut nodes, "b2", 100), contested);
    assert_eq!(nodes.heartbeat(&beat("b2", &[]), Millis(150)), Sender::Stranger);
    let mut rivals = Vec::new();
    for at in [200, 1_200, 2_200] {
        let Sender::Known(known) = nodes.heartbeat(&beat("b1", &[0]), Millis(at)) else {
            panic!("the first process keeps its name at {at}")
        };
        assert_eq!(known.missing, [], "and its work");
        rivals.push(known.has_rival);
    }
    assert_eq!(rivals, [false, true, false], "told once");
    assert_eq!(nodes.heartbeat(&beat("b2", &[]), Millis(2_300)), Sender::Rival);
    assert_eq!(hello(&mut nodes, "b2", 2_400), contested);
    // A third starts its own contest, and wins it, because the first falls silent.
    assert_eq!(hello(&mut nodes, "b3", 2_500), contested);
    assert_eq!(nodes.heartbeat(&beat("b3", &[]), Millis(2_600)), Sender::Stranger);
    assert_eq!(hello(&mut nodes, "b3", 5_200).lost_boot, Some(3_000));
    assert!(matches!(
        nodes.heartbeat(&beat("b3", &[]), Millis(5_300)),
        Sender::Known(_)
    ));
    assert_eq!(nodes.heartbeat(&beat("b1", &[0]), Millis(5_400)), Sender::Rival);
}

#[test]
fn a_process_that_was_not_greeted_yet_loses_nothing_by_its_heartbeat() {
    let mut nodes = nodes();
    assert_eq!(nodes.heartbeat(&beat("b1", &[0]), Millis(1)), Sender::Stranger);
    nodes.greeted(AGENT, &reply("b1", &[0]), &board("n", &[0]), Millis(2), Millis(2));
    assert_eq!(nodes.heartbeat(&beat("b2", &[]), Millis(3)), Sender::Stranger);
}

#[test]
fn a_reconnect_sends_again_what_may_be_lost_and_misses_what_was_held() {
    let mut nodes = nodes();
    let board = board("n", &[0, 1, 2]);
    nodes.greeted(AGENT, &reply("b1", &[0, 1]), &board, Millis(0), Millis(0));
    let member = nodes.same_boot(&NodeName::from("n"), "b1").expect("just greeted");
    member.sent.insert(key(2), Sent::OnTheWay);
    assert_eq!(nodes.unreachable(AGENT), Some(NodeName::from("n")));
    assert_eq!(nodes.alive(Millis(1)).len(), 0);
    let greeted = nodes.greeted(agent(2), &reply("b1", &[0]), &board, Millis(50), Millis(60));
    assert_eq!(
        greeted,
        Greeted {
            missing: vec![key(1)],
            ..Greeted::default()
        }
    );
    let member = nodes.same_boot(&NodeName::from("n"), "b1").expect("just greeted");
    assert_eq!(
        member.sent.get(&key(2)),
        Some(&Sent::Again {
            at: Millis(60),
            refused: 0
        })
    );
    assert_eq!(nodes.alive(Millis(61)).len(), 1);
}

#[test]
fn an_attempt_that_heartbeats_no_longer_name_is_missing() {
    let mut nodes = nodes();
    let board = board("n", &[0]);
    nodes.greeted(AGENT, &reply("b1", &[0]), &board, Millis(0), Millis(0));
    for at in 1..=MISSES {
        let expected = if at == MISSES { vec![key(0)] } else { Vec::new() };
        let beat = nodes.heartbeat(&beat("b1", &[]), Millis(at.into()));
        assert_eq!(
            beat,
            Sender::Known(Beat {
                missing: expected,
                ..Beat::default()
            }),
            "after {at}"
        );
    }
}

#[test]
fn a_node_that_drains_gets_nothing_new_and_may_leave_when_nothing_is_awaited_of_it() {
    let name = NodeName::from("n");
    let (busy, idle) = (board("n", &[0]), board("n", &[]));
    let mut nodes = nodes();
    nodes.greeted(AGENT, &reply("b1", &[]), &idle, Millis(0), Millis(0));
    assert_eq!(nodes.seats(Millis(1)).len(), 1);
    assert!(!nodes.may_leave(&name, &idle), "it hasn't asked to");
    let leaving = Heartbeat {
        draining: true,
        ..beat("b1", &[])
    };
    nodes.heartbeat(&leaving, Millis(10));
    // One that was on its way before doesn't take it back.
    nodes.heartbeat(&beat("b1", &[]), Millis(11));
    assert!(nodes.seats(Millis(12)).is_empty() && nodes.alive(Millis(12)).is_empty());
    let member = &nodes.members[&name];
    assert_eq!(nodes.standing(member, Millis(12)), Standing::Alive, "it still works");
    assert!(!nodes.may_leave(&name, &busy) && nodes.may_leave(&name, &idle));

    // A session that ends while it still holds something is a loss like any other.
    assert_eq!(nodes.unreachable(AGENT), Some(name.clone()));
    assert!(!nodes.has_left(&name, &busy) && nodes.members.contains_key(&name));
    assert!(nodes.has_left(&name, &idle) && nodes.members.is_empty());
    // The next process of that name is a node like any other.
    nodes.greeted(AGENT, &reply("b2", &[]), &idle, Millis(20), Millis(20));
    assert_eq!(nodes.seats(Millis(21)).len(), 1);
}
