//! A few uptraining steps of the demo model on another device against the CPU. `RETIE_DEVICE` names the device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use burn::tensor::FloatDType;
use retie_config::{KvStrategy, LossConfig, Precision, RouterBalancingConfig, RouterBceConfig, UptrainConfig};
use retie_trainer::{Resume, TrainError};
use std::{path::Path, sync::atomic::AtomicBool};
use support::{expert_choice, token_choice, with_router};

/// Losses of about 3 nats; the two devices sum in different orders, and three steps carry the difference on.
const TOLERANCE: f64 = 1e-3;

/// The same with products in bf16, which has 8 bits.
const TOLERANCE_OF_BF16: f64 = 2e-2;

fn device() -> Option<String> {
    let name = std::env::var("RETIE_DEVICE").ok().filter(|name| name != "cpu");
    if name.is_none() {
        eprintln!("skipped: RETIE_DEVICE names no device beside the CPU");
    }
    name
}

/// Three steps in `dir`.
fn config(dir: &Path, device: &str, precision: Precision) -> UptrainConfig {
    let mut config = on(&support::config(dir), dir, device);
    config.train.precision = precision;
    config
}

fn on(config: &UptrainConfig, dir: &Path, device: &str) -> UptrainConfig {
    let mut config = config.clone();
    config.run.dir = dir.join(device);
    config.train.steps = Some(3);
    config
}

#[test]
fn a_few_steps_agree_with_the_cpu() {
    let Some(name) = device() else { return };
    agree(&name, Precision::F32, TOLERANCE);
}

#[test]
fn a_few_steps_of_routed_models_agree_with_the_cpu() {
    let Some(name) = device() else { return };
    let kinds = [
        (expert_choice(KvStrategy::RecursionWise), LossConfig::RouterBce(RouterBceConfig::new(0.1))),
        (token_choice(KvStrategy::RecursionWise), LossConfig::RouterBalancing(RouterBalancingConfig::new(0.1))),
    ];
    for (router, loss) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let mut routed = with_router(dir.path(), &router);
        routed.losses.push(loss);
        agree_on(&name, |device| on(&routed, dir.path(), device), TOLERANCE);
    }
}

#[test]
fn a_few_steps_in_bf16_agree_with_the_cpu_or_are_refused() {
    let Some(name) = device() else { return };
    if retie_model::device(&name).unwrap().supports_dtype(FloatDType::BF16) {
        agree(&name, Precision::Bf16, TOLERANCE_OF_BF16);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &name, Precision::Bf16);
    let run = support::start(&config, &name, Resume::Never, &AtomicBool::new(false), &mut |_| {});
    assert!(matches!(run, Err(TrainError::NoBf16)), "{run:?}");
}

fn agree(name: &str, precision: Precision, tolerance: f64) {
    let dir = tempfile::tempdir().unwrap();
    agree_on(name, |device| config(dir.path(), device, precision), tolerance);
}

fn agree_on(name: &str, config: impl Fn(&str) -> UptrainConfig, tolerance: f64) {
    let rows = ["cpu", name].map(|device| support::run(&config(device), device));
    for (cpu, other) in rows[0].iter().zip(&rows[1]) {
        eprintln!(
            "step {}: loss {} and {}, gradient {} and {}",
            cpu.step, cpu.loss, other.loss, cpu.grad_norm, other.grad_norm
        );
        assert!((cpu.loss - other.loss).abs() < tolerance, "step {}: {} and {}", cpu.step, cpu.loss, other.loss);
    }
    assert_eq!(rows[0].len(), 3);
}
