//! Families read from the `config.json` that `transformers` writes for well-known models, abridged
//! to the keys that matter.

use super::*;
use crate::ModelConfig;
use serde_json::{Map, Value, json};
use std::path::Path;

fn read(patch: Value) -> Result<ModelConfig, ConfigError> {
    let mut map: Map<String, Value> = serde_json::from_value(json!({
        "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    }))
    .unwrap();
    map.extend(patch.as_object().unwrap().clone());
    ModelConfig::from_json(map, Path::new("config.json"))
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.anatomy.depths.iter().map(|depth| depth.window).collect()
}

#[test]
fn a_mistral_without_the_key_has_the_window_of_its_class() {
    let mistral = |patch: Value| {
        let mut base = json!({"model_type": "mistral"});
        base.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        windows(&read(base).unwrap())
    };
    assert_eq!(mistral(json!({})), [Some(4096); 6]);
    assert_eq!(mistral(json!({"sliding_window": null})), [None; 6]);
    assert_eq!(mistral(json!({"sliding_window": 7})), [Some(7); 6]);
}

#[test]
fn a_qwen2_slides_from_max_window_layers_on_if_asked_to() {
    let base = json!({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 4});
    let config = read(base.clone()).unwrap();
    assert!(config.anatomy.qkv_bias && !config.anatomy.output_bias);
    assert_eq!(windows(&config), [None; 6]);
    let mut slides = base;
    slides["use_sliding_window"] = json!(true);
    assert_eq!(windows(&read(slides.clone()).unwrap()), [None, None, None, None, Some(8), Some(8)]);
    slides["layer_types"] = Value::from(vec!["sliding_attention"; 6]);
    assert_eq!(windows(&read(slides.clone()).unwrap()), [Some(8); 6]);
    slides["layer_types"] = Value::from(vec!["sliding_attention"; 5]);
    assert!(read(slides).unwrap_err().to_string().contains("expected a list of 6 entries"));
}

#[test]
fn every_fourth_layer_of_a_smollm3_does_not_rotate() {
    let config = read(json!({"model_type": "smollm3"})).unwrap();
    let rotated: Vec<bool> = config.anatomy.depths.iter().map(|depth| depth.rope.is_some()).collect();
    assert_eq!(rotated, [true, true, true, false, true, true]);
    let config = read(json!({"model_type": "smollm3", "no_rope_layers": [0, 1, 1, 1, 1, 0]})).unwrap();
    assert_eq!(config.anatomy.depths[0].rope, None);
    assert!(config.anatomy.tie_word_embeddings);
}

#[test]
fn both_spellings_of_the_two_rotations_of_gemma3_are_read() {
    let base =
        json!({"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 256, "sliding_window": 512});
    let mut old = base.clone();
    old["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
    let mut new = base;
    new["rope_parameters"] = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    });
    let (old, new) = (read(old).unwrap(), read(new).unwrap());
    assert_eq!(old.anatomy, new.anatomy);
    assert_eq!(old.anatomy.ropes[0].scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!((old.anatomy.ropes[0].theta, old.anatomy.ropes[1].theta), (1e6, 1e4));
    assert_eq!(old.anatomy.depths[4], DepthKind { rope: Some(1), window: Some(512) });
    assert_eq!(old.anatomy.depths[5], DepthKind { rope: Some(0), window: None });
    assert_eq!(old.anatomy.embedding_scale, Some(8.0));
}

#[test]
fn a_pythia_rotates_a_quarter_of_each_head() {
    let pythia = json!({
        "model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "use_parallel_residual": true, "num_key_value_heads": null,
    });
    let config = read(pythia.clone()).unwrap();
    assert_eq!((config.head_dim, config.anatomy.ropes[0].rotary_dim), (16, 4));
    assert_eq!((config.num_key_value_heads, config.anatomy.residual), (4, Residual::Parallel));
    assert_eq!(config.projection_shapes().len(), 6);
    let mut odd = pythia;
    odd["rotary_pct"] = json!(0.2);
    assert!(read(odd).unwrap_err().to_string().contains("`rotary_pct`"));
}

#[test]
fn per_depth_keys_of_a_converted_folder_survive_a_round_trip() {
    let config =
        read(json!({"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 256, "sliding_window": 9}));
    let config = config.unwrap();
    assert_eq!(windows(&config), [Some(9), None, Some(9), None, Some(9), None]);
    let mut dropped = config.with_depths(&[0, 1, 3, 5]);
    let map = crate::ShareMap::new(4, 1, crate::Sharing::Cycle).unwrap();
    dropped.recursion = Some(crate::RecursionConfig::from_share_map(&map, crate::Init::Average));
    let json = dropped.to_json();
    assert_eq!(json["model_type"], "recursive_gemma2");
    let again = ModelConfig::from_json(json, Path::new("x")).unwrap();
    assert_eq!(windows(&again), [Some(9), None, None, None]);
    assert_eq!(again.anatomy, dropped.anatomy);
}

#[test]
fn unsupported_values_of_a_family_are_refused() {
    for (patch, part) in [
        (
            json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 1, "use_bidirectional_attention": true}),
            "bidirectional",
        ),
        (json!({"model_type": "qwen3", "hidden_act": "gelu"}), "`hidden_act: gelu` is not supported"),
        (json!({"model_type": "gemma2", "query_pre_attn_scalar": 1}), "no key `sliding_window`"),
        (json!({"model_type": "gemma3"}), "`gemma3_text` (Gemma 3 270M and 1B)"),
        (json!({"model_type": "qwen2", "layer_types": ["chunked_attention", 1, 2, 3, 4, 5]}), "chunked_attention"),
    ] {
        let error = read(patch).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
