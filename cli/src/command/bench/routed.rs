//! Decoding speed of a routed model, compared with the same weights at the full recursion count.

use super::measure::{self, Decoded};
use crate::model::TextModel;
use anyhow::ensure;
use retie_report::number::rate;
use serde::Serialize;
use std::fmt;

/// Sizes of a decoding measurement: sequences, and tokens of each.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub prompt: usize,
    pub new_tokens: usize,
}

/// Measured decoding of a batch, token by token. The tokens are those of the text, not sampled.
#[derive(Debug, Serialize)]
pub struct Routed {
    batch: usize,
    prompt: usize,
    new_tokens: usize,
    /// Mean recursion count of the decoded tokens.
    mean_recursions: f64,
    tokens_per_second: f64,
    full_recursion_tokens_per_second: f64,
    /// `tokens_per_second / full_recursion_tokens_per_second`.
    speedup: f64,
    /// Speedup if time were proportional to operations: those of all layers, the routers and the
    /// head, for the tokens that each recursion selected.
    allowed_speedup: f64,
    /// Saved fraction of the time, divided by the saved fraction of the operations.
    realised: f64,
    cache_bytes: usize,
    full_recursion_cache_bytes: usize,
}

/// The first `batch` sequences of a text, of `prompt + new_tokens` tokens each.
///
/// # Errors
/// The text is too short.
fn rows(tokens: &[u32], Sizes { batch, prompt, new_tokens }: Sizes) -> anyhow::Result<Vec<&[u32]>> {
    let length = prompt + new_tokens;
    ensure!(
        tokens.len() >= batch * length,
        "the text has {} tokens, expected {batch} × {length} for a batch of {batch}\nhint: name a longer text, or lower `--decode-batch`, `--seq` or `--new-tokens`",
        tokens.len()
    );
    Ok(tokens.chunks_exact(length).take(batch).collect())
}

/// Checks that a text is long enough for `sizes`, before anything is measured.
pub fn check(tokens: &[u32], sizes: Sizes) -> anyhow::Result<()> {
    rows(tokens, sizes).map(|_| ())
}

/// Measures the decoding of the first sequences of a text.
pub fn measure(model: &TextModel, tokens: &[u32], sizes: Sizes, rounds: usize) -> anyhow::Result<Routed> {
    let Sizes { batch, prompt, new_tokens } = sizes;
    let rows = rows(tokens, sizes)?;
    let [routed, full] = measure::decode(&model.model, &rows, prompt, rounds)?;
    let Decoded { seconds, cache_bytes, shares } = routed;
    let config = model.model.config();
    let operations = |shares: Option<&[f64]>| {
        let until = |tokens| config.cost(tokens, shares).operations();
        until(prompt + new_tokens) - until(prompt)
    };
    let left = operations(Some(&shares)) / operations(None);
    let tokens = (batch * new_tokens) as f64;
    Ok(Routed {
        batch,
        prompt,
        new_tokens,
        mean_recursions: shares.iter().sum(),
        tokens_per_second: tokens / seconds,
        full_recursion_tokens_per_second: tokens / full.seconds,
        speedup: full.seconds / seconds,
        allowed_speedup: 1.0 / left,
        realised: (1.0 - seconds / full.seconds) / (1.0 - left),
        cache_bytes,
        full_recursion_cache_bytes: full.cache_bytes,
    })
}

impl fmt::Display for Routed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, prompt, new_tokens, mean_recursions, speedup, allowed_speedup, realised, .. } = self;
        writeln!(
            f,
            "routed    {batch} × {new_tokens} tokens behind {prompt}, decoded at {} tok/s, at full depth {} tok/s",
            rate(self.tokens_per_second),
            rate(self.full_recursion_tokens_per_second)
        )?;
        write!(
            f,
            "          recursions {mean_recursions:.2} in the mean: {speedup:.2} times as fast, operations allow {allowed_speedup:.2}; {:.0} % of the saving; cache {:.1} MB of {:.1}",
            100.0 * realised,
            self.cache_bytes as f64 / 1e6,
            self.full_recursion_cache_bytes as f64 / 1e6
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_consecutive_parts_of_the_text() {
        let tokens: Vec<u32> = (0..20).collect();
        let sizes = |batch| Sizes { batch, prompt: 4, new_tokens: 3 };
        assert_eq!(rows(&tokens, sizes(2)).unwrap(), [&tokens[..7], &tokens[7..14]]);
        let error = check(&tokens, sizes(3)).unwrap_err().to_string();
        assert!(error.starts_with("the text has 20 tokens, expected 3 × 7 for a batch of 3\nhint: "), "{error}");
    }
}
