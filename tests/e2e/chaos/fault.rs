//! The faults: what is done to the world, for how long, and how it is made whole again.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::super::support::proxy::{Commit, Link};
use super::world::{COORDINATORS, NODES, World, name_of};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    NodeKilled,
    NodeStopped,
    NodeCut,
    NodeHalfOpen,
    NodeDelayed,
    LeaderKilled,
    LeaderStopped,
    LeaderWithoutLedger,
    LeaderLedgerHalfOpen,
    LedgerCommitUnanswered,
    LedgerCrashed,
    WarehouseCrashed,
    WarehouseCut,
    WarehouseHalfOpen,
    WarehouseDelayed,
    CommitLost,
    CommitUnanswered,
    DiskFull,
    S3Killed,
    S3CutShort,
}

pub(crate) const KINDS: [Kind; 20] = [
    Kind::NodeKilled,
    Kind::NodeStopped,
    Kind::NodeCut,
    Kind::NodeHalfOpen,
    Kind::NodeDelayed,
    Kind::LeaderKilled,
    Kind::LeaderStopped,
    Kind::LeaderWithoutLedger,
    Kind::LeaderLedgerHalfOpen,
    Kind::LedgerCommitUnanswered,
    Kind::LedgerCrashed,
    Kind::WarehouseCrashed,
    Kind::WarehouseCut,
    Kind::WarehouseHalfOpen,
    Kind::WarehouseDelayed,
    Kind::CommitLost,
    Kind::CommitUnanswered,
    Kind::DiskFull,
    Kind::S3Killed,
    Kind::S3CutShort,
];

impl Kind {
    /// As the table says it.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::NodeKilled => "node: SIGKILL",
            Self::NodeStopped => "node: SIGSTOP, SIGCONT",
            Self::NodeCut => "node - coordinators: cut",
            Self::NodeHalfOpen => "node - coordinators: half open",
            Self::NodeDelayed => "node - coordinators: delayed",
            Self::LeaderKilled => "leader: SIGKILL",
            Self::LeaderStopped => "leader: SIGSTOP, SIGCONT",
            Self::LeaderWithoutLedger => "leader - ledger: cut",
            Self::LeaderLedgerHalfOpen => "leader - ledger: half open",
            Self::LedgerCommitUnanswered => "leader - ledger: answer to a COMMIT lost",
            Self::LedgerCrashed => "ledger: PostgreSQL -m immediate",
            Self::WarehouseCrashed => "warehouse: PostgreSQL -m immediate",
            Self::WarehouseCut => "node - warehouse: cut",
            Self::WarehouseHalfOpen => "node - warehouse: half open",
            Self::WarehouseDelayed => "node - warehouse: delayed",
            Self::CommitLost => "node - warehouse: COMMIT lost",
            Self::CommitUnanswered => "node - warehouse: answer to a COMMIT lost",
            Self::DiskFull => "warehouse: disk full",
            Self::S3Killed => "S3: SIGKILL",
            Self::S3CutShort => "node - S3: answers cut short",
        }
    }

    /// Whether a node is lost by it, if it lasts.
    pub(crate) fn takes_a_node(self) -> bool {
        matches!(
            self,
            Self::NodeKilled | Self::NodeStopped | Self::NodeCut | Self::NodeHalfOpen
        )
    }

    /// Whether a leader is lost by it, if it lasts.
    pub(crate) fn takes_the_leader(self) -> bool {
        matches!(
            self,
            Self::LeaderKilled | Self::LeaderStopped | Self::LeaderWithoutLedger | Self::LeaderLedgerHalfOpen
        )
    }

    /// How long it lasts, in ms, at least and at most. The lease of a node is 4.8 s, that of the leader 3 s: both sides
    /// of each are tried.
    fn lasts(self) -> (u64, u64) {
        match self {
            Self::NodeKilled | Self::NodeStopped | Self::NodeCut | Self::NodeHalfOpen => (1_000, 9_000),
            Self::LeaderKilled | Self::LeaderStopped | Self::LeaderWithoutLedger | Self::LeaderLedgerHalfOpen => {
                (1_000, 7_000)
            }
            Self::NodeDelayed | Self::WarehouseDelayed => (2_000, 5_000),
            Self::LedgerCrashed | Self::WarehouseCrashed | Self::S3Killed | Self::DiskFull => (500, 4_000),
            Self::WarehouseCut | Self::WarehouseHalfOpen | Self::S3CutShort => (500, 5_000),
            Self::CommitLost | Self::CommitUnanswered | Self::LedgerCommitUnanswered => (3_000, 3_000),
        }
    }

    /// What it takes away; two faults at once don't take the same.
    fn part(self) -> u8 {
        match self {
            Self::NodeKilled | Self::NodeStopped => 0,
            Self::NodeCut | Self::NodeHalfOpen | Self::NodeDelayed => 1,
            Self::LeaderKilled | Self::LeaderStopped => 2,
            Self::LeaderWithoutLedger | Self::LeaderLedgerHalfOpen | Self::LedgerCommitUnanswered => 3,
            Self::LedgerCrashed => 4,
            // On a full disk the server would not come back.
            Self::WarehouseCrashed | Self::DiskFull => 5,
            Self::WarehouseCut
            | Self::WarehouseHalfOpen
            | Self::WarehouseDelayed
            | Self::CommitLost
            | Self::CommitUnanswered => 6,
            Self::S3Killed => 7,
            Self::S3CutShort => 8,
        }
    }
}

