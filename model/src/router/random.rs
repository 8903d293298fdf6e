//! Random routers: logits drawn for each token, a baseline for trained routers (`rand_router` of
//! the paper's code, <https://github.com/raymin0223/mixture_of_recursions>). Also the warm-up of
//! token choice, which draws tokens that go through every recursion of a training step.
//!
//! A draw is a function of token id and position. So random routing is causal, decoding draws the
//! same logits as a full forward pass, and runs are reproducible.

use super::{
    selector::{FullRecursionWarmup, Origin, SelectionRule},
    trace::Logits,
};
use crate::{kernels::RowSet, token_ids::TokenIds};
use burn::tensor::{Device, Tensor, TensorData};

/// Logits of a random router.
#[derive(Debug)]
pub(super) struct RandomLogits {
    values: Vec<f32>,
    outputs: usize,
    /// `values` covers the active rows of one recursion only, instead of all rows.
    of_active_rows: bool,
}

impl RandomLogits {
    /// Draws `outputs` logits for each row of a new pass, or takes those of a replayed decision.
    pub fn new(origin: &Origin<'_>, outputs: usize) -> Self {
        match origin {
            Origin::Tokens { ids, rows, .. } => {
                let values = draw(ids, &rows.layout.positions().1, outputs);
                Self { values, outputs, of_active_rows: false }
            }
            Origin::Replay { decision, .. } => Self { values: decision.values(), outputs, of_active_rows: true },
        }
    }

    /// Logits of the `active` rows, `[n, outputs]`.
    pub fn logits(&self, active: &RowSet, device: &Device) -> Logits {
        let row = |row: &usize| self.values[*row * self.outputs..][..self.outputs].iter().copied();
        let values = match self.of_active_rows {
            true => self.values.clone(),
            false => active.host().iter().flat_map(row).collect::<Vec<_>>(),
        };
        let tensor = Tensor::from_data(TensorData::new(values.clone(), [active.len(), self.outputs]), device);
        Logits::known(tensor, values)
    }
}

/// For each row of a new forward pass, true if the warm-up sends it through every recursion;
/// empty without a warm-up.
pub(super) fn warmup_rows(origin: &Origin<'_>) -> Vec<bool> {
    match origin {
        Origin::Tokens { ids, rows, rule: SelectionRule::Warmup(warmup), .. } => {
            full_recursion_rows(ids, &rows.layout.positions().1, *warmup)
        }
        Origin::Tokens { .. } | Origin::Replay { .. } => Vec::new(),
    }
}

/// Draws `outputs` logits `u = ln(l / (1 − l))` for each token, with `l` uniform in (0, 1): the
/// sigmoid of a logit is `l`.
fn draw(ids: &TokenIds, positions: &[usize], outputs: usize) -> Vec<f32> {
    let logit = |mixed: u64| {
        let l = even(mixed);
        (l / (1.0 - l)).ln() as f32
    };
    let seeds = seeds(ids, positions);
    seeds.flat_map(|seed| (0..outputs).map(move |output| logit(mix_times(seed, output)))).collect()
}

/// For each token at `positions`, true if `warmup` draws it.
fn full_recursion_rows(ids: &TokenIds, positions: &[usize], warmup: FullRecursionWarmup) -> Vec<bool> {
    let step = mix(warmup.step);
    seeds(ids, positions).map(|seed| even(mix(seed ^ step)) < warmup.part).collect()
}

/// Seed of each token: its id and its position.
fn seeds(ids: &TokenIds, positions: &[usize]) -> impl Iterator<Item = u64> {
    let seed = |(row, id): (usize, &u32)| u64::from(*id) << 32 | positions[row % positions.len()] as u64;
    ids.host().iter().enumerate().map(seed)
}

/// Uniform number in (0, 1): 24 random bits and a half, so never 0 or 1.
fn even(mixed: u64) -> f64 {
    ((mixed >> 40) as f64 + 0.5) / (1u64 << 24) as f64
}

/// Output number `further` of the chain of [`mix`] that starts from `seed`.
fn mix_times(seed: u64, further: usize) -> u64 {
    (0..further).fold(mix(seed), |mixed, _| mix(mixed))
}

/// SplitMix64 (Steele et al., <https://doi.org/10.1145/2660193.2660195>).
#[must_use]
pub fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// First numbers of the generator with seed 0, from its reference implementation.
    #[test]
    fn mixing_is_splitmix() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn random_logits_are_even_and_depend_on_token_and_position() {
        let device = Device::flex();
        let ids = TokenIds::upload((0..4000).map(|i| i % 50), &device);
        let positions: Vec<usize> = (0..2000).collect();
        let logits = draw(&ids, &positions, 1);
        assert_eq!(logits[..2000], logits[2000..], "two rows of the same tokens at the same positions");
        assert!(logits[0] != logits[50] && logits[0] != logits[1]);
        let above = logits[..2000].iter().filter(|u| **u > 0.0).count() as f64 / 2000.0;
        // Three standard deviations of 2000 draws at ½.
        assert!((above - 0.5).abs() < 0.034, "{above}");
        // The first of several outputs equals the single one; each of three outputs is the largest
        // in a third of the draws.
        let three = draw(&ids, &positions, 3);
        let mut largest = [0usize; 3];
        for (logit, outputs) in logits[..2000].iter().zip(three.chunks(3)) {
            assert_eq!(*logit, outputs[0]);
            largest[(0..3).max_by(|a, b| outputs[*a].total_cmp(&outputs[*b])).unwrap()] += 1;
        }
        // Three standard deviations of 2000 draws at ⅓ are 63.
        assert!(largest.iter().all(|count| count.abs_diff(667) < 64), "{largest:?}");
    }

    #[test]
    fn a_part_of_the_tokens_goes_through_every_recursion_another_one_in_each_step() {
        let device = Device::flex();
        let ids = TokenIds::upload((0..2000).map(|i| i % 50), &device);
        let positions: Vec<usize> = (0..2000).collect();
        let drawn = |part, step| full_recursion_rows(&ids, &positions, FullRecursionWarmup { part, step });
        let count = |drawn: &[bool]| drawn.iter().filter(|full| **full).count();
        assert_eq!([count(&drawn(0.0, 3)), count(&drawn(1.0, 3))], [0, 2000]);
        let [first, second] = [drawn(0.3, 1), drawn(0.3, 2)];
        // Three standard deviations at 0.3 are 61, and at the 0.09 of both 38.
        let both = first.iter().zip(second.iter()).filter(|(a, b)| **a && **b).count();
        assert!(count(&first).abs_diff(600) < 62 && count(&second).abs_diff(600) < 62 && both.abs_diff(180) < 39);
    }
}
