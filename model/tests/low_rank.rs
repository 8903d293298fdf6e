//! Low-rank linears: a model whose matrices are pairs of factors, beside the plain model of their
//! products.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::tensor::Device;
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_config::{
    Depth, Init, LayerIndex, LoraConfig, ModelConfig, Projection, RecursionConfig, Sharing, TensorOwner, TensorRole,
};
use retie_model::{CausalLm, WeightDtype};
use retie_testing::{RandomWeights, ids, values};
use serde_json::{Value, json};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// A gated feed-forward network with biases, and one without gate.
const FAMILIES: [&str; 2] = ["llama", "gpt_neox"];

fn plain(family: &str) -> ModelConfig {
    let Value::Object(map) = json!({
        "model_type": family, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true,
        "hidden_act": if family == "llama" { "silu" } else { "gelu" }, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5, "rotary_pct": 0.5,
    }) else {
        unreachable!()
    };
    ModelConfig::from_json(map, Path::new("config.json")).unwrap()
}

/// Every linear but one as factors; the output projection of the second layer keeps its matrix.
fn low_rank(plain: &ModelConfig) -> ModelConfig {
    let rank = |projection: Projection, depth: usize| if (projection, depth) == (Projection::O, 1) { 0 } else { 5 };
    let ranks = |(projection, _): (Projection, _)| {
        (projection.name().to_owned(), (0..3).map(|depth| rank(projection, depth)).collect())
    };
    let ranks: BTreeMap<String, Vec<usize>> = plain.projection_shapes().into_iter().map(ranks).collect();
    let lora = LoraConfig::table(ranks).map(LoraConfig::without_base);
    let recursion = RecursionConfig { lora, ..RecursionConfig::new(1, Sharing::Cycle, Init::Calibrated) };
    let config = ModelConfig { recursion: Some(recursion), ..plain.clone() };
    config.validate().unwrap();
    // As a folder has it.
    ModelConfig::from_json(config.to_json(), Path::new("config.json")).unwrap()
}

/// The products of factors as matrices, and everything else as it is.
struct Products(RandomWeights, BTreeMap<String, (TensorInfo, Vec<f32>)>);

impl Products {
    fn new(config: &ModelConfig) -> Self {
        let (factors, mut products) = (RandomWeights::new(config), BTreeMap::new());
        for (layer, (projection, [out, inp])) in
            (0..3).flat_map(|layer| config.projection_shapes().into_iter().map(move |of| (layer, of)))
        {
            let own = |role| factors.read_f32(&TensorOwner::Depth(Depth(layer)).weight(role));
            let name = TensorOwner::Layer(LayerIndex(layer)).weight(TensorRole::Projection(projection));
            let Ok(a) = factors.info(&name).map_or_else(|| own(TensorRole::LoraA(projection)), |_| Ok(Vec::new()))
            else {
                panic!("no factors of `{name}`")
            };
            if a.is_empty() {
                continue;
            }
            let b = own(TensorRole::LoraB(projection)).unwrap();
            let element = |i: usize| -> f64 {
                (0..5).map(|k| f64::from(b[i / inp * 5 + k]) * f64::from(a[k * inp + i % inp])).sum()
            };
            let product = (0..out * inp).map(|i| element(i) as f32).collect();
            products.insert(name, (TensorInfo { dtype: Dtype::F32, shape: vec![out, inp] }, product));
        }
        Self(factors, products)
    }
}

impl TensorSource for Products {
    fn names(&self) -> Vec<&str> {
        let whole = self.0.names().into_iter().filter(|name| !name.contains("lora_"));
        whole.chain(self.1.keys().map(String::as_str)).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        let whole = || self.0.info(name).filter(|_| !name.contains("lora_"));
        self.1.get(name).map(|(info, _)| info).or_else(whole)
    }

    fn path_of(&self, _: &str) -> &Path {
        Path::new("products")
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.1.get(name).map_or_else(|| self.0.bytes(name), |(_, values)| Ok(narrow(values, Dtype::F32).into()))
    }
}

#[test]
fn factors_compute_what_their_product_does() {
    for family in FAMILIES {
        let (plain, config) = (plain(family), low_rank(&plain(family)));
        let (factors, products) = (RandomWeights::new(&config), Products::new(&config));
        let logits = |config: &ModelConfig, tensors: &dyn TensorSource, device: &Device| {
            let model = CausalLm::load(config, tensors, device).unwrap();
            let ids = ids(&[vec![3, 1, 4, 1, 5, 9, 2, 6], vec![5, 3, 5, 8, 9, 7, 9, 3]], device);
            values(model.logits(model.forward(ids, None)).inner())
        };
        let expected = logits(&plain, &products, &Device::flex().autodiff());
        let found = logits(&config, &factors, &Device::flex().autodiff());
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            // Rounding of f32 in sums of 24 products, through three layers.
            assert!((found - expected).abs() < 1e-5 * largest, "{family}: {found} {expected}");
        }
    }
}

#[test]
fn the_module_tree_has_factors_in_place_of_matrices_and_all_of_them_are_trained() {
    let config = low_rank(&plain("llama"));
    let device = Device::flex().autodiff();
    let model = CausalLm::load(&config, &RandomWeights::new(&config), &device).unwrap();
    let found: BTreeMap<_, _> = model.parameters().into_iter().collect();
    let expected: BTreeMap<_, _> = config.tensors().iter().map(|spec| (spec.name(), spec.shape.clone())).collect();
    assert_eq!(found, expected);
    assert!(found.contains_key("model.depths.1.mlp.gate_proj.lora_A.weight"));
    assert!(!found.contains_key("model.layers.1.mlp.gate_proj.weight"));
    assert!(found.contains_key("model.layers.1.self_attn.o_proj.weight"));
    // Factors of rank 5 have fewer operations than their matrices.
    let operations = |config: &ModelConfig| config.cost(8, None).linear;
    assert!(operations(&config) < operations(&plain("llama")));
    let bf16 = CausalLm::load_with(&config, &RandomWeights::new(&config), &Device::flex(), WeightDtype::Bf16).unwrap();
    let ids = ids(&[vec![3, 1, 4]], &Device::flex());
    assert!(values(bf16.logits(bf16.forward(ids, None))).iter().all(|x| x.is_finite()));
}

/// A matrix that is neither there nor replaced is an error, not a panic.
#[test]
fn a_missing_factor_is_named() {
    struct Without(RandomWeights);
    impl TensorSource for Without {
        fn names(&self) -> Vec<&str> {
            self.0.names().into_iter().filter(|name| !name.ends_with("depths.2.mlp.up_proj.lora_B.weight")).collect()
        }
        fn info(&self, name: &str) -> Option<&TensorInfo> {
            self.names().contains(&name).then(|| self.0.info(name)).flatten()
        }
        fn path_of(&self, name: &str) -> &Path {
            self.0.path_of(name)
        }
        fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
            self.0.bytes(name)
        }
    }
    let config = low_rank(&plain("llama"));
    let error =
        CausalLm::load(&config, &Without(RandomWeights::new(&config)), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("model.depths.2.mlp.up_proj.lora_B.weight"), "{error}");
}
