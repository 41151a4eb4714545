//! The board: what every run has outstanding, and who gets the next free slot. Pure, so that fairness and credit are
//! checked by tables.
//!
//! A run posts everything it has outstanding, and posts it again whenever it changed; the newest post counts. A grant
//! is kept as reserved until a post says that the run has seen it, so that no slot is given away twice.
//!
//! Runs take turns, one dispatch each. A node gets at most as many chunks as it has slots, and beside them a few pieces
//! of other work ([`BESIDE`]), so that a publish never waits for another run's chunks.
//!
//! A run that says where its destinations are gets no node whose destination of that name is elsewhere: such a node
//! would publish to the wrong place, or undo nothing there and call it done. A node that has none of that name gets the
//! work, and its refusal says what to do.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use haulage_core::ids::{Millis, NodeName, RunId, Work};
use haulage_proto::link::message::{Assignment, AttemptKey};

use super::Carrier;

/// Steps and discoveries that a node takes beside its chunks. A node that takes fewer says that it is full.
pub(crate) const BESIDE: u32 = 4;

/// Where destinations are, by name, without credentials.
pub type Places = BTreeMap<String, String>;

/// Work that waits for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// What is to be done.
    pub work: Work,
    /// On the wall clock.
    pub not_before: Millis,
    /// The node on which it failed last.
    pub avoid: Option<NodeName>,
}

/// An attempt that a node has, or is to get.
#[derive(Debug, Clone)]
pub struct Awaited {
    /// Where.
    pub node: NodeName,
    /// What it is sent.
    pub assignment: Arc<Assignment>,
}

/// Everything a run has outstanding.
#[derive(Debug, Clone)]
pub struct Post {
    /// The run.
    pub run: RunId,
    /// Which life of the run's actor posts this: another one has seen none of the grants.
    pub life: u64,
    /// The newest grant that the run has seen.
    pub grants_seen: u64,
    /// Work that waits for a node.
    pub waiting: Vec<Waiting>,
    /// Attempts that nodes have or are to get.
    pub awaited: BTreeMap<AttemptKey, Awaited>,
    /// Attempts that nobody wants any more, and where they are.
    pub drops: BTreeMap<AttemptKey, NodeName>,
    /// Where the run's destinations have to be.
    pub places: Arc<Places>,
    /// For the assignments' envelopes.
    pub trace: Arc<Carrier>,
}

/// A node that can take work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) node: NodeName,
    pub(crate) slots: u32,
    pub(crate) places: Places,
}

/// How many attempts, by the room that they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// In slots.
    pub(crate) chunks: u32,
    /// Beside them.
    pub(crate) beside: u32,
}

/// A run may give this work to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) run: RunId,
    pub(crate) number: u64,
    pub(crate) work: Work,
    pub(crate) node: NodeName,
}

/// What a node can still take while slots are given away.
struct Free<'a> {
    seat: &'a Seat,
    left: Load,
}

#[derive(Debug)]
struct Posted {
    post: Post,
    reserved: Vec<Grant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Board {
    runs: BTreeMap<RunId, Posted>,
    // Whose turn was last.
    turn: Option<RunId>,
    granted: u64,
}

impl Board {
    /// Takes a run's post. True if the run's actor posts for the first time.
    pub(crate) fn post(&mut self, post: Post) -> bool {
        let mut reserved = Vec::new();
        let mut first = true;
        if let Some(before) = self.runs.remove(&post.run)
            && before.post.life == post.life
        {
            first = false;
            reserved = before.reserved;
            reserved.retain(|grant| grant.number > post.grants_seen);
        }
        self.runs.insert(post.run.clone(), Posted { post, reserved });
        first
    }

    /// Forgets a run.
    pub(crate) fn remove(&mut self, run: &RunId) {
        self.runs.remove(run);
    }

    pub(crate) fn knows(&self, run: &RunId) -> bool {
        self.runs.contains_key(run)
    }

    /// The run's attempts that nodes have or are to get, with the trace context to send.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = (&AttemptKey, &Awaited, &Arc<Carrier>)> {
        self.runs.values().flat_map(|posted| {
            posted
                .post
                .awaited
                .iter()
                .map(|(key, awaited)| (key, awaited, &posted.post.trace))
        })
    }

    /// Attempts to be dropped, and where.
    pub(crate) fn drops(&self) -> impl Iterator<Item = (&AttemptKey, &NodeName)> {
        self.runs.values().flat_map(|posted| &posted.post.drops)
    }

    /// Where an attempt is awaited.
    pub(crate) fn awaits(&self, key: &AttemptKey) -> Option<&NodeName> {
        self.runs
            .get(&key.run)
            .and_then(|posted| posted.post.awaited.get(key))
            .map(|awaited| &awaited.node)
    }

