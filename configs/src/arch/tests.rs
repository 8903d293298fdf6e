//! Families read from the `config.json` that `transformers` writes for well-known models, abridged
//! to the keys that matter.

use super::{defaults::Given, *};
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
    slides["max_window_layers"] = json!(0);
    assert_eq!(windows(&read(slides.clone()).unwrap()), [Some(8); 6]);
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

/// `value` of a JSON key as `Given` holds it.
fn same(given: Given, value: &Value) -> bool {
    match given {
        Given::Null => value.is_null(),
        Given::Size(n) => value.as_u64() == Some(n),
        Given::Number(x) => value.as_f64() == Some(x),
        Given::Flag(flag) => value.as_bool() == Some(flag),
        Given::Text(text) => value.as_str() == Some(text),
    }
}

// Made from the classes of transformers: tests/golden/make_defaults.py.
#[test]
fn absent_keys_have_the_values_of_the_classes_of_transformers() {
    let golden: Map<String, Value> = serde_json::from_str(include_str!("../../tests/golden/defaults.json")).unwrap();
    assert_eq!(golden.len(), ARCHITECTURES.len() + 1);
    for key in golden["every family"].as_array().unwrap() {
        assert!(known::is_harmless(key.as_str().unwrap()), "{key}");
    }
    for architecture in ARCHITECTURES {
        let name = architecture.model_type;
        let keys = golden[name].as_object().unwrap();
        for (key, entry) in keys {
            let ours = architecture.defaults.iter().find(|default| default.key == key);
            match ours {
                Some(ours) => {
                    assert!(same(ours.value, &entry["default"]), "{name}: {ours:?}, expected {entry}");
                    assert_eq!(Value::from(ours.nullable), entry["nullable"], "{name}: {key}");
                }
                None => assert!(known::READ.contains(&key.as_str()) || known::is_harmless(key), "{name}: {key}"),
            }
        }
        let invented =
            architecture.defaults.iter().find(|ours| !keys.contains_key(ours.key) && ours.value != Given::Null);
        assert_eq!(invented, None, "{name}");
    }
}

/// What a configuration became, as `tests/golden/make_configs.py` writes it.
fn resolved(config: &ModelConfig) -> Value {
    let anatomy = &config.anatomy;
    let whole = |x: f64| if x.fract() == 0.0 { json!(x as u64) } else { json!(x) };
    let rope = |rope: &Rope| {
        let (kind, scaling) = match rope.scaling {
            RopeScaling::Default => ("default", vec![]),
            RopeScaling::Linear { factor } => ("linear", vec![factor]),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                ("llama3", vec![factor, low_freq_factor, high_freq_factor, original_max_position_embeddings])
            }
        };
        json!({ "theta": rope.theta, "type": kind, "scaling": scaling })
    };
    json!({
        "norm_eps": anatomy.norm_eps,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": anatomy.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": config.eos_token_ids,
        "ropes": anatomy.ropes.iter().map(rope).collect::<Vec<_>>(),
        "rotary_dim": anatomy.ropes[0].rotary_dim,
        "windows": windows(config),
        "rotates": anatomy.depths.iter().map(|depth| depth.rope.is_some()).collect::<Vec<_>>(),
        "attn_logit_softcapping": anatomy.attn_logit_softcapping,
        "final_logit_softcapping": anatomy.final_logit_softcapping,
        "query_pre_attn_scalar": whole(anatomy.query_pre_attn_scalar),
        "qkv_bias": anatomy.qkv_bias,
        "output_bias": anatomy.output_bias,
        "mlp_bias": anatomy.mlp_bias,
    })
}

/// The same numbers, whole ones with and without a fraction.
fn as_floats(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(as_floats).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), as_floats(value))).collect(),
        other => other.clone(),
    }
}

