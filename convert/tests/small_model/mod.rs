//! Small random Llama checkpoints for tests, and readers of what a conversion made of them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "each test binary uses a part of it")]

pub mod layers;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use retie_checkpoint::{
    Dtype, FolderWriter, SafetensorsFolder, TensorInfo, TensorSource, depth_tensor, expected_tensors, layer_tensor,
    narrow,
};
use retie_config::{Depth, Init, LayerIndex, ModelConfig, Pattern, Sharing};
use retie_convert::{ConvertError, ConvertOptions, ConvertReport, Extras, convert};
use serde_json::{Map, json};
use std::path::Path;

/// What varies between the models of the tests.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub num_layers: usize,
    pub tied_embeddings: bool,
    pub biases: bool,
    pub dtype: Dtype,
}

pub const SHAPE: Shape = Shape { num_layers: 8, tied_embeddings: true, biases: false, dtype: Dtype::F32 };

pub fn config(shape: Shape) -> ModelConfig {
    let mut map = Map::new();
    for (key, value) in [
        ("model_type", json!("llama")),
        ("vocab_size", json!(40)),
        ("hidden_size", json!(16)),
        ("intermediate_size", json!(24)),
        ("num_hidden_layers", json!(shape.num_layers)),
        ("num_attention_heads", json!(4)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(6)),
        ("rms_norm_eps", json!(1e-5)),
        ("tie_word_embeddings", json!(shape.tied_embeddings)),
        ("attention_bias", json!(shape.biases)),
        ("mlp_bias", json!(shape.biases)),
        ("a_key_of_someone_else", json!("kept")),
    ] {
        map.insert(key.into(), value);
    }
    ModelConfig::from_json(map, Path::new("config.json")).unwrap()
}

/// Writes a random model; layer `i` has the weights of layer `twin(i)`.
pub fn write(dir: &Path, shape: Shape, twin: impl Fn(usize) -> usize) -> (ModelConfig, SafetensorsFolder) {
    let config = config(shape);
    let expected = expected_tensors(&config).unwrap();
    let values = |name: &str, size: usize| -> Vec<f32> {
        // One stream a tensor, so that twins can be drawn again.
        let name = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
            Some((i, part)) => format!("{}.{part}", twin(i.parse().unwrap())),
            None => name.to_owned(),
        };
        let seed = name.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Norms are near 1, as those of a trained model.
        let center = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        (0..size).map(|_| center + (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * 0.3).collect()
    };
    let entries: Vec<_> =
        expected.into_iter().map(|(name, s)| (name, TensorInfo { dtype: shape.dtype, shape: s })).collect();
    let mut writer = FolderWriter::create(dir, &entries, u64::MAX).unwrap();
    for (name, info) in &entries {
        writer.write(name, &narrow(&values(name, info.num_elements()), shape.dtype)).unwrap();
    }
    writer.finish().unwrap();
    (config, SafetensorsFolder::open(dir).unwrap())
}

pub fn options(recursions: usize, sharing: Sharing, init: Init) -> ConvertOptions {
    let pattern = Pattern::new(sharing, None, None, None).unwrap();
    ConvertOptions { max_shard_bytes: u64::MAX, ..ConvertOptions::new(recursions, pattern, init) }
}

/// Converts without extras.
pub fn run(
    source: &dyn TensorSource,
    config: &ModelConfig,
    options: &ConvertOptions,
    out: &Path,
) -> Result<ConvertReport, ConvertError> {
    convert(source, config, options, &Extras::default(), out, &mut |_| {})
}

/// `W' + B A` of one projection at one depth, with its shape; just `W'` where there is no LoRA.
pub fn effective(dir: &Path, projection: &str, depth: usize) -> Vec<f64> {
    let config = ModelConfig::load(&dir.join("config.json")).unwrap();
    let folder = SafetensorsFolder::open(dir).unwrap();
    let map = retie_checkpoint::share_map(&config).unwrap();
    let layer = map.depths()[depth].layer;
    let name = layer_tensor(layer, &format!("{projection}.weight"));
    let mut weight: Vec<f64> = folder.read_f32(&name).unwrap().into_iter().map(f64::from).collect();
    let factor = |which: &str| depth_tensor(Depth(depth), &format!("{projection}.{which}.weight"));
    if let Some(info) = folder.info(&factor("lora_A")) {
        let (rank, inp) = (info.shape[0], info.shape[1]);
        let (a, b) = (folder.read_f32(&factor("lora_A")).unwrap(), folder.read_f32(&factor("lora_B")).unwrap());
        for (i, w) in weight.iter_mut().enumerate() {
            let (row, column) = (i / inp, i % inp);
            *w += (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * inp + column])).sum::<f64>();
        }
    }
    weight
}

pub fn source_weight(source: &dyn TensorSource, projection: &str, layer: usize) -> Vec<f64> {
    let name = layer_tensor(LayerIndex(layer), &format!("{projection}.weight"));
    source.read_f32(&name).unwrap().into_iter().map(f64::from).collect()
}