    /// Whether this attempt is to be dropped.
    pub(crate) fn is_drop(&self, key: &AttemptKey) -> bool {
        self.runs
            .get(&key.run)
            .is_some_and(|posted| posted.post.drops.contains_key(key))
    }

    /// Whether a grant is on its way to its run.
    pub(crate) fn has_reserved(&self) -> bool {
        self.runs.values().any(|posted| !posted.reserved.is_empty())
    }

    /// Runs that have something at a node, or are about to.
    pub(crate) fn runs_at(&self, node: &NodeName) -> Vec<RunId> {
        let at_node = |posted: &Posted| {
            posted.post.awaited.values().any(|awaited| awaited.node == *node)
                || posted.post.drops.values().any(|at| at == node)
                || posted.reserved.iter().any(|grant| grant.node == *node)
        };
        self.runs
            .iter()
            .filter(|(_, posted)| at_node(posted))
            .map(|(run, _)| run.clone())
            .collect()
    }

    /// How much each node has or is about to get.
    pub(crate) fn load(&self) -> BTreeMap<NodeName, Load> {
        let mut load: BTreeMap<NodeName, Load> = BTreeMap::new();
        for posted in self.runs.values() {
            let awaited = posted
                .post
                .awaited
                .iter()
                .map(|(key, awaited)| (&key.work, &awaited.node));
            let drops = posted.post.drops.iter().map(|(key, node)| (&key.work, node));
            let reserved = posted.reserved.iter().map(|grant| (&grant.work, &grant.node));
            for (work, node) in awaited.chain(drops).chain(reserved) {
                *load.entry(node.clone()).or_default().of(work) += 1;
            }
        }
        load
    }

    /// Gives free slots away, run by run in turn, until nothing more fits.
    pub(crate) fn grant(&mut self, now: Millis, seats: &[Seat]) -> Vec<Grant> {
        let load = self.load();
        let mut free: Vec<Free<'_>> = Vec::with_capacity(seats.len());
        for seat in seats {
            let used = load.get(&seat.node).copied().unwrap_or_default();
            let left = Load {
                chunks: seat.slots.saturating_sub(used.chunks),
                beside: BESIDE.saturating_sub(used.beside),
            };
            free.push(Free { seat, left });
        }
        let mut grants = Vec::new();
        let mut passed_over = HashSet::new();
        while let Some(run) = self.next_turn(&passed_over) {
            match self.grant_one(&run, now, &mut free) {
                Some(grant) => {
                    grants.push(grant);
                    self.turn = Some(run);
                }
                None => {
                    passed_over.insert(run);
                }
            }
        }
        grants
    }

    /// Runs that wait for a node and would get none of these, however free: each with what has to change.
    pub(crate) fn misplaced(&self, alive: &[&Places]) -> BTreeMap<RunId, String> {
        let misplaced = |posted: &Posted| {
            if posted.post.waiting.is_empty() {
                return None;
            }
            let misfits = alive.iter().map(|node| misfit(&posted.post.places, node));
            // None as soon as one node fits; the last one's misfit stands for all, and no node at all is another matter.
            let (name, wanted, other) = misfits.collect::<Option<Vec<_>>>()?.pop()?;
            Some(format!(
                "waiting for a node whose destination `{name}` is {wanted}; here it is {other}. Start one with \
                 --destination {name}=... at that place, or cancel the run when it can't be reached any more"
            ))
        };
        let runs = self.runs.iter();
        runs.filter_map(|(run, posted)| Some((run.clone(), misplaced(posted)?)))
            .collect()
    }

    /// The first run after the one whose turn was last, and that hasn't been passed over.
    fn next_turn(&self, passed_over: &HashSet<RunId>) -> Option<RunId> {
        let after = self
            .runs
            .keys()
            .filter(|run| self.turn.as_ref().is_none_or(|turn| *run > turn));
        let before = self
            .runs
            .keys()
            .filter(|run| self.turn.as_ref().is_some_and(|turn| *run <= turn));
        after.chain(before).find(|run| !passed_over.contains(*run)).cloned()
    }

