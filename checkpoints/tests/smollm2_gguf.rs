//! The reader against a real model, SmolLM2-135M-Instruct as a Q4_1 GGUF file, which
//! `scripts/fetch-smollm2` gets. `RETIE_SMOLLM2_GGUF` names it; without it the tests are skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use retie_checkpoint::{Dtype, GgufFile, ModelSource, TensorSource};
use std::path::PathBuf;

/// The embeddings of three prompts by `transformers`, beside the script that made the file.
const EMBEDDINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden/smollm2.safetensors");
/// Texts with the ids that `tokenizers` and llama.cpp both give, and the text of the ids.
const TOKENIZER_CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/smollm2_tokenizer.json");

/// The model file, or `None` with a message.
fn model() -> Option<PathBuf> {
    let model = std::env::var_os("RETIE_SMOLLM2_GGUF").map(PathBuf::from);
    if model.is_none() {
        eprintln!("skipped: set RETIE_SMOLLM2_GGUF to the file that scripts/fetch-smollm2 gets");
    }
    model
}

#[test]
fn its_shape_is_that_of_the_hub() {
    let Some(model) = model() else { return };
    let source = ModelSource::open(model.to_str().unwrap()).unwrap();
    source.validate().unwrap();
    let config = &source.config;
    assert_eq!((config.num_hidden_layers, config.hidden_size, config.intermediate_size), (30, 576, 1536));
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (9, 3, 64));
    assert_eq!((config.vocab_size, config.max_position_embeddings), (49_152, 8192));
    let anatomy = &config.anatomy;
    assert_eq!((anatomy.norm_eps, anatomy.ropes[0].theta), (1e-5, 100_000.0));
    assert!(anatomy.tie_word_embeddings && !anatomy.qkv_bias && !anatomy.output_bias && !anatomy.mlp_bias);
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(1), &[2][..]));
    let names = source.tensors.names();
    assert_eq!(names.len(), 272);
    let infos = names.iter().map(|name| source.tensors.info(name).unwrap());
    assert_eq!(infos.clone().map(|info| info.num_elements()).sum::<usize>(), 134_515_008);
    assert!(infos.into_iter().all(|info| info.dtype == Dtype::F32));
}

#[test]
fn embeddings_are_those_of_the_reference_bit_for_bit() {
    let Some(model) = model() else { return };
    let file = GgufFile::open(&model).unwrap();
    let bytes = fs_err::read(EMBEDDINGS).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embeddings = file.bytes("model.embed_tokens.weight").unwrap();
    let row_bytes = 576 * size_of::<f32>();
    for prompt in 0..3 {
        let ids = golden.tensor(&format!("golden.prompt{prompt}.ids")).unwrap();
        let hidden = golden.tensor(&format!("golden.prompt{prompt}.hidden0")).unwrap();
        let ids: Vec<usize> =
            ids.data().as_chunks::<8>().0.iter().map(|id| i64::from_le_bytes(*id).try_into().unwrap()).collect();
        assert_eq!(hidden.data().len(), ids.len() * row_bytes);
        for (id, expected) in ids.into_iter().zip(hidden.data().chunks(row_bytes)) {
            assert!(&embeddings[id * row_bytes..][..row_bytes] == expected, "token {id} of prompt {prompt}");
        }
    }
}

#[test]
fn the_rebuilt_tokenizer_gives_every_id_and_text_of_the_reference() {
    let Some(model) = model() else { return };
    let source = ModelSource::open(model.to_str().unwrap()).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_bytes(source.tokenizer_json().unwrap()).unwrap();
    let cases = fs_err::read_to_string(TOKENIZER_CASES).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&cases).unwrap();
    assert_eq!(cases.len(), 64);
    for case in cases {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap().get_ids(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap());
    }
}