/// A fault as it is planned: all that the seed decides.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// Whom it meets, among nodes.
    pub(crate) node: usize,
    /// From the submission to its beginning, and to its end.
    pub(crate) begins: Duration,
    pub(crate) ends: Duration,
    /// Milliseconds of a delay; bytes of an answer.
    size: u64,
}

/// Kinds in the order of a seed, again and again: whatever is drawn often enough is drawn equally often.
#[derive(Default)]
pub(crate) struct Deck {
    left: Vec<Kind>,
}

impl Deck {
    fn draw(&mut self, rng: &mut StdRng, can: &impl Fn(Kind) -> bool) -> Kind {
        loop {
            if self.left.is_empty() {
                self.left = KINDS.to_vec();
                self.left.shuffle(rng);
            }
            if let Some(kind) = self.left.pop()
                && can(kind)
            {
                return kind;
            }
        }
    }

    /// Faults for one round, whose run takes about `span` without any.
    pub(crate) fn plan(&mut self, rng: &mut StdRng, span: Duration, has_disk: bool) -> Vec<Plan> {
        let can = |kind| has_disk || kind != Kind::DiskFull;
        let mut plans: Vec<Plan> = Vec::new();
        for _ in 0..rng.random_range(1..=3) {
            let kind = self.draw(rng, &can);
            let (least, most) = kind.lasts();
            let begins = Duration::from_millis(rng.random_range(100..span.as_millis() as u64));
            let ends = begins + Duration::from_millis(rng.random_range(least..=most));
            let size = match kind {
                Kind::S3CutShort => rng.random_range(200..20_000),
                _ => rng.random_range(100..500),
            };
            let plan = Plan {
                kind,
                node: rng.random_range(0..NODES),
                begins,
                ends,
                size,
            };
            let meets = |other: &Plan| other.kind.part() == kind.part() && begins <= other.ends && other.begins <= ends;
            if !plans.iter().any(meets) {
                plans.push(plan);
            }
        }
        plans
    }
}

/// A fault that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Injected {
    pub(crate) plan: Plan,
    /// The coordinator that led, and its epoch, if the ledger could say it.
    pub(crate) leader: Option<(usize, i64)>,
    /// Milliseconds since the Unix epoch.
    pub(crate) at: u64,
    pub(crate) healed_at: u64,
}

