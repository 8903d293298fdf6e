//! Step tables: reading and writing, refusals, tensors and cost.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use retie_config::{
    Activation, ConfigError, Doubling, Init, Mechanism, MechanismAt, MlpKind, ModelConfig, RecursionConfig, Sharing,
    SlicedConfig, StepConfig, StepMechanism, StepTable, document, steps_with,
};
use serde_json::{Value, json};
use std::path::Path;

/// A Llama of six layers of width 8.
fn tiny_llama() -> ModelConfig {
    let Value::Object(map) = json!({
        "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
    }) else {
        unreachable!()
    };
    ModelConfig::from_json(map, Path::new("tiny")).unwrap()
}

fn model(steps: Value, num_recursions: usize) -> ModelConfig {
    let steps = serde_json::from_value(steps).unwrap();
    let recursion = RecursionConfig { steps, ..RecursionConfig::new(num_recursions, Sharing::Cycle, Init::Average) };
    ModelConfig { recursion: Some(recursion), ..tiny_llama() }
}

fn problems(steps: Value) -> Vec<String> {
    match model(steps, 2).validate() {
        Err(ConfigError::BadSteps { problems }) => problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_table_reads_as_it_is_written() {
    let rows = json!([{}, {
        "attention": {"sliced": {"groups": 8, "order": "stride"}},
        "transition": ["hai", {"nll": {"ratio": 0.25}}],
        "activation": {"dra": {"form": "package"}},
    }]);
    let read: Vec<StepConfig> = serde_json::from_value(rows.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), rows);
    let yaml = "steps:\n  - {}\n  - attention: {sliced: {groups: 8}}\n    transition: [hai, {nll: {ratio: 0.25}}]\n    activation: {dra: {form: package}}\n";
    assert_eq!(document::parse::<StepTable>(yaml, Path::new("steps.yaml"), &[]).unwrap().steps, read);
    let coarse: StepConfig = serde_json::from_value(json!({"resolution": 4})).unwrap();
    assert_eq!((coarse.factor(), serde_json::to_value(&coarse).unwrap()), (4, json!({"resolution": 4})));
    assert!(serde_json::from_value::<StepConfig>(json!({"resolution": "coarse"})).is_err());
    let full: StepConfig = serde_json::from_value(json!({"attention": "full"})).unwrap();
    assert_eq!(full, StepConfig::default());
    for text in ["hai", "nll:ratio=0.25", "sliced:groups=8,order=chunk,length=64", "dra:form=model"] {
        let mechanism: Mechanism = text.parse().unwrap();
        assert_eq!(mechanism.to_string(), text);
    }
}

#[test]
fn what_is_no_mechanism_is_refused_by_name() {
    let error = |value: Value| serde_json::from_value::<StepConfig>(value).unwrap_err().to_string();
    assert!(
        error(json!({"transition": ["hay"]}))
            .starts_with("unknown mechanism `hay`, expected one of resolution, sliced, ")
    );
    assert!(error(json!({"transition": [{"nll": {"width": 3}}]})).starts_with("`nll`: unknown field `width`"));
    assert!(error(json!({"transition": [3]})).starts_with("`3` is no mechanism"));
    assert!("nll:ratio".parse::<Mechanism>().unwrap_err().ends_with("expected `key=value`"));
    let at: MechanismAt = "hai@1,2".parse().unwrap();
    assert_eq!(at.recursions, Some(vec![1, 2]));
    assert!("hai@one".parse::<MechanismAt>().is_err());
    let error = document::parse::<StepTable>("steps: []", Path::new("steps.yaml"), &[]).unwrap_err().to_string();
    assert!(error.contains("`steps` is empty"), "{error}");
}

#[test]
fn tables_that_do_not_fit_are_refused_with_what_would() {
    let hai = || json!({"transition": ["hai"]});
    assert_eq!(problems(json!([hai(), hai(), hai()])), ["there are 3 rows for 2 recursions, expected 2, or one"]);
    assert_eq!(
        problems(json!([{"attention": "hai", "transition": ["snake", "dense", "dense"]}])),
        [
            "`hai` stands under `attention`, expected under `transition`",
            "`snake` stands under `transition`, expected under `activation`",
            "`dense` stands twice in one row, expected once",
        ]
    );
    assert_eq!(
        problems(json!([{"attention": {"sliced": {"groups": 0}}, "transition": [{"nll": {"ratio": 0.01}}]}])),
        ["`sliced`: `groups` is 0, expected 1 or more", "`nll`: `ratio` is 0.01, expected 0.125 to 16"]
    );
    let sliced = |parameters: Value| problems(json!([{"attention": {"sliced": parameters}}]));
    assert_eq!(
        [
            sliced(json!({"groups": 3, "order": "chunk", "length": 16})),
            sliced(json!({"groups": 3, "order": "chunk"})),
            sliced(json!({"groups": 3, "length": 9})),
        ]
        .concat(),
        [
            "`sliced`: `length` is 16, expected a multiple of 3, at least 3",
            "`sliced`: `order: chunk` has no `length`, expected the tokens that it divides",
            "`sliced`: `length` is 9, expected none with `order: stride`",
        ]
    );
    let mut windowed = model(json!([{"attention": {"sliced": {"groups": 2}}}]), 2);
    windowed.anatomy.depths[4].window = Some(16);
    let error = windowed.validate().unwrap_err().to_string();
    assert!(error.ends_with("`sliced`: depths see a window of 16 tokens, expected full attention"), "{error}");
    let mut other = model(json!([{"activation": "silu_dra"}]), 2);
    other.anatomy.mlp = MlpKind::Gated(Activation::Gelu);
    assert!(other.validate().unwrap_err().to_string().ends_with("the model's activation is Gelu, expected Silu"));
}

#[test]
fn mechanisms_are_added_to_rows_and_a_row_for_all_stands_once() {
    let added = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<MechanismAt>>();
    let one = steps_with(&[], &added(&["hai", "nll"]), 3).unwrap();
    assert_eq!(serde_json::to_value(&one).unwrap(), json!([{"transition": ["hai", {"nll": {"ratio": 1.0}}]}]));
    let rows = steps_with(&one, &added(&["sliced:groups=4@1,2"]), 3).unwrap();
    assert_eq!((rows.len(), rows[0].attention.is_some(), rows[2].attention.is_some()), (3, false, true));
    let error = steps_with(&rows, &added(&["sliced:groups=2@2", "snake@3"]), 3).unwrap_err().to_string();
    assert!(error.contains("`attention` of recursion 2 is `sliced:groups=4,order=stride` already"), "{error}");
    assert!(error.contains("`snake` is for recursion 3, expected 0 to 2"), "{error}");
    assert_eq!(rows[1].clone().without("sliced"), rows[0]);
}

/// Counts of the published code at the hidden size of SmolLM2-135M.
#[test]
fn tensors_are_those_of_the_papers() {
    let mut config =
        model(json!([{"transition": ["nll", "hai", "coefficients", "dense"], "activation": "silu_dra"}]), 2);
    config.hidden_size = 576;
    let of = |name: &str| {
        let tensors = config.tensors().into_iter().filter(|spec| spec.name().contains(&format!(".step.{name}")));
        tensors.map(|spec| spec.num_elements()).collect::<Vec<_>>()
    };
    // After each of two recursions.
    assert_eq!(of("nll").iter().sum::<usize>(), 2 * 665_858);
    // At each of six depths.
    assert_eq!((of("hai"), of("coefficients")), (vec![576; 6], vec![4; 6]));
    assert_eq!((of("dense"), of("activation.").len()), (vec![2], 6 * 4));
    assert_eq!(of("").len(), 2 * 7 + 6 + 6 + 1 + 6 * 4);
}

/// A fused exit has the scores of every recursion so far; the first has nothing to fuse.
#[test]
fn a_fused_exit_has_scores_of_each_recursion() {
    let fuse = |groups: usize| json!({"exit": {"fuse": {"grouped_softmax": {"groups": groups}}}});
    let config = model(json!([fuse(4)]), 3);
    let tensors = config.tensors().into_iter().filter(|spec| spec.name().contains(".step.fuse."));
    let found: Vec<_> = tensors.map(|spec| (spec.name(), spec.shape)).collect();
    let at = |depth: usize, name: &str| format!("model.depths.{depth}.step.fuse.{name}");
    let of = |depth: usize, count: usize| {
        [(at(depth, "weight"), vec![count, 8]), (at(depth, "bias"), vec![count, 4]), (at(depth, "scale"), vec![8])]
    };
    assert_eq!(found, [of(3, 2), of(5, 3)].concat());
    assert_eq!(config.cost(9, None), config.full_recursion_cost(9), "no matrix products");
    assert_eq!(
        problems(json!([fuse(3)])),
        ["`grouped_softmax`: `groups` is 3, expected a divisor of the hidden size 8, e.g. 2"]
    );
    assert_eq!(
        problems(json!([fuse(2), {}])),
        ["`grouped_softmax`: it is in the first recursion only, before which there is none, expected a later one"]
    );
    assert_eq!(
        problems(json!([{"exit": {"fuse": "hai"}, "transition": ["grouped_softmax"]}])),
        [
            "`grouped_softmax` stands under `transition`, expected under `exit.fuse`",
            "`hai` stands under `exit.fuse`, expected under `transition`",
        ]
    );
    let mut interleaved = model(json!([fuse(2)]), 2);
    interleaved.recursion.as_mut().unwrap().sharing = Sharing::Sequence;
    let error = interleaved.validate().unwrap_err().to_string();
    assert!(error.contains("its recursions do not run one after the other"), "{error}");
}

#[test]
fn pairs_of_sliced_attention_are_those_of_the_slices() {
    let mean = |config: Value, tokens: usize| {
        let config: SlicedConfig = serde_json::from_value(config).unwrap();
        config.mean_keys(tokens as f64).unwrap() * tokens as f64
    };
    for tokens in [1usize, 7, 8, 24, 25] {
        let counted = |same: &dyn Fn(usize, usize) -> bool| {
            (0..tokens).flat_map(|i| (0..=i).map(move |j| (i, j))).filter(|(i, j)| same(*i, *j)).count() as f64
        };
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found} and {expected}");
        near(mean(json!({"groups": 4}), tokens), counted(&|i, j| i % 4 == j % 4));
        let chunks = json!({"groups": 2, "order": "chunk", "length": 12});
        near(mean(chunks, tokens), counted(&|i, j| i / 6 == j / 6));
    }
}

