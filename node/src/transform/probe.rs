//! Joins with lookups: the lookup is hashed, the chunk streams past it.
//!
//! DataFusion chooses the sides by statistics, and a chunk in the middle of a plan has none. Here it is known: a chunk
//! is always the side that streams. Then the hash table doesn't depend on the segment, and it is built once per chunk.

use std::any::Any;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{JoinType, Result};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode};

use super::segment::reads_chunk;

/// Swaps joins whose building side reads the chunk.
#[derive(Debug)]
pub(super) struct ChunkProbes;

impl PhysicalOptimizerRule for ChunkProbes {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            Ok(match swapped(&node)? {
                Some(join) => Transformed::yes(join),
                None => Transformed::no(node),
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "chunk_probes"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn swapped(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let any = node.as_ref() as &dyn Any;
    if let Some(join) = any.downcast_ref::<HashJoinExec>() {
        let chunk_builds = reads_chunk(join.left()) && !reads_chunk(join.right());
        // A null-aware anti join (NOT IN) exists in one direction only.
        if chunk_builds && !join.null_aware && join.join_type().supports_swap() {
            return join.swap_inputs(PartitionMode::CollectLeft).map(Some);
        }
    } else if let Some(join) = any.downcast_ref::<NestedLoopJoinExec>() {
        if reads_chunk(join.left()) && !reads_chunk(join.right()) && join.join_type().supports_swap() {
            return join.swap_inputs().map(Some);
        }
    } else if let Some(join) = any.downcast_ref::<CrossJoinExec>()
        && reads_chunk(join.left())
        && !reads_chunk(join.right())
    {
        return join.swap_inputs().map(Some);
    }
    Ok(None)
}

/// Whether a plan can be executed again for the next segment: nothing in it keeps rows of a segment, or notes on the
/// lookup's rows that only hold for one.
pub(super) fn reusable(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if !reads_chunk(plan) {
        return true; // Built once, from lookups alone.
    }
    let any = plan.as_ref() as &dyn Any;
    let streams_past = |left: &Arc<dyn ExecutionPlan>, join_type: &JoinType| {
        let probing = matches!(
            join_type,
            JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
        );
        probing && !reads_chunk(left)
    };
    let fine = if let Some(join) = any.downcast_ref::<HashJoinExec>() {
        join.mode == PartitionMode::CollectLeft && streams_past(join.left(), join.join_type())
    } else if let Some(join) = any.downcast_ref::<NestedLoopJoinExec>() {
        streams_past(join.left(), join.join_type())
    } else if let Some(join) = any.downcast_ref::<CrossJoinExec>() {
        !reads_chunk(join.left())
    } else {
        const STATELESS: [&str; 9] = [
            "SegmentExec",
            "RejectExec",
            "ProjectionExec",
            "FilterExec",
            "UnionExec",
            "CoalesceBatchesExec",
            "CoalescePartitionsExec",
            "CooperativeExec",
            "ScalarSubqueryExec",
        ];
        STATELESS.contains(&plan.name())
    };
    fine && plan.children().into_iter().all(reusable)
}
