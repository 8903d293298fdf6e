//! Perplexity of a text, in windows.
//!
//! The text is encoded as one sequence and cut by [`retie_data::windows()`]; every window is scored
//! from its second token. If the tokenizer puts a BOS before a text, every window starts with one,
//! which counts as one of its tokens. If windows overlap (`stride < window`), a token counts once
//! for each window that scores it.
//!
//! - `token_nll` = −(sum of log-probabilities) / (number of scored tokens), in nats;
//! - `word_perplexity` = exp(−sum / words), `byte_perplexity` = exp(−sum / bytes), as the harness
//!   divides: words are separated by white space (`len(re.split(r"\s+", text))`), bytes are those
//!   of UTF-8. Both are counted in the text of the scored tokens (their ids, in order, decoded as
//!   one text). So they belong to the same tokens as the sum, whatever `limit` and the unscored
//!   first tokens leave out.

use crate::{
    EvalError, Progress, PromptEncoder, RunError, ScoreRequest, Scorer, TokenScores, python, score_all,
    scorer::check_log_probs,
};
use serde::Serialize;

/// Windows and batches of a perplexity measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from one window's start to the next's.
    pub stride: usize,
    /// Number of windows to score, from the start of the text; all if `None`.
    pub limit: Option<usize>,
    /// Windows of one batch.
    pub batch_size: usize,
}

/// Result of a perplexity measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// Name of the text.
    pub text: String,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from one window's start to the next's.
    pub stride: usize,
    /// Windows scored.
    pub windows: usize,
    /// Tokens scored.
    pub tokens: usize,
    /// Words of the scored text.
    pub words: usize,
    /// UTF-8 bytes of the scored text.
    pub bytes: usize,
    /// Mean negative log-likelihood of a token, in nats.
    pub token_nll: f64,
    /// exp(`token_nll`).
    pub token_perplexity: f64,
    /// Perplexity of a word.
    pub word_perplexity: f64,
    /// Perplexity of a byte.
    pub byte_perplexity: f64,
    /// Bits per byte, the log2 of the byte perplexity.
    pub bits_per_byte: f64,
    /// Agreement with the teacher, if the model was scored beside one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Agreement>,
}

/// Agreement of a model with its teacher: means over the scored tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// `KL(teacher ‖ model)`, in nats.
    pub forward_kl: f64,
    /// Top-1 agreement: fraction of the tokens where both have the same most probable next token.
    pub same_top: f64,
}

/// Measures the perplexity of `text`; `name` is its name in the result.
///
/// # Errors
/// When the text is too short, the windows do not fit the model or the text, or the model fails.
pub fn measure_perplexity<S: Scorer>(
    name: &str,
    text: &str,
    options: PerplexityOptions,
    encoder: &PromptEncoder<'_>,
    scorer: &mut S,
    progress: &mut dyn FnMut(Progress),
) -> Result<Perplexity, RunError<S::Error>> {
    let PerplexityOptions { window, stride, limit, batch_size } = options;
    if limit == Some(0) {
        return Err(EvalError::Zero { option: "limit" }.into());
    }
    if window > encoder.max_length {
        return Err(EvalError::WindowTooLong { window, max_length: encoder.max_length }.into());
    }
    let tokens = encoder.codec.encode(text).map_err(EvalError::from)?;
    // The first token of a window is not scored: the BOS that the tokenizer puts there, or one of
    // the text.
    let bos: Vec<u32> = encoder.bos_token.into_iter().collect();
    let text_tokens = window.saturating_sub(bos.len());
    let windows = retie_data::windows(&tokens, text_tokens, if stride == window { text_tokens } else { stride })
        .map_err(EvalError::from)?;
    let requests: Vec<ScoreRequest> = windows
        .take(limit.unwrap_or(usize::MAX))
        .map(|w| ScoreRequest { tokens: [&bos, w.tokens].concat(), scored_from: 1 })
        .collect();
    if requests.is_empty() {
        return Err(EvalError::TextTooShort { name: name.to_owned(), found: tokens.len() }.into());
    }
    let scores = score_all(scorer, &requests, batch_size, progress)?;
    for (index, scores) in scores.iter().enumerate() {
        check_log_probs(scores, || format!("window {} of `{name}`", index + 1))?;
    }
    let log_likelihood: f64 = scores.iter().map(TokenScores::sum).sum();
    let scored: Vec<u32> = requests.iter().flat_map(|r| &r.tokens[r.scored_from..]).copied().collect();
    let scored_text = encoder.codec.decode(&scored).map_err(EvalError::from)?;
    let (words, bytes) = (python::count_words(&scored_text), scored_text.len());
    let mean = |count: usize| -log_likelihood / count as f64;
    Ok(Perplexity {
        text: name.to_owned(),
        window,
        stride,
        windows: requests.len(),
        tokens: scored.len(),
        words,
        bytes,
        token_nll: mean(scored.len()),
        token_perplexity: mean(scored.len()).exp(),
        word_perplexity: mean(words).exp(),
        byte_perplexity: mean(bytes).exp(),
        bits_per_byte: mean(bytes) / std::f64::consts::LN_2,
        teacher: agreement(&scores, scored.len()),
    })
}

