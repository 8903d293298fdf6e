//! A start by trial, on small random models.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_model;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use retie_config::{
    Budget, Conversion, ConvertConfig, Init, InitChoice, ModelConfig, RemainderPolicy, SearchSpace, Sharing, Start,
};
use retie_convert::{Calibration, ConvertError, OutputFiles, SearchReport, SourceModel, convert, search};
use small_model::{SHAPE, conversion, layers::Mixture, options, write};

const TOKENS: usize = 32;

struct Setup {
    dir: tempfile::TempDir,
    config: ModelConfig,
    source: retie_checkpoint::SafetensorsFolder,
    model: Mixture,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (config, source) = write(dir.path(), SHAPE, |i| i);
        Self { dir, model: Mixture(config.clone()), config, source }
    }

    fn source(&self) -> SourceModel<'_> {
        SourceModel { tensors: &self.source, config: &self.config }
    }

    fn calibration(&self) -> Calibration<'_> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut ids = |count: usize| (0..count * TOKENS).map(|_| rng.next_u32() % 40).collect();
        Calibration {
            model: &self.model,
            text: "a text".to_owned(),
            sequence_length: TOKENS,
            train: ids(8),
            heldout: ids(2),
        }
    }

    fn search(&self, space: &SearchSpace) -> Result<(Conversion, SearchReport), ConvertError> {
        let scratch = self.dir.path().join("scratch");
        fs_err::create_dir(&scratch).unwrap();
        let found = search(self.source(), space, &self.calibration(), &scratch, &mut |_| {});
        // What was written while candidates were fitted is gone.
        assert_eq!(fs_err::read_dir(&scratch).unwrap().count(), 0);
        fs_err::remove_dir(&scratch).unwrap();
        found
    }
}

/// The document of a search without norms in common.
fn auto(budget: Budget) -> ConvertConfig {
    ConvertConfig {
        budget: Some(budget),
        calibration: Some("text".into()),
        share_norms: false,
        ..ConvertConfig::new("base".to_owned(), InitChoice::Auto, "out".into())
    }
}

fn space(config: &ConvertConfig) -> SearchSpace {
    match config.validate().unwrap().start {
        Start::Search { space, .. } => space,
        Start::Fixed { .. } | Start::Selection { .. } => panic!("no search"),
    }
}

#[test]
fn the_least_kl_within_the_budget_is_taken_and_is_what_the_conversion_has() {
    let setup = Setup::new();
    let (chosen, report) = setup.search(&space(&auto(Budget::Percent(90.0)))).unwrap();
    assert!(report.candidates.windows(2).all(|pair| pair[0].kl <= pair[1].kl));
    assert!(report.candidates.iter().all(|candidate| candidate.parameters <= report.allowed_parameters));
    // Four patterns with 2 recursions, and the two between unshared ends with 3 (6 of 8 layers); 3
    // do not divide 8.
    let plain = report.candidates.iter().filter(|candidate| candidate.fitted_tokens.is_none()).count();
    assert_eq!((plain, report.candidates.len() - plain), (6 * 3, 2 * 2));
    assert_eq!(report.passed_over.len(), 2);
    assert!(report.passed_over.iter().all(|reason| reason.starts_with("`3` recursions do not divide the 8 layers")));
    let first = &report.candidates[0];
    assert!(
        report.why.starts_with(&first.name()) && report.why.contains("the least of 22 candidates"),
        "{}",
        report.why
    );
    assert_eq!((first.init, first.recursions), (chosen.init, chosen.num_recursions));
    // So few tokens are fitted to as a whole.
    assert!(
        report.candidates.iter().all(|candidate| candidate.fitted_tokens.is_none_or(|tokens| tokens == 8 * TOKENS))
    );
    // The same input chooses the same.
    let (again, same) = setup.search(&space(&auto(Budget::Percent(90.0)))).unwrap();
    assert_eq!((&again, &same), (&chosen, &report));

    // Every plain candidate is scored as its conversion is.
    let best = report.candidates.iter().find(|c| c.init == Init::Average && c.lora == "spread").unwrap();
    let sharing: Sharing = best.sharing.parse().unwrap();
    let counts = |lora: Option<usize>| {
        let options =
            ConvertConfig { share_norms: false, lora_budget: lora, ..options(best.recursions, sharing, Init::Average) };
        let out = setup.dir.path().join(format!("out{}", lora.is_some()));
        let files = OutputFiles { search: Some(report.clone()), ..OutputFiles::default() };
        let (conversion, calibration) = (conversion(&options), setup.calibration());
        convert(setup.source(), &conversion, Some(&calibration), &files, &out, &mut |_| {}).unwrap()
    };
    let bare = counts(None).parameters.total();
    let converted = counts(Some(report.allowed_parameters - bare));
    assert_eq!(converted.parameters.total(), best.parameters);
    let effect = converted.scores.as_ref().unwrap().effect;
    assert!((effect.kl - best.kl).abs() <= 1e-9 * best.kl, "{} {}", effect.kl, best.kl);
    assert_eq!(converted.search.as_ref(), Some(&report));
    let page = report.to_string();
    assert!(
        page.contains(&format!("chosen: {}", report.why)) && page.contains("passed over: `3` recursions"),
        "{page}"
    );
}

#[test]
fn a_pattern_a_fit_and_a_small_budget_narrow_the_search() {
    let setup = Setup::new();
    let one = |budget| {
        let (sharing, prelude, recursions) = (Some(Sharing::Cycle), Some(1), Some(3));
        let remainder = Some(RemainderPolicy::PadUnshared);
        space(&ConvertConfig { sharing, prelude, recursions, remainder, ..auto(budget) })
    };
    let (chosen, report) = setup.search(&one(Budget::Percent(99.0))).unwrap();
    assert_eq!((chosen.remainder, chosen.num_recursions), (Some(RemainderPolicy::PadUnshared), 3));
    assert!(report.candidates.iter().all(|candidate| candidate.sharing == "cycle, prelude 2"), "{report}");
    // Nothing is left for LoRA: the layers alone have what the budget allows.
    let bare = report.candidates.iter().find(|candidate| candidate.lora == "none").unwrap().parameters;
    let (chosen, report) = setup.search(&one(Budget::Parameters(bare))).unwrap();
    assert!(report.candidates.iter().all(|candidate| candidate.lora == "none" && candidate.parameters == bare));
    assert_eq!((chosen.lora, report.candidates.len()), (None, 2));
    let error = setup.search(&one(Budget::Parameters(bare - 1))).unwrap_err().to_string();
    assert!(error.starts_with("nothing can be tried within the budget") && error.contains("above the"), "{error}");
}
