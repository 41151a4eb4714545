//! A leader gives the lead away on purpose. What is in the ledger and on its way to a node would be lost with the leader:
//! the next one finds an attempt that its node has never heard of, and can only call it failed.

use super::Dispatch;
use crate::deciding::nodes::Sent;

impl Dispatch {
    /// From here on nothing more is given away; what has been still reaches its node.
    pub fn hand_over(&mut self) {
        self.hands_over = true;
    }

    /// Whether every attempt that was given away has reached its node, or can't: no grant is between here and its run, no
    /// assignment between here and a node that can be reached, and no refusal between here and its run.
    pub fn has_settled(&self) -> bool {
        let on_the_way = |sent: Option<&Sent>| !matches!(sent, Some(Sent::Held { .. }));
        let mut awaited = self.board.awaited().filter_map(|(key, awaited, _)| {
            let member = self.nodes.members.get(&awaited.node)?;
            let reachable = !member.lost && member.agent.is_some();
            reachable.then(|| member.sent.get(key))
        });
        !self.board.has_reserved() && !awaited.any(on_the_way)
    }
}