fn agreement(scores: &[TokenScores], tokens: usize) -> Option<Agreement> {
    let each = scores.iter().map(|scores| scores.agreement.as_ref()).collect::<Option<Vec<_>>>()?;
    let kl: f64 = each.iter().flat_map(|each| &each.forward_kl).map(|kl| f64::from(*kl)).sum();
    let same = each.iter().flat_map(|each| &each.same_top).filter(|same| **same).count();
    Some(Agreement { forward_kl: kl / tokens as f64, same_top: same as f64 / tokens as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        TextCodec,
        testing::{Formula, PREFIX, Pieces},
    };

    const ENCODER: PromptEncoder<'static> =
        PromptEncoder { codec: &Pieces, prefix_token: PREFIX, bos_token: None, max_length: 8 };
    const TEXT: &str = "it was the best of times, it was the worst of times, it was the age of wisdom";

    fn measure(text: &str, window: usize, stride: usize, limit: Option<usize>) -> Result<Perplexity, String> {
        measure_with(&ENCODER, text, window, stride, limit)
    }

    fn measure_with(
        encoder: &PromptEncoder<'_>,
        text: &str,
        window: usize,
        stride: usize,
        limit: Option<usize>,
    ) -> Result<Perplexity, String> {
        let options = PerplexityOptions { window, stride, limit, batch_size: 3 };
        measure_perplexity("t.txt", text, options, encoder, &mut Formula::default(), &mut |_| ())
            .map_err(|e| e.to_string())
    }

    /// Log-likelihood of the tokens at `indices` of a window, by the formula.
    fn by_hand(window: &[u32], indices: std::ops::Range<usize>) -> f64 {
        indices
            .map(|i| {
                let x = (u64::from(window[i]) * 31 + u64::from(window[i - 1]) * 17 + i as u64 * 7) % 1009;
                f64::from(-(x as f32 + 1.0) / 100.0)
            })
            .sum()
    }

    #[test]
    fn windows_are_scored_from_their_second_token_and_limit_counts_windows() {
        let ids = Pieces.encode(TEXT).unwrap();
        assert_eq!(ids.len(), 18);
        let two = measure(TEXT, 4, 4, Some(2)).unwrap();
        let nll = -(by_hand(&ids[..4], 1..4) + by_hand(&ids[4..8], 1..4)) / 6.0;
        assert_eq!((two.windows, two.tokens), (2, 6));
        assert!((two.token_nll - nll).abs() < 1e-12, "sums of the same f32 values in f64");
        assert!((two.token_perplexity.ln() - nll).abs() < 1e-12);
        let all = measure(TEXT, 4, 4, None).unwrap();
        assert_eq!((all.windows, all.tokens), (5, 3 * 4 + 1));
        assert_eq!(measure(TEXT, 4, 4, Some(99)).unwrap(), all);
    }

    #[test]
    fn every_window_starts_with_the_bos_of_a_tokenizer_that_has_one() {
        let ids = Pieces.encode(TEXT).unwrap();
        let encoder = PromptEncoder { bos_token: Some(PREFIX), ..ENCODER };
        let result = measure_with(&encoder, TEXT, 4, 4, Some(2)).unwrap();
        let window = |at: usize| [&[PREFIX], &ids[at..at + 3]].concat();
        let nll = -(by_hand(&window(0), 1..4) + by_hand(&window(3), 1..4)) / 6.0;
        assert_eq!((result.windows, result.tokens), (2, 6));
        assert!((result.token_nll - nll).abs() < 1e-12);
    }

    #[test]
    fn overlapping_windows_are_each_scored_from_their_second_token() {
        let ids = Pieces.encode(TEXT).unwrap();
        let result = measure(TEXT, 8, 5, None).unwrap();
        let sum = by_hand(&ids[..8], 1..8) + by_hand(&ids[5..13], 1..8) + by_hand(&ids[10..18], 1..8);
        assert_eq!((result.windows, result.tokens), (3, 21));
        assert!((result.token_nll + sum / 21.0).abs() < 1e-12);
    }

    #[test]
    fn words_and_bytes_are_those_of_the_scored_tokens() {
        let result = measure(TEXT, 4, 4, Some(2)).unwrap();
        // `Pieces` decodes each of the 6 tokens to ` b é`: 12 words and an empty one, 5 bytes a
        // token.
        assert_eq!((result.words, result.bytes), (13, 30));
        let sum = result.token_nll * 6.0;
        assert!((result.word_perplexity - (sum / 13.0).exp()).abs() < 1e-9);
        assert!((result.byte_perplexity - (sum / 30.0).exp()).abs() < 1e-9);
        assert!((result.bits_per_byte - sum / 30.0 / 2.0_f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn impossible_measurements_name_the_reason() {
        assert_eq!(
            measure("word", 4, 4, None),
            Err("`t.txt` has 1 tokens, expected at least 2: the first one is not scored".into())
        );
        assert_eq!(measure(TEXT, 4, 4, Some(0)), Err("`limit` is 0, expected at least 1".into()));
        let error = measure(TEXT, 9, 4, None).unwrap_err();
        assert_eq!(error, "a window of 9 tokens is longer than the model's context of 8\nhint: lower `--window`");
        assert!(measure(TEXT, 1, 1, None).is_err());
        assert!(measure(TEXT, 4, 5, None).is_err());
    }
}
