//! Ranks by linear and depth: asked for, or spread within a budget.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_model;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use retie_checkpoint::{SafetensorsFolder, TensorSource};
use retie_config::{ConvertConfig, Depth, Init, ModelConfig, Relax, Sharing};
use retie_convert::{Calibration, ConvertReport, OutputFiles, SourceModel, convert};
use small_model::{SHAPE, conversion, depth_tensor, effective, layers::Mixture, options, run, source_weight, write};
use std::path::Path;

/// Rank of every depth in the file, 0 where there are no factors.
fn stored_ranks(dir: &Path, projection: &str) -> Vec<usize> {
    let folder = SafetensorsFolder::open(dir).unwrap();
    let rank = |depth| {
        let name = |which| depth_tensor(Depth(depth), &format!("{projection}.{which}.weight"));
        let (a, b) = (folder.info(&name("lora_A")), folder.info(&name("lora_B")));
        assert_eq!(a.map(|info| info.shape[0]), b.map(|info| info.shape[1]));
        a.map_or(0, |info| info.shape[0])
    };
    (0..ModelConfig::load(&dir.join("config.json")).unwrap().num_hidden_layers).map(rank).collect()
}

fn kept(report: &ConvertReport) -> f64 {
    let lora = report.lora.as_ref().unwrap();
    lora.projections.iter().flat_map(|p| &p.depths).map(|depth| depth.kept_energy).sum()
}

#[test]
fn linears_have_their_own_ranks_and_the_first_recursion_can_run_the_bare_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let mut options = options(2, Sharing::MiddleCycle, Init::Average);
    (options.lora_rank, options.lora_from, options.share_norms) = (Some(3), 1, false);
    options.lora_ranks = [("k_proj".to_owned(), 12), ("mlp.down_proj".to_owned(), 16)].into();
    let out = dir.path().join("out");
    let report = run(&source, &config, &options, &out).unwrap();
    assert!(report.checks.iter().all(|check| check.passed));
    assert_eq!(stored_ranks(&out, "self_attn.q_proj"), [0, 0, 0, 0, 3, 3, 3, 0]);
    assert_eq!(stored_ranks(&out, "self_attn.k_proj"), [0, 0, 0, 0, 12, 12, 12, 0]);
    assert_eq!(stored_ranks(&out, "mlp.down_proj"), [0, 0, 0, 0, 16, 16, 16, 0]);
    // Full rank gives the second recursion its weights back, the first has the mean.
    let projection = "mlp.down_proj";
    for depth in 4..7 {
        let own = source_weight(&source, projection, depth);
        let other = source_weight(&source, projection, depth - 3);
        let (bare, corrected) = (effective(&out, projection, depth - 3), effective(&out, projection, depth));
        for i in 0..own.len() {
            assert!((corrected[i] - own[i]).abs() < 1e-6); // some units of 6e-8 of weights below 0.2
            assert!((bare[i] - 0.5 * (own[i] + other[i])).abs() < 1e-7);
        }
    }
    assert!(report.to_string().contains("self_attn.k_proj        12  "), "{report}");
}

#[test]
fn a_budget_is_kept_and_keeps_more_than_one_rank_for_all() {
    let dir = tempfile::tempdir().unwrap();
    // Depths 1 and 5 are twins: nothing is lost there, so nothing is spent.
    let (config, source) = write(dir.path(), SHAPE, |i| if i == 5 { 1 } else { i });
    let mut uniform = options(2, Sharing::Cycle, Init::Average);
    uniform.lora_rank = Some(4);
    let uniform = run(&source, &config, &uniform, &dir.path().join("uniform")).unwrap();
    let mut spread = options(2, Sharing::Cycle, Init::Average);
    spread.lora_budget = Some(uniform.parameters.lora);
    let out = dir.path().join("spread");
    let report = run(&source, &config, &spread, &out).unwrap();
    assert!(report.checks.iter().all(|check| check.passed));
    // The dearest rank has 24 + 24 parameters or less.
    let spent = report.parameters.lora;
    assert!(spent <= uniform.parameters.lora && spent + 48 > uniform.parameters.lora, "{spent}");
    assert!(kept(&report) > kept(&uniform));
    let ranks = stored_ranks(&out, "mlp.up_proj");
    assert_eq!((ranks[1], ranks[5]), (0, 0));
    assert!(ranks.iter().any(|rank| *rank > 4), "{ranks:?}");
    // With magnitudes to pay for, ranks are fewer.
    let dora = ConvertConfig { relax: Relax::Dora, ..spread.clone() };
    let dora = run(&source, &config, &dora, &dir.path().join("dora")).unwrap();
    let (paid, all) = (dora.parameters.lora, uniform.parameters.lora);
    assert!(paid <= all && paid + 48 + 24 > all && kept(&dora) < kept(&report), "{paid} {all}");
    // The folder says so itself.
    let lora = ModelConfig::load(&out.join("config.json")).unwrap().recursion.unwrap().lora.unwrap();
    assert_eq!(lora.ranks["mlp.up_proj"], ranks);
    let again = dir.path().join("again");
    run(&source, &config, &spread, &again).unwrap();
    let read = |dir: &Path| fs_err::read(dir.join("model.safetensors")).unwrap();
    assert!(read(&out) == read(&again));
}

#[test]
fn a_calibrated_start_takes_ranks_by_linear_and_a_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let model = Mixture(config.clone());
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut ids = |count: usize| (0..count * 32).map(|_| rng.next_u32() % 40).collect();
    let calibration =
        Calibration { model: &model, text: "a text".to_owned(), sequence_length: 32, train: ids(8), heldout: ids(4) };
    let calibrated = |name: &str, change: &dyn Fn(&mut ConvertConfig)| {
        let mut options = options(2, Sharing::MiddleCycle, Init::Calibrated);
        options.share_norms = false;
        change(&mut options);
        let out = dir.path().join(name);
        let source = SourceModel { tensors: &source, config: &config };
        let (conversion, files) = (conversion(&options), OutputFiles::default());
        let report = convert(source, &conversion, Some(&calibration), &files, &out, &mut |_| {}).unwrap();
        assert!(report.checks.iter().all(|check| check.passed), "{name}");
        (report.calibration.unwrap().calibrated.kl, report.parameters.lora, out)
    };
    let (_, _, out) = calibrated("from", &|o| (o.lora_rank, o.lora_from) = (Some(4), 1));
    assert_eq!(stored_ranks(&out, "mlp.gate_proj"), [0, 0, 0, 0, 4, 4, 4, 0]);
    let (_, _, out) = calibrated("linears", &|o| o.lora_ranks = [("down_proj".to_owned(), 5)].into());
    assert_eq!(stored_ranks(&out, "mlp.gate_proj"), [0; 8]);
    assert_eq!(stored_ranks(&out, "mlp.down_proj"), [0, 5, 5, 5, 5, 5, 5, 0]);
    let (_, parameters, _) = calibrated("uniform", &|o| o.lora_rank = Some(4));
    let (spread, spent, out) = calibrated("budget", &|o| o.lora_budget = Some(parameters));
    let (half, _, _) = calibrated("half", &|o| o.lora_budget = Some(parameters / 2));
    assert!(spent <= parameters && spent + 48 > parameters, "{spent} {parameters}");
    assert!(spread < half, "{spread} {half}");
    assert!(stored_ranks(&out, "mlp.up_proj").iter().any(|rank| *rank != 4));
}
