//! Routers without weights: a token's score is drawn, as a baseline for those that learn (`rand_router` of the paper's code,
//! <https://github.com/raymin0223/mixture_of_recursions>).
//!
//! The draw depends on the token and its position alone. So it is causal, decoding draws what the whole forward pass draws, a run repeats
//! itself, and the tokens of a recursion are among those of the one before.

use burn::tensor::{Int, Tensor};
use std::sync::Arc;

/// Logits `u = ln(l / (1 − l))` of the tokens at `positions`, `l` even between 0 and 1: a sigmoid gives `l` back.
pub(crate) fn draw(ids: &Tensor<1, Int>, positions: &[usize]) -> Arc<[f32]> {
    let ids: Vec<i64> = ids.clone().into_data().iter::<i64>().collect();
    let lot = |(row, id): (usize, &i64)| {
        let mixed = mix((*id as u64) << 32 | positions[row % positions.len()] as u64);
        // 24 random bits and a half: never 0 or 1.
        let lot = ((mixed >> 40) as f64 + 0.5) / (1u64 << 24) as f64;
        (lot / (1.0 - lot)).ln() as f32
    };
    ids.iter().enumerate().map(lot).collect()
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
        let lots = draw(&ids, &positions);
        assert_eq!(lots[..2000], lots[2000..], "two rows of the same tokens at the same positions");
        assert!(lots[0] != lots[50] && lots[0] != lots[1]);
        let above = lots[..2000].iter().filter(|u| **u > 0.0).count() as f64 / 2000.0;
        // Three standard deviations of 2000 draws at ½.
        assert!((above - 0.5).abs() < 0.034, "{above}");
    }
}
