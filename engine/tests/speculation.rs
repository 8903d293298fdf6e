//! Self-speculative decoding gives the text of plain decoding, greedy and sampled.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::tensor::Device;
use retie_config::{DepthExtra, Init, KvSharing, LoraConfig, ModelConfig, RecursionConfig, Sharing};
use retie_engine::{Engine, EngineOptions, Request, Sampling, SpeculationOptions};
use retie_model::CausalLm;
use retie_testing::{RandomWeights, VOCAB_SIZE, ids, tiny_llama, values};
use support::{Text, Texts, expert_choice, request, sampled, tokens};

const LONG: usize = 1100;

/// A prelude and a coda of one layer around `num_recursions` recursions of layers with LoRA, behind
/// random residual gates: the first recursion is often right about the others, and often not.
fn model(num_recursions: usize, change: impl FnOnce(&mut RecursionConfig)) -> CausalLm {
    let mut recursion = RecursionConfig {
        prelude: Some(1),
        coda: Some(1),
        lora: Some(LoraConfig::uniform(2)),
        extras: [DepthExtra::ResidualScale].into_iter().collect(),
        ..RecursionConfig::new(num_recursions, Sharing::Cycle, Init::Stepwise)
    };
    change(&mut recursion);
    let config = ModelConfig { recursion: Some(recursion), max_position_embeddings: LONG, ..tiny_llama() };
    CausalLm::load(&config, &RandomWeights::new(&config), &Device::flex()).unwrap()
}

fn engine(model: &CausalLm, num_slots: usize) -> Engine {
    let context = model.config().max_position_embeddings;
    Engine::new(model.clone(), EngineOptions { num_slots, context, max_step_tokens: 64 }).unwrap()
}

fn run(mut engine: Engine, requests: &[Request]) -> (Vec<Text>, Engine) {
    let mut texts = Texts::default();
    let sequences: Vec<_> = requests.iter().map(|request| engine.admit(request.clone()).unwrap()).collect();
    texts.finish(&mut engine);
    (sequences.into_iter().map(|id| texts.get(id)).collect(), engine)
}

fn drafts(num_drafts: usize) -> SpeculationOptions {
    SpeculationOptions { num_drafts: Some(num_drafts), draft_tokens: Vec::new() }
}

#[test]
fn a_thousand_greedy_tokens_are_those_of_plain_decoding_for_every_number_of_drafts() {
    for (name, model, count, drafted) in [
        ("two recursions", model(2, |_| {}), 1000, 1..=7),
        ("four, shared", model(4, |recursion| recursion.kv_sharing = KvSharing::Shared), 200, 3..=4),
    ] {
        let request = request(tokens(3, 7), count, Sampling::default());
        let expected = run(engine(&model, 1), std::slice::from_ref(&request)).0;
        assert_eq!(expected[0].tokens.len(), count);
        for num_drafts in drafted {
            let speculative = engine(&model, 1).with_speculation(drafts(num_drafts)).unwrap();
            let (found, engine) = run(speculative, std::slice::from_ref(&request));
            assert_eq!(found, expected, "{name}, {num_drafts} drafts");
            let counts = engine.speculation_counts().unwrap();
            assert!(0 < counts.accepted && counts.accepted < counts.drafted, "{name}: {counts:?}");
            assert_eq!(counts.accepted + counts.cycles + counts.plain, count - 1, "{name}: {counts:?}");
        }
    }
}

#[test]
fn sampled_tokens_are_those_of_the_same_seed_with_any_draft_tokens_and_beside_other_sequences() {
    let model = model(2, |_| {});
    let requests: Vec<_> = (0..3).map(|i| request(tokens(i, 4 + i), 60 * (i + 1), sampled(i as u64))).collect();
    let expected = run(engine(&model, 3), &requests).0;
    for options in [
        drafts(4),
        SpeculationOptions::default(),
        SpeculationOptions { num_drafts: Some(3), draft_tokens: (0..VOCAB_SIZE as u32).step_by(3).collect() },
    ] {
        let (found, engine) = run(engine(&model, 3).with_speculation(options).unwrap(), &requests);
        assert_eq!(found, expected);
        // The shorter ones end first; only the last one is alone in the end.
        assert!(engine.speculation_counts().unwrap().cycles > 0);
    }
}

#[test]
fn the_second_of_two_drawn_tokens_has_the_distribution_of_the_model() {
    let model = model(2, |_| {});
    let prompt = tokens(5, 6);
    let sampling = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
    let softmax = |logits: &[f32]| {
        let weights: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(move |x| x / sum).collect::<Vec<f64>>()
    };
    let after = |ids_of: Vec<u32>| {
        let rows = ids_of.len();
        let logits = values(model.logits(model.forward(ids(&[ids_of], &Device::flex()), None)));
        softmax(&logits[(rows - 1) * VOCAB_SIZE..])
    };
    let first = after(prompt.clone());
    let mut expected = vec![0.0; VOCAB_SIZE];
    for (token, probability) in first.iter().enumerate() {
        let second = after([&prompt[..], &[token as u32]].concat());
        expected.iter_mut().zip(second).for_each(|(sum, p)| *sum += probability * p);
    }
    let count = 1500;
    let mut found = vec![0.0; VOCAB_SIZE];
    let mut engine = engine(&model, 1).with_speculation(drafts(2)).unwrap();
    for seed in 0..count {
        let (texts, same) = run(engine, &[request(prompt.clone(), 3, sampling(seed))]);
        engine = same;
        found[texts[0].tokens[1] as usize] += 1.0;
    }
    assert!(engine.speculation_counts().unwrap().accepted > 150);
    let statistic: f64 =
        expected.iter().zip(&found).map(|(p, found)| (found - p * count as f64).powi(2) / (p * count as f64)).sum();
    // The 0.9999 quantile of χ² with 60 degrees of freedom.
    assert!(statistic < 107.3, "{statistic}");
}

#[test]
fn models_whose_first_exit_cannot_draft_are_refused_with_the_reason() {
    let refusal = |model: CausalLm, options| engine(&model, 1).with_speculation(options).unwrap_err().to_string();
    let sequence = |recursion: &mut RecursionConfig| {
        *recursion = RecursionConfig::new(2, Sharing::Sequence, Init::Stepwise);
    };
    assert_eq!(
        refusal(model(2, sequence), drafts(2)),
        "the model cannot speculate: `sequence` has no early exits: its recursions do not run one after the other\n\
         hint: decode it plainly"
    );
    let routed = model(3, |recursion| (recursion.prelude, recursion.router) = (Some(2), Some(expert_choice())));
    assert!(refusal(routed, drafts(2)).contains("its router decides"));
    assert!(refusal(model(2, |r| r.kv_sharing = KvSharing::Hybrid), drafts(2)).contains("`kv_sharing: hybrid`"));
    assert!(refusal(support::plain(), drafts(2)).contains("one recursion"));
    assert!(refusal(model(2, |_| {}), drafts(8)).starts_with("`num_drafts` is `8`, expected 1 to 7"));
    let unknown = SpeculationOptions { num_drafts: None, draft_tokens: vec![VOCAB_SIZE as u32] };
    assert!(refusal(model(2, |_| {}), unknown).starts_with("`draft_tokens` is `61`"));
}
