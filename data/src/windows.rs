//! Windows of a long text for perplexity.
//!
//! Window `i` starts at token `i * stride` and has `window` tokens, or what is left. The windows
//! end with the first that reaches the end of the text. Every window is scored from its second
//! token, each token given those before it *in the window*:
//!
//! - `stride == window`: windows lie side by side, and no token is scored twice;
//! - `stride < window`: windows overlap by `window - stride`, and a token counts once for each
//!   window that scores it.
//!
//! A last window of a single token, which could score nothing, is not given.

use crate::error::DataError;

/// Split of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window<'tokens> {
    /// Where the window starts in the text.
    pub start: usize,
    /// Its tokens, at least 2; all but the first are scored.
    pub tokens: &'tokens [u32],
}

/// Iterator over windows; made by [`windows()`].
#[derive(Debug, Clone)]
pub struct Windows<'tokens> {
    tokens: &'tokens [u32],
    window: usize,
    stride: usize,
    /// Start of the next window.
    start: usize,
    /// Whether a window has reached the end of the text.
    at_end: bool,
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
    Ok(Windows { tokens, window, stride, start: 0, at_end: false })
}

impl<'tokens> Iterator for Windows<'tokens> {
    type Item = Window<'tokens>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at_end || self.tokens.len().saturating_sub(self.start) < 2 {
            return None;
        }
        let start = self.start;
        let end = self.tokens.len().min(start + self.window);
        self.at_end = end == self.tokens.len();
        self.start += self.stride;
        Some(Window { start, tokens: &self.tokens[start..end] })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.tokens.len();
        if self.at_end || len.saturating_sub(self.start) < 2 {
            return (0, Some(0));
        }
        // The next window, then one for each stride that is still needed to reach the end, less one
        // that would have a single token.
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
    fn overlapping_windows_end_with_the_first_that_reaches_the_end() {
        let tokens: Vec<u32> = (0..18).collect();
        let all: Vec<_> = windows(&tokens, 8, 5).unwrap().map(|window| window.tokens).collect();
        assert_eq!(all, [&tokens[..8], &tokens[5..13], &tokens[10..]]);
    }

    #[test]
    fn side_by_side_windows_cover_the_text() {
        let tokens: Vec<u32> = (0..10).collect();
        let bounds = |len: usize| -> Vec<(usize, usize)> {
            let windows = windows(&tokens[..len], 4, 4).unwrap();
            windows.map(|window| (window.start, window.tokens.len())).collect()
        };
        assert_eq!(bounds(10), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(bounds(9), [(0, 4), (4, 4)], "a single token cannot be scored");
        assert_eq!(bounds(8), [(0, 4), (4, 4)]);
        assert_eq!(bounds(3), [(0, 3)]);
        assert_eq!(bounds(1), []);
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
                        assert!(next.tokens.len() >= 2);
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