#[test]
fn slices_double_in_equal_parts() {
    let found = |from, by, groups| {
        let anneal = Doubling { from, by };
        (0..9).map(|step| anneal.at(step, groups)).collect::<Vec<_>>()
    };
    assert_eq!(found(1, 7, 8), [1, 1, 1, 2, 2, 4, 4, 8, 8]);
    assert_eq!(found(4, 3, 6), [4, 4, 4, 6, 6, 6, 6, 6, 6]);
    assert_eq!(found(1, 0, 2), [2; 9]);
    assert_eq!(found(8, 5, 2), [2; 9]);
}

/// HorNet's arithmetic at the hidden size of SmolLM2-135M, order 3 and a kernel of 16: 1,222,416
/// parameters and a state of 15,120 numbers.
#[test]
fn a_gated_convolution_has_the_sizes_of_the_paper() {
    let mut config = model(json!([{"branch": {"gnconv": {"order": 3, "kernel": 16}}}]), 2);
    config.hidden_size = 576;
    let tensors = config.tensors().into_iter().filter(|spec| spec.name().starts_with("model.depths.0.step."));
    assert_eq!(tensors.map(|spec| spec.num_elements()).sum::<usize>(), 1_222_416 + 576);
    let (with, without) = (config.cost(100, None), config.full_recursion_cost(100));
    assert_eq!(with.cache_bytes - without.cache_bytes, 6.0 * 15_120.0 * 4.0);
    // The cache of a recursion without attention does not depend on the length.
    let rows = json!([{}, {"attention": "none", "branch": "gnconv"}]);
    let instead = model(rows, 2);
    let later =
        |tokens: usize| instead.cost(tokens, None).cache_bytes - instead.full_recursion_cost(tokens).cache_bytes / 2.0;
    assert_eq!(later(100), later(32_768));
}

/// Of 103 tokens a recursion over coarse tokens of four has 25.
#[test]
fn a_recursion_over_coarse_tokens_costs_what_these_do() {
    let (coarse, whole) = (model(json!([{}, {"resolution": 4}]), 2), model(json!([]), 2));
    let (found, of_tokens) = (coarse.cost(103, None), |tokens| whole.cost(tokens, None));
    assert_eq!(found.linear, (of_tokens(103).linear + of_tokens(25).linear) / 2.0);
    assert_eq!(found.attention, (of_tokens(103).attention + of_tokens(25).attention) / 2.0);
    let state = 5.0 * 8.0 * 4.0;
    assert_eq!(found.cache_bytes, (of_tokens(103).cache_bytes + of_tokens(25).cache_bytes) / 2.0 + state);
    assert!(coarse.cost(3, None).operations().is_finite());
    assert_eq!(problems(json!([{"resolution": 0}])), ["`resolution`: `factor` is 0, expected 1 to 256"]);
}