// Made from the classes of transformers: tests/golden/make_configs.py.
#[test]
fn files_are_read_to_the_values_that_transformers_reads() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/golden/configs.json")).unwrap();
    assert!(cases.len() > 250, "{}", cases.len());
    let mut plain = Value::Null;
    for case in &cases {
        let mut file: Map<String, Value> = serde_json::from_value(json!({
            "model_type": case["model_type"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
        }))
        .unwrap();
        file.extend(case["patch"].as_object().unwrap().clone());
        let found = ModelConfig::from_json(file, Path::new("config.json"));
        if case["expected"].get("error").is_some() {
            let error = found.expect_err(&case.to_string()).to_string();
            let is_null = error.contains(" is `null`, expected a value, or no such key");
            assert!(is_null || error.ends_with("has no key `sliding_window`"), "{case}: {error}");
            continue;
        }
        let found = found.unwrap_or_else(|error| panic!("{case}: {error}"));
        if case["patch"] == json!({}) {
            plain = case["expected"].clone();
        }
        let mut expected = plain.as_object().unwrap().clone();
        expected.extend(case["expected"].as_object().unwrap().clone());
        for (key, value) in as_floats(&resolved(&found)).as_object().unwrap() {
            assert_eq!(*value, as_floats(&expected[key]), "`{key}` of {case}");
        }
    }
}

/// A value of a key that is not the one in [`keys_that_matter`].
fn other_value(default: &KeyDefault) -> Value {
    match (default.key, default.value) {
        (LAYER_TYPES, _) => json!(vec!["full_attention"; 6]),
        (NO_ROPE_LAYERS, _) => json!([0, 0, 0, 1, 0, 1]),
        ("num_key_value_heads" | "sliding_window_pattern" | "no_rope_layer_interval", _) => json!(4),
        ("hidden_act" | "hidden_activation", _) | (_, Given::Text(_)) => json!("relu"),
        ("use_bidirectional_attention", _) => json!(true),
        ("use_sliding_window", _) => json!(false),
        (_, Given::Null) => json!(12),
        (_, Given::Size(n)) => json!(n + 1),
        (_, Given::Number(x)) => json!(x * 2.0),
        (_, Given::Flag(flag)) => json!(!flag),
    }
}

/// Keys of a model that every key of its class matters to.
fn keys_that_matter(architecture: &Architecture) -> Value {
    json!({
        "model_type": architecture.model_type, "num_key_value_heads": 2, "use_sliding_window": true, "sliding_window": 8,
        "max_window_layers": 3, "sliding_window_pattern": 2, "no_rope_layer_interval": 2, "bos_token_id": 50,
        "eos_token_id": 51,
    })
}

#[test]
fn no_key_of_a_class_is_without_effect() {
    let without_map = |config: ModelConfig| ModelConfig { other: Map::new(), ..config };
    for architecture in ARCHITECTURES {
        let base = keys_that_matter(architecture);
        let before = without_map(read(base.clone()).unwrap());
        for default in architecture.defaults {
            let mut patch = base.clone();
            patch[default.key] = other_value(default);
            let is_used = read(patch).map_or(true, |after| without_map(after) != before);
            assert!(is_used, "`{}` of {} changes nothing", default.key, architecture.model_type);
        }
    }
}

#[test]
fn soft_caps_of_a_gemma2_are_there_unless_they_are_null() {
    let caps = |patch: Value| {
        let mut base = json!({"model_type": "gemma2"});
        base.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        let anatomy = read(base).unwrap().anatomy;
        (anatomy.attn_logit_softcapping, anatomy.final_logit_softcapping)
    };
    assert_eq!(caps(json!({})), (Some(50.0), Some(30.0)));
    assert_eq!(caps(json!({"attn_logit_softcapping": null, "final_logit_softcapping": 20})), (None, Some(20.0)));
}

#[test]
fn null_is_refused_where_the_class_has_a_value() {
    for key in ["rms_norm_eps", "attention_bias", "tie_word_embeddings", "hidden_act"] {
        let mut patch = json!({"model_type": "llama"});
        patch[key] = Value::Null;
        let error = read(patch).unwrap_err().to_string();
        assert!(error.contains(&format!("key `{key}` is `null`, expected a value, or no such key")), "{error}");
    }
    assert_eq!(read(json!({"model_type": "llama", "head_dim": null})).unwrap().head_dim, 16);
}

