//! Mechanisms of steps, each alone and each pair: decoding equals the whole forward pass, a batch
//! equals its rows, attention is causal, and the operations are those of the formula.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::tensor::Device;
use retie_config::{
    ExpertChoiceConfig, Init, KvSharing, MechanismAt, RecursionConfig, RouterConfig, RouterInput, Sharing, steps_with,
};
use retie_model::{CausalLm, KvCache, kernels::counted};
use retie_testing::{VOCAB_SIZE, differences, ids, random_model, values};

const MECHANISMS: &[&str] = &[
    "coefficients",
    "gnconv:order=3,kernel=4",
    "gnconv:order=1,kernel=1@1",
    "hai",
    "nll:ratio=0.5",
    "dense",
    "silu_dra",
    "dra:form=paper",
    "dra:form=model",
    "dra:form=package",
    "snake",
    "sliced:groups=3@1",
    "sliced:groups=2,order=chunk,length=10@1",
    "descriptor:chunk=4,ratio=2,sinks=2",
    "descriptor:chunk=6,ratio=3,stride=2,pool=mean@1",
    "rg:stride=2,latents=4",
    "rg:stride=2,latents=2,key_ratio=0.5@1",
    "grouped_softmax:groups=2",
    "resolution:factor=2",
    "resolution:factor=3@1",
];

const TOKENS: usize = 13;

/// Decoding against the whole pass, relative to the largest logit: f32 sums in two orders over six
/// depths of random weights.
const DECODED: f32 = 2e-5;
/// The same with gated convolutions, which multiply up to four projections of a token: relative
/// errors add up, and 3.6e-5 was measured.
const DECODED_GATED: f32 = 6e-5;

fn recursion() -> RecursionConfig {
    RecursionConfig::new(2, Sharing::Cycle, Init::Average)
}

fn model(mechanisms: &[&str], recursion: RecursionConfig) -> Option<CausalLm> {
    let added: Vec<MechanismAt> = mechanisms.iter().map(|text| text.parse().unwrap()).collect();
    let steps = steps_with(&[], &added, recursion.num_recursions).ok()?;
    Some(random_model(Some(RecursionConfig { steps, ..recursion })))
}

/// Every mechanism alone, and every pair that goes together.
fn models() -> Vec<(String, CausalLm)> {
    let mut models = Vec::new();
    for (at, first) in MECHANISMS.iter().enumerate() {
        models.push(((*first).to_owned(), model(&[first], recursion()).unwrap()));
        let pairs = MECHANISMS[at + 1..].iter();
        models.extend(
            pairs.filter_map(|second| Some((format!("{first} and {second}"), model(&[first, second], recursion())?))),
        );
    }
    models
}

fn rows() -> Vec<Vec<u32>> {
    [7, 11].map(|step| (0..TOKENS as u32).map(|i| (i * step + 3) % VOCAB_SIZE as u32).collect()).to_vec()
}

fn logits(model: &CausalLm, rows: &[Vec<u32>]) -> Vec<f32> {
    values(model.logits(model.forward(ids(rows, &Device::flex()), None)))
}

/// Logits of a prompt and of single tokens behind it.
fn decoded(model: &CausalLm, row: &[u32], prompt: usize) -> Vec<f32> {
    let mut cache = KvCache::for_batch(model.config(), 1, row.len(), &Device::flex());
    let mut step = |tokens: &[u32]| {
        values(model.logits(model.forward(ids(&[tokens.to_vec()], &Device::flex()), Some(&mut cache))))
    };
    let mut found = step(&row[..prompt]);
    for token in &row[prompt..] {
        found.extend(step(&[*token]));
    }
    found
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    let (max, _) = differences(found, expected);
    let bound = if what.contains("gnconv") { DECODED_GATED } else { DECODED };
    assert!(max <= bound * scale, "{what}: differs by {max}, the largest is {scale}");
}

#[test]
fn decoding_and_batches_equal_whole_passes_and_nothing_looks_ahead() {
    let plain = logits(&random_model(Some(recursion())), &rows());
    for (name, model) in models() {
        let expected = logits(&model, &rows());
        assert!(differences(&expected, &plain).0 > 1e-3, "{name} changes nothing");
        let (row, expected_of_row) = (&rows()[1], &expected[TOKENS * VOCAB_SIZE..]);
        assert_close(&name, &logits(&model, std::slice::from_ref(row)), expected_of_row);
        assert_close(&name, &decoded(&model, row, 5), expected_of_row);
        let mut other = rows();
        other[0][8] = (other[0][8] + 1) % VOCAB_SIZE as u32;
        let found = logits(&model, &other);
        assert_eq!(found[..8 * VOCAB_SIZE], expected[..8 * VOCAB_SIZE], "{name}: before the token");
        assert!(found[8 * VOCAB_SIZE..TOKENS * VOCAB_SIZE] != expected[8 * VOCAB_SIZE..TOKENS * VOCAB_SIZE], "{name}");
        assert_eq!(found[TOKENS * VOCAB_SIZE..], expected[TOKENS * VOCAB_SIZE..], "{name}: the other row");
    }
}

#[test]
fn they_go_with_every_kv_sharing_and_with_routers() {
    for kv_sharing in KvSharing::ALL {
        let router = RouterConfig::ExpertChoice(ExpertChoiceConfig {
            input: RouterInput::Normalized,
            alpha: 1.0,
            ..ExpertChoiceConfig::new(2)
        });
        for router in [None, Some(router)] {
            for mechanism in MECHANISMS.iter().filter(|name| fits(name, *kv_sharing, router.is_some())) {
                let what = format!("{mechanism}, {kv_sharing}, {}", if router.is_some() { "routed" } else { "plain" });
                let recursion = RecursionConfig { kv_sharing: *kv_sharing, router: router.clone(), ..recursion() };
                let model = model(&[mechanism], recursion).unwrap();
                let row = rows().remove(1);
                let expected = logits(&model, std::slice::from_ref(&row));
                for prompt in [1, 6] {
                    assert_close(&what, &decoded(&model, &row, prompt), &expected);
                }
            }
        }
    }
}

fn fits(mechanism: &str, kv_sharing: KvSharing, is_routed: bool) -> bool {
    let is_local = ["descriptor", "gnconv", "rg", "resolution"].iter().any(|name| mechanism.starts_with(name));
    match mechanism {
        "dense" | "grouped_softmax:groups=2" => !is_routed,
        _ if is_local => !is_routed && kv_sharing == KvSharing::RecursionWise,
        _ => true,
    }
}

#[test]
fn operations_are_those_of_the_formula() {
    for (name, model) in models() {
        let row = &rows()[..1];
        let (_, found) = counted(|| logits(&model, row));
        let cost = model.config().cost(TOKENS, None);
        assert_eq!(found.linear as f64, cost.linear + cost.head, "{name}");
        assert!((found.attention as f64 / cost.attention - 1.0).abs() < 1e-12, "{name}");
    }
}

#[test]
fn slices_are_set_for_a_step_of_training() {
    let mut sliced = model(&["sliced:groups=4@1"], recursion()).unwrap();
    let plain = logits(&random_model(Some(recursion())), &rows());
    let whole = logits(&sliced, &rows());
    sliced.set_slices(|groups| groups / 4);
    assert_eq!(logits(&sliced, &rows()), plain);
    sliced.set_slices(|groups| groups);
    assert_eq!(logits(&sliced, &rows()), whole);
    assert_eq!(logits(&sliced.without_mechanism("sliced"), &rows()), plain);
}
