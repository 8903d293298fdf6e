//! The tokenizer that is rebuilt from a real GGUF file, on the recorded cases: `RETIE_SMOLLM2_GGUF` names the file,
//! `RETIE_ASSETS` the folder with `golden/tokenizer_cases.json`. Skipped where they are absent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use retie_checkpoint::ModelSource;
use retie_data::Tokenizer;
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[test]
fn ids_texts_and_streamed_texts_are_the_recorded_ones() {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets"));
    let cases = std::env::var_os("RETIE_ASSETS").map_or_else(beside, PathBuf::from).join("golden/tokenizer_cases.json");
    let (Ok(model), true) = (std::env::var("RETIE_SMOLLM2_GGUF"), cases.exists()) else {
        eprintln!("skipped: needs RETIE_SMOLLM2_GGUF and `{}`", cases.display());
        return;
    };
    let source = ModelSource::open(&model).unwrap();
    let tokenizer = Tokenizer::from_bytes(source.tokenizer_json().unwrap(), Path::new(&model)).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&fs_err::read(cases).unwrap()).unwrap();
    assert!(!cases.is_empty());
    for case in &cases {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.decoded, "{:?}", case.text);
        let mut stream = tokenizer.decode_stream(false);
        let mut streamed: String = case.ids.iter().map(|id| stream.step(*id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, case.decoded, "{:?}", case.text);
    }
}
