//! Prompt encoding: context and continuation to scored tokens, as in the harness
//! (`TemplateLM._encode_pair`, `loglikelihood` and the truncation of `HFLM._loglikelihood_tokens`).

use crate::{ScoreRequest, TextCodec, python::strip_end};
use retie_data::DataError;

/// Encodes text into requests for one model.
pub struct PromptEncoder<'a> {
    /// The model's tokenizer.
    pub codec: &'a dyn TextCodec,
    /// Token in place of an empty context: the tokenizer's BOS token, or its EOS token if it has no
    /// BOS.
    pub prefix_token: u32,
    /// The BOS token, if the tokenizer puts it before every text.
    pub bos_token: Option<u32>,
    /// Context length of the model, in tokens.
    pub max_length: usize,
}

/// Reason why a pair cannot be scored.
#[derive(Debug)]
pub(crate) enum PromptError {
    Data(DataError),
    /// The continuation has no token of its own.
    NothingToScore,
    /// The continuation alone exceeds the context; its number of tokens.
    TooLong(usize),
}

impl From<DataError> for PromptError {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl PromptEncoder<'_> {
    /// Ids of the context and of the continuation.
    ///
    /// The text is encoded as a whole, and the context alone; the tokens of the whole beyond the
    /// context's length are the continuation. White space at the end of the context moves to the
    /// continuation, because tokenizers attach it to the word that follows. A context of white
    /// space only counts as empty (the harness fails there).
    fn split(&self, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>), DataError> {
        let stem = strip_end(context);
        let space = context.get(stem.len()..).unwrap_or("");
        let whole = [stem, space, continuation].concat();
        let mut whole = self.codec.encode(&whole)?;
        if stem.is_empty() {
            // A continuation that begins with the prefix token brings its own context.
            let context = if whole.first() == Some(&self.prefix_token) { whole.remove(0) } else { self.prefix_token };
            return Ok((vec![context], whole));
        }
        let mut context = self.codec.encode(stem)?;
        let continuation = whole.split_off(context.len().min(whole.len()));
        if let Some(bos) = self.bos_token {
            context.insert(0, bos);
        }
        Ok((context, continuation))
    }

    /// Request for one pair. A context that is too long is truncated at its start.
    pub(crate) fn request(&self, context: &str, continuation: &str) -> Result<ScoreRequest, PromptError> {
        let (mut tokens, continuation) = self.split(context, continuation)?;
        if continuation.is_empty() {
            return Err(PromptError::NothingToScore);
        }
        let num_scored = continuation.len();
        if num_scored > self.max_length {
            return Err(PromptError::TooLong(num_scored));
        }
        tokens.extend(continuation);
        // The last token is not read.
        let excess = tokens.len().saturating_sub(self.max_length + 1);
        tokens.drain(..excess);
        Ok(ScoreRequest { scored_from: tokens.len() - num_scored, tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PREFIX, Pieces};
    use serde::Deserialize;

    const ENCODER: PromptEncoder<'static> =
        PromptEncoder { codec: &Pieces, prefix_token: PREFIX, bos_token: None, max_length: 100 };

    #[derive(Deserialize)]
    struct Golden {
        pairs: Vec<Pair>,
    }

    #[derive(Deserialize)]
    struct Pair {
        context: String,
        continuation: String,
        context_ids: Vec<u32>,
        continuation_ids: Vec<u32>,
    }

    #[test]
    fn pairs_are_split_as_the_harness_splits_them() {
        let golden: Golden = serde_json::from_str(include_str!("../tests/golden/harness.json")).unwrap();
        for pair in golden.pairs {
            let ids = ENCODER.split(&pair.context, &pair.continuation).unwrap();
            assert_eq!(ids, (pair.context_ids, pair.continuation_ids), "{:?} {:?}", pair.context, pair.continuation);
        }
    }

    #[test]
    fn a_long_context_loses_its_start_and_the_last_token_is_not_read() {
        let encoder = PromptEncoder { max_length: 3, ..ENCODER };
        let whole = Pieces.encode("a b c d e f").unwrap();
        let request = encoder.request("a b c d", " e f").unwrap();
        assert_eq!(request, ScoreRequest { tokens: whole[2..].to_vec(), scored_from: 2 });
        let request = encoder.request("a b", " c d").unwrap();
        assert_eq!(request, ScoreRequest { tokens: whole[..4].to_vec(), scored_from: 2 });
        let request = encoder.request("a b", " c d e").unwrap();
        assert_eq!(request, ScoreRequest { tokens: whole[1..5].to_vec(), scored_from: 1 });
        assert!(matches!(encoder.request("a b", " c d e f"), Err(PromptError::TooLong(4))));
    }

    #[test]
    fn a_bos_token_stands_before_every_context_but_not_twice_before_an_empty_one() {
        let encoder = PromptEncoder { bos_token: Some(PREFIX), ..ENCODER };
        let ids = |text| Pieces.encode(text).unwrap();
        assert_eq!(encoder.split("a b", " c").unwrap(), ([vec![PREFIX], ids("a b")].concat(), ids(" c")));
        assert_eq!(encoder.split("", " c").unwrap(), (vec![PREFIX], ids(" c")));
        assert_eq!(encoder.split(" \n", "c").unwrap(), (vec![PREFIX], ids(" \nc")));
    }

    #[test]
    fn a_continuation_without_a_token_is_an_error() {
        assert!(matches!(ENCODER.request("a", ""), Err(PromptError::NothingToScore)));
        assert!(matches!(ENCODER.request("", ""), Err(PromptError::NothingToScore)));
        assert!(matches!(ENCODER.request("a", "b"), Err(PromptError::NothingToScore)), "one piece, as the context is");
    }
}
