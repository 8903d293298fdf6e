//! Distinct layers drawn with a seed, ascending: the control for the other methods.

use super::{InitMethod, one_each};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use retie_config::Init;

pub(super) const RANDOM: InitMethod = InitMethod {
    init: Init::Random,
    sources: |block, seed| one_each(draw(block.candidates, block.groups.len(), seed)),
};

/// The layers with the smallest of independent keys: every subset is equally likely, and the draw
/// depends on nothing but ChaCha8.
fn draw(candidates: &[usize], count: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut keyed: Vec<(u64, usize)> = candidates.iter().map(|layer| (rng.next_u64(), *layer)).collect();
    keyed.sort_unstable();
    let mut layers: Vec<usize> = keyed.into_iter().take(count).map(|(_, layer)| layer).collect();
    layers.sort_unstable();
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(count: usize) -> Vec<usize> {
        (0..count).collect()
    }

    #[test]
    fn a_seed_decides_the_draw_and_every_layer_is_drawn_equally_often() {
        assert_eq!(draw(&all(30), 15, 7), draw(&all(30), 15, 7));
        assert_ne!(draw(&all(30), 15, 7), draw(&all(30), 15, 8));
        let mut hits = [0; 6];
        const DRAWS: u64 = 6000;
        for seed in 0..DRAWS {
            draw(&all(6), 2, seed).into_iter().for_each(|layer| hits[layer] += 1);
        }
        // Binomial with p = 1/3: standard deviation 36.5, allow five.
        assert!(hits.iter().all(|h| (*h - 2000i64).abs() < 183), "{hits:?}");
    }

    /// A change of the draw would change every recorded result with `init: random`.
    #[test]
    fn the_draw_of_a_seed_never_changes() {
        assert_eq!(draw(&all(30), 15, 0), [1, 2, 3, 5, 9, 12, 13, 15, 16, 17, 18, 22, 27, 28, 29]);
    }
}
