//! The demo's configurations. Sizes are such that it takes well under two minutes on two cores.

use super::assets;
use retie_config::{
    ConvertConfig, CosineConfig, CrossEntropyConfig, DataConfig, DistillConfig, GroupsConfig, Init, LossConfig,
    LossSpike, ModelSource, NonFinite, OptimizerConfig, Precision, RunConfig, ScheduleConfig, Sharing, StoredDtype,
    TeacherConfig, TrainConfig, UptrainConfig,
};
use std::path::Path;

/// Passes over the shared block.
pub const RECURSIONS: usize = 2;
/// Windows that are scored at once.
pub const EVAL_BATCH_SIZE: usize = 8;

/// From `base` to `converted`.
pub fn convert(out: &Path) -> ConvertConfig {
    ConvertConfig {
        recursions: Some(RECURSIONS),
        sharing: Some(Sharing::MiddleCycle),
        lora_rank: Some(16),
        share_norms: false,
        dtype: StoredDtype::F32,
        ..ConvertConfig::new(assets::base(out).display().to_string(), Init::Average, out.join("converted"))
    }
}

/// From `converted` to `run/model`.
pub fn uptrain(out: &Path) -> UptrainConfig {
    UptrainConfig {
        schema: 1,
        run: RunConfig::of(out.join("run")),
        student: ModelSource { model: out.join("converted").display().to_string() },
        teacher: Some(TeacherConfig { model: Some(assets::base(out).display().to_string()), logits: None }),
        data: DataConfig { heldout: vec![assets::heldout(out)], ..DataConfig::of(vec![assets::train(out)], 128) },
        losses: vec![
            LossConfig::CrossEntropy(CrossEntropyConfig::new(0.3)),
            LossConfig::Distill(DistillConfig::new(0.7)),
        ],
        optimizer: OptimizerConfig {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            groups: GroupsConfig::default(),
        },
        schedule: ScheduleConfig::Cosine(CosineConfig { warmup_steps: 20, min_lr_ratio: 0.05 }),
        train: TrainConfig {
            steps: Some(300),
            tokens: None,
            batch_size: 4,
            gradient_accumulation: 1,
            checkpoint_recursions: false,
            precision: Precision::default(),
            shard_optimizer: false,
            capacity_warmup_steps: None,
            depth_warmup_steps: None,
            loss_free_balancing: None,
            checkpoint_every: 150,
            keep_last: 1,
            keep_best: 0,
            non_finite: NonFinite::Stop,
            loss_spike: LossSpike::default(),
            telemetry_every: 1,
            eval_every: 30,
            eval_sequences: 32,
            seed: 42,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{Document, document};

    fn valid<D: Document>(config: &D) -> bool {
        document::parse::<D>(&document::to_yaml(config).unwrap(), Path::new("demo.yaml"), &[]).is_ok()
    }

    #[test]
    fn the_configurations_are_valid() {
        let out = Path::new("out");
        assert!(valid(&convert(out)) && valid(&uptrain(out)));
    }
}
