//! Log-probabilities of tokens: the log-softmax of the logits before any sampling processor, as
//! vLLM's `raw_logprobs`.

use std::cmp::Ordering;

/// Log-probability of one token, with those of the most probable tokens at its position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Its log-probability in nats.
    pub logprob: f32,
    /// The most probable tokens with their log-probabilities, descending; of equal ones the lower
    /// id first. The first one of greedy decoding is the token itself.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Log-probability of `token`, and of the `num_top` most probable tokens, from logits `[V]`.
    /// The sum of the softmax is taken in f64.
    #[must_use]
    pub fn from_logits(logits: &[f32], token: u32, num_top: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let normalizer = f64::from(largest) + sum.ln();
        let logprob = |id: u32| {
            let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            (f64::from(logit) - normalizer) as f32
        };
        let top = most_probable(logits, num_top).into_iter().map(|id| (id, logprob(id))).collect();
        Self { token, logprob: logprob(token), top }
    }
}

/// Ids of the `count` largest logits, descending.
fn most_probable(logits: &[f32], count: usize) -> Vec<u32> {
    let descending =
        |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
    let count = count.min(logits.len());
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, descending);
    }
    ids.truncate(count);
    ids.sort_unstable_by(descending);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_the_log_softmax_and_the_largest_come_first() {
        let logits = [1.0, 3.0, f32::NEG_INFINITY, 3.0, 2.0];
        let sum: f64 = [1.0f64, 3.0, 3.0, 2.0].iter().map(|logit| logit.exp()).sum();
        let expected = |logit: f64| (logit - sum.ln()) as f32;
        let found = TokenLogprobs::from_logits(&logits, 4, 3);
        // One rounding to f32 of numbers up to 3: 2.4e-7.
        let near = |found: f32, logit: f64| assert!((found - expected(logit)).abs() < 3e-7, "{found}");
        near(found.logprob, 2.0);
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 4]);
        found.top.iter().zip([3.0, 3.0, 2.0]).for_each(|((_, logprob), logit)| near(*logprob, logit));
        assert_eq!(found.logprob, found.top[2].1, "one number for one token");
        assert_eq!(TokenLogprobs::from_logits(&logits, 2, 0).logprob, f32::NEG_INFINITY);
        assert_eq!(TokenLogprobs::from_logits(&logits, 0, 9).top.len(), 5);
    }
}
