//! Hidden states of a teacher of another size, through learned maps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_checkpoint::{Dtype, FolderWriter, TensorInfo, narrow};
use retie_config::{HiddenConfig, LossTerm, ModelConfig, UptrainConfig};
use retie_trainer::{Resume, TrainError, read_metrics};
use serde_json::{Map, Value};
use std::{path::Path, sync::atomic::AtomicBool};
use support::{Threads, bits, config, run, start, start_on, stop_after};

/// A model like the demo's, half as wide again, with weights that follow from their place.
fn wider(dir: &Path) -> String {
    let base = support::assets().join("demo-model");
    let folder = dir.join("wider");
    fs_err::create_dir(&folder).unwrap();
    fs_err::copy(base.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let path = folder.join("config.json");
    let mut config: Map<String, Value> =
        serde_json::from_slice(&fs_err::read(base.join("config.json")).unwrap()).unwrap();
    config["hidden_size"] = (config["hidden_size"].as_u64().unwrap() * 3 / 2).into();
    fs_err::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
    let shapes = ModelConfig::from_json(config, &path).unwrap().tensors();
    let shapes: Vec<_> = shapes.into_iter().map(|spec| (spec.name(), spec.shape)).collect();
    let info =
        |(name, shape): &(String, Vec<usize>)| (name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone() });
    let mut writer = FolderWriter::create(&folder, &shapes.iter().map(info).collect::<Vec<_>>(), 1 << 30).unwrap();
    for (index, (name, shape)) in shapes.iter().enumerate() {
        let value = |at: usize| match shape.len() {
            1 => 1.0, // a norm
            _ => (((at * 2_654_435_761 + index * 40_503) % 1009) as f32 / 504.5 - 1.0) * 0.08,
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        writer.write(name, &narrow(&values, Dtype::F32)).unwrap();
    }
    writer.finish().unwrap();
    folder.display().to_string()
}

fn mapped(dir: &Path) -> UptrainConfig {
    let mut config = config(dir);
    config.teacher.as_mut().unwrap().model = Some(wider(dir));
    config.losses = vec![LossTerm::new(1.0, HiddenConfig { projection: true, ..HiddenConfig::default() })];
    config
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_and_leaves_its_maps_behind() {
    let dir = tempfile::tempdir().unwrap();
    let whole = mapped(dir.path());
    let rows = run(&whole, "cpu");
    assert!(rows[5].terms["hidden"] < rows[0].terms["hidden"], "{:?} {:?}", rows[0].terms, rows[5].terms);
    let mut broken = whole.clone();
    broken.run.dir = dir.path().join("broken");
    stop_after(&broken, 3);
    let maps = broken.run.dir.join("ckpt/step-3/projections.safetensors");
    let shape = safetensors::SafeTensors::deserialize(&fs_err::read(&maps).unwrap())
        .unwrap()
        .tensor("weight.1")
        .unwrap()
        .shape()
        .to_vec();
    assert_eq!(shape[0] * 2, shape[1] * 3);
    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
    let files: Vec<_> =
        fs_err::read_dir(broken.run.dir.join("model")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(files.iter().all(|name| name != "projections.safetensors"), "{files:?}");
}

#[test]
fn two_ranks_learn_the_maps_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let alone = mapped(dir.path());
    let rows = run(&alone, "cpu");
    let mut ranks = alone.clone();
    ranks.run.dir = dir.path().join("ranks");
    Threads::run(2, |rank| start_on(&ranks, Resume::Never, rank, &AtomicBool::new(false)).unwrap());
    for (a, b) in rows.iter().zip(read_metrics(&ranks.run.dir).unwrap()) {
        assert!((a.loss - b.loss).abs() <= 1e-6 * a.loss, "step {}: {} and {}", a.step, a.loss, b.loss);
    }
}

#[test]
fn without_a_map_the_sizes_have_to_be_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = mapped(dir.path());
    config.losses = vec![LossTerm::new(1.0, HiddenConfig::default())];
    let error = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(matches!(error, TrainError::Loss { loss: "hidden", .. }));
    assert!(error.to_string().contains("`projection: true`"), "{error}");
}
