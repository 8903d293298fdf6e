//! The tokenizer that is rebuilt from a real GGUF file, on the recorded cases.
//!
//! `RETIE_SMOLLM2_GGUF` names the file, which `scripts/fetch-smollm2` gets; without it the test is
//! skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use retie_checkpoint::ModelSource;
use retie_data::{DecodeStream, Tokenizer};
use std::path::Path;

/// Texts with the ids that `tokenizers` and llama.cpp both give, and the text of the ids.
const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../checkpoints/tests/golden/smollm2_tokenizer.json");

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[test]
fn ids_texts_and_streamed_texts_are_the_recorded_ones() {
    let Ok(model) = std::env::var("RETIE_SMOLLM2_GGUF") else {
        eprintln!("skipped: set RETIE_SMOLLM2_GGUF to the file that scripts/fetch-smollm2 gets");
        return;
    };
    let source = ModelSource::open(&model).unwrap();
    let tokenizer = Tokenizer::from_bytes(source.tokenizer_json().unwrap(), Path::new(&model)).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&fs_err::read(CASES).unwrap()).unwrap();
    assert!(!cases.is_empty());
    for case in &cases {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.decoded, "{:?}", case.text);
        let mut stream = DecodeStream::new(&tokenizer, false);
        let mut streamed: String = case.ids.iter().map(|id| stream.step(*id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, case.decoded, "{:?}", case.text);
    }
}
