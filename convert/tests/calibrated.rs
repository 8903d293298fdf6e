//! What a calibrated start has to keep, on small random models.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_model;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use retie_checkpoint::{SafetensorsFolder, TensorSource};
use retie_config::{
    ConvertConfig, Init, LayerIndex, ModelConfig, Pattern, Projection, Relax, RemainderPolicy, Sharing, StoredDtype,
};
use retie_convert::{Calibration, ConvertError, ConvertReport, OutputFiles, SourceModel, convert};
use small_model::{
    SHAPE, Shape, conversion, effective, layer_tensor, layers::Mixture, options, run, source_weight, with_pattern,
    write,
};
use std::path::Path;

const TOKENS: usize = 32;

fn calibrated(
    source: &dyn TensorSource,
    config: &ModelConfig,
    options: &ConvertConfig,
    num_sequences: usize,
    out: &Path,
) -> Result<ConvertReport, ConvertError> {
    let model = Mixture(config.clone());
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut ids = |count: usize| (0..count * TOKENS).map(|_| rng.next_u32() % 40).collect();
    let calibration = Calibration {
        model: &model,
        text: "a text".to_owned(),
        sequence_length: TOKENS,
        train: ids(num_sequences),
        heldout: ids(2),
    };
    let source = SourceModel { tensors: source, config };
    convert(source, &conversion(options), Some(&calibration), &OutputFiles::default(), out, &mut |_| {})
}

/// Every pattern, with and without LoRA, own norms and biases: all checks pass, unshared layers are
/// those of the source, and with a LoRA held-out hidden states are closer to the source's than
/// those of `average`.
#[test]
fn every_pattern_rank_and_kind_of_norms_can_be_calibrated() {
    for sharing in Sharing::ALL {
        let num_layers = 6 + 2 * sharing.num_unshared_ends();
        for (recursions, lora_rank, share_norms, biases) in
            [(2, None, false, false), (2, Some(4), true, true), (3, Some(4), false, true), (3, None, true, true)]
        {
            let dir = tempfile::tempdir().unwrap();
            let (config, source) = write(dir.path(), Shape { num_layers, biases, ..SHAPE }, |i| i);
            let mut options = options(recursions, sharing, Init::Calibrated);
            (options.lora_rank, options.share_norms) = (lora_rank, share_norms);
            let out = dir.path().join("out");
            let report = calibrated(&source, &config, &options, 8, &out).unwrap();
            let what = format!("{sharing} {recursions} {lora_rank:?} {share_norms} {biases}");
            assert!(report.checks.iter().all(|check| check.passed), "{what}");
            let found = report.calibration.unwrap();
            // Without corrections nothing answers for what the layers before did, and layers of
            // random weights have nothing in common.
            let closer = found.calibrated.kl < found.average.kl;
            assert!(closer || lora_rank.is_none(), "{what} {:?} {:?}", found.calibrated, found.average);
            assert_eq!((found.tokens, found.heldout_tokens), (8 * TOKENS, 2 * TOKENS));
            assert!(!out.join(".calibration").exists());
            if sharing.num_unshared_ends() == 1 {
                let written = SafetensorsFolder::open(&out).unwrap();
                let last = report.num_layers - 1;
                for (stored, own) in [(0, 0), (last, num_layers - 1)] {
                    for projection in Projection::ALL.map(Projection::name) {
                        let name = |layer| layer_tensor(LayerIndex(layer), &format!("{projection}.weight"));
                        assert_eq!(written.bytes(&name(stored)).unwrap(), source.bytes(&name(own)).unwrap(), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn unshared_layers_maps_and_every_fit_can_be_calibrated() {
    let looped = |sharing, prelude, coda| Pattern::new(sharing, Some(prelude), Some(coda), None).unwrap();
    for (pattern, recursions, fit) in [
        (looped(Sharing::Cycle, 1, 3), 2, None),
        (Pattern::Map(vec![0, 1, 0, 2, 2, 3, 0, 4]), 3, None),
        (looped(Sharing::Cycle, 0, 0), 3, Some(RemainderPolicy::Drop)),
        (looped(Sharing::Sequence, 0, 1), 2, Some(RemainderPolicy::Repeat)),
        (looped(Sharing::Cycle, 0, 0), 3, Some(RemainderPolicy::Repeat)),
        (looped(Sharing::Sequence, 0, 0), 3, Some(RemainderPolicy::PadUnshared)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (config, source) = write(dir.path(), SHAPE, |i| i);
        let mut options = with_pattern(options(recursions, Sharing::Cycle, Init::Calibrated), &pattern);
        let what = format!("{pattern} {fit:?}");
        (options.remainder, options.lora_rank, options.share_norms) = (fit, Some(4), false);
        let report = calibrated(&source, &config, &options, 8, &dir.path().join("out")).unwrap();
        assert!(report.checks.iter().all(|check| check.passed), "{what}");
        let found = report.calibration.unwrap();
        assert!(found.calibrated.kl < found.average.kl, "{what} {:?} {:?}", found.calibrated, found.average);
    }
}

#[test]
fn full_rank_and_own_norms_give_every_weight_of_the_source_back() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), Shape { biases: true, ..SHAPE }, |i| i);
    // With 8 tokens of 32 the moments are rank-deficient: damping alone has to hold what the text
    // does not show.
    for num_sequences in [1, 8] {
        let out = dir.path().join(num_sequences.to_string());
        let mut options = options(2, Sharing::Cycle, Init::Calibrated);
        (options.lora_rank, options.share_norms) = (Some(16), false);
        let report = calibrated(&source, &config, &options, num_sequences, &out).unwrap();
        // Each depth computes what its own kind does: squares of differences that are rounding.
        assert!(report.scores.unwrap().effect.kl < 1e-7);
        for depth in 0..8 {
            for projection in Projection::ALL.map(Projection::name) {
                let own = source_weight(&source, projection, depth);
                let largest = own.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                for (x, y) in effective(&out, projection, depth).iter().zip(&own) {
                    // W', A and B are rounded to f32, which a depth passes on to what the next one
                    // reads: some units of 6e-8, divided by a damped metric that goes down to 1e-2.
                    assert!((x - y).abs() < 1e-4 * largest, "{projection} {depth} {x} {y}");
                }
            }
        }
    }
}

#[test]
fn dora_is_fitted_as_lora_is_and_begins_where_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let [lora, dora] = Relax::ALL.map(|relax| {
        let mut options = options(2, Sharing::MiddleCycle, Init::Calibrated);
        (options.relax, options.lora_budget, options.dtype) = (relax, Some(4000), StoredDtype::Bf16);
        let out = dir.path().join(relax.name());
        let report = calibrated(&source, &config, &options, 8, &out).unwrap();
        assert!(report.checks.iter().all(|check| check.passed));
        assert!(report.parameters.lora <= 4000, "{}", report.parameters.lora);
        // The smallest rank that was not bought has 24 + 24 parameters, with its magnitudes 24
        // more.
        assert!(report.parameters.lora + 72 > 4000, "{}", report.parameters.lora);
        report
    });
    assert!(dora.checks.iter().any(|check| check.name == "dora"));
    // Magnitudes cost ranks.
    let kl = |report: &ConvertReport| report.scores.as_ref().unwrap().effect.kl;
    assert!(kl(&dora) > kl(&lora), "{} {}", kl(&dora), kl(&lora));
}

/// Matrices are wider than what one task of a product or of a moment takes.
#[test]
fn the_same_text_gives_the_same_bytes_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), Shape { width: 144, num_layers: 4, ..SHAPE }, |i| i);
    let mut options = options(2, Sharing::MiddleCycle, Init::Calibrated);
    (options.lora_rank, options.dtype) = (Some(3), StoredDtype::Bf16);
    let bytes = |threads: usize| {
        let out = dir.path().join(threads.to_string());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| calibrated(&source, &config, &options, 4, &out)).unwrap();
        ["model.safetensors", "config.json", "convert.json"].map(|file| fs_err::read(out.join(file)).unwrap())
    };
    let one = bytes(1);
    assert!(one == bytes(2) && one == bytes(3));
}

