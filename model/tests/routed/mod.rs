//! Routed golden models with another configuration or other weights, and what tests of routing
//! share.
#![allow(dead_code)] // each test file uses a part

use burn::tensor::{Device, Int, Tensor};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_config::{KvSharing, ModelConfig, RouterConfig};
use retie_model::{CausalLm, KvCache, RoutingTrace, SelectionRule, kernels::Layout};
use retie_testing::{Golden, differences, ids, values};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// f32 rounding over a few layers of random weights, relative to the largest logit.
pub const LOGITS: f32 = 5e-6;
/// f32 rounding through the backward pass, relative to the largest element of each gradient.
pub const GRADIENTS: f32 = 5e-5;

/// A golden model with another configuration and, for some tensors, other values.
pub struct Changed {
    pub golden: Golden,
    pub config: ModelConfig,
    values: BTreeMap<String, Vec<f32>>,
}

impl Changed {
    pub fn new(name: &str, change: impl FnOnce(&mut RouterConfig)) -> Self {
        let golden = Golden::named(name);
        let mut config = golden.config();
        change(config.recursion.as_mut().unwrap().router.as_mut().unwrap());
        Self { golden, config, values: BTreeMap::new() }
    }

    /// Sets the output weights of every router to zero, so that all its logits are 0.
    pub fn without_preference(mut self) -> Self {
        for name in self.golden.weight_names() {
            if name.contains(".routers.") && name.ends_with("out_proj.weight") {
                let size = self.golden.floats(name).len();
                self.values.insert(name.to_owned(), vec![0.0; size]);
            }
        }
        self
    }

    pub fn with_kv_sharing(mut self, kv_sharing: KvSharing) -> Self {
        self.config.recursion.as_mut().unwrap().kv_sharing = kv_sharing;
        self
    }

    /// Removes the routers; the other weights stay the same.
    pub fn unrouted(mut self) -> Self {
        self.config.recursion.as_mut().unwrap().router = None;
        self
    }

    pub fn load(&self) -> CausalLm {
        CausalLm::load(&self.config, self, &Device::flex()).unwrap()
    }
}

impl TensorSource for Changed {
    fn names(&self) -> Vec<&str> {
        let routed = self.config.num_routers(retie_config::RouterKind::Main) > 0;
        self.golden.weight_names().into_iter().filter(|name| routed || !name.contains(".routers.")).collect()
    }
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.golden.info(name)
    }
    fn path_of(&self, name: &str) -> &Path {
        self.golden.path_of(name)
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        match self.values.get(name) {
            Some(values) => Ok(narrow(values, Dtype::F32).into()),
            None => self.golden.bytes(name),
        }
    }
}

pub fn load(name: &str) -> CausalLm {
    Changed::new(name, |_| {}).load()
}

/// Token ids of a golden file.
pub fn rows(name: &str) -> Vec<Vec<u32>> {
    Golden::named(name).rows()
}

pub fn flat(rows: &[Vec<u32>], device: &Device) -> Tensor<1, Int> {
    let count = rows.iter().map(Vec::len).sum::<usize>();
    ids(rows, device).reshape([count])
}

/// Logits of whole sequences of equal length, and the routing trace.
pub fn run(model: &CausalLm, rows: &[Vec<u32>], rule: SelectionRule) -> (Vec<f32>, RoutingTrace) {
    let layout = Layout::batch(rows.len(), rows[0].len());
    let (hidden, trace) = model.forward_routed(flat(rows, &model.device()), layout, rule);
    (values(model.logits(hidden)), trace)
}

pub fn top_k(model: &CausalLm) -> SelectionRule {
    SelectionRule::TopK(model.expert_choice().unwrap().capacities.clone())
}

pub fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    let (max, _) = differences(actual, expected);
    assert!(max <= LOGITS * scale, "{what}: differs by {max}, the largest is {scale}");
}

/// Reads `rows` of equal length, prompts of several lengths and then token by token, and compares
/// logits and recursion counts with those of whole rows. Returns the filled caches, and the routing
/// trace of whole rows.
pub fn assert_decodes(what: &str, model: &CausalLm, rows: &[Vec<u32>]) -> (Vec<KvCache>, RoutingTrace) {
    let (batch, tokens) = (rows.len(), rows[0].len());
    let (expected, trace) = run(model, rows, SelectionRule::Causal);
    let vocab_size = model.config().vocab_size;
    let caches = [1, 5, tokens].map(|prompt| {
        let mut cache = KvCache::for_batch(model.config(), batch, tokens, &model.device());
        let mut counts = vec![vec![0; tokens]; batch];
        let mut at = 0;
        while at < tokens {
            let count = if at == 0 { prompt } else { 1 };
            let step: Vec<Vec<u32>> = rows.iter().map(|row| row[at..at + count].to_vec()).collect();
            let (hidden, step) = model.forward_traced(ids(&step, &model.device()), Some(&mut cache));
            for (row, logits) in values(model.logits(hidden)).chunks(count * vocab_size).enumerate() {
                let from = (row * tokens + at) * vocab_size;
                assert_close(what, logits, &expected[from..from + count * vocab_size]);
            }
            for (i, recursions) in step.recursion_counts(batch * count).into_iter().enumerate() {
                counts[i / count][at + i % count] = recursions;
            }
            at += count;
        }
        assert_eq!(counts.concat(), trace.recursion_counts(batch * tokens), "{what}");
        cache
    });
    (caches.into(), trace)
}

/// Asserts that the cache of each recursion holds the tokens that it selected.
pub fn assert_caches_hold_selected_rows(caches: &[KvCache], trace: &RoutingTrace, rows: &[Vec<u32>]) {
    let (batch, tokens) = (rows.len(), rows[0].len());
    for (cache, decision) in caches.iter().flat_map(|cache| trace.decisions().iter().map(move |found| (cache, found))) {
        let reached = |row: usize| decision.selected_rows.host().iter().filter(|i| **i / tokens == row).count();
        let expected: Vec<usize> = (0..batch).map(reached).collect();
        match cache.num_selected(decision.recursion) {
            Some(found) => assert_eq!(found, expected),
            None => assert_eq!(expected, vec![tokens; batch]),
        }
    }
}
