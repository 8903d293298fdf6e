//! Tokenizer and model defined by formulas; `tests/golden/harness.py` has the same ones.

use crate::{ScoreRequest, Scorer, TextCodec, TokenScores, python::is_space};
use retie_data::DataError;
use std::convert::Infallible;

/// Token in place of an empty context.
pub(crate) const PREFIX: u32 = 7;

/// Tokenizer whose pieces are an optional space and the text up to the next white space, or one
/// white-space character.
pub(crate) struct Pieces;

impl TextCodec for Pieces {
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let chars: Vec<char> = text.chars().collect();
        let mut ids = Vec::new();
        let mut start = 0;
        while start < chars.len() {
            let word = start + usize::from(chars[start] == ' ');
            let mut end = word;
            while end < chars.len() && !is_space(chars[end]) {
                end += 1;
            }
            if end == word {
                end = start + 1;
            }
            let piece: String = chars[start..end].iter().collect();
            let hash = piece.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
            ids.push(hash % 50021);
            start = end;
        }
        Ok(ids)
    }

    /// Decodes every token to two words and five bytes.
    fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        Ok(ids.iter().map(|_| " b é").collect())
    }
}

/// Model whose score of a token depends on its index, itself and the token before.
#[derive(Default)]
pub(crate) struct Formula {
    /// Longest request of each batch, in tokens.
    pub(crate) longest: Vec<usize>,
}

impl Scorer for Formula {
    type Error = Infallible;

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<TokenScores>, Infallible> {
        self.longest.push(requests.iter().map(|r| r.tokens.len()).max().unwrap_or(0));
        Ok(requests.iter().map(formula_scores).collect())
    }
}

fn formula_scores(request: &ScoreRequest) -> TokenScores {
    let tokens = &request.tokens;
    let xs = (request.scored_from..tokens.len())
        .map(|i| (u64::from(tokens[i]) * 31 + u64::from(tokens[i - 1]) * 17 + i as u64 * 7) % 1009);
    xs.map(|x| (-(x as f32 + 1.0) / 100.0, x % 4 != 0)).fold(TokenScores::default(), |mut scores, (lp, greedy)| {
        scores.log_probs.push(lp);
        scores.greedy.push(greedy);
        scores
    })
}
