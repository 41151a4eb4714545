//! Sessions that overlap: no actor and no clock.

use haulage_core::ids::{ChunkId, StageId};
use haulage_proto::link::message::{AssignmentReply, HelloReply};
use haulage_proto::link::protocol::{LEAVING, Speaks};

use super::*;
use crate::deciding::board::Waiting;
use crate::deciding::nodes::tests::awaited;

const NOW: Millis = Millis(1_000);

fn session(number: u64) -> AgentId {
    AgentId {
        session: Some(number),
        number: 7,
    }
}

fn reply() -> HelloReply {
    HelloReply {
        node: NodeName::from("n"),
        boot: "b".into(),
        version: "1".into(),
        slots: 2,
        places: BTreeMap::new(),
        running: Vec::new(),
        speaks: Speaks::ours(),
        draining: false,
    }
}

fn greeted(dispatch: &mut Dispatch) -> Vec<AgentId> {
    let actions = dispatch.due(NOW, NOW).into_iter();
    actions
        .filter_map(|action| match action {
            Action::Hello { agent, .. } => Some(agent),
            Action::Assign { .. }
            | Action::Drop { .. }
            | Action::Release { .. }
            | Action::TellRun { .. }
            | Action::LookAtEpoch
            | Action::Complain { .. } => None,
        })
        .collect()
}

/// Found by the simulation: the node was talked to over a session that had ended, and its heartbeats over the other one
/// kept it from ever being lost.
#[test]
fn a_late_answer_over_an_old_session_does_not_cut_a_node_off() {
    let mut dispatch = Dispatch::new(Settings::default());
    dispatch.agents(&[session(1)], NOW);
    dispatch.agents(&[session(1), session(2)], NOW);
    assert_eq!(greeted(&mut dispatch), [session(1), session(2)]);
    dispatch.greeted(session(2), NOW, Ok(reply()), NOW);
    dispatch.greeted(session(1), NOW, Ok(reply()), NOW);
    assert_eq!(greeted(&mut dispatch), []);

    dispatch.agents(&[session(2)], NOW);
    assert_eq!(
        greeted(&mut dispatch),
        [session(2)],
        "it is here over the other session"
    );
    assert_eq!(dispatch.alive(NOW), 0);
    dispatch.greeted(session(2), NOW, Ok(reply()), NOW);
    assert_eq!(dispatch.alive(NOW), 1);
}

/// Attempts stand in the ledger before their nodes hear of them: a leader that leaves waits until they have.
#[test]
fn a_leader_that_hands_over_gives_nothing_more_away_and_waits_for_what_it_gave() {
    let mut dispatch = Dispatch::new(Settings::default());
    dispatch.agents(&[session(1)], NOW);
    greeted(&mut dispatch);
    dispatch.greeted(session(1), NOW, Ok(reply()), NOW);
    let (node, work) = (NodeName::from("n"), Work::Discover);
    let key = AttemptKey {
        run: RunId::from("a"),
        work: work.clone(),
        attempt: Attempt(1),
    };
    let waiting = |work| Waiting {
        work,
        not_before: NOW,
        avoid: None,
    };
    let post = |grants_seen, waiting, awaited| Post {
        run: RunId::from("a"),
        life: 1,
        grants_seen,
        waiting,
        awaited,
        drops: BTreeMap::new(),
        places: Arc::default(),
        trace: Arc::default(),
    };
    let grants = |actions: &[Action]| {
        let granted = actions.iter().filter_map(|action| match action {
            Action::TellRun {
                news: ToRun::Grant { number, .. },
                ..
            } => Some(*number),
            _ => None,
        });
        granted.collect::<Vec<u64>>()
    };
    dispatch.post(post(0, vec![waiting(work.clone())], BTreeMap::new()), NOW);
    let [number] = grants(&dispatch.due(NOW, NOW))[..] else {
        panic!("there is a slot")
    };
    dispatch.hand_over();
    assert!(!dispatch.has_settled(), "the run has not seen its grant");
    let given = BTreeMap::from([awaited("n", key.clone())]);
    let more = vec![waiting(Work::Chunk(ChunkId {
        stage: StageId(0),
        index: 0,
    }))];
    dispatch.post(post(number, more, given), NOW);
    assert!(!dispatch.has_settled(), "it is to be sent");
    let due = dispatch.due(NOW, NOW);
    assert!(due.iter().any(|action| matches!(action, Action::Assign { .. })));
    assert!(grants(&due).is_empty(), "nothing more is given away");
    assert!(!dispatch.has_settled(), "it is on its way");
    let accepted = Some(AssignmentReply::Accepted);
    dispatch.assigned(&node, "b", &key, 0, accepted, NOW);
    assert!(dispatch.has_settled());
    let second = AttemptKey {
        attempt: Attempt(2),
        ..key.clone()
    };
    dispatch.post(
        post(number, Vec::new(), BTreeMap::from([awaited("n", second.clone())])),
        NOW,
    );
    dispatch.due(NOW, NOW);
    dispatch.assigned(&node, "b", &second, 0, Some(AssignmentReply::Leaving), NOW);
    assert!(!dispatch.has_settled(), "its run has not written that down");
    // A node that can't be reached is waited for by its lease, and by nobody who leaves.
    dispatch.post(post(number, Vec::new(), BTreeMap::new()), NOW);
    assert!(dispatch.has_settled());
}

#[test]
fn a_node_that_drains_may_leave_once_every_run_is_known_and_is_forgotten_when_it_has_gone() {
    let mut dispatch = Dispatch::new(Settings::default());
    let one = session(1);
    dispatch.agents(&[one], NOW);
    assert_eq!(greeted(&mut dispatch), [one]);
    dispatch.greeted(one, NOW, Ok(reply()), NOW);
    let node = NodeName::from("n");
    assert_eq!(dispatch.to_be_asked(&node, NOW), Ok((one, "b".to_owned())));
    let beat = || Heartbeat {
        node: NodeName::from("n"),
        boot: "b".into(),
        progress: Vec::new(),
        ahead: Vec::new(),
        draining: true,
    };
    let mut may_leave = |complete| dispatch.heartbeat(beat(), NOW, complete, |_| false).grant.may_leave;
    assert!(
        !may_leave(false),
        "while runs are recovered nobody knows what they await"
    );
    assert!(may_leave(true));
    assert_eq!(dispatch.alive(NOW), 0, "nobody waits for a node that leaves");
    dispatch.agents(&[], NOW);
    assert!(dispatch.list(NOW).is_empty());
    assert_eq!(dispatch.to_be_asked(&node, NOW), Err(DrainError::Unknown(Vec::new())));
}

#[test]
fn a_node_that_agreed_on_a_protocol_without_leaving_is_not_asked_to() {
    let mut dispatch = Dispatch::new(Settings::default());
    dispatch.agents(&[session(1)], NOW);
    greeted(&mut dispatch);
    dispatch.greeted(session(1), NOW, Ok(reply()), NOW);
    let node = NodeName::from("n");
    assert!(dispatch.to_be_asked(&node, NOW).is_ok());
    let member = dispatch.nodes.members.get_mut(&node).expect("it is here");
    member.protocol = LEAVING - 1;
    assert_eq!(dispatch.to_be_asked(&node, NOW), Err(DrainError::TooOld("1".into())));
}
