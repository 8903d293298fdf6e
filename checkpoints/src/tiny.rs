//! A tiny model for the tests of this crate.

use retie_config::ModelConfig;
use serde_json::{Value, json};
use std::path::Path;

/// A Llama of `num_layers` layers of width 8 with tied embeddings.
pub fn tiny_llama(num_layers: usize) -> ModelConfig {
    let Value::Object(map) = json!({
        "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": num_layers, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    }) else {
        unreachable!()
    };
    ModelConfig::from_json(map, Path::new("tiny")).unwrap()
}
