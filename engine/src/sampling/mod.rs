//! Sampling: the next token of a sequence from its logits.
//!
//! Logits pass through these processors in this order; then the most probable token is taken, or
//! one is drawn from the softmax.
//!
//! | file | processor | neutral value |
//! |---|---|---|
//! | `repetition_penalty` | scales logits of tokens in the prompt or the new tokens | 1 |
//! | `frequency_penalty` | lowers logits by the number of times that a token was generated | 0 |
//! | `presence_penalty` | lowers logits of tokens that were generated | 0 |
//! | `temperature` | divides logits; 0 takes the most probable token and skips the rest | 1 |
//! | `top_k` | keeps the `k` most probable tokens | 0 |
//! | `top_p` | keeps the fewest tokens whose probabilities reach `p` | 1 |
//! | `min_p` | keeps tokens with at least `p` times the largest probability | 0 |
//!
//! Definitions and order are those of `transformers` (`GenerationMixin._get_logits_processor`). It
//! has no presence and frequency penalties: these have OpenAI's definition and come after the
//! repetition penalty, as in vLLM (`apply_penalties`). A removed token has the logit −∞.

mod draw;
mod frequency_penalty;
mod history;
mod min_p;
mod presence_penalty;
mod repetition_penalty;
mod temperature;
mod top_k;
mod top_p;

use crate::EngineError;
pub use history::History;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use std::ops::RangeBounds;

/// Temperature below which the most probable token is taken, as in vLLM: divided by less, logits
/// could overflow.
const LEAST_TEMPERATURE: f32 = 1e-5;

/// Sampling parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 takes the most probable token, the first of equal ones.
    pub temperature: f32,
    /// Number of most probable tokens to draw from; 0 for all.
    pub top_k: usize,
    /// Cumulative probability of the tokens to draw from; 1 for all.
    pub top_p: f32,
    /// Minimum probability of the tokens to draw from, as a fraction of the largest.
    pub min_p: f32,
    /// Divisor of positive logits and factor on negative ones, for tokens of the prompt or the new
    /// tokens.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were generated.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time that it was generated.
    pub frequency_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy decoding: the most probable token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// # Errors
    /// When a value is out of its range.
    pub fn check(&self) -> Result<(), EngineError> {
        fn within(
            name: &'static str,
            value: f32,
            range: impl RangeBounds<f32>,
            expected: &str,
        ) -> Result<(), EngineError> {
            if value.is_finite() && range.contains(&value) {
                return Ok(());
            }
            Err(EngineError::OutOfRange { name, found: value.to_string(), expected: expected.to_owned() })
        }
        within("temperature", self.temperature, 0.0.., "a finite number, 0 or more")?;
        let above_0 = (std::ops::Bound::Excluded(0.0), std::ops::Bound::Included(1.0));
        within("top_p", self.top_p, above_0, "above 0, up to 1")?;
        within("min_p", self.min_p, 0.0..=1.0, "0 to 1")?;
        let above_0 = (std::ops::Bound::Excluded(0.0), std::ops::Bound::Unbounded);
        within("repetition_penalty", self.repetition_penalty, above_0, "a finite number above 0")?;
        within("presence_penalty", self.presence_penalty, -2.0..=2.0, "-2 to 2")?;
        within("frequency_penalty", self.frequency_penalty, -2.0..=2.0, "-2 to 2")
    }

    /// True if tokens are drawn at random.
    fn draws(&self) -> bool {
        self.temperature >= LEAST_TEMPERATURE
    }

    /// Applies the processors to the logits `[V]` of the token after `history`.
    pub fn process(&self, logits: &mut [f32], history: &History) {
        if self.repetition_penalty != 1.0 {
            repetition_penalty::apply(logits, history, self.repetition_penalty);
        }
        if self.frequency_penalty != 0.0 {
            frequency_penalty::apply(logits, history, self.frequency_penalty);
        }
        if self.presence_penalty != 0.0 {
            presence_penalty::apply(logits, history, self.presence_penalty);
        }
        if !self.draws() {
            return;
        }
        if self.temperature != 1.0 {
            temperature::apply(logits, self.temperature);
        }
        if self.top_k > 0 {
            top_k::apply(logits, self.top_k);
        }
        if self.top_p < 1.0 {
            top_p::apply(logits, self.top_p);
        }
        if self.min_p > 0.0 {
            min_p::apply(logits, self.min_p);
        }
    }
}

/// Checks that a token can be chosen from the logits `[V]` after `position` tokens.
///
/// # Errors
/// [`EngineError::LogitsNotFinite`].
pub(crate) fn check_logits(logits: &[f32], position: usize) -> Result<(), EngineError> {
    draw::unusable(logits).map_or(Ok(()), |token| {
        let value = logits.get(token).copied().unwrap_or(f32::NAN);
        Err(EngineError::LogitsNotFinite { position, token, value })
    })
}

