//! Routed golden models with another configuration or other weights, and what tests of routing share.

use super::{Golden, differences, ids, values};
use burn::tensor::{Device, Int, Tensor};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_config::{ModelConfig, RouterConfig};
use retie_model::{CausalLm, Choice, Routing, kernels::Layout};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// f32 rounding over a few layers of random weights, relative to the largest logit.
pub const LOGITS: f32 = 5e-6;
/// The same through the backward pass, relative to the largest element of each gradient.
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

    /// Every router gives 0 for everything.
    pub fn without_preference(mut self) -> Self {
        for name in self.golden.weight_names() {
            if name.contains(".routers.") && name.ends_with("out_proj.weight") {
                let size = self.golden.floats(name).len();
                self.values.insert(name.to_owned(), vec![0.0; size]);
            }
        }
        self
    }

    /// The same weights without routers.
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
        let routed = !retie_checkpoint::router_tensors(&self.config).is_empty();
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

/// The token ids of a golden.
pub fn rows(name: &str) -> Vec<Vec<u32>> {
    let (flat, shape) = Golden::named(name).ints("golden.ids");
    flat.chunks(shape[1]).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
}

pub fn flat(rows: &[Vec<u32>], device: &Device) -> Tensor<1, Int> {
    let count = rows.iter().map(Vec::len).sum::<usize>();
    ids(rows, device).reshape([count])
}

/// Logits of whole sequences of one length, and what the routers did.
pub fn run(model: &CausalLm, rows: &[Vec<u32>], choice: Choice) -> (Vec<f32>, Routing) {
    let layout = Layout::batch(rows.len(), rows[0].len());
    let (hidden, routing) = model.forward_routed(flat(rows, &model.device()), layout, choice);
    (values(model.logits(hidden)), routing)
}

pub fn top_k(model: &CausalLm) -> Choice {
    Choice::TopK(model.expert_choice().unwrap().capacities.clone())
}

pub fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    let (max, _) = differences(actual, expected);
    assert!(max <= LOGITS * scale, "{what}: differs by {max}, the largest is {scale}");
}
