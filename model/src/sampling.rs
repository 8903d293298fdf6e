//! Choosing the next token from logits: greedy, or temperature and nucleus sampling (Holtzman et al.,
//! <https://arxiv.org/abs/1904.09751>) with a seed.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the most probable token, the first of equals.
    pub temperature: f32,
    /// The smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

/// Draws tokens one after the other.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its sequence of draws.
    #[must_use]
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) }
    }

    /// The next token. An empty slice gives 0.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        let best = (0..logits.len()).reduce(|a, b| if logits[b] > logits[a] { b } else { a }).unwrap_or(0);
        if self.sampling.temperature <= 0.0 {
            return best as u32;
        }
        let shift = logits.get(best).copied().unwrap_or(0.0);
        let weight = |i: usize| f64::from((logits[i] - shift) / self.sampling.temperature).exp();
        let mut candidates: Vec<(usize, f64)> = (0..logits.len()).map(|i| (i, weight(i))).collect();
        let total: f64 = candidates.iter().map(|(_, w)| w).sum();
        if self.sampling.top_p < 1.0 {
            candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let limit = f64::from(self.sampling.top_p) * total;
            let mut reached = 0.0;
            let kept = candidates.iter().take_while(|(_, w)| {
                let before = reached;
                reached += w;
                before < limit
            });
            let kept = kept.count().max(1);
            candidates.truncate(kept);
        }
        let total: f64 = candidates.iter().map(|(_, w)| w).sum();
        // 53 random bits make a uniform number in [0, 1).
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * total;
        for (token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return *token as u32;
            }
        }
        candidates.last().map_or(0, |(token, _)| *token as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_zero_takes_the_first_of_the_best() {
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0, seed: 0 });
        assert_eq!(sampler.next(&[0.0, 3.0, 3.0, 1.0]), 1);
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat_with_the_seed() {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 7 };
        let logits = [0.0f32, 2.0f32.ln(), f32::NEG_INFINITY];
        let draw = || {
            let mut sampler = Sampler::new(sampling);
            (0..3000).map(|_| sampler.next(&logits)).collect::<Vec<_>>()
        };
        let draws = draw();
        assert_eq!(draws, draw());
        let ones = draws.iter().filter(|t| **t == 1).count() as f64 / 3000.0;
        // Three standard deviations of a binomial with p = 2/3 over 3000 draws are 0.026.
        assert!((ones - 2.0 / 3.0).abs() < 0.03, "{ones}");
        assert!(!draws.contains(&2));
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p: 0.6, seed: 1 });
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let draws: Vec<u32> = (0..200).map(|_| sampler.next(&logits)).collect();
        assert!(draws.contains(&0) && draws.contains(&1) && !draws.contains(&2));
    }
}
