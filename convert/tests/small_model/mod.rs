//! Small random Llama checkpoints for tests, and readers of what a conversion made of them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "each test binary uses a part of it")]

pub mod layers;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use retie_checkpoint::{Dtype, FolderWriter, SafetensorsFolder, TensorInfo, TensorSource, narrow};
use retie_config::{Conversion, ConvertConfig, Depth, Init, LayerIndex, ModelConfig, Pattern, Sharing};
use retie_convert::{ConvertError, ConvertReport, OutputFiles, SourceModel, convert};
use serde_json::{Map, json};
use std::path::Path;

/// What varies between the models of the tests.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Hidden size; the feed-forward network has half as much again.
    pub width: usize,
    pub num_layers: usize,
    pub tied_embeddings: bool,
    pub biases: bool,
    pub dtype: Dtype,
}

pub const SHAPE: Shape = Shape { width: 16, num_layers: 8, tied_embeddings: true, biases: false, dtype: Dtype::F32 };

pub fn config(shape: Shape) -> ModelConfig {
    let mut map = Map::new();
    for (key, value) in [
        ("model_type", json!("llama")),
        ("vocab_size", json!(40)),
        ("hidden_size", json!(shape.width)),
        ("intermediate_size", json!(shape.width * 3 / 2)),
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

/// Name of the last part of DoRA's tensors.
pub const MAGNITUDES: &str = "lora_magnitude_vector";

/// Name of a tensor of a stored layer.
pub fn layer_tensor(layer: LayerIndex, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

/// Name of a tensor of a depth.
pub fn depth_tensor(depth: Depth, part: &str) -> String {
    format!("model.depths.{depth}.{part}")
}

/// Writes a random model; layer `i` has the weights of layer `twin(i)`.
pub fn write(dir: &Path, shape: Shape, twin: impl Fn(usize) -> usize) -> (ModelConfig, SafetensorsFolder) {
    let config = config(shape);
    let expected = config.tensors();
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
        expected.into_iter().map(|s| (s.name(), TensorInfo { dtype: shape.dtype, shape: s.shape })).collect();
    let mut writer = FolderWriter::create(dir, &entries, u64::MAX).unwrap();
    for (name, info) in &entries {
        writer.write(name, &narrow(&values(name, info.num_elements()), shape.dtype)).unwrap();
    }
    writer.finish().unwrap();
    (config, SafetensorsFolder::open(dir).unwrap())
}

/// The document of a conversion; the names of its source and folder are read by the command line
/// alone.
pub fn options(recursions: usize, sharing: Sharing, init: Init) -> ConvertConfig {
    ConvertConfig {
        recursions: Some(recursions),
        sharing: Some(sharing),
        ..ConvertConfig::new("base".to_owned(), init, "out".into())
    }
}

/// `config` with another pattern.
pub fn with_pattern(config: ConvertConfig, pattern: &Pattern) -> ConvertConfig {
    let (prelude, coda, map) = pattern.keys();
    ConvertConfig { sharing: Some(pattern.sharing()), prelude, coda, map, ..config }
}

/// The conversion that `config` names.
pub fn conversion(config: &ConvertConfig) -> Conversion {
    // What an init is fitted to is given to the conversion as tokens.
    let calibration = Some("text".into());
    let config = ConvertConfig { calibration, ..config.clone() };
    config.validate().unwrap().conversion().unwrap().clone()
}

/// Converts without a text and further files.
pub fn run(
    source: &dyn TensorSource,
    config: &ModelConfig,
    options: &ConvertConfig,
    out: &Path,
) -> Result<ConvertReport, ConvertError> {
    let source = SourceModel { tensors: source, config };
    convert(source, &conversion(options), None, &OutputFiles::default(), out, &mut |_| {})
}

/// `W' + B A` of one projection at one depth; just `W'` where there is no LoRA, and `B A` where it
/// replaces the matrix.
pub fn effective(dir: &Path, projection: &str, depth: usize) -> Vec<f64> {
    let config = ModelConfig::load(&dir.join("config.json")).unwrap();
    let folder = SafetensorsFolder::open(dir).unwrap();
    let map = config.share_map();
    let layer = map.depths()[depth].layer;
    let name = layer_tensor(layer, &format!("{projection}.weight"));
    let found = config.projection_shapes().into_iter().find(|(found, _)| found.name() == projection);
    let size: usize = found.unwrap().1.iter().product();
    let stored = folder.read_f32(&name).unwrap_or(vec![0.0; size]);
    let mut weight: Vec<f64> = stored.into_iter().map(f64::from).collect();
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
