//! Routers without weights: a token's scores are drawn, as a baseline for those that learn (`rand_router` of the paper's code,
//! <https://github.com/raymin0223/mixture_of_recursions>). And tokens that go through every recursion of a training step.
//!
//! The draw depends on the token and its position alone. So it is causal, decoding draws what the whole forward pass draws, a run repeats
//! itself, and the tokens of a recursion are among those of the one before.

use super::forward::FullDepth;
use burn::tensor::{Int, Tensor};
use std::sync::Arc;

/// `outputs` logits `u = ln(l / (1 − l))` of each of the tokens at `positions`, `l` even between 0 and 1: a sigmoid gives `l` back.
pub(crate) fn draw(ids: &Tensor<1, Int>, positions: &[usize], outputs: usize) -> Arc<[f32]> {
    let logit = |mixed: u64| {
        let lot = even(mixed);
        (lot / (1.0 - lot)).ln() as f32
    };
    let seeds = seeds(ids, positions);
    seeds.flat_map(|seed| (0..outputs).map(move |output| logit(mix_times(seed, output)))).collect()
}

/// Whether each of the tokens at `positions` is among those of `full`.
pub(crate) fn full_depth(ids: &Tensor<1, Int>, positions: &[usize], full: FullDepth) -> Arc<[bool]> {
    let step = mix(full.step);
    seeds(ids, positions).map(|seed| even(mix(seed ^ step)) < full.part).collect()
}

/// What the lots of each token are drawn from.
fn seeds(ids: &Tensor<1, Int>, positions: &[usize]) -> impl Iterator<Item = u64> {
    let ids: Vec<i64> = ids.clone().into_data().iter::<i64>().collect();
    let seed = |(row, id): (usize, i64)| (id as u64) << 32 | positions[row % positions.len()] as u64;
    ids.into_iter().enumerate().map(seed)
}

/// 24 random bits and a half: never 0 or 1.
fn even(mixed: u64) -> f64 {
    ((mixed >> 40) as f64 + 0.5) / (1u64 << 24) as f64
}

/// The first number from `seed`, and for `further` outputs the numbers that follow from it.
fn mix_times(seed: u64, further: usize) -> u64 {
    (0..further).fold(mix(seed), |mixed, _| mix(mixed))
}

/// SplitMix64 (Steele et al., <https://doi.org/10.1145/2660193.2660195>).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// The first numbers of the generator with seed 0, from its reference implementation.
    #[test]
    fn mixing_is_splitmix() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn lots_are_even_and_depend_on_token_and_position() {
        let device = Device::flex();
        let ids: Vec<i32> = (0..4000).map(|i| i % 50).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &device);
        let positions: Vec<usize> = (0..2000).collect();
        let lots = draw(&ids, &positions, 1);
        assert_eq!(lots[..2000], lots[2000..], "two rows of the same tokens at the same positions");
        assert!(lots[0] != lots[50] && lots[0] != lots[1]);
        let above = lots[..2000].iter().filter(|u| **u > 0.0).count() as f64 / 2000.0;
        // Three standard deviations of 2000 draws at ½.
        assert!((above - 0.5).abs() < 0.034, "{above}");
        // The first of several outputs is the one; the largest of three is each in a third of the draws.
        let three = draw(&ids, &positions, 3);
        let mut largest = [0usize; 3];
        for (lot, outputs) in lots[..2000].iter().zip(three.chunks(3)) {
            assert_eq!(*lot, outputs[0]);
            largest[(0..3).max_by(|a, b| outputs[*a].total_cmp(&outputs[*b])).unwrap()] += 1;
        }
        // Three standard deviations of 2000 draws at ⅓ are 63.
        assert!(largest.iter().all(|count| count.abs_diff(667) < 64), "{largest:?}");
    }

    #[test]
    fn a_part_of_the_tokens_goes_through_every_recursion_another_one_in_each_step() {
        let device = Device::flex();
        let ids: Vec<i32> = (0..2000).map(|i| i % 50).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &device);
        let positions: Vec<usize> = (0..2000).collect();
        let drawn = |part, step| full_depth(&ids, &positions, FullDepth { part, step });
        let count = |drawn: &[bool]| drawn.iter().filter(|full| **full).count();
        assert_eq!([count(&drawn(0.0, 3)), count(&drawn(1.0, 3))], [0, 2000]);
        let [first, second] = [drawn(0.3, 1), drawn(0.3, 2)];
        // Three standard deviations at 0.3 are 61, at the 0.09 of both 38.
        let both = first.iter().zip(second.iter()).filter(|(a, b)| **a && **b).count();
        assert!(count(&first).abs_diff(600) < 62 && count(&second).abs_diff(600) < 62 && both.abs_diff(180) < 39);
    }
}
