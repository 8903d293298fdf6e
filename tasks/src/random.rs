//! Random numbers of the generators: SplitMix64 (Steele, Lea and Flood 2014,
//! <https://doi.org/10.1145/2714064.2660195>), written out here so that an example stays the same
//! in every version of this program.

use std::ops::RangeInclusive;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The stream number `index` of `seed` and `purpose`. Streams of other purposes, seeds and
    /// indices are apart from it.
    #[must_use]
    pub fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let purpose = purpose.bytes().fold(GOLDEN_GAMMA, |hash, byte| mix(hash ^ u64::from(byte)));
        Self { state: mix(mix(mix(seed ^ purpose).wrapping_add(GOLDEN_GAMMA)) ^ index) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// A number below `bound`, which is at least 1. Its bias is below `bound / 2⁶⁴`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A number of `range`.
    pub fn within(&mut self, range: &RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        // The 53 bits that f64 holds.
        ((self.bits() >> 11) as f64) < p * 2f64.powi(53)
    }

    /// One of `items`, of which there is at least one.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Puts `items` in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        // First outputs of SplitMix64 with the state 1234567 (test vector of the reference
        // implementation, <https://prng.di.unimi.it/splitmix64.c>).
        let mut random = Random { state: 1_234_567 };
        let expected: [u64; 3] = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0; 3].map(|_| random.bits()), expected);
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_index() {
        let first = |seed, purpose, index| Random::new(seed, purpose, index).bits();
        let all = [first(0, "a", 0), first(1, "a", 0), first(0, "b", 0), first(0, "a", 1), first(0, "ab", 0)];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(first(3, "x", 9), first(3, "x", 9));
    }

    #[test]
    fn numbers_below_a_bound_are_even() {
        let mut random = Random::new(1, "even", 0);
        let mut counts = [0_i32; 5];
        (0..50_000).for_each(|_| counts[random.below(5)] += 1);
        // 10,000 each expected, standard deviation about 89: five of those.
        assert!(counts.iter().all(|count| (count - 10_000).abs() < 450), "{counts:?}");
        assert!(!random.chance(0.0) && random.chance(1.0));
    }
}