/// Sampler of the tokens of one sequence, one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    history: History,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler for the tokens after `prompt`. Its draws depend on its seed alone.
    #[must_use]
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Self { sampling, history: History::new(prompt), rng }
    }

    /// The next token after `position` ones, given its logits `[V]`, which are modified.
    ///
    /// # Errors
    /// [`EngineError::LogitsNotFinite`]: there are no logits to choose from.
    pub fn next(&mut self, logits: &mut [f32], position: usize) -> Result<u32, EngineError> {
        check_logits(logits, position)?;
        self.sampling.process(logits, &self.history);
        let token = if self.sampling.draws() { draw::draw(logits, &mut self.rng) } else { draw::best(logits) };
        self.force(token);
        Ok(token)
    }

    /// Appends a given token to the history in place of a sampled one.
    pub fn force(&mut self, token: u32) {
        self.history.push(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, &[]);
        (0..count).map(|_| sampler.next(&mut logits.to_vec(), 0).unwrap()).collect()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_best() {
        assert_eq!(draws(Sampling::default(), &[0.0, 3.0, 3.0, 1.0], 1), [1]);
        let tiny = Sampling { temperature: 1e-45, ..Sampling::default() };
        assert_eq!(draws(tiny, &[0.0, 3.0, 1.0, 2.0], 1), [1]);
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error_and_no_token() {
        let infinity = f32::INFINITY;
        for sampling in [Sampling::default(), Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() }] {
            let next = |logits: &[f32]| Sampler::new(sampling.clone(), &[]).next(&mut logits.to_vec(), 7);
            assert_eq!(next(&[-infinity, 3.0]), Ok(1));
            for (logits, bad) in [
                (&[0.0, f32::NAN, 3.0][..], 1),
                (&[f32::NAN; 3], 0),
                (&[1.0, 2.0, infinity], 2),
                (&[-infinity; 2], 0),
                (&[], 0),
            ] {
                let error = next(logits).unwrap_err();
                assert!(
                    matches!(error, EngineError::LogitsNotFinite { position: 7, token, .. } if token == bad),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat_with_the_seed() {
        let sampling = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let logits = [0.0f32, 2.0f32.ln(), f32::NEG_INFINITY];
        let draw = |seed| draws(sampling(seed), &logits, 3000);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let ones = draw(7).iter().filter(|token| **token == 1).count() as f64 / 3000.0;
        // Three standard deviations of a binomial with p = 2/3 over 3000 draws are 0.026.
        assert!((ones - 2.0 / 3.0).abs() < 0.03, "{ones}");
        assert!(!draw(7).contains(&2));
    }

    #[test]
    fn removed_tokens_are_not_drawn() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        for sampling in [
            Sampling { temperature: 1.0, top_p: 0.6, ..Sampling::default() },
            Sampling { temperature: 1.0, top_k: 2, ..Sampling::default() },
            Sampling { temperature: 1.0, min_p: 0.5, ..Sampling::default() },
        ] {
            let draws = draws(sampling, &logits, 200);
            assert!(draws.contains(&0) && draws.contains(&1) && !draws.contains(&2));
        }
    }

    #[test]
    fn penalties_count_without_a_draw() {
        let sampling = Sampling { presence_penalty: 0.5, ..Sampling::default() };
        assert_eq!(draws(sampling, &[1.0, 0.8, 0.0], 4), [0, 1, 0, 0]);
        let sampling = Sampling { frequency_penalty: 0.3, ..Sampling::default() };
        assert_eq!(draws(sampling, &[1.0, 0.8, 0.0], 4), [0, 1, 0, 1]);
    }

    #[test]
    fn values_out_of_range_are_named() {
        type Change = fn(&mut Sampling);
        let cases: [(Change, &str); 8] = [
            (|s| s.temperature = -1.0, "`temperature` is `-1`, expected a finite number, 0 or more"),
            (|s| s.temperature = f32::INFINITY, "`temperature` is `inf`, expected a finite number, 0 or more"),
            (|s| s.top_p = 0.0, "`top_p` is `0`, expected above 0, up to 1"),
            (|s| s.top_p = f32::NAN, "`top_p` is `NaN`, expected above 0, up to 1"),
            (|s| s.min_p = 1.5, "`min_p` is `1.5`, expected 0 to 1"),
            (|s| s.repetition_penalty = 0.0, "`repetition_penalty` is `0`, expected a finite number above 0"),
            (|s| s.presence_penalty = 2.5, "`presence_penalty` is `2.5`, expected -2 to 2"),
            (|s| s.frequency_penalty = -3.0, "`frequency_penalty` is `-3`, expected -2 to 2"),
        ];
        for (change, expected) in cases {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            let error = sampling.check().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(Sampling::default().check(), Ok(()));
    }
}
