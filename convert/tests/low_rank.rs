//! `--method svd`: pairs of factors in place of matrices.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_model;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use retie_checkpoint::{SafetensorsFolder, TensorSource};
use retie_config::{Budget, ConvertConfig, Init, LayerIndex, LoraBase, Method, ModelConfig};
use retie_convert::{Calibration, ConvertError, ConvertReport, OutputFiles, SourceModel, convert};
use small_model::{SHAPE, Shape, conversion, effective, layer_tensor, layers::Mixture, source_weight, write};
use std::path::Path;

const TOKENS: usize = 32;
const LAYERS: usize = 4;

fn calibration(model: &Mixture) -> Calibration<'_> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut ids = |count: usize| (0..count * TOKENS).map(|_| rng.next_u32() % 40).collect();
    let (train, heldout) = (ids(16), ids(4));
    Calibration { model, text: "a text".to_owned(), sequence_length: TOKENS, train, heldout }
}

fn run(source: SourceModel<'_>, budget: Budget, out: &Path) -> Result<ConvertReport, ConvertError> {
    let options = ConvertConfig {
        method: Method::Svd,
        init: None,
        budget: Some(budget),
        ..ConvertConfig::new("base".to_owned(), Init::Calibrated, "out".into())
    };
    let model = Mixture(source.config.clone());
    let files = OutputFiles::default();
    convert(source, &conversion(&options), Some(&calibration(&model)), &files, out, &mut |_| {})
}

#[test]
fn factors_stay_within_the_budget_and_are_fitted_better_than_plain_ones() {
    let dir = tempfile::tempdir().unwrap();
    for biases in [false, true] {
        let base = dir.path().join(format!("base {biases}"));
        fs_err::create_dir(&base).unwrap();
        let (config, source) = write(&base, Shape { biases, num_layers: LAYERS, ..SHAPE }, |i| i);
        let model = SourceModel { tensors: &source, config: &config };
        let out = dir.path().join(format!("out {biases}"));
        let report = run(model, Budget::Percent(75.0), &out).unwrap();
        assert!(report.checks.iter().all(|check| check.passed), "{:?}", report.checks);
        let allowed = report.source_parameters.total() * 3 / 4;
        // What is left over is less than it takes to turn factors into a matrix.
        let total = report.parameters.total();
        assert!(total <= allowed && total + 16 * 24 > allowed, "{total} {allowed}");
        let scores = report.calibration.as_ref().unwrap();
        assert!(scores.calibrated.kl < 0.9 * scores.average.kl, "{scores:?}");
        assert_eq!(report.fit_names(), ["plain SVD", "fitted to the text"]);

        let written = SafetensorsFolder::open(&out).unwrap();
        let config = ModelConfig::load(&out.join("config.json")).unwrap();
        let lora = config.recursion.as_ref().unwrap().lora.as_ref().unwrap();
        assert_eq!((lora.base, report.factors_title()), (LoraBase::None, "factors"));
        for (projection, [wide, inp]) in config.projection_shapes() {
            for layer in 0..LAYERS {
                let matrix = layer_tensor(LayerIndex(layer), &format!("{projection}.weight"));
                let rank = lora.ranks[projection.name()][layer];
                assert_eq!(written.info(&matrix).is_none(), rank > 0, "{matrix}");
                match rank {
                    0 => assert_eq!(written.bytes(&matrix).unwrap(), source.bytes(&matrix).unwrap()),
                    // The pair is smaller than the matrix. It is near it only where the text
                    // leads, so that the scores above are what tells how good it is.
                    rank => {
                        assert!(rank * (wide + inp) < wide * inp);
                        let own = source_weight(&source, projection.name(), layer);
                        let found = effective(&out, projection.name(), layer);
                        assert!(found.len() == own.len() && found.iter().all(|x| x.is_finite()), "{matrix}");
                        assert!(found.iter().zip(&own).any(|(found, own)| found != own), "{matrix}");
                    }
                }
            }
        }
        let text = report.to_string();
        assert!(text.contains("4 layers with low-rank linears") && text.contains("energy kept"), "{text}");
        let again = dir.path().join(format!("again {biases}"));
        assert_eq!(run(model, Budget::Percent(75.0), &again).unwrap(), report);
    }
}

#[test]
fn more_parameters_are_closer_and_a_budget_for_all_or_for_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), Shape { num_layers: LAYERS, ..SHAPE }, |i| i);
    let model = SourceModel { tensors: &source, config: &config };
    let kl = |percent: f64| {
        let report = run(model, Budget::Percent(percent), &dir.path().join(percent.to_string())).unwrap();
        report.scores.unwrap().effect.kl
    };
    let found = [50.0, 70.0, 90.0].map(kl);
    assert!(found.windows(2).all(|pair| pair[1] < pair[0]), "{found:?}");
    for (budget, hint) in [(Budget::Percent(100.0), "ask for less"), (Budget::Parameters(1000), "are the least")] {
        let error = run(model, budget, &dir.path().join("no")).unwrap_err();
        assert!(matches!(error, ConvertError::LowRankBudget { .. }) && error.to_string().contains(hint), "{error}");
    }
}
