//! The bytes of a token, for log-probabilities: a token may be a part of a character.
//!
//! A byte-level tokenizer spells each byte as one character (GPT-2's `bytes_to_unicode`,
//! <https://github.com/openai/gpt-2/blob/master/src/encoder.py>). The others spell a space as `▁`
//! and a byte without a token as `<0xAB>`.

use serde_json::Value;

/// How the tokens of a vocabulary are spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// One character for each byte.
    ByteLevel,
    /// Text with `▁` for a space.
    WordMarks,
}

impl Spelling {
    /// The spelling of a `tokenizer.json`, by its decoder.
    pub(crate) fn of(tokenizer: &Value) -> Self {
        let decoder = &tokenizer["decoder"];
        let parts = decoder["decoders"].as_array().into_iter().flatten();
        let byte_level = parts.chain([decoder]).any(|decoder| decoder["type"] == "ByteLevel");
        if byte_level { Self::ByteLevel } else { Self::WordMarks }
    }

    /// The bytes of a token.
    pub(crate) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::WordMarks => {
                let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('▁', " ").into_bytes(),
                }
            }
        }
    }
}

/// True for a byte that is spelt as the character of its own number.
fn spells_itself(byte: u8) -> bool {
    matches!(byte, 33..=126 | 161..=172 | 174..=255)
}

/// The byte that a character of a byte-level vocabulary spells: its own number or, from 256 on, the
/// next of the bytes that do not spell themselves.
fn byte_of(c: char) -> Option<u8> {
    match u8::try_from(u32::from(c)) {
        Ok(byte) => spells_itself(byte).then_some(byte),
        Err(_) => (0..=255).filter(|byte| !spells_itself(*byte)).nth(usize::try_from(u32::from(c)).ok()? - 256),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_byte_of_a_byte_level_vocabulary_is_found() {
        let all = (0..=0x143).filter_map(char::from_u32).filter_map(byte_of);
        let mut bytes: Vec<u8> = all.collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(Spelling::ByteLevel.bytes("ĠcaféĊ"), b" caf\xe9\n");
        assert_eq!(Spelling::ByteLevel.bytes("▁x"), "▁x".as_bytes(), "not of this vocabulary");
    }

    #[test]
    fn word_marks_are_spaces_and_byte_tokens_bytes() {
        assert_eq!(Spelling::WordMarks.bytes("▁the"), b" the");
        assert_eq!(Spelling::WordMarks.bytes("<0xE2>"), [0xe2]);
        assert_eq!(Spelling::WordMarks.bytes("<0xE2>>"), b"<0xE2>>");
    }

    #[test]
    fn the_decoder_tells_the_spelling() {
        let byte_level = json!({"type": "ByteLevel"});
        assert_eq!(Spelling::of(&json!({ "decoder": byte_level })), Spelling::ByteLevel);
        assert_eq!(
            Spelling::of(&json!({"decoder": {"type": "Sequence", "decoders": [byte_level]}})),
            Spelling::ByteLevel
        );
        assert_eq!(Spelling::of(&json!({"decoder": {"type": "Sequence", "decoders": []}})), Spelling::WordMarks);
        assert_eq!(Spelling::of(&json!({ "decoder": null })), Spelling::WordMarks);
    }
}
