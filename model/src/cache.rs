//! Keys and values of past tokens, one slot per depth, allocated once.

use crate::kernels::{Grid, Layout};
use burn::tensor::{Device, Tensor};
use retie_config::ModelConfig;

/// Buffers `[B, capacity, K, H]` for every depth, of which the first [`KvCache::len`] rows hold tokens.
#[derive(Debug)]
pub struct KvCache {
    slots: Vec<Option<[Tensor<4>; 2]>>,
    capacity: usize,
    len: usize,
}

/// One depth's part of a cache during a forward pass.
#[derive(Debug)]
pub struct KvSlot<'a> {
    buffers: &'a mut Option<[Tensor<4>; 2]>,
    len: usize,
}

impl KvCache {
    /// Room for `capacity` tokens in each of `batch` rows.
    #[must_use]
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let shape = [batch, capacity, config.num_key_value_heads, config.head_dim];
        let slots = (0..config.num_hidden_layers)
            .map(|_| Some([Tensor::zeros(shape, device), Tensor::zeros(shape, device)]))
            .collect();
        Self { slots, capacity, len: 0 }
    }

    /// Tokens that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The rows of a forward pass over `tokens` more tokens in each of `batch` rows.
    pub(crate) fn layout(&self, batch: usize, tokens: usize) -> Layout {
        let kv_len = self.len + tokens;
        assert!(kv_len <= self.capacity, "{kv_len} tokens in a cache for {}", self.capacity);
        Layout::cached(Grid { batch, tokens, kv_len, capacity: self.capacity })
    }

    pub(crate) fn slot(&mut self, depth: usize) -> KvSlot<'_> {
        KvSlot { buffers: &mut self.slots[depth], len: self.len }
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

impl KvSlot<'_> {
    /// Writes `k`, `v` `[B, T, K, H]` behind what is there; gives the buffers `[B, capacity, K, H]`.
    pub(crate) fn append(self, k: Tensor<4>, v: Tensor<4>) -> [Tensor<4>; 2] {
        let [batch, tokens, heads, head_dim] = k.dims();
        let ranges = [0..batch, self.len..self.len + tokens, 0..heads, 0..head_dim];
        // Taken out, so that the buffer has one owner and is written in place.
        let [keys, values] = match self.buffers.take() {
            Some(buffers) => buffers,
            None => unreachable!("a slot is put back after every use"),
        };
        let keys = keys.slice_assign(ranges.clone(), k);
        let values = values.slice_assign(ranges, v);
        *self.buffers = Some([keys.clone(), values.clone()]);
        [keys, values]
    }
}
