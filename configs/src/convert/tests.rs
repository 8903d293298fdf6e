//! Documents of a conversion: defaults, and everything that is refused.

use super::*;
use crate::{Init, Pattern, document};
use insta::assert_snapshot;
use std::path::Path;

fn parse(text: &str) -> Result<ConvertConfig, ConfigError> {
    document::parse(text, Path::new("convert.yaml"), &[])
}

/// The conversion that a document asks for by name.
fn fixed(config: &ConvertConfig) -> (Conversion, Option<CalibrationSource>) {
    match config.validate().unwrap().start {
        Start::Fixed { conversion, calibration } => (conversion, calibration),
        Start::Search { .. } | Start::Selection { .. } => panic!("a search"),
    }
}

fn search_space(config: &ConvertConfig) -> SearchSpace {
    match config.validate().unwrap().start {
        Start::Search { space, .. } => space,
        Start::Fixed { .. } | Start::Selection { .. } => panic!("no search"),
    }
}

const MINIMAL: &str =
    "schema: 1\nmodel: m\nrecursions: 2\nsharing: middle_cycle\ninit: average\noutput: checkpoints/store/m\n";

#[test]
fn defaults_fill_what_is_left_out() {
    let config = parse(MINIMAL).unwrap();
    let yaml = document::to_yaml(&config).unwrap();
    assert_snapshot!(yaml, @"
    schema: 1
    model: m
    method: recurse
    recursions: 2
    sharing: middle_cycle
    prelude: null
    coda: null
    map: null
    fit: null
    init: average
    source_layers: null
    select_by: null
    compensation: null
    gate: null
    budget: null
    calibration: null
    calibration_tokens: null
    relax: lora
    lora_rank: null
    lora_ranks: {}
    lora_budget: null
    lora_from: 0
    extras: []
    share_norms: true
    kv_sharing: recursion_wise
    tie_across_kinds: false
    dtype: keep
    max_shard_size: null
    seed: 0
    output: checkpoints/store/m
    ");
    assert_eq!(parse(&yaml).unwrap(), config);
    let (conversion, calibration) = fixed(&config);
    assert_eq!((conversion.num_recursions, conversion.init, calibration), (2, Init::Average, None));
    assert_eq!(
        config,
        ConvertConfig {
            recursions: Some(2),
            sharing: Some(Sharing::MiddleCycle),
            ..ConvertConfig::new("m".to_owned(), Init::Average, "checkpoints/store/m".into())
        }
    );
}

#[test]
fn impossible_and_misspelt_values_are_all_reported() {
    let text = "schema: 1\nmodel: 7\nrecursions: 0\nsharing: midle_cycle\ninit: mean\nlora_rank: 0\ndtype: fp8\n";
    assert_snapshot!(parse(text).unwrap_err(), @r#"
    `convert.yaml` has 7 problems
    convert.yaml:1:1: key `output` is missing
    convert.yaml:2:8: `model` is `7`, expected a string
      hint: write it in quotes, `"7"`
    convert.yaml:3:13: `recursions` is `0`, expected a positive integer
      hint: 1 copies the model
    convert.yaml:4:10: `sharing` is `midle_cycle`, expected one of `cycle`, `sequence`, `middle_cycle`, `middle_sequence`, `map`
      hint: did you mean `middle_cycle`?
    convert.yaml:5:7: `init` is `mean`, expected one of `stepwise`, `average`, `lower`, `upper`, `random`, `calibrated`, `select`, `auto`
    convert.yaml:6:12: `lora_rank` is `0`, expected a positive integer
      hint: leave `lora_rank` out for a model without LoRA
    convert.yaml:7:8: `dtype` is `fp8`, expected one of `keep`, `f32`, `bf16`, `f16`
    "#);
}

#[test]
fn a_pattern_is_a_name_with_what_it_takes_or_a_map() {
    let text = MINIMAL.replace("middle_cycle", "cycle\nprelude: 2\ncoda: 1\nfit: pad-unshared");
    let config = parse(&text).unwrap();
    let (conversion, _) = fixed(&config);
    assert_eq!(conversion.pattern, Pattern::Loop { sharing: Sharing::Cycle, prelude: 2, coda: 1 });
    assert_eq!(conversion.remainder, Some(RemainderPolicy::PadUnshared));
    let text = MINIMAL.replace("recursions: 2\nsharing: middle_cycle", "map: [0, 1, 2, 1, 1, 3]");
    let config = parse(&text).unwrap();
    let (conversion, _) = fixed(&config);
    assert_eq!((conversion.pattern.sharing(), conversion.num_recursions), (Sharing::Map, 3));
    assert_snapshot!(parse(&format!("{MINIMAL}coda: 2\n")).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:4:10: sharing `middle_cycle` takes no `prelude` or `coda`: it has one unshared layer at each end
      hint: ask for `cycle` or `sequence` with the `prelude` and `coda` that you want
    ");
    let text = MINIMAL.replace("recursions: 2\nsharing: middle_cycle\n", "");
    assert_snapshot!(parse(&text).unwrap_err(), @"
    `convert.yaml` has 2 problems
    convert.yaml:1:1: neither `sharing` nor a `map` says which depths share a layer
      hint: name a sharing pattern, e.g. `middle_cycle`
    convert.yaml:1:1: nothing says how often the shared layers run
      hint: give the number of recursions, e.g. 2
    ");
    let text = MINIMAL.replace("middle_cycle", "map\nmap: [0, 0]\nfit: drop");
    assert_snapshot!(parse(&text).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:6:6: a `map` takes no `fit`: it says of every layer what becomes of it
      hint: leave `fit` out
    ");
}

#[test]
fn a_calibration_and_its_init_come_together() {
    let calibrated = MINIMAL.replace("average", "calibrated");
    assert_snapshot!(parse(&calibrated).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:5:7: init `calibrated` has no text to be fitted to
      hint: name a text like those the model is for: `calibration: FILE` in a file, `--calibration FILE` as an option
    ");
    // Any start can be scored on a text.
    parse(&format!("{MINIMAL}calibration: a.jsonl\ncalibration_tokens: 100\n")).unwrap();
    assert_snapshot!(parse(&format!("{MINIMAL}calibration_tokens: 100\n")).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:7:21: a number of calibration tokens is given, but no text
      hint: name the text, or leave the number out
    ");
    let text = calibrated.replace("recursions: 2", "recursions: 1");
    let text = format!("{text}calibration: a.jsonl\ncalibration_tokens: 10\n");
    assert_snapshot!(parse(&text).unwrap_err(), @"
    `convert.yaml` has 2 problems
    convert.yaml:3:13: init `calibrated` needs at least 2 recursions: with 1 no layer is shared
      hint: with 1 recursion every other init copies the model
    convert.yaml:8:21: 10 calibration tokens are too few, expected at least 64
      hint: leave the number out, or ask for some thousands
    ");
    let config = parse(&format!("{calibrated}calibration: a.jsonl\n")).unwrap();
    assert_eq!(fixed(&config).1, Some(CalibrationSource { path: "a.jsonl".into(), tokens: 8192 }));
}

#[test]
fn a_search_has_a_budget_and_a_text_and_decides_about_the_rest() {
    let text = "schema: 1\nmodel: m\ninit: auto\noutput: o\nbudget: 75%\ncalibration: a.jsonl\n";
    let config = parse(text).unwrap();
    let space = search_space(&config);
    assert_eq!((space.patterns.len(), space.recursions.as_slice()), (4, [2, 3].as_slice()));
    assert_eq!(space.budget, Budget::Percent(75.0));
    assert_eq!(parse(&document::to_yaml(&config).unwrap()).unwrap(), config);
    let space = search_space(&parse(&format!("{text}sharing: sequence\nprelude: 2\nrecursions: 3\n")).unwrap());
    assert_eq!(space.patterns, [Pattern::Loop { sharing: Sharing::Sequence, prelude: 2, coda: 0 }]);
    assert_eq!(space.recursions, [3]);
    let text = "schema: 1\nmodel: m\ninit: auto\noutput: o\nprelude: 1\nlora_rank: 4\n";
    assert_snapshot!(parse(text).unwrap_err(), @"
    `convert.yaml` has 4 problems
    convert.yaml:1:1: init `auto` has no budget
      hint: say what the weights may be, e.g. `75%` of the source, `90M` parameters or `250MiB`
    convert.yaml:3:7: init `auto` has no text to be measured on
      hint: name a text like those the model is for: `calibration: FILE` in a file, `--calibration FILE` as an option
    convert.yaml:3:7: init `auto` decides about the LoRA, but some is asked for
      hint: leave the keys of the LoRA out, or name another init
    convert.yaml:5:10: `prelude` and `coda` are given, but no sharing pattern that they belong to
      hint: name `cycle` or `sequence`, or leave them out
    ");
    let text = "schema: 1\nmodel: m\ninit: auto\noutput: o\nbudget: lots\ncalibration: a\nlora_budget: 9\n";
    assert_snapshot!(parse(text).unwrap_err(), @"
    `convert.yaml` has 2 problems
    convert.yaml:3:7: init `auto` decides about the LoRA, but some is asked for
      hint: leave the keys of the LoRA out, or name another init
    convert.yaml:5:9: `budget` is `lots`, expected parameters (`90M`), bytes (`250MiB`) or a part of the source (`75%`)
    ");
    assert_snapshot!(parse(&format!("{MINIMAL}budget: 1000\n")).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:7:9: init `average` takes no budget of all weights
      hint: ask for init `auto`; `lora_budget` is for the LoRA alone
    ");
}

#[test]
fn a_relaxation_has_a_rank_and_is_not_for_a_search() {
    let config = parse(&format!("{MINIMAL}relax: dora\nlora_budget: 1000\n")).unwrap();
    assert_eq!(config.relax, Relax::Dora);
    assert_eq!(parse(&document::to_yaml(&config).unwrap()).unwrap(), config);
    assert_snapshot!(parse(&format!("{MINIMAL}relax: dora\n")).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:7:8: relaxation `dora` is asked for, but no rank of it
      hint: give it a rank or a budget, e.g. `lora_rank`, or leave `relax` out
    ");
    let auto = "schema: 1\nmodel: m\ninit: auto\noutput: o\nbudget: 75%\ncalibration: a\nrelax: dora\n";
    assert_snapshot!(parse(auto).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:7:8: init `auto` tries LoRA only, but `dora` is asked for
      hint: convert with `auto` first, and then once more with what it chose and `relax`
    ");
}

#[test]
fn every_dtype_name_parses_to_itself() {
    for dtype in StoredDtype::ALL {
        assert_eq!(dtype.name().parse(), Ok(*dtype));
    }
    assert!("int8".parse::<StoredDtype>().is_err());
}

#[test]
fn lora_is_refused_where_no_layer_is_shared() {
    let text = MINIMAL.replace("recursions: 2", "recursions: 1");
    assert_snapshot!(parse(&format!("{text}lora_rank: 4\nextras: [loop_norm]\n")).unwrap_err(), @"
    `convert.yaml` has 2 problems
    convert.yaml:3:13: LoRA needs at least 2 recursions: with 1 no layer is shared
      hint: ask for more recursions, or leave the LoRA out
    convert.yaml:8:1: extras of the depths of a loop are asked for, but there is none with 1 recursion
      hint: ask for 2 recursions or more, or leave `extras` out
    ");
}

#[test]
fn all_problems_of_a_conversion_are_one_error() {
    let mut config = ConvertConfig::new("m".to_owned(), Init::Average, "out".into());
    config.recursions = Some(2);
    config.lora_from = 2;
    assert_snapshot!(config.validate().unwrap_err(), @"
    the conversion has 2 problems:
      neither `sharing` nor a `map` says which depths share a layer
      LoRA is asked for from recursion 2 on, but there is none
    hint: name a sharing pattern, e.g. `middle_cycle`
    hint: give it a rank or a budget, or leave `lora_from` out
    ");
    config.sharing = Some(Sharing::Cycle);
    assert_snapshot!(config.validate().unwrap_err(), @"
    LoRA is asked for from recursion 2 on, but there is none
    hint: give it a rank or a budget, or leave `lora_from` out
    ");
}

#[test]
fn keys_and_values_are_shared_where_recursions_follow_one_another() {
    let config = parse(&format!("{MINIMAL}kv_sharing: shared\n")).unwrap();
    assert_eq!(fixed(&config).0.target.kv_sharing, KvSharing::Shared);
    assert_snapshot!(parse(&format!("{MINIMAL}kv_sharing: hybrid\n").replace("_cycle", "_sequence")).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:7:13: keys and values cannot be shared as `kv_sharing: hybrid` says: `middle_sequence` does not run the block recursion by recursion
      hint: take sharing `cycle` or `middle_cycle`, or `kv_sharing: recursion_wise`
    ");
    assert_snapshot!(parse(&format!("{MINIMAL}kv_sharing: shared\ncalibration: a.jsonl\n")).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:7:13: a start with `kv_sharing: shared` cannot be fitted to or scored on a text
      hint: leave the text and the inits that need one out, and measure the folder with `retie eval`
    ");
}

#[test]
fn the_largest_shard_is_a_size_with_a_unit() {
    let config = parse(&format!("{MINIMAL}max_shard_size: 500MiB\n")).unwrap();
    assert_eq!(fixed(&config).0.target.max_shard_size.map(ByteSize::bytes), Some(524_288_000));
    assert_eq!(parse(&document::to_yaml(&config).unwrap()).unwrap(), config);
    assert_snapshot!(parse(&format!("{MINIMAL}max_shard_size: 5 apples\n")).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:7:17: `max_shard_size` is `5 apples`, expected a size in bytes such as `5GB` or `500MiB`
    ");
}

#[test]
fn every_name_of_an_init_parses_to_itself() {
    for name in InitChoice::NAMES {
        assert_eq!(name.parse::<InitChoice>().unwrap().name(), *name);
    }
    assert_eq!(InitChoice::NAMES.len(), Init::ALL.len() + 1);
    let error = "mean".parse::<InitChoice>().unwrap_err();
    assert_eq!(error, format!("unknown init `mean`, expected one of {}", InitChoice::NAMES.join(", ")));
}

const SELECTION: &str = "schema: 1\nmodel: m\noutput: checkpoints/store/m\n";

#[test]
fn a_selection_is_measured_under_a_budget_or_listed() {
    let text = format!("{SELECTION}init: select\nbudget: 75%\ncalibration: text\nlora_rank: 4\n");
    let Start::Selection { space, calibration } = parse(&text).unwrap().validate().unwrap().start else {
        panic!("no selection")
    };
    assert_eq!((space.num_recursions, space.compensation, space.gate), (2, Compensation::LeastSquares, None));
    assert_eq!(space.lora.unwrap().from, 1); // the first recursion is the model with layers removed
    assert!(space.target.extras.contains(&DepthExtra::ResidualScale));
    assert_eq!(calibration.tokens, 65_536);
    let text = format!("{SELECTION}method: drop\nbudget: 75%\ncalibration: text\ncalibration_tokens: 512\n");
    let Start::Selection { space, .. } = parse(&text).unwrap().validate().unwrap().start else {
        panic!("no selection")
    };
    assert_eq!((space.num_recursions, space.lora, space.target.extras.len()), (1, None, 0));
    assert_eq!(space.select_by, SelectBy::Text);
    let Start::Selection { space, .. } =
        parse(&format!("{text}select_by: copying\n")).unwrap().validate().unwrap().start
    else {
        panic!("no selection")
    };
    assert_eq!(space.select_by, SelectBy::Copying);
    let listed = format!("{SELECTION}method: drop\nsource_layers: [0]\nselect_by: copying\n");
    assert_snapshot!(parse(&listed).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:6:12: `select_by: copying` is given beside a list of `source_layers`
      hint: leave it out, or let the layers be chosen under a `budget`
    ");
    assert_snapshot!(parse(&format!("{MINIMAL}select_by: copying\n")).unwrap_err(), @"
    `convert.yaml` has 1 problem
    convert.yaml:7:12: init `average` takes no `select_by`
      hint: leave it out, or ask for init `select` or method `drop`
    ");

    let listed = |text: &str| fixed(&parse(&format!("{SELECTION}{text}")).unwrap());
    let (conversion, calibration) = listed("method: drop\nsource_layers: [0, 2, 3]\n");
    assert_eq!((conversion.num_recursions, calibration), (1, None));
    assert_eq!((conversion.compensation, conversion.gate), (Compensation::None, 0.0));
    let (conversion, _) = listed("init: select\nsource_layers: [0, 2, 3, 2, 3, 7]\ngate: 0.25\ncalibration: text\n");
    assert_eq!(conversion.pattern, Pattern::Loop { sharing: Sharing::Cycle, prelude: 1, coda: 1 });
    assert_eq!(
        (conversion.num_recursions, conversion.compensation, conversion.gate),
        (2, Compensation::LeastSquares, 0.25)
    );
}

#[test]
fn a_low_rank_model_has_a_budget_and_a_text_and_no_recursion() {
    let text = format!("{SELECTION}method: svd\nbudget: 75%\ncalibration: text\n");
    let (conversion, calibration) = fixed(&parse(&text).unwrap());
    let ranks = conversion.lora.unwrap().ranks;
    assert_eq!((conversion.num_recursions, ranks), (1, LoraRanks::Alone(Budget::Percent(75.0))));
    assert_eq!((conversion.init, calibration.unwrap().tokens), (Init::Calibrated, 65_536));
    let text = format!("{SELECTION}method: svd\nsource_layers: [0]\nsharing: cycle\nlora_rank: 4\n");
    let error = parse(&text).unwrap_err().to_string();
    let parts = [
        "has 5 problems",
        "method `svd` keeps every layer, so that it takes no `source_layers`",
        "takes no `sharing`",
        "takes no `lora_rank`",
        "method `svd` has no text to be fitted to",
        "method `svd` has no budget",
    ];
    parts.iter().for_each(|part| assert!(error.contains(part), "{error}"));
}

#[test]
fn a_selection_refuses_what_it_decides_and_others_refuse_its_keys() {
    let refused = |text: &str| parse(&format!("{SELECTION}{text}")).unwrap_err().to_string();
    let has = |error: &str, parts: &[&str]| parts.iter().for_each(|part| assert!(error.contains(part), "{error}"));
    has(
        &refused("init: select\nsharing: cycle\nfit: drop\nlora_budget: 9\n"),
        &[
            "has 5 problems",
            "nothing says how many layers are kept",
            "init `select` has no text to be measured on",
            "`sharing` is given beside a selection of layers",
            "`fit` is given beside a selection of layers",
            "no residual to spread a budget of LoRA by",
        ],
    );
    has(
        &refused("method: drop\ninit: average\nrecursions: 2\nlora_rank: 4\nsource_layers: [0, 1, 0]\n"),
        &[
            "has 4 problems",
            "method `drop` shares no layer, so that it takes no `init`",
            "takes no `recursions`",
            "takes no `lora_rank`",
            "layer 0 stands after layer 1",
        ],
    );
    has(&refused("method: drop\nsource_layers: [0, 1, 1]\n"), &["runs a layer 2 times at most, expected 1"]);
    has(
        &refused("init: select\nrecursions: 3\nsource_layers: [0, 1, 1]\n"),
        &["runs a layer 2 times at most, expected 3"],
    );
    has(&refused("init: select\nsource_layers: [0, 1]\n"), &["runs a layer 1 times at most, expected 2"]);
    has(&refused("init: select\nrecursions: 1\nsource_layers: [0, 0]\n"), &["needs at least 2 recursions"]);
    has(
        &refused("init: select\nsource_layers: [0, 0]\nbudget: 75%\n"),
        &["both `source_layers` and a `budget` are given"],
    );
    has(
        &refused("init: select\nsource_layers: [0, 0]\ncompensation: least_squares\n"),
        &["init `select` has no text to be fitted to"],
    );
    has(&refused("recursions: 2\nsharing: cycle\n"), &["key `init` is missing"]);
    let beside = parse(&format!("{MINIMAL}source_layers: [0]\ncompensation: none\ngate: 0\n")).unwrap_err().to_string();
    has(&beside, &["has 3 problems", "takes no `source_layers`", "takes no `compensation`", "takes no `gate`"]);
}
