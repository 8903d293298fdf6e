//! Layers spread evenly over the source, ends included (RRT §2.2), rounded as the reference does:
//! see [`spread`].

use super::{Block, InitMethod, one_each};
use retie_config::{Init, spread};

pub(super) const STEPWISE: InitMethod =
    InitMethod { init: Init::Stepwise, sources: |block, _seed| one_each(evenly(block)) };

/// Positions are spread from the first candidate on, so that candidates without a gap are spread as
/// numbers.
fn evenly(block: Block<'_>) -> Vec<usize> {
    let Some(first) = block.candidates.first() else { return Vec::new() };
    let positions = spread(*first, first + block.candidates.len() - 1, block.groups.len());
    positions.into_iter().map(|position| block.candidates[position - first]).collect()
}

#[cfg(test)]
mod tests {
    use retie_config::spread;

    /// Layers that the reference code kept when it was run.
    #[test]
    fn layers_are_those_of_the_reference() {
        let cycle = |n: usize, k| spread(0, n - 1, k);
        assert_eq!(cycle(6, 3), [0, 2, 5]);
        assert_eq!(cycle(12, 4), [0, 4, 7, 11]);
        assert_eq!(cycle(12, 6), [0, 2, 4, 7, 9, 11]);
        assert_eq!(cycle(16, 8), [0, 2, 4, 6, 9, 11, 13, 15]);
        assert_eq!(cycle(18, 9), [0, 2, 4, 6, 8, 11, 13, 15, 17]);
        assert_eq!(cycle(18, 6), [0, 3, 7, 10, 14, 17]);
        assert_eq!(cycle(22, 11), [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21]);
        assert_eq!(cycle(32, 16), [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31]);
        let middle = |n: usize, k| spread(1, n - 2, k);
        assert_eq!(middle(26, 8), [1, 4, 8, 11, 14, 17, 21, 24]);
        assert_eq!(middle(30, 9), [1, 4, 8, 11, 14, 18, 21, 25, 28]);
        assert_eq!(middle(32, 15), [1, 3, 5, 7, 9, 11, 13, 16, 18, 20, 22, 24, 26, 28, 30]);
        assert_eq!(middle(32, 10), [1, 4, 7, 11, 14, 17, 20, 24, 27, 30]);
        assert_eq!(middle(34, 8), [1, 5, 10, 14, 19, 23, 28, 32]);
    }

    #[test]
    fn rounding_is_that_of_f64_and_not_of_fractions() {
        assert_eq!(spread(0, 25, 23)[11], 13);
        assert_eq!(spread(0, 29, 15)[7], 15);
        assert_eq!(spread(3, 9, 1), [3]);
    }

    /// `tests/golden/linspace.py`: numpy's answer for every stack of up to 36 layers.
    #[test]
    fn every_small_stack_agrees_with_numpy() {
        let text = include_str!("../../tests/golden/linspace.txt");
        let mut count = 0;
        for line in text.lines() {
            let (sizes, layers) = line.split_once(':').unwrap();
            let (n, k) = sizes.split_once(' ').unwrap();
            let expected: Vec<usize> = layers.split_whitespace().map(|l| l.parse().unwrap()).collect();
            assert_eq!(spread(0, n.parse::<usize>().unwrap() - 1, k.parse().unwrap()), expected, "{sizes}");
            count += 1;
        }
        assert_eq!(count, 36 * 37 / 2);
    }
}
