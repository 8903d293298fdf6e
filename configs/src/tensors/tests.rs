use super::*;
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, path::Path};

/// `tests/golden/tensors.json`: names, shapes and parameter groups of the tensors of 18 models,
/// written by the code that this list replaced, which spelled out each name and derived groups from
/// parts of names.
#[test]
fn names_shapes_and_groups_are_those_of_existing_checkpoints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tensors.json");
    let cases: Vec<Value> = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let found: Vec<String> = model(case["config"].clone()).unwrap().tensors().iter().map(line).collect();
        let expected: Vec<&str> =
            case["tensors"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
        assert_eq!(found, expected, "{name}");
        let names: BTreeSet<&str> = found.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names.len(), found.len(), "a name of `{name}` occurs twice");
    }
}

fn line(spec: &TensorSpec) -> String {
    let shape: Vec<String> = spec.shape.iter().map(ToString::to_string).collect();
    format!("{} {} {}", spec.name(), shape.join("x"), spec.group.name())
}

fn model(config: Value) -> Result<ModelConfig, crate::ConfigError> {
    let Value::Object(map) = config else { unreachable!() };
    ModelConfig::from_json(map, Path::new("config.json"))
}

/// A Llama of four depths with the keys of `patch`.
fn llama(patch: Value) -> ModelConfig {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let patch: Map<String, Value> = serde_json::from_value(patch).unwrap();
    config.as_object_mut().unwrap().extend(patch);
    model(config).unwrap()
}

#[test]
fn the_parameters_of_smollm2_are_134_515_008() {
    let smollm2 = llama(json!({
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    }));
    let tensors = smollm2.tensors();
    assert_eq!(tensors.len(), 272);
    assert_eq!(tensors.iter().map(TensorSpec::num_elements).sum::<usize>(), 134_515_008);
}

#[test]
fn a_pattern_that_does_not_fit_is_an_error() {
    let recursion = json!({"num_recursions": 2, "sharing": "cycle", "init": "average", "share_norms": true});
    let config = ModelConfig { num_hidden_layers: 3, ..llama(json!({ "recursion": recursion })) };
    assert!(config.validate().is_err());
}

#[test]
fn added_tensors_start_without_an_effect() {
    let recursion = json!({
        "num_recursions": 2, "sharing": "cycle", "init": "average", "share_norms": false,
        "lora": {"rank": 1, "relax": "dora"}, "extras": ["loop_embedding", "loop_norm", "residual_scale"],
    });
    for spec in llama(json!({ "recursion": recursion })).tensors() {
        let expected = match spec.role {
            TensorRole::Extra(crate::ExtraVector::AttentionScale | crate::ExtraVector::MlpScale) => {
                TensorInit::Constant(1.0)
            }
            TensorRole::Extra(_) => TensorInit::Constant(0.0),
            TensorRole::LoraA(_) | TensorRole::LoraB(_) => TensorInit::Residual,
            TensorRole::Magnitude(_) => TensorInit::RowNorms,
            _ => TensorInit::Source,
        };
        assert_eq!(spec.init, expected, "{}", spec.name());
    }
}

#[test]
fn only_the_output_layer_of_a_router_with_gating_delta_starts_at_zero() {
    let routed = |gating: &str| {
        let router = json!({"expert_choice": {
            "network": "mlp", "input": "raw", "score": "sigmoid", "alpha": 2.0, "gating": gating, "capacities": [1.0, 0.5],
            "auxiliary": "linear", "kv": "recursion_wise",
        }});
        let recursion = json!({"num_recursions": 2, "sharing": "cycle", "init": "average", "share_norms": true,
            "router": router});
        let tensors = llama(json!({ "initializer_range": 0.1, "recursion": recursion })).tensors();
        let routers = tensors.into_iter().filter(|spec| matches!(spec.owner, TensorOwner::Router(..)));
        let zero = |spec: TensorSpec| match spec.init {
            TensorInit::Constant(0.0) => Some(spec.name()),
            TensorInit::Normal { std: 0.1 } => None,
            init => panic!("{init:?}"),
        };
        routers.filter_map(zero).collect::<Vec<_>>()
    };
    assert_eq!(routed("delta"), ["model.routers.0.out_proj.weight", "model.routers.1.out_proj.weight"]);
    assert_eq!(routed("weighted"), [""; 0]);
}
