//! DoRA from the conversion into training: it begins as LoRA does, its magnitudes are trained, and
//! what is tied stays so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use burn::tensor::{Device, Int, Tensor};
use retie_checkpoint::ModelSource;
use retie_config::{Relax, TensorSpec};
use retie_model::{CausalLm, kernels::f32_slice};
use std::path::Path;
use support::{config_of, run};

fn open(path: &Path) -> ModelSource {
    ModelSource::open(path.to_str().unwrap()).unwrap()
}

fn logits(source: &ModelSource, device: &Device) -> Vec<f32> {
    let model = CausalLm::load(&source.config, source.tensors.as_ref(), device).unwrap();
    let ids: Vec<i32> = (0..48).map(|i| (i * 97 + 11) % 2048).collect();
    let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), device).reshape([2, 24]);
    f32_slice(&model.logits(model.forward(ids, None)).inner().into_data()).to_vec()
}

/// Largest difference as a part of the largest value.
fn distance(x: &[f32], y: &[f32]) -> f32 {
    let largest = y.iter().fold(0.0f32, |m, y| m.max(y.abs()));
    x.iter().zip(y).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / largest
}

#[test]
fn dora_begins_with_the_logits_of_lora_trains_its_magnitudes_and_stays_tied() {
    let dir = tempfile::tempdir().unwrap();
    let [lora, dora] = Relax::ALL.map(|relax| {
        let place = dir.path().join(relax.name());
        fs_err::create_dir(&place).unwrap();
        (config_of(&place, relax), open(&place.join("student")))
    });
    let expected = logits(&lora.1, &Device::flex());
    // Norms once at load, and in every pass: quotients of norms that are 1 to the rounding of f32,
    // over eight depths.
    for device in [Device::flex(), Device::flex().autodiff()] {
        let found = distance(&logits(&dora.1, &device), &expected);
        assert!(found < 2e-6, "{found}");
    }

    let mut config = dora.0;
    config.optimizer.weight_decay = 0.9; // if it reached the magnitudes they would shrink by 1e-3 or less in each of 6 steps
    let rows = run(&config, "cpu");
    assert!(rows[5].loss < rows[0].loss, "{} and {}", rows[0].loss, rows[5].loss);
    let trained = open(&config.run.dir.join("model"));
    // Each stored layer once, each depth its own.
    let names: Vec<String> = trained.config.tensors().iter().map(TensorSpec::name).collect();
    let mut expected = dora.1.config.clone();
    expected.other.insert("torch_dtype".into(), "float32".into());
    assert_eq!((trained.tensors.names().len(), &trained.config), (names.len(), &expected));
    let values = |source: &ModelSource, name: &str| source.tensors.read_f32(name).unwrap();
    let mut vectors = 0;
    for name in &names {
        let (before, after) = (values(&dora.1, name), values(&trained, name));
        assert_ne!(before, after, "{name}");
        if name.ends_with("lora_magnitude_vector") {
            vectors += 1;
            // Adam's steps are as long as the rate, of either sign: 6 of 1e-3 or less.
            assert!(before.iter().zip(&after).all(|(x, y)| (x - y).abs() < 6.1e-3), "{name}");
            assert!(before.iter().zip(&after).any(|(x, y)| y > x), "{name} only shrank");
        }
    }
    assert_eq!(vectors, 8 * 7);
    // The magnitudes are no longer the norms: what was learnt is in them too.
    let bare = strip(&config.run.dir.join("model"), &dir.path().join("bare"));
    let found = distance(&logits(&open(&bare), &Device::flex()), &logits(&trained, &Device::flex()));
    assert!(found > 1e-3, "{found}");
}

/// The folder without its magnitudes: LoRA with the same matrices.
fn strip(from: &Path, to: &Path) -> std::path::PathBuf {
    let source = open(from);
    let mut config = source.config.clone();
    if let Some(lora) = config.recursion.as_mut().and_then(|recursion| recursion.lora.as_mut()) {
        lora.relax = Relax::Lora;
    }
    let tensors = source.tensors.as_ref();
    let entries: Vec<_> = config.tensors().iter().map(TensorSpec::name).collect();
    let entries: Vec<_> =
        entries.into_iter().map(|name| (name.clone(), tensors.info(&name).unwrap().clone())).collect();
    fs_err::create_dir(to).unwrap();
    let mut writer = retie_checkpoint::FolderWriter::create(to, &entries, u64::MAX).unwrap();
    entries.iter().for_each(|(name, _)| writer.write(name, &tensors.bytes(name).unwrap()).unwrap());
    writer.finish().unwrap();
    fs_err::write(to.join("config.json"), serde_json::to_string(&config.to_json()).unwrap()).unwrap();
    to.to_owned()
}
