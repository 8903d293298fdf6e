//! What operations allow to gain by exits.

use super::workload::Size;
use retie_config::ModelConfig;
use retie_engine::ExitTrace;
use serde::Serialize;

/// Forced exits of the new tokens that a model reads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Exits {
    /// Mean recursion count.
    pub mean_recursions: f64,
    /// Gain in tokens per second if time were proportional to operations, with prompts at full
    /// depth.
    pub allowed_gain: f64,
}

impl Exits {
    /// What `trace` allows for requests of `sizes`.
    pub fn of(config: &ModelConfig, trace: &ExitTrace, sizes: &[Size]) -> Self {
        let counts = trace.counts();
        let num_recursions = config.share_map().num_recursions();
        let share =
            |recursion: usize| counts.iter().filter(|count| **count > recursion).count() as f64 / counts.len() as f64;
        let shares: Vec<f64> = (0..num_recursions).map(share).collect();
        let (mut full, mut left) = (0.0, 0.0);
        for Size { prompt, new } in sizes {
            let (start, end) = (config.cost(*prompt, None), config.cost(prompt + new - 1, None));
            let head = config.cost(1, None).head;
            full += end.layers() + head * *new as f64;
            // A token that exits attends to as many keys as the others in the recursions that it
            // runs: attention saves what linears save.
            let (linear, exited) = (end.linear - start.linear, |tokens| config.cost(tokens, Some(&shares)).linear);
            let saved = if linear > 0.0 { 1.0 - (exited(prompt + new - 1) - exited(*prompt)) / linear } else { 0.0 };
            left += end.layers() - saved * (end.layers() - start.layers()) + head * *new as f64;
        }
        Self { mean_recursions: shares.iter().sum(), allowed_gain: full / left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{Init, RecursionConfig, Sharing};
    use serde_json::{Value, json};
    use std::path::Path;

    #[test]
    fn exits_save_the_operations_of_the_recursions_that_are_left_out() {
        let Value::Object(map) = json!({
            "model_type": "llama", "vocab_size": 10, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64,
        }) else {
            unreachable!()
        };
        let recursion = Some(RecursionConfig::new(2, Sharing::MiddleCycle, Init::Stepwise));
        let config = ModelConfig { recursion, ..ModelConfig::from_json(map, Path::new("tiny")).unwrap() };
        let trace = |counts: &[usize]| ExitTrace::new(counts.to_vec()).unwrap();
        let sizes = [Size { prompt: 1, new: 60 }];
        let never = Exits::of(&config, &trace(&[2]), &sizes);
        assert_eq!((never.mean_recursions, never.allowed_gain), (2.0, 1.0));
        // Four of six layers are in the loop, and half of the tokens leave out two: a sixth of the
        // layers; the head is small.
        let half = Exits::of(&config, &trace(&[1, 2]), &sizes);
        assert_eq!(half.mean_recursions, 1.5);
        assert!((1.17..1.2).contains(&half.allowed_gain), "{half:?}");
    }
}
