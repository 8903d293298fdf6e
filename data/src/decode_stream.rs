//! Text of ids that come one by one, as generation prints it.
//!
//! A token may end within a character, and the text of a token may depend on the one before it (a
//! word-start mark that is a space, or nothing at the start of a text). So each step decodes the
//! ids since the last but one boundary, with and without the new ones, and gives what is new once
//! it ends with a whole character. The same idea is in
//! <https://github.com/huggingface/text-generation-inference/blob/main/server/text_generation_server/models/model.py>.

use crate::error::DataError;
use crate::tokenizer::Tokenizer;

/// The character that decoding puts for bytes that are not (yet) a character.
const REPLACEMENT: char = '\u{fffd}';

/// Ids before a text that its first characters may depend on: more than a character has bytes.
const IDS_BEFORE: usize = 5;

/// Incremental decoder.
#[derive(Debug)]
pub struct DecodeStream<'tokenizer> {
    tokenizer: &'tokenizer Tokenizer,
    skip_special: bool,
    /// Ids from the last but one boundary on.
    ids: Vec<u32>,
    /// How many of `ids` have given their text.
    given: usize,
    /// Text of `ids[..given]`.
    prefix: String,
}

impl<'tokenizer> DecodeStream<'tokenizer> {
    /// A decoder at the start of a text; see [`Tokenizer::decode`] for `skip_special`.
    pub fn new(tokenizer: &'tokenizer Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), given: 0, prefix: String::new() }
    }

    /// A decoder of a text that goes on after the ids `before`: their text is not given again.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn after(tokenizer: &'tokenizer Tokenizer, skip_special: bool, before: &[u32]) -> Result<Self, DataError> {
        let ids = before[before.len().saturating_sub(IDS_BEFORE)..].to_vec();
        let text = tokenizer.decode(&ids, skip_special)?;
        // A character that is cut off there is given whole.
        let prefix = text.trim_end_matches(REPLACEMENT).to_owned();
        Ok(Self { tokenizer, skip_special, given: ids.len(), ids, prefix })
    }

    /// Takes the next id; gives the text that is now certain, which may be empty and is always
    /// whole characters.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn step(&mut self, id: u32) -> Result<String, DataError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        if text.ends_with(REPLACEMENT) {
            return Ok(String::new());
        }
        self.advance(&text)
    }

    /// Ends the text: what was held back, with U+FFFD for bytes that never became a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String, DataError> {
        self.flush()
    }

    /// [`DecodeStream::finish`] by reference: the text has to end there.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn flush(&mut self) -> Result<String, DataError> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        self.advance(&text)
    }

    fn advance(&mut self, text: &str) -> Result<String, DataError> {
        // A decoder may rewrite text across tokens; what was given cannot be taken back, so go on
        // after its length.
        let new = text.strip_prefix(self.prefix.as_str()).unwrap_or_else(|| {
            let start = (self.prefix.len().min(text.len())..).find(|&at| text.is_char_boundary(at));
            start.map_or("", |start| &text[start..])
        });
        if new.is_empty() {
            return Ok(String::new());
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        self.prefix = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(new.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::DecodeStream;
    use crate::tokenizer::{Tokenizer, tests::tiny};

    const TEXTS: [&str; 5] = [
        "",
        "hello world",
        "naïve 🦀🦀 日本語 e\u{301}",
        "a<|endoftext|>b \n\n c",
        "\u{fffd} real \u{fffd}\u{fffd} marks \u{fffd}",
    ];

    #[test]
    fn the_pieces_together_are_the_text_and_each_is_whole_characters() {
        let tokenizer = tiny();
        for text in TEXTS {
            for skip_special in [true, false] {
                let ids = tokenizer.encode(text).unwrap();
                let mut stream = DecodeStream::new(&tokenizer, skip_special);
                let mut joined = String::new();
                for &id in &ids {
                    joined += &stream.step(id).unwrap();
                }
                joined += &stream.finish().unwrap();
                assert_eq!(joined, tokenizer.decode(&ids, skip_special).unwrap());
            }
        }
    }

    #[test]
    fn a_character_of_several_tokens_comes_with_its_last_one() {
        let tokenizer = tiny();
        let ids = tokenizer.encode("🦀").unwrap();
        assert_eq!(ids.len(), 4, "the tiny vocabulary has no crab");
        let mut stream = DecodeStream::new(&tokenizer, true);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.step(id).unwrap()).collect();
        assert_eq!(pieces, ["", "", "", "🦀"]);
    }

    #[test]
    fn text_cut_within_a_character_ends_with_a_replacement() {
        let tokenizer = tiny();
        let ids = tokenizer.encode("ok 🦀").unwrap();
        let mut stream = DecodeStream::new(&tokenizer, true);
        let mut joined = String::new();
        for &id in &ids[..ids.len() - 1] {
            joined += &stream.step(id).unwrap();
        }
        assert_eq!(joined, "ok ");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn a_text_goes_on_after_the_ids_before_it() {
        let tokenizer = tiny();
        let ids = tokenizer.encode("hello 🦀 world").unwrap();
        for at in 0..=ids.len() {
            let mut stream = DecodeStream::after(&tokenizer, true, &ids[..at]).unwrap();
            let mut text = String::new();
            for &id in &ids[at..] {
                text += &stream.step(id).unwrap();
            }
            text += &stream.finish().unwrap();
            let before = tokenizer.decode(&ids[..at], true).unwrap();
            assert_eq!(before.trim_end_matches('\u{fffd}').to_owned() + &text, "hello 🦀 world", "{at}");
        }
    }

    #[test]
    fn a_space_that_a_text_would_lose_at_its_start_stays_within_it() {
        // The decoder of Llama 2.
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "WordLevel", "vocab": {"▁Hello": 0, "▁world": 1}, "unk_token": "▁Hello"},
        });
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), "there".as_ref()).unwrap();
        assert_eq!(DecodeStream::new(&tokenizer, true).step(1).unwrap(), "world");
        assert_eq!(DecodeStream::after(&tokenizer, true, &[0]).unwrap().step(1).unwrap(), " world");
        assert_eq!(tokenizer.token_bytes(1), b" world");
    }

    #[test]
    fn a_long_stream_keeps_only_the_ids_of_two_pieces() {
        let tokenizer = tiny();
        let mut stream = DecodeStream::new(&tokenizer, true);
        for id in tokenizer.encode(&"some words ".repeat(50)).unwrap() {
            stream.step(id).unwrap();
            assert!(stream.ids.len() <= 2, "{}", stream.ids.len());
        }
    }
}
