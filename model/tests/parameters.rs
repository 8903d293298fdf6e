//! The parameters of a loaded model are the tensors that its configuration lists.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::tensor::Device;
use retie_config::ModelConfig;
use retie_model::CausalLm;
use retie_testing::RandomWeights;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// Models of `configs/tests/golden/tensors.json`: LoRA, DoRA, extras, routers, own norms, several
/// families.
#[test]
fn the_module_tree_has_the_tensors_of_the_list() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tests/golden/tensors.json");
    let cases: Vec<Value> = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    for case in cases {
        let Value::Object(map) = case["config"].clone() else { unreachable!() };
        let config = ModelConfig::from_json(map, Path::new("config.json")).unwrap();
        let specs = config.tensors();
        let weights = RandomWeights::new(&config);
        for device in [Device::flex(), Device::flex().autodiff()] {
            let model = CausalLm::load(&config, &weights, &device).unwrap();
            let found: BTreeMap<_, _> = model.parameters().into_iter().collect();
            let expected: BTreeMap<_, _> = specs.iter().map(|spec| (spec.name(), spec.shape.clone())).collect();
            assert_eq!(found, expected, "{}", case["case"]);
        }
    }
}
