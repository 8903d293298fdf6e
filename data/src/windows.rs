//! Windows of a long text for perplexity, as in
//! <https://huggingface.co/docs/transformers/perplexity#calculating-ppl-with-fixed-length-models>.
//!
//! Window `i` starts at token `i * stride` and has `window` tokens, or what is left. The windows end with the first that reaches
//! the end of the text. A window scores its tokens that no window before it scored, each given the tokens before it *in the window*;
//! so its first token is never scored. Hence:
//!
//! - `stride == window`: windows lie side by side, and each is scored from its second token;
//! - `stride < window`: windows overlap by `window - stride`, and every token but the text's first is scored exactly once.
//!
//! A last window of a single token, which could score nothing, is not given.

use crate::error::DataError;

/// Part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window<'tokens> {
    /// Where the window starts in the text.
    pub start: usize,
    /// What the model reads, at least 2 tokens.
    pub tokens: &'tokens [u32],
    /// `tokens[scored_from..]` are scored; at least 1.
    pub scored_from: usize,
}

impl Window<'_> {
    /// How many tokens are scored, at least 1.
    pub fn num_scored(&self) -> usize {
        self.tokens.len() - self.scored_from
    }
}

/// Iterator over windows; made by [`windows()`].
#[derive(Debug, Clone)]
pub struct Windows<'tokens> {
    tokens: &'tokens [u32],
    window: usize,
    stride: usize,
    /// Start of the next window.
    start: usize,
    /// End of the last one.
    scored: usize,
}

/// Cuts `tokens` into windows; a text of fewer than 2 tokens has none.
///
/// # Errors
/// `window` is below 2, `stride` is 0 or larger than `window`.
pub fn windows(tokens: &[u32], window: usize, stride: usize) -> Result<Windows<'_>, DataError> {
    if window < 2 {
        return Err(DataError::TooSmall { name: "window", found: window, least: 2 });
    }
    if stride == 0 {
        return Err(DataError::TooSmall { name: "stride", found: stride, least: 1 });
    }
    if stride > window {
        return Err(DataError::StrideTooLarge { stride, window });
    }
    Ok(Windows { tokens, window, stride, start: 0, scored: 0 })
}

impl<'tokens> Iterator for Windows<'tokens> {
    type Item = Window<'tokens>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.scored == self.tokens.len() || self.tokens.len() - self.start < 2 {
            return None;
        }
        let start = self.start;
        let end = self.tokens.len().min(start + self.window);
        let window = Window { start, tokens: &self.tokens[start..end], scored_from: (self.scored - start).max(1) };
        self.scored = end;
        self.start += self.stride;
        Some(window)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.tokens.len();
        if self.scored == len || len - self.start < 2 {
            return (0, Some(0));
        }
        // The next window, then one for each stride that is still needed to reach the end, less one that would have a single token.
        let more = len.saturating_sub(self.start + self.window).div_ceil(self.stride);
        let last_start = self.start + more * self.stride;
        let count = 1 + more - usize::from(len - last_start < 2);
        (count, Some(count))
    }
}

impl ExactSizeIterator for Windows<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_windows_score_each_token_but_the_first_exactly_once() {
        for len in 0..30_u32 {
            let tokens: Vec<u32> = (0..len).collect();
            for window in 2..12 {
                for stride in 1..window {
                    let scored: Vec<u32> = windows(&tokens, window, stride)
                        .unwrap()
                        .flat_map(|window| window.tokens[window.scored_from..].to_vec())
                        .collect();
                    let expected: Vec<u32> = (1..len).collect();
                    assert_eq!(scored, expected, "{len} tokens, window {window}, stride {stride}");
                }
            }
        }
    }

    #[test]
    fn side_by_side_windows_score_all_but_their_first_token() {
        let tokens: Vec<u32> = (0..10).collect();
        let of = |len: usize| -> Vec<(usize, usize, usize)> {
            let windows = windows(&tokens[..len], 4, 4).unwrap();
            windows.map(|window| (window.start, window.tokens.len(), window.scored_from)).collect()
        };
        assert_eq!(of(10), [(0, 4, 1), (4, 4, 1), (8, 2, 1)]);
        assert_eq!(of(9), [(0, 4, 1), (4, 4, 1)], "a single token cannot be scored");
        assert_eq!(of(8), [(0, 4, 1), (4, 4, 1)]);
        assert_eq!(of(3), [(0, 3, 1)]);
        assert_eq!(of(1), []);
    }

    #[test]
    fn each_window_has_the_tokens_from_its_start_and_the_count_is_known() {
        let tokens: Vec<u32> = (0..29).collect();
        for len in 0..29 {
            for window in 2..9 {
                for stride in 1..=window {
                    let mut all = windows(&tokens[..len], window, stride).unwrap();
                    let mut index = 0;
                    loop {
                        let expected = all.clone().count();
                        assert_eq!(all.len(), expected, "{len} tokens, window {window}, stride {stride}");
                        let Some(next) = all.next() else { break };
                        assert_eq!(next.start, index * stride);
                        assert_eq!(next.tokens[0] as usize, next.start);
                        assert!(next.num_scored() >= 1 && next.scored_from >= 1);
                        index += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_errors() {
        assert!(matches!(windows(&[1, 2], 1, 1), Err(DataError::TooSmall { name: "window", .. })));
        assert!(matches!(windows(&[1, 2], 2, 0), Err(DataError::TooSmall { name: "stride", .. })));
        assert!(matches!(windows(&[1, 2], 2, 3), Err(DataError::StrideTooLarge { .. })));
    }
}