/// Begins a fault.
pub(crate) async fn inject(plan: &Plan, world: &mut World) -> Result<Injected> {
    let lead = world.lead().await.ok();
    let leader = lead.as_ref().map_or(0, |lead| lead.place);
    let name = name_of(plan.node);
    let at = now();
    let way = &world.ways[plan.node];
    let link = |link: Link| way.coordinators.iter().for_each(|proxy| proxy.link(link));
    match plan.kind {
        Kind::NodeKilled => world.cluster.kill(&name).await?,
        Kind::NodeStopped => world.cluster.node(&name)?.signal("STOP")?,
        Kind::NodeCut => link(Link::Cut),
        Kind::NodeHalfOpen => link(Link::Silent),
        Kind::NodeDelayed => link(Link::Late(plan.size as u16)),
        Kind::LeaderKilled => world.cluster.coordinator_at(leader)?.kill().await?,
        Kind::LeaderStopped => world.cluster.coordinator_at(leader)?.signal("STOP")?,
        Kind::LeaderWithoutLedger => world.to_ledger[leader].link(Link::Cut),
        Kind::LeaderLedgerHalfOpen => world.to_ledger[leader].link(Link::Silent),
        Kind::LedgerCommitUnanswered => world.to_ledger[leader].next_commit(Commit::LosesItsAnswer),
        Kind::LedgerCrashed => world.ledger.stop(),
        Kind::WarehouseCrashed => world.warehouse.stop(),
        Kind::WarehouseCut => way.warehouse.link(Link::Cut),
        Kind::WarehouseHalfOpen => way.warehouse.link(Link::Silent),
        Kind::WarehouseDelayed => way.warehouse.link(Link::Late(plan.size as u16)),
        Kind::CommitLost => way.warehouse.next_commit(Commit::IsLost),
        Kind::CommitUnanswered => way.warehouse.next_commit(Commit::LosesItsAnswer),
        Kind::DiskFull => fill(world)?,
        Kind::S3Killed => world.s3.kill()?,
        Kind::S3CutShort => way.s3.cut_answers_after(plan.size),
    }
    Ok(Injected {
        plan: plan.clone(),
        leader: lead.map(|lead| (lead.place, lead.epoch)),
        at,
        healed_at: 0,
    })
}

/// Ends a fault.
pub(crate) async fn heal(fault: &mut Injected, world: &mut World) -> Result<()> {
    let name = name_of(fault.plan.node);
    let leader = fault.leader.map_or(0, |(place, _)| place);
    let way = &world.ways[fault.plan.node];
    let link = |link: Link| way.coordinators.iter().for_each(|proxy| proxy.link(link));
    match fault.plan.kind {
        Kind::NodeKilled => world.start_node(fault.plan.node)?,
        Kind::NodeStopped => world.cluster.node(&name)?.signal("CONT")?,
        // What was half open is forgotten by whoever stands between, and not delivered in the end.
        Kind::NodeCut | Kind::NodeHalfOpen => {
            link(Link::Cut);
            link(Link::Passes);
        }
        Kind::NodeDelayed => link(Link::Passes),
        Kind::LeaderKilled => world.cluster.revive_coordinator(leader).await?,
        Kind::LeaderStopped => world.cluster.coordinator_at(leader)?.signal("CONT")?,
        Kind::LeaderWithoutLedger => world.to_ledger[leader].link(Link::Passes),
        // The old connections stay dead, and neither side is told; new ones pass.
        Kind::LeaderLedgerHalfOpen => {
            world.to_ledger[leader].forget();
            world.to_ledger[leader].link(Link::Passes);
        }
        Kind::LedgerCommitUnanswered => world.to_ledger[leader].next_commit(Commit::Passes),
        Kind::LedgerCrashed => world.ledger.start_again().await?,
        Kind::WarehouseCrashed => world.warehouse.start_again().await?,
        Kind::WarehouseCut | Kind::WarehouseDelayed => way.warehouse.link(Link::Passes),
        Kind::WarehouseHalfOpen => {
            way.warehouse.link(Link::Cut);
            way.warehouse.link(Link::Passes);
        }
        Kind::CommitLost | Kind::CommitUnanswered => way.warehouse.next_commit(Commit::Passes),
        Kind::DiskFull => std::fs::remove_file(world.filler()).context("the filler")?,
        Kind::S3Killed => world.s3.start_again().await?,
        Kind::S3CutShort => way.s3.cut_answers_after(u64::MAX),
    }
    fault.healed_at = now();
    Ok(())
}

/// Takes all the room that is left on the warehouse's disk.
fn fill(world: &World) -> Result<()> {
    let mut filler = std::fs::File::create(world.filler())?;
    let piece = vec![0; 1 << 20];
    // Smaller and smaller pieces, until not a page is left.
    let mut size = piece.len();
    while size >= 4096 {
        if filler.write_all(&piece[..size]).is_err() {
            size /= 2;
        }
    }
    Ok(())
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed();
    since.map_or(0, |since| since.as_millis() as u64)
}

/// What a fault is called in a message.
pub(crate) fn line(fault: &Injected) -> String {
    let plan = &fault.plan;
    format!(
        "{} (node {}, leader {:?}) from {} to {} ms",
        plan.kind.words(),
        name_of(plan.node),
        fault
            .leader
            .map(|(place, epoch)| format!("c{} of {COORDINATORS}, epoch {epoch}", place + 1)),
        plan.begins.as_millis(),
        plan.ends.as_millis()
    )
}
