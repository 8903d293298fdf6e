//! One recursion of a model whose tokens choose their depth (Mixture-of-Recursions, §2.2.1, Eq. 2.2): who is not done runs through the
//! block; who has come to its depth is put back, gated, onto the state that it entered the loop with.
//!
//! With `x` the state at the loop's entry, `h` before a recursion and `y = block(h)`, a token of depth `i` becomes in recursion `i` what its
//! gating makes of `x` and `y`, and in those before `y` (`intermediate: plain`) or what the gating makes of `h` and `y`, but for `weighted`:
//! `p·y` (`gated`).

use super::{
    forward::{Choice, Decision, Routing, positions},
    network::depth_scores,
};
use crate::{
    block::Rows,
    cache::KvCache,
    causal_lm::CausalLm,
    kernels::{self, Merge, f32_slice},
};
use burn::tensor::Tensor;
use retie_config::{Gating, IntermediateState, TokenChoiceConfig};
use std::{ops::Range, sync::Arc};

/// What a token chooses its depth from, and what it leaves with.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Hidden states at the loop's entry, `[M, D]`.
    pub hidden: Tensor<2>,
    /// Logits of the router, `[M, R]`.
    pub logits: Tensor<2>,
    /// The last recursion that each row goes through.
    pub last: Arc<[usize]>,
    /// The same before a warm-up changed some.
    pub own: Arc<[usize]>,
}

impl Entry {
    /// The same with other tensors: those of another graph.
    #[must_use]
    pub fn with(&self, hidden: Tensor<2>, logits: Tensor<2>) -> Self {
        Self { hidden, logits, ..self.clone() }
    }
}

impl CausalLm {
    #[expect(clippy::too_many_arguments, reason = "those of `run_pass`, and what it found out")]
    pub(super) fn run_chosen_depth(
        &self,
        x: Tensor<2>,
        recursion: usize,
        depths: Range<usize>,
        rows: &Rows,
        router: &TokenChoiceConfig,
        routing: &mut Routing,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let [num_rows, _] = x.dims();
        let alive = routing.alive.take().unwrap_or_else(|| (0..num_rows).collect());
        let entry = if recursion == 0 { self.enter(&x, router, routing) } else { routing.entry.clone() };
        let Some(entry) = entry.filter(|_| !alive.is_empty()) else {
            self.leave_out(depths, num_rows, routing, cache);
            routing.decisions.push(Decision::of_nobody(recursion));
            routing.alive = Some(alive);
            return x;
        };
        let chosen: Arc<[usize]> = match &routing.choice {
            Choice::Given(rows) => rows.clone(),
            _ => alive.iter().copied().filter(|row| entry.last[*row] >= recursion).collect(),
        };
        let first = (recursion == 0).then(|| (entry.logits.clone(), entry.own.clone()));
        let (logits, own) = first.unzip();
        let decision = Decision { recursion, alive, logits, auxiliary: None, chosen: chosen.clone(), own };
        routing.decisions.push(decision);
        routing.alive = Some(chosen.clone());
        routing.entry = Some(entry.clone());
        if chosen.is_empty() {
            self.leave_out(depths, num_rows, routing, cache);
            return x;
        }
        let before = if chosen.len() == num_rows { x.clone() } else { kernels::gather(x.clone(), &chosen) };
        let after = self.run_chosen(before.clone(), recursion, depths, rows, &chosen, routing, cache);
        let gates = depth_scores(entry.logits, router.score, router.alpha).narrow(1, recursion, 1); // [M, 1]
        let (done, going): (Vec<usize>, Vec<usize>) = chosen.iter().partition(|row| entry.last[**row] == recursion);
        let mut out = x;
        for (part, leaves) in [(done, true), (going, false)] {
            if part.is_empty() {
                continue;
            }
            let at = positions(&chosen, &part);
            let (gate, y) = (kernels::gather(gates.clone(), &part), kernels::gather(after.clone(), &at));
            let left = match (leaves, router.intermediate) {
                (true, _) => combined(kernels::gather(entry.hidden.clone(), &part), y, gate, router.gating),
                (false, IntermediateState::Plain) => y,
                (false, IntermediateState::Gated) if router.gating == Gating::Weighted => y * gate,
                (false, IntermediateState::Gated) => {
                    combined(kernels::gather(before.clone(), &at), y, gate, router.gating)
                }
            };
            out = put(out, left, part.into());
        }
        out
    }

    /// The router reads every row, and each chooses.
    fn enter(&self, x: &Tensor<2>, router: &TokenChoiceConfig, routing: &mut Routing) -> Option<Entry> {
        let [num_rows, _] = x.dims();
        let num_recursions = self.plan.share_map.num_recursions();
        let everyone: Vec<usize> = (0..num_rows).collect();
        let logits = match self.model.routers.first() {
            Some(network) => network.logits(x.clone(), router.input), // [M, R]
            None => routing.drawn(&everyone, num_recursions, &x.device()),
        };
        // What was chosen before stays chosen.
        if let (Choice::Given(_), Some(entry)) = (&routing.choice, &routing.entry) {
            return Some(entry.with(x.clone(), logits));
        }
        let scores = depth_scores(logits.clone().detach(), router.score, router.alpha).into_data();
        let own = deepest_best(f32_slice(&scores), num_recursions, router.biases.as_deref());
        let full = |row: usize| routing.full_depth.get(row).copied().unwrap_or(false);
        let last = own.iter().enumerate().map(|(row, own)| if full(row) { num_recursions - 1 } else { *own }).collect();
        Some(Entry { hidden: x.clone(), logits, last, own: own.into() })
    }
}

/// Row by row of `scores [M, R]`, where the score and its bias are largest together; of equals the last.
fn deepest_best(scores: &[f32], num_recursions: usize, biases: Option<&[f32]>) -> Vec<usize> {
    let bias = |depth: usize| biases.and_then(|biases| biases.get(depth)).copied().unwrap_or(0.0);
    let best = |row: &[f32]| {
        let value = |depth: usize| row[depth] + bias(depth);
        (1..num_recursions).fold(0, |best, depth| if value(depth) >= value(best) { depth } else { best })
    };
    scores.chunks_exact(num_recursions).map(best).collect()
}

/// What a gating makes of all rows of `x` and `y` `[k, D]`.
fn combined(x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, gating: Gating) -> Tensor<2> {
    let [num_rows, _] = x.dims();
    kernels::merge(x, y, gate, Merge { rows: (0..num_rows).collect(), gating })
}

/// `x [M, D]` with `rows` replaced by `y [k, D]`.
fn put(x: Tensor<2>, y: Tensor<2>, rows: Arc<[usize]>) -> Tensor<2> {
    let [num_rows, _] = x.dims();
    if rows.len() == num_rows {
        return y;
    }
    let gate = Tensor::zeros([rows.len(), 1], &x.device());
    // Its value is `y`, and a constant has no gradient.
    kernels::merge(x, y, gate, Merge { rows, gating: Gating::StraightThrough })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_count_for_the_choice_and_of_equals_the_deepest_is_chosen() {
        let scores = [0.5, 0.3, 0.2, 0.1, 0.1, 0.8, 0.4, 0.4, 0.2, 1.0, 1.0, 1.0];
        assert_eq!(deepest_best(&scores, 3, None), [0, 2, 1, 2]);
        assert_eq!(deepest_best(&scores, 3, Some(&[0.0, 0.25, 0.0])), [1, 2, 1, 1]);
        assert_eq!(deepest_best(&[f32::NAN; 3], 3, None), [0]);
    }
}
