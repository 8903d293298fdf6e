//! `nanbeige`: a Llama whose layers run `num_loops` times one after the other, as the recursive
//! model that it is.
//!
//! Reference: <https://huggingface.co/Nanbeige/Nanbeige4.2-3B>. Its own files apply the final norm
//! between loops too, which no model here does; those with `skip_loop_final_norm` do not.

use crate::{ConfigError, Init, RecursionConfig, Sharing, keys::Keys};
use serde_json::{Map, Value, json};
use std::path::Path;

/// `model_type` of its `config.json`.
pub(crate) const MODEL_TYPE: &str = "nanbeige";
const NUM_LOOPS: &str = "num_loops";
const SKIP_LOOP_NORM: &str = "skip_loop_final_norm";
/// Longest unrolled stack (llama.cpp's limit).
const MOST_DEPTHS: usize = 512;
/// Keys of parts that are not computed here, which files without them have as null, false or empty.
const OTHER_PARTS: [&str; 11] = [
    "qk_layernorm",
    "emb_neighbor_num",
    "insert_ngram_layer_idx",
    "ngram_insert_all_layers",
    "enable_double_loop_split",
    "loop_middle_layers",
    "loop_share_kv",
    "enable_hyper_connection",
    "enable_mhc",
    "enable_h_res_identity",
    "enable_depth_attention",
];

/// The keys of the same model as a recursive Llama, or with biases of q, k and v as a Qwen2.
///
/// # Errors
/// When it has parts that are not implemented, or an impossible number of loops.
pub(crate) fn as_recursive(map: &Map<String, Value>, path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let keys = Keys { path, map, defaults: &[] };
    for key in OTHER_PARTS {
        let is_on = |value: &&Value| !matches!(value, Value::Bool(false)) && **value != json!([]);
        if let Some(found) = keys.present(key).filter(is_on) {
            return Err(keys.unsupported(key, found, "of the parts of a `nanbeige` only the loop is"));
        }
    }
    let num_loops = keys.optional_size(NUM_LOOPS)?.unwrap_or(1);
    let num_layers = keys.size("num_hidden_layers")?;
    let num_depths = num_layers.checked_mul(num_loops).filter(|depths| *depths <= MOST_DEPTHS);
    let Some(num_depths) = num_depths else {
        let expected = format!("at most {MOST_DEPTHS} layers in all loops, of {num_layers} each");
        return Err(keys.bad(NUM_LOOPS, &json!(num_loops), &expected));
    };
    if num_loops > 1 && keys.present(SKIP_LOOP_NORM) != Some(&Value::Bool(true)) {
        let hint = "a norm between loops is not implemented; files with `skip_loop_final_norm: true` have none";
        let found = keys.present(SKIP_LOOP_NORM).unwrap_or(&Value::Bool(false));
        return Err(keys.unsupported(SKIP_LOOP_NORM, found, hint));
    }
    let family = if keys.present("attention_bias") == Some(&Value::Bool(true)) { "qwen2" } else { "llama" };
    let mut other = map.clone();
    [NUM_LOOPS, SKIP_LOOP_NORM].iter().chain(&OTHER_PARTS).for_each(|key| _ = other.remove(*key));
    other.insert("model_type".into(), json!(family));
    // Left out, it is the number of heads, as of a Llama; a Qwen2 has 32.
    other.entry("num_key_value_heads").or_insert(Value::Null);
    if num_loops > 1 {
        // How the layers were made is not in the file; nothing that is computed depends on it.
        let recursion = RecursionConfig::new(num_loops, Sharing::Cycle, Init::Average);
        other.insert("num_hidden_layers".into(), json!(num_depths));
        other.insert("recursion".into(), json!(recursion));
    }
    Ok(other)
}

/// Turns the keys of a recursive Llama whose stored layers run in a loop into those of a
/// `nanbeige`.
pub(crate) fn from_recursive(map: &mut Map<String, Value>, num_layers: usize, num_loops: usize) {
    ["recursion", "sliding_window"].iter().for_each(|key| _ = map.remove(*key));
    map.insert("model_type".into(), json!(MODEL_TYPE));
    map.insert("architectures".into(), json!(["NanbeigeForCausalLM"]));
    map.insert("num_hidden_layers".into(), json!(num_layers));
    map.insert(NUM_LOOPS.into(), json!(num_loops));
    map.insert(SKIP_LOOP_NORM.into(), json!(true));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    fn read(more: Value) -> Result<ModelConfig, String> {
        let Value::Object(mut map) = json!({
            "model_type": "nanbeige", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 3, "num_attention_heads": 2, "num_loops": 2, "skip_loop_final_norm": true,
        }) else {
            unreachable!()
        };
        map.extend(more.as_object().unwrap().clone());
        ModelConfig::from_json(map, Path::new("x")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_loop_is_a_recursion_over_every_layer() {
        let config = read(json!({ "emb_neighbor_num": null, "loop_share_kv": false })).unwrap();
        assert_eq!((config.num_hidden_layers, config.architecture.model_type), (6, "llama"));
        let layers: Vec<_> = config.share_map().depths().iter().map(|step| step.layer.0).collect();
        assert_eq!(layers, [0, 1, 2, 0, 1, 2]);
        assert!(config.remarks().is_empty(), "{:?}", config.remarks());
        let once = read(json!({ "num_loops": 1, "skip_loop_final_norm": false, "attention_bias": true })).unwrap();
        assert_eq!((once.num_hidden_layers, once.recursion, once.architecture.model_type), (3, None, "qwen2"));
        // And back.
        let mut map = config.to_json();
        from_recursive(&mut map, 3, 2);
        assert_eq!(ModelConfig::from_json(map, Path::new("x")).unwrap().anatomy, config.anatomy);
    }

    #[test]
    fn what_no_model_here_computes_is_refused() {
        assert!(read(json!({ "skip_loop_final_norm": false })).unwrap_err().contains("a norm between loops"));
        assert!(read(json!({ "skip_loop_final_norm": null })).unwrap_err().contains("a norm between loops"));
        assert!(read(json!({ "enable_mhc": true })).unwrap_err().contains("`enable_mhc: true` is not supported"));
        assert!(read(json!({ "loop_middle_layers": [1] })).unwrap_err().contains("loop_middle_layers"));
        assert!(read(json!({ "num_loops": 1_000_000 })).unwrap_err().contains("at most 512 layers"));
    }
}
