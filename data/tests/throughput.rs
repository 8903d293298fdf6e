//! How fast real text becomes tokens, and that its ids are right. Needs a tokenizer that is not in the repository:
//! `RETIE_TOKENIZER=tokenizer.json cargo test --release -p retie-data --test throughput -- --ignored --nocapture`.
//! The texts are found by `RETIE_ASSETS`, or beside the repository.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "a test that reports figures")]

use std::path::PathBuf;
use std::time::Instant;

use retie_data::{Cursor, DatasetOptions, Sampler, TokenDataset, Tokenizer, read_text, windows};

fn assets() -> PathBuf {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/assets");
    std::env::var_os("RETIE_ASSETS").map_or_else(beside, PathBuf::from)
}

fn tokenizer() -> Tokenizer {
    let path = std::env::var_os("RETIE_TOKENIZER").expect("RETIE_TOKENIZER names a tokenizer.json of SmolLM2");
    Tokenizer::from_file(&PathBuf::from(path)).unwrap()
}

#[test]
#[ignore = "needs RETIE_TOKENIZER and the shared texts"]
fn real_text_is_ready_in_reasonable_time() {
    let tokenizer = tokenizer();
    let cache = tempfile::tempdir().unwrap();
    let options = DatasetOptions {
        files: vec![assets().join("text/openstax_train.jsonl")],
        text_field: "text".to_owned(),
        sequence_length: 512,
        eos_token_id: tokenizer.token_id("<|endoftext|>").unwrap(),
        cache_dir: Some(cache.path().to_owned()),
    };
    for source in ["text", "cache"] {
        let began = Instant::now();
        let dataset = TokenDataset::build(&options, &tokenizer, &mut |_| ()).unwrap();
        let seconds = began.elapsed().as_secs_f64();
        let tokens = dataset.num_tokens();
        eprintln!(
            "from {source}: {tokens} tokens of {} documents, {} rows, {seconds:.2} s, {:.0} tokens/s",
            dataset.num_documents(),
            dataset.num_rows(),
            tokens as f64 / seconds
        );
        let mut sampler = Sampler::new(dataset.into(), 1, Cursor::default()).unwrap();
        let began = Instant::now();
        let mut read = 0;
        for _ in 0..1000 {
            read += sampler.next_batch(8).inputs.len();
        }
        eprintln!("  batches of 8: {:.1e} tokens/s", read as f64 / began.elapsed().as_secs_f64());
    }

    let began = Instant::now();
    let text = read_text(&assets().join("text/wikitext2_test.raw")).unwrap();
    let ids = tokenizer.encode(&text).unwrap();
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("one text of {} bytes: {} tokens, {:.0} tokens/s", text.len(), ids.len(), ids.len() as f64 / seconds);
    eprintln!("  {} windows of 1024", windows(&ids, 1024, 1024).unwrap().len());
}

#[test]
#[ignore = "needs RETIE_TOKENIZER and the shared goldens"]
fn ids_of_the_golden_cases_agree() {
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
        decoded: String,
    }
    let tokenizer = tokenizer();
    let json = fs_err::read(assets().join("golden/tokenizer_cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&json).unwrap();
    for case in &cases {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.decoded, "{:?}", case.text);
        let mut stream = tokenizer.decode_stream(false);
        let mut joined: String = case.ids.iter().map(|&id| stream.step(id).unwrap()).collect();
        joined += &stream.finish().unwrap();
        assert_eq!(joined, case.decoded, "{:?}", case.text);
    }
    eprintln!("{} cases agree", cases.len());
}
