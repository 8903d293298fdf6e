//! Logits of a model on token ids that stand for a text, and their differences.

use burn::tensor::{Int, Tensor};
use retie_model::{CausalLm, kernels::f32_slice};

/// Token ids at the multiples of the golden ratio, which spread evenly: no id repeats before most
/// of the vocabulary has a near neighbour.
pub fn spread_ids(tokens: usize, vocab_size: usize) -> Vec<u32> {
    const STEP: f64 = 0.618_033_988_749_894_9;
    (1..=tokens).map(|i| ((i as f64 * STEP).fract() * vocab_size as f64) as u32).collect()
}

/// Logits `[tokens, V]` of one sequence.
pub fn logits(model: &CausalLm, ids: &[u32]) -> Vec<f32> {
    let signed: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let ids = Tensor::<1, Int>::from_ints(signed.as_slice(), &model.device()).reshape([1, ids.len()]);
    f32_slice(&model.logits(model.forward(ids, None)).into_data()).to_vec()
}

/// Largest absolute difference of two slices of logits; infinite if any difference is NaN.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let difference = |(x, y): (&f32, &f32)| (x - y).abs();
    a.iter().zip(b).map(difference).fold(0.0, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) })
}
