//! Products in bf16: a run that is near that of f32, with master weights of f32.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_checkpoint::ModelSource;
use retie_config::Precision;
use support::{config, run};

#[test]
fn a_run_in_bf16_is_near_that_in_f32_and_updates_f32() {
    let dir = tempfile::tempdir().unwrap();
    let whole = config(dir.path());
    let mut half = whole.clone();
    half.run.dir = dir.path().join("half");
    half.train.precision = Precision::Bf16;
    let rows = [&whole, &half].map(|config| run(config, "cpu"));
    assert_eq!(rows[0].len(), 6);
    for (a, b) in rows[0].iter().zip(&rows[1]) {
        // bf16 has 8 bits; rounding averages out over rows and layers.
        let relative = (a.loss - b.loss).abs() / a.loss;
        assert!(relative > 0.0 && relative < 0.02, "step {}: {} and {}", a.step, a.loss, b.loss);
    }
    let model = ModelSource::open(half.run.dir.join("model").to_str().unwrap()).unwrap();
    let bytes = model.tensors.bytes("model.layers.0.mlp.up_proj.weight").unwrap();
    let bits = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
    let (fine, all) = bits.fold((0, 0), |(fine, all), bits| (fine + usize::from(bits & 0xffff != 0), all + 1));
    assert!(fine > all / 2, "{fine} of {all} weights have more than 8 bits");
}