    fn grant_one(&mut self, run: &RunId, now: Millis, free: &mut [Free<'_>]) -> Option<Grant> {
        let posted = self.runs.get_mut(run)?;
        let places = Arc::clone(&posted.post.places);
        let reserved: HashSet<&Work> = posted.reserved.iter().map(|grant| &grant.work).collect();
        let ready = |waiting: &&Waiting| waiting.not_before <= now && !reserved.contains(&waiting.work);
        let (work, place) = posted
            .post
            .waiting
            .iter()
            .filter(ready)
            .find_map(|waiting| Some((waiting.work.clone(), choose(waiting, &places, free)?)))?;
        let taken = free.get_mut(place)?;
        *taken.left.of(&work) -= 1;
        let node = &taken.seat.node;
        self.granted += 1;
        let grant = Grant {
            run: run.clone(),
            number: self.granted,
            work,
            node: node.clone(),
        };
        posted.reserved.push(grant.clone());
        Some(grant)
    }
}

impl Load {
    /// The number that this kind of work counts in.
    fn of(&mut self, work: &Work) -> &mut u32 {
        match work {
            Work::Chunk(_) => &mut self.chunks,
            Work::Discover | Work::Step(_) | Work::Compensate(_) => &mut self.beside,
        }
    }
}

/// The node with the most room that may take one more; not the one to avoid if there is any other, even if that means
/// waiting for it.
fn choose(waiting: &Waiting, places: &Places, free: &[Free<'_>]) -> Option<usize> {
    let avoid = waiting.avoid.as_ref();
    let fitting = || {
        free.iter()
            .enumerate()
            .filter(|(_, free)| misfit(places, &free.seat.places).is_none())
    };
    let others = avoid.is_some_and(|avoid| fitting().any(|(_, free)| free.seat.node != *avoid));
    fitting()
        .map(|(place, free)| (place, &free.seat.node, *free.left.clone().of(&waiting.work)))
        .filter(|(_, node, left)| *left > 0 && !(others && Some(*node) == avoid))
        .max_by_key(|(place, _, left)| (*left, std::cmp::Reverse(*place)))
        .map(|(place, _, _)| place)
}

/// The first destination that a run wants in one place and a node has in another: its name and the two places.
fn misfit<'a>(run: &'a Places, node: &'a Places) -> Option<(&'a str, &'a str, &'a str)> {
    run.iter().find_map(|(name, wanted)| {
        let other = node.get(name).filter(|place| *place != wanted)?;
        Some((name.as_str(), wanted.as_str(), other.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use haulage_core::ids::{Attempt, ChunkId, StageId};

    use super::*;

    fn chunk(index: u32) -> Work {
        Work::Chunk(ChunkId {
            stage: StageId(0),
            index,
        })
    }

    fn seat(node: &str, slots: u32) -> Seat {
        Seat {
            node: NodeName::from(node),
            slots,
            places: Places::new(),
        }
    }

    fn post(run: &str, grants_seen: u64, chunks: impl IntoIterator<Item = u32>) -> Post {
        let waiting = chunks.into_iter().map(|index| Waiting {
            work: chunk(index),
            not_before: Millis(0),
            avoid: None,
        });
        Post {
            run: RunId::from(run),
            life: 1,
            grants_seen,
            waiting: waiting.collect(),
            awaited: BTreeMap::new(),
            drops: BTreeMap::new(),
            places: Arc::default(),
            trace: Arc::default(),
        }
    }

    fn shown(grants: &[Grant]) -> Vec<String> {
        grants
            .iter()
            .map(|grant| format!("{} {} -> {}", grant.run, grant.work, grant.node))
            .collect()
    }

    #[test]
    fn runs_take_turns_until_every_slot_is_given_away() {
        let mut board = Board::default();
        board.post(post("a", 0, 0..9));
        board.post(post("b", 0, 0..9));
        let grants = board.grant(Millis(1), &[seat("x", 2), seat("y", 1)]);
        assert_eq!(
            shown(&grants),
            ["a chunk 0.0 -> x", "b chunk 0.0 -> x", "a chunk 0.1 -> y"]
        );
        assert!(
            board.grant(Millis(1), &[seat("x", 2), seat("y", 1)]).is_empty(),
            "credit is used up"
        );
    }

    #[test]
    fn a_grant_is_reserved_until_the_run_has_seen_it() {
        let mut board = Board::default();
        let seats = [seat("x", 4)];
        board.post(post("a", 0, 0..1));
        let first = board.grant(Millis(1), &seats);
        assert_eq!(first.len(), 1);
        // The run posts something else before it sees the grant: the chunk is still waiting in its post.
        board.post(post("a", 0, 0..1));
        assert!(board.grant(Millis(1), &seats).is_empty());
        // It has seen and refused it: the slot is free again.
        board.post(post("a", first[0].number, 0..1));
        assert_eq!(board.grant(Millis(1), &seats).len(), 1);
        // A restarted actor has seen none.
        let mut again = post("a", 0, 0..1);
        again.life = 2;
        assert!(board.post(again));
        assert_eq!(board.grant(Millis(1), &seats).len(), 1);
    }

    #[test]
    fn backoff_and_the_node_to_avoid_are_kept() {
        for (avoid, not_before, seats, expected) in [
            ("x", 0, vec![seat("x", 9), seat("y", 1)], Some("y")),
            ("x", 0, vec![seat("x", 9)], Some("x")),
            ("z", 0, vec![seat("x", 9), seat("y", 1)], Some("x")),
            ("z", 100, vec![seat("x", 9)], None),
            ("z", 0, vec![], None),
        ] {
            let mut board = Board::default();
            let mut post = post("a", 0, 0..1);
            post.waiting[0].avoid = Some(NodeName::from(avoid));
            post.waiting[0].not_before = Millis(not_before);
            board.post(post);
            let grants = board.grant(Millis(50), &seats);
            assert_eq!(
                grants.first().map(|grant| grant.node.as_str()),
                expected,
                "{avoid} {not_before} {seats:?}"
            );
        }
    }

    #[test]
    fn work_that_can_not_be_placed_does_not_hold_up_the_rest() {
        let mut board = Board::default();
        let mut post = post("a", 0, 0..2);
        post.waiting[0].avoid = Some(NodeName::from("x"));
        board.post(post);
        // y is the better place for chunk 0, and full: chunk 1 goes to x meanwhile.
        let busy = Post {
            drops: drops_at("y", 2),
            ..super::tests::post("b", 0, 0..0)
        };
        board.post(busy);
        let grants = board.grant(Millis(1), &[seat("x", 4), seat("y", 1)]);
        assert_eq!(shown(&grants), ["a chunk 0.1 -> x"]);
    }

    #[test]
    fn a_node_whose_destination_is_elsewhere_gets_nothing_of_the_run() {
        let at = |place: &str| Places::from([("warehouse".to_owned(), place.to_owned())]);
        let mut wrong = seat("x", 4);
        wrong.places = at("sqlite:/b.db");
        let mut right = seat("y", 1);
        right.places = at("sqlite:/a.db");
        let without = seat("z", 1);

        let mut board = Board::default();
        let mut placed = post("a", 0, 0..3);
        placed.places = Arc::new(at("sqlite:/a.db"));
        // The node to avoid is the only one that fits, so it isn't avoided.
        placed.waiting[0].avoid = Some(NodeName::from("y"));
        board.post(placed);
        assert!(board.grant(Millis(1), std::slice::from_ref(&wrong)).is_empty());
        let misplaced = board.misplaced(&[&wrong.places]);
        let said = misplaced.get(&RunId::from("a")).expect("it waits");
        assert!(
            said.contains("`warehouse` is sqlite:/a.db; here it is sqlite:/b.db"),
            "{said}"
        );
        assert!(board.misplaced(&[&wrong.places, &right.places]).is_empty());
        assert!(
            board.misplaced(&[]).is_empty(),
            "no node is here at all: said otherwise"
        );
        assert_eq!(
            shown(&board.grant(Millis(1), &[wrong.clone(), right])),
            ["a chunk 0.0 -> y"]
        );
        assert_eq!(shown(&board.grant(Millis(1), &[wrong, without])), ["a chunk 0.1 -> z"]);
    }

    fn drops_at(node: &str, count: u32) -> BTreeMap<AttemptKey, NodeName> {
        let key = |index| AttemptKey {
            run: RunId::from("b"),
            work: chunk(index),
            attempt: Attempt(1),
        };
        (0..count).map(|index| (key(index), NodeName::from(node))).collect()
    }

    #[test]
    fn what_a_node_has_counts_against_its_credit() {
        let mut board = Board::default();
        board.post(Post {
            drops: drops_at("x", 2),
            ..post("b", 0, 7..9)
        });
        assert_eq!(board.load().get(&NodeName::from("x")).map(|load| load.chunks), Some(2));
        assert_eq!(board.grant(Millis(1), &[seat("x", 2)]).len(), 0);
        assert_eq!(board.grant(Millis(1), &[seat("x", 3)]).len(), 1);
        assert_eq!(board.runs_at(&NodeName::from("x")), [RunId::from("b")]);
        board.remove(&RunId::from("b"));
        assert!(board.load().is_empty());
    }

    #[test]
    fn a_step_goes_beside_chunks_that_fill_every_slot() {
        let mut board = Board::default();
        board.post(Post {
            drops: drops_at("x", 2),
            ..post("b", 0, 0..0)
        });
        let mut step = post("a", 0, 0..2);
        step.waiting[1].work = Work::Discover;
        board.post(step);
        assert_eq!(shown(&board.grant(Millis(1), &[seat("x", 2)])), ["a discover -> x"]);
    }
}