#[test]
fn a_default_token_that_the_vocabulary_does_not_have_is_none() {
    let tokens = |patch: Value| {
        let config = read(patch).unwrap();
        (config.bos_token_id, config.eos_token_ids)
    };
    assert_eq!(tokens(json!({"model_type": "llama"})), (Some(1), vec![2]));
    assert_eq!(tokens(json!({"model_type": "llama", "bos_token_id": null, "eos_token_id": []})), (None, vec![]));
    assert_eq!(tokens(json!({"model_type": "smollm3"})), (None, vec![]));
    assert_eq!(tokens(json!({"model_type": "smollm3", "eos_token_id": 128_012})), (None, vec![128_012]));
}

// Values of `LlamaConfig`, `GPTNeoXConfig` and `Gemma3TextConfig` of transformers 5.24.
#[test]
fn rope_scaling_beside_rope_parameters_counts_and_is_remarked_on() {
    let linear = json!({"type": "linear", "factor": 4.0});
    let llama = read(json!({
        "model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_scaling": linear,
    }));
    let llama = llama.unwrap();
    assert_eq!(
        llama.anatomy.ropes,
        [Rope { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 }, rotary_dim: 16 }]
    );
    let expected = "`rope_scaling` stands beside `rope_parameters`: `rope_scaling` counts, as in transformers 5, and \
        `rope_theta: 500000.0` of `rope_parameters` is ignored with it";
    assert_eq!(llama.remarks(), [expected]);
    let empty = json!({"model_type": "llama", "rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {}});
    let empty = read(empty).unwrap();
    assert_eq!((empty.anatomy.ropes[0].theta, empty.remarks()), (5e5, vec![]));
    let neox = json!({"model_type": "gpt_neox", "rope_scaling": linear, "rotary_pct": 0.5, "rope_theta": 99.0});
    let neox = read(neox).unwrap();
    let expected = Rope { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 }, rotary_dim: 8 };
    assert_eq!(neox.anatomy.ropes, [expected]);
    assert!(neox.remarks()[0].contains("`rope_theta` are not keys of `GPTNeoXForCausalLM` and are ignored"));
    let gemma = json!({
        "model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_parameters": {"full_attention": {"rope_theta": 3e6}, "sliding_attention": {"rope_type": "default"}},
    });
    let gemma = read(gemma).unwrap();
    let global = Rope { theta: 3e6, scaling: RopeScaling::Linear { factor: 8.0 }, rotary_dim: 256 };
    assert_eq!(gemma.anatomy.ropes, [global, Rope { theta: 1e4, scaling: RopeScaling::Default, rotary_dim: 256 }]);
}

#[test]
fn a_llama3_without_its_original_context_has_its_context() {
    let scaling = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let original = |patch: Value| match read(patch).unwrap().anatomy.ropes[0].scaling {
        RopeScaling::Llama3 { original_max_position_embeddings, .. } => original_max_position_embeddings,
        other => panic!("{other:?}"),
    };
    let mut config = json!({"model_type": "llama", "max_position_embeddings": 77, "rope_scaling": scaling});
    assert_eq!(original(config.clone()), 77.0);
    config["rope_scaling"]["original_max_position_embeddings"] = json!(50);
    assert_eq!(original(config.clone()), 50.0);
    config["original_max_position_embeddings"] = json!(40);
    assert_eq!(original(config), 40.0);
}

