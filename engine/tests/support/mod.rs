//! Tiny models with random weights, and sequences that are run to their end.
#![allow(dead_code)] // each test file uses a part

use retie_config::{
    ExpertChoiceConfig, Gating, Init, KvSharing, LoraConfig, RecursionConfig, RouterConfig, Sharing, TokenChoiceConfig,
};
use retie_engine::{Engine, EngineOptions, FinishReason, Progress, Request, Sampling, SequenceId, StopConditions};
use retie_model::CausalLm;
use retie_testing::{CONTEXT, VOCAB_SIZE, random_model};
use std::collections::BTreeMap;

/// A prelude of two layers, three recursions of one layer and a coda of one, with LoRA.
fn recursion(router: Option<RouterConfig>) -> RecursionConfig {
    RecursionConfig {
        prelude: Some(2),
        coda: Some(1),
        lora: Some(LoraConfig::uniform(2)),
        router,
        ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
    }
}

pub fn expert_choice() -> RouterConfig {
    RouterConfig::ExpertChoice(ExpertChoiceConfig { alpha: 1.0, gating: Gating::Delta, ..ExpertChoiceConfig::new(3) })
}

pub fn token_choice() -> RouterConfig {
    RouterConfig::TokenChoice(TokenChoiceConfig { gating: Gating::Delta, ..TokenChoiceConfig::default() })
}

pub fn plain() -> CausalLm {
    random_model(None)
}

pub fn routed() -> CausalLm {
    random_model(Some(recursion(Some(expert_choice()))))
}

/// A model without routers.
pub fn recursive() -> RecursionConfig {
    recursion(None)
}

/// One model of every kind that the KV cache distinguishes.
pub fn models() -> Vec<(&'static str, CausalLm)> {
    let with = |router, kv_sharing| random_model(Some(RecursionConfig { kv_sharing, ..recursion(router) }));
    vec![
        ("plain", plain()),
        ("recursive", with(None, KvSharing::RecursionWise)),
        ("recursive, shared", with(None, KvSharing::Shared)),
        ("expert_choice", routed()),
        ("expert_choice, shared", with(Some(expert_choice()), KvSharing::Shared)),
        ("expert_choice, hybrid", with(Some(expert_choice()), KvSharing::Hybrid)),
        ("token_choice", with(Some(token_choice()), KvSharing::RecursionWise)),
    ]
}

/// Token ids without a regular pattern.
pub fn tokens(seed: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 7 + seed * 13 + i * (seed + 3)) % (VOCAB_SIZE - 1)) as u32).collect()
}

/// Sampling with every parameter set.
pub fn sampled(seed: u64) -> Sampling {
    Sampling {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        seed,
    }
}

/// A request for `new` tokens after a prompt.
pub fn request(prompt: Vec<u32>, new: usize, sampling: Sampling) -> Request {
    let stop = StopConditions { max_new_tokens: Some(new), ..StopConditions::default() };
    Request { prompt, sampling, stop, ..Request::default() }
}

pub fn engine(model: &CausalLm, num_slots: usize, max_step_tokens: usize) -> Engine {
    Engine::new(model.clone(), EngineOptions { num_slots, context: CONTEXT, max_step_tokens }).unwrap()
}

/// Generated texts by sequence.
#[derive(Debug, Default)]
pub struct Texts(BTreeMap<SequenceId, Text>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    pub tokens: Vec<u32>,
    pub recursion_counts: Vec<usize>,
    pub finish: Option<FinishReason>,
}

impl Texts {
    pub fn add(&mut self, progress: Vec<Progress>) {
        for Progress { sequence, recursion_counts, token, finish, .. } in progress {
            let text = self.0.entry(sequence).or_default();
            assert_eq!(text.finish, None, "no progress after the end");
            text.tokens.extend(token);
            text.recursion_counts.extend(recursion_counts);
            text.finish = finish;
        }
    }

    pub fn get(&self, id: SequenceId) -> Text {
        self.0.get(&id).cloned().unwrap_or_default()
    }

    /// Sequences with progress that have not ended.
    pub fn active(&self) -> impl Iterator<Item = SequenceId> {
        self.0.iter().filter(|(_, text)| text.finish.is_none()).map(|(id, _)| *id)
    }

    pub fn finish(&mut self, engine: &mut Engine) {
        while !engine.is_idle() {
            self.add(engine.step());
        }
    }
}

/// Text of a request in an engine without other sequences.
pub fn alone(model: &CausalLm, request: Request) -> Text {
    let mut engine = engine(model, 1, CONTEXT);
    let mut texts = Texts::default();
    let id = engine.admit(request).unwrap();
    texts.finish(&mut engine);
    texts.get(id)
}
