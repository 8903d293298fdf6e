//! Conversion between text and token ids, as far as evaluation needs it.

use retie_data::{DataError, Tokenizer};

/// A tokenizer. [`Tokenizer`] is one; tests have a smaller one.
pub trait TextCodec: Sync {
    /// Ids of `text`, without special tokens around it.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError>;

    /// Text of `ids`, special tokens included.
    ///
    /// # Errors
    /// When the ids cannot be decoded.
    fn decode(&self, ids: &[u32]) -> Result<String, DataError>;
}

impl TextCodec for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        Self::encode(self, text)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        Self::decode(self, ids, false)
    }
}
