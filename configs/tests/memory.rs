//! Memory of a training step: the sums of the cost model beside sums by hand.
#![allow(clippy::unwrap_used, reason = "tests")]

use retie_config::{Init, Kernels, LoraConfig, MicroBatchShape, ModelConfig, RecursionConfig, Relax, Sharing, merges};
use serde_json::{Value, json};
use std::path::Path;

/// Eight depths of widths `D` = 8, `Q` = 8, `K` = 4, `F` = 16.
fn model(num_recursions: usize, sharing: Sharing, lora: Option<LoraConfig>) -> ModelConfig {
    let Value::Object(map) = json!({
        "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
    }) else {
        unreachable!()
    };
    let recursion = RecursionConfig { lora, ..RecursionConfig::new(num_recursions, sharing, Init::Average) };
    ModelConfig { recursion: Some(recursion), ..ModelConfig::from_json(map, Path::new("tiny")).unwrap() }
}

const SHAPE: MicroBatchShape =
    MicroBatchShape { sequences: 1, sequence_length: 4, checkpoint_recursions: false, kernels: Kernels::Cpu };
const RECOMPUTED: MicroBatchShape = MicroBatchShape { checkpoint_recursions: true, ..SHAPE };
/// 6 D + 2 Q + 2 K + 2 F of a depth, 2 D + 6 F once.
const DEPTH: f64 = (6 * 8 + 2 * 8 + 2 * 4 + 2 * 16) as f64;
const ONCE: f64 = (2 * 8 + 6 * 16) as f64;

#[test]
fn every_depth_keeps_its_activations_or_one_recursion_at_a_time() {
    let model = model(2, Sharing::Cycle, None);
    assert_eq!(model.activations_per_token(SHAPE, None), 8.0 * DEPTH + ONCE);
    assert_eq!(model.activations_per_token(RECOMPUTED, None), 4.0 * DEPTH + ONCE + 2.0 * 8.0);
    // Half of the tokens in the second recursion.
    assert_eq!(model.activations_per_token(SHAPE, Some(&[1.0, 0.5])), 6.0 * DEPTH + ONCE);
    let on_gpu = MicroBatchShape { kernels: Kernels::Gpu, ..SHAPE };
    assert_eq!(model.activations_per_token(on_gpu, None), 8.0 * (DEPTH - 2.0 * 8.0) + ONCE);
}

#[test]
fn lora_is_merged_into_a_weight_for_each_depth_or_keeps_its_rows() {
    let lora = |relax| Some(LoraConfig::uniform(2).with(relax));
    let (small, large) = (SHAPE, MicroBatchShape { sequences: 8, ..SHAPE });
    assert_eq!([5, 6].map(|rows| merges([8, 8], rows)), [false, true]);
    // Six depths of shared layers with seven linears of rank 2. Four rows are enough for k and v.
    let model_with = |relax| model(2, Sharing::MiddleCycle, lora(relax));
    let lora = model_with(Relax::Lora);
    assert_eq!(lora.activations_per_token(small, None), 8.0 * DEPTH + ONCE + 6.0 * 5.0 * 2.0);
    let kept = |shape| lora.merged_elements(MicroBatchShape { kernels: Kernels::Gpu, ..shape });
    assert_eq!(kept(small), 6 * 2 * 4 * 8);
    assert_eq!(lora.activations_per_token(large, None), 8.0 * DEPTH + ONCE);
    let of_layer = 2 * 8 * 8 + 2 * 4 * 8 + 3 * 16 * 8;
    assert_eq!(kept(large), 6 * of_layer);
    assert_eq!(kept(MicroBatchShape { checkpoint_recursions: true, ..large }), 3 * of_layer);
    assert_eq!(lora.merged_elements(large), 0);
    // Outputs of all linears before they are rescaled.
    let outputs = 8 + 4 + 4 + 8 + 16 + 16 + 8;
    let dora = model_with(Relax::Dora);
    assert_eq!(dora.activations_per_token(large, None), 8.0 * DEPTH + ONCE + 6.0 * f64::from(outputs));
}