#[test]
fn every_init_is_scored_on_a_text_and_a_calibrated_one_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let out = |name: &str| dir.path().join(name);
    let refused = run(&source, &config, &options(2, Sharing::Cycle, Init::Calibrated), &out("no")).unwrap_err();
    assert!(matches!(refused, ConvertError::NoCalibration), "{refused}");
    let mut options = options(2, Sharing::Cycle, Init::Average);
    let scored = calibrated(&source, &config, &options, 1, &out("average")).unwrap();
    let scores = scored.scores.unwrap();
    assert!(scores.effect.kl > 0.0 && scored.calibration.is_none());
    assert!((scores.delta_nll - (scores.effect.nll - scores.source_nll)).abs() < 1e-12);
    // The weights are those of a conversion without a text.
    run(&source, &config, &options, &out("plain")).unwrap();
    let read = |name: &str| fs_err::read(out(name).join("model.safetensors")).unwrap();
    assert!(read("average") == read("plain"));
    // The comparison of a calibrated start is the same start.
    options.init = Some(Init::Calibrated.into());
    let beside = calibrated(&source, &config, &options, 1, &out("calibrated")).unwrap();
    assert_eq!(beside.calibration.unwrap().average, scores.effect);
    // A copy is the source.
    options.init = Some(Init::Stepwise.into());
    options.recursions = Some(1);
    assert_eq!(calibrated(&source, &config, &options, 1, &out("copy")).unwrap().scores.unwrap().effect.kl, 0.0);
    options.init = Some(Init::Calibrated.into());
    options.calibration = Some("text".into());
    let refused = options.validate().unwrap_err().to_string();
    assert!(refused.starts_with("init `calibrated` needs at least 2 recursions"), "{refused}");
}
