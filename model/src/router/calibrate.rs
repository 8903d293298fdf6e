//! Calibration of expert choice: thresholds for given capacities, as quantiles of the router logits
//! on a held-out text.
//!
//! In training, recursion `r` selects the fraction `c_r` of every sequence's tokens. At inference
//! it selects the tokens with logits above `τ_r`. Calibration chooses `τ_r` such that the fraction
//! `c_r` of the text's tokens passes, given the thresholds of the recursions before.

use super::selector::SelectionRule;
use crate::{CausalLm, kernels::Layout};
use burn::tensor::{Int, Tensor};

/// Calibrates the thresholds to the model's capacities on sequences of token ids. Returns the model
/// with one threshold per recursion, `None` where the capacity is 1. Thresholds are set recursion
/// by recursion, so the text is run once for each capacity below 1.
///
/// A model without expert choice is returned unchanged.
#[must_use]
pub fn calibrate(mut model: CausalLm, sequences: &[Vec<u32>]) -> CausalLm {
    let Some(router) = model.expert_choice() else { return model };
    let capacities = router.capacities.clone();
    let total: usize = sequences.iter().map(Vec::len).sum();
    let mut thresholds: Vec<Option<f64>> = vec![None; capacities.len()];
    for (recursion, capacity) in capacities.into_iter().enumerate() {
        if capacity >= 1.0 || total == 0 {
            continue;
        }
        // Thresholds of later recursions do not change what this one reads.
        model.set_thresholds(thresholds.clone());
        let mut logits = Vec::with_capacity(total);
        for sequences in batches(sequences) {
            logits.extend(logits_of(&model, sequences, recursion));
        }
        logits.sort_unstable_by(|a, b| b.total_cmp(a));
        thresholds[recursion] = between(&logits, (capacity * total as f64).floor() as usize);
    }
    model.set_thresholds(thresholds);
    model
}

/// Number of tokens per forward pass.
const TOKENS: usize = 4096;

/// Consecutive sequences in batches of at most [`TOKENS`] tokens, or of one sequence.
fn batches(sequences: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let mut batches = Vec::new();
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|ids| {
            let before = tokens;
            tokens += ids.len();
            before == 0 || tokens <= TOKENS
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        batches.push(batch);
        rest = after;
    }
    batches
}

fn logits_of(model: &CausalLm, sequences: &[Vec<u32>], recursion: usize) -> Vec<f32> {
    let layout = Layout::packed(sequences.iter().map(|ids| (ids.len(), 0..0)));
    let ids: Vec<i32> = sequences.iter().flatten().map(|id| *id as i32).collect();
    let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &model.device());
    let (_, trace) = model.begin(ids, layout, SelectionRule::Causal).finish();
    trace.decisions().get(recursion).map_or_else(Vec::new, super::RoutingDecision::causal_values)
}

/// Threshold that the first `count` of the descending `logits` pass: the midpoint between the last
/// that passes and the first that does not. `None`, so that all pass, if there are no more than
/// `count`.
fn between(logits: &[f32], count: usize) -> Option<f64> {
    let after = f64::from(*logits.get(count)?);
    let last = count.checked_sub(1).and_then(|i| logits.get(i)).map_or(after, |u| f64::from(*u));
    Some(f64::midpoint(last, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_run_together_up_to_a_number_of_tokens() {
        let sequences: Vec<Vec<u32>> = [3000, 1000, 100, 5000, 2].map(|count| vec![0; count]).to_vec();
        let lengths: Vec<usize> = batches(&sequences).iter().map(|batch| batch.len()).collect();
        assert_eq!(lengths, [2, 1, 1, 1]);
    }

    #[test]
    fn the_threshold_lies_between_the_last_that_passes_and_the_first_that_does_not() {
        let logits = [3.0, 1.0, 0.5, -2.0];
        assert_eq!(between(&logits, 2), Some(0.75));
        assert_eq!(between(&logits, 0), Some(3.0));
        assert_eq!(between(&logits, 4), None);
        assert_eq!(between(&logits, 9), None);
    }
}
