//! Routers added to a converted model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_model;

use retie_checkpoint::{Dtype, SafetensorsFolder, TensorSource, check_tensors};
use retie_config::{
    ExpertChoiceConfig, Gating, Init, ModelConfig, RouterConfig, RouterInput, RouterNetwork, Sharing, TokenChoiceConfig,
};
use retie_convert::{ConvertError, OutputFiles, RouterOptions, RouterReport, SourceModel, add_router};
use small_model::{SHAPE, Shape, options, run, write};
use std::path::Path;

fn router(network: RouterNetwork, gating: Gating, capacities: &[f64]) -> RouterConfig {
    RouterConfig::ExpertChoice(ExpertChoiceConfig {
        network,
        input: RouterInput::Normalized,
        alpha: gating.default_alpha(),
        gating,
        capacities: capacities.to_vec(),
        ..ExpertChoiceConfig::new(capacities.len())
    })
}

fn open(dir: &Path) -> (ModelConfig, SafetensorsFolder) {
    (ModelConfig::load(&dir.join("config.json")).unwrap(), SafetensorsFolder::open(dir).unwrap())
}

/// A conversion of a bf16 model in `dir/converted`.
fn converted(dir: &Path, sharing: Sharing) -> (ModelConfig, SafetensorsFolder) {
    fs_err::create_dir(dir.join("base")).unwrap();
    let (config, source) = write(&dir.join("base"), Shape { dtype: Dtype::BF16, ..SHAPE }, |i| i);
    let out = dir.join("converted");
    run(&source, &config, &options(2, sharing, Init::Average), &out).unwrap();
    open(&out)
}

fn add(
    (config, source): &(ModelConfig, SafetensorsFolder),
    router: &RouterConfig,
    out: &Path,
) -> Result<RouterReport, ConvertError> {
    let options = RouterOptions { router: router.clone(), kv_sharing: None, seed: 3 };
    add_router(SourceModel { tensors: source, config }, &options, &OutputFiles::default(), out, &mut |_| {})
}

#[test]
fn a_routed_model_is_the_converted_one_with_routers_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let source = converted(dir.path(), Sharing::MiddleCycle);
    let out = dir.path().join("routed");
    let router = router(RouterNetwork::Mlp, Gating::StraightThrough, &[1.0, 0.5]);
    let report = add(&source, &router, &out).unwrap();
    assert!(report.checks.iter().all(|check| check.passed), "{report}");
    let (config, folder) = open(&out);
    check_tensors(&config, &folder).unwrap();
    assert_eq!(config.recursion.as_ref().unwrap().router.as_ref(), Some(&router));
    for name in source.1.names() {
        assert_eq!(folder.bytes(name).unwrap(), source.1.bytes(name).unwrap(), "{name}");
    }
    // d → 2d → 1 for each of two recursions, with d = 16.
    assert_eq!(report.parameters.routers, 2 * (32 * 16 + 32));
    for r in 0..2 {
        let up = folder.info(&format!("model.routers.{r}.up_proj.weight")).unwrap();
        assert_eq!((up.dtype, up.shape.as_slice()), (Dtype::F32, [32, 16].as_slice()));
        let values = folder.read_f32(&format!("model.routers.{r}.up_proj.weight")).unwrap();
        let spread = (values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        // 512 draws: the deviation of the deviation is 3 % of it.
        assert!((spread - 0.02).abs() < 0.003, "{spread}");
    }
    let again = dir.path().join("again");
    add(&source, &router, &again).unwrap();
    let read = |dir: &Path| fs_err::read(dir.join("model.safetensors")).unwrap();
    assert!(read(&again) == read(&out), "the same seed gives the same bytes");
}

#[test]
fn gates_of_delta_start_at_one() {
    let dir = tempfile::tempdir().unwrap();
    let source = converted(dir.path(), Sharing::Cycle);
    let out = dir.path().join("routed");
    let report = add(&source, &router(RouterNetwork::Linear, Gating::Delta, &[1.0, 1.0]), &out).unwrap();
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(open(&out).1.read_f32("model.routers.1.out_proj.weight").unwrap(), [0.0; 16]);
    let report =
        add(&source, &router(RouterNetwork::Linear, Gating::Weighted, &[1.0, 0.5]), &dir.path().join("w")).unwrap();
    assert_eq!(report.notes.len(), 2, "{report}");
}

#[test]
fn a_router_of_depths_begins_without_preference_and_auxiliary_routers_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let source = converted(dir.path(), Sharing::Cycle);
    let depths = |gating| {
        RouterConfig::TokenChoice(TokenChoiceConfig {
            network: RouterNetwork::Mlp,
            input: RouterInput::Normalized,
            gating,
            ..TokenChoiceConfig::default()
        })
    };
    let out = dir.path().join("depths");
    let report = add(&source, &depths(Gating::StraightThrough), &out).unwrap();
    assert_eq!(report.notes.len(), 1, "{report}");
    // d → 2d → 2, with d = 16: one router for both recursions.
    assert_eq!(report.parameters.routers, 32 * 16 + 2 * 32);
    let (_, folder) = open(&out);
    assert_eq!(folder.read_f32("model.routers.0.out_proj.weight").unwrap(), [0.0; 64]);
    assert!(folder.read_f32("model.routers.0.up_proj.weight").unwrap().iter().all(|x| *x != 0.0));
    let weighted = dir.path().join("weighted");
    assert_eq!(add(&source, &depths(Gating::Weighted), &weighted).unwrap().notes.len(), 2);
    assert!(open(&weighted).1.read_f32("model.routers.0.out_proj.weight").unwrap().iter().all(|x| *x != 0.0));

    let mut auxiliary = router(RouterNetwork::Linear, Gating::Delta, &[1.0, 0.5]);
    let RouterConfig::ExpertChoice(config) = &mut auxiliary else { panic!() };
    config.auxiliary = Some(RouterNetwork::Linear);
    let out = dir.path().join("auxiliary");
    let report = add(&source, &auxiliary, &out).unwrap();
    assert_eq!(report.parameters.routers, 4 * 16);
    let (_, folder) = open(&out);
    assert_eq!(folder.read_f32("model.routers.1.out_proj.weight").unwrap(), [0.0; 16]);
    assert!(folder.read_f32("model.auxiliary_routers.1.out_proj.weight").unwrap().iter().all(|x| *x != 0.0));
}

#[test]
fn what_cannot_be_routed_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let looped = converted(dir.path(), Sharing::Cycle);
    let good = router(RouterNetwork::Linear, Gating::StraightThrough, &[1.0, 0.5]);
    let routed = dir.path().join("routed");
    add(&looped, &good, &routed).unwrap();
    let base = open_base(dir.path());
    let other = tempfile::tempdir().unwrap();
    let unlooped = converted(other.path(), Sharing::Sequence);
    let rising = router(RouterNetwork::Linear, Gating::StraightThrough, &[0.5, 0.7]);
    for (source, router, expected) in [
        (&base, &good, "the model is not recursive"),
        (&open(&routed), &good, "the model has an `expert_choice` router already"),
        (&unlooped, &good, "the router cannot be used:\n  `sequence` has no loop"),
        (&looped, &rising, "the router cannot be used:\n  the capacity rises from `0.5` to `0.7` at recursion 1"),
    ] {
        let out = dir.path().join("refused");
        let error = add(source, router, &out).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(!out.exists());
    }
}

fn open_base(dir: &Path) -> (ModelConfig, SafetensorsFolder) {
    (small_model::config(Shape { dtype: Dtype::BF16, ..SHAPE }), SafetensorsFolder::open(&dir.join("base")).unwrap())
}
