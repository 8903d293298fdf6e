//! The reader against a real model: SmolLM2-135M-Instruct as a Q4_1 GGUF file, found by the environment variable
//! `RETIE_SMOLLM2_GGUF`, and the golden files of `RETIE_ASSETS` (default `../../shared/assets`). Skipped where they are
//! absent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use retie_checkpoint::{Dtype, GgufFile, ModelSource, TensorSource};
use std::path::PathBuf;

/// The file and the folder of goldens, or `None` with a message.
fn assets(test: &str) -> Option<(PathBuf, PathBuf)> {
    let Some(model) = std::env::var_os("RETIE_SMOLLM2_GGUF").map(PathBuf::from) else {
        eprintln!("skipped {test}: set RETIE_SMOLLM2_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf");
        return None;
    };
    let folder = std::env::var_os("RETIE_ASSETS").map_or_else(|| PathBuf::from("../../shared/assets"), PathBuf::from);
    let golden = folder.join("golden");
    if !golden.is_dir() {
        eprintln!("skipped {test}: `{}` is absent, set RETIE_ASSETS", golden.display());
        return None;
    }
    Some((model, golden))
}

#[test]
fn its_shape_is_that_of_the_hub() {
    let Some((model, _)) = assets("its_shape_is_that_of_the_hub") else { return };
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
    let Some((model, golden)) = assets("embeddings_are_those_of_the_reference_bit_for_bit") else { return };
    let file = GgufFile::open(&model).unwrap();
    let bytes = fs_err::read(golden.join("logits.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embeddings = file.bytes("model.embed_tokens.weight").unwrap();
    let row_bytes = 576 * size_of::<f32>();
    for prompt in 0..3 {
        let ids = golden.tensor(&format!("f32.prompt{prompt}.ids")).unwrap();
        let hidden = golden.tensor(&format!("f32.prompt{prompt}.hidden0")).unwrap();
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
    let Some((model, golden)) = assets("the_rebuilt_tokenizer_gives_every_id_and_text_of_the_reference") else {
        return;
    };
    let source = ModelSource::open(model.to_str().unwrap()).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_bytes(source.tokenizer_json().unwrap()).unwrap();
    let cases = fs_err::read_to_string(golden.join("tokenizer_cases.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&cases).unwrap();
    assert_eq!(cases.len(), 64);
    for case in cases {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap().get_ids(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap());
    }
}
