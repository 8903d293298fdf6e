//! A few uptraining steps of the demo model on another device against the CPU. `RETIE_DEVICE` names the device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_config::UptrainConfig;

/// Losses of about 3 nats; the two devices sum in different orders, and three steps carry the difference on.
const TOLERANCE: f64 = 1e-3;

#[test]
fn a_few_steps_agree_with_the_cpu() {
    let Some(name) = std::env::var("RETIE_DEVICE").ok().filter(|name| name != "cpu") else {
        eprintln!("skipped: RETIE_DEVICE names no device beside the CPU");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let config = |device: &str| -> UptrainConfig {
        let mut config = support::config(dir.path());
        config.run.dir = dir.path().join(device);
        config.train.steps = Some(3);
        config
    };
    let rows = ["cpu", name.as_str()].map(|device| support::run(&config(device), device));
    for (cpu, other) in rows[0].iter().zip(&rows[1]) {
        eprintln!(
            "step {}: loss {} and {}, gradient {} and {}",
            cpu.step, cpu.loss, other.loss, cpu.grad_norm, other.grad_norm
        );
        assert!((cpu.loss - other.loss).abs() < TOLERANCE, "step {}: {} and {}", cpu.step, cpu.loss, other.loss);
    }
    assert_eq!(rows[0].len(), 3);
}