#[test]
fn keys_that_are_ignored_are_named_and_harmless_ones_are_not() {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "use_cache": true,
        "attn_logit_softcapping": 50.0, "clip_qkv": null, "residual_multiplier": 0.2, "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32, "rope_theta": 1e4},
    });
    assert_eq!(
        read(config).unwrap().remarks(),
        [
            "`rope_theta` is `500000.0`, and `10000.0` in `rope_scaling`, which counts, as in transformers 5",
            "`beta_fast` in `rope_scaling` is ignored",
            "`attn_logit_softcapping`, `residual_multiplier` are not keys of `LlamaForCausalLM` and are ignored",
        ]
    );
}

#[test]
fn a_factor_that_no_type_takes_is_named() {
    let remarks = |scaling: Value| read(json!({"model_type": "llama", "rope_scaling": scaling})).unwrap().remarks();
    for (scaling, expected) in [
        (
            json!({"factor": 4.0}),
            "`factor` in `rope_scaling` is ignored: the object names no `rope_type`, as in transformers 5",
        ),
        (
            json!({"rope_type": "default", "factor": 4.0}),
            "`factor` in `rope_scaling` is ignored: the object has `rope_type: default`, as in transformers 5",
        ),
        (
            json!({"rope_type": "default", "type": "linear"}),
            "`type: \"linear\"` in `rope_scaling` is ignored beside `rope_type: \"default\"`, as in transformers 5",
        ),
    ] {
        assert_eq!(remarks(scaling.clone()), [expected], "{scaling}");
    }
    assert_eq!(remarks(json!({"rope_type": "linear", "type": "linear", "factor": 4.0})), [""; 0]);
}

#[test]
fn an_id_past_the_vocabulary_is_named() {
    let config = read(json!({"model_type": "llama", "bos_token_id": 100, "eos_token_id": [1, 7000]})).unwrap();
    let expected =
        |key: &str, id: u32| format!("`{key}: {id}` is no token of the model, which has 100: no text holds it");
    assert_eq!(config.remarks(), [expected("bos_token_id", 100), expected("eos_token_id", 7000)]);
    assert_eq!(read(json!({"model_type": "llama", "bos_token_id": 99})).unwrap().remarks(), [""; 0]);
}

#[test]
fn unsupported_values_of_a_family_are_refused() {
    let alternating = ["sliding_attention", "full_attention"].repeat(3);
    for (patch, part) in [
        (
            json!({"model_type": "mistral", "layer_types": alternating}),
            "windows that not all layers have are those of Ministral",
        ),
        (
            json!({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": false, "layer_types": alternating}),
            "`use_sliding_window` is `false`",
        ),
        (
            json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 1, "use_bidirectional_attention": true}),
            "bidirectional",
        ),
        (json!({"model_type": "qwen3", "hidden_act": "gelu"}), "`hidden_act: gelu` is not supported"),
        (json!({"model_type": "gemma2", "sliding_window": null}), "no key `sliding_window`"),
        (json!({"model_type": "gemma2", "use_bidirectional_attention": true}), "bidirectional"),
        (json!({"model_type": "gemma2", "hidden_activation": "relu"}), "`hidden_activation: relu` is not supported"),
        (
            json!({"model_type": "qwen3", "rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "one rotary embedding for all layers",
        ),
        (json!({"model_type": "llama", "partial_rotary_factor": 0.5}), "rotates whole heads"),
        (json!({"model_type": "gpt_neox", "head_dim": 32}), "`head_dim: 32` is not supported"),
        (json!({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}), "`attn_logit_softcapping: 50.0`"),
        (json!({"model_type": "gemma3"}), "`gemma3_text` (Gemma 3 270M and 1B)"),
        (json!({"model_type": "qwen2", "layer_types": ["chunked_attention", 1, 2, 3, 4, 5]}), "chunked_attention"),
    ] {
        let error = read(patch).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn sizes_that_no_machine_could_hold_are_refused_before_anything_is_made_of_them() {
    for key in
        ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim"]
    {
        for found in [1u64 << 32, i64::MAX as u64 - 1, u64::MAX - 1] {
            let message = read(json!({"model_type": "llama", key: found})).unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}`")) && message.contains("at most "), "{key}: {message}");
        }
    }
}
