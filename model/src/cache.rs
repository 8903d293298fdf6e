//! Keys and values of past tokens, one slot per depth, allocated once.

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
    capacity: usize,
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

    pub(crate) fn slot(&mut self, depth: usize) -> KvSlot<'_> {
        KvSlot { buffers: &mut self.slots[depth], capacity: self.capacity, len: self.len }
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

impl KvSlot<'_> {
    /// Writes `k`, `v` `[B, T, K, H]` behind what is there; gives the buffers and the number of rows that count.
    pub(crate) fn append(self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>, usize) {
        let [batch, tokens, heads, head_dim] = k.dims();
        let end = self.len + tokens;
        assert!(end <= self.capacity, "{end} tokens in a cache for {}", self.capacity);
        let ranges = [0..batch, self.len..end, 0..heads, 0..head_dim];
        // Taken out, so that the buffer has one owner and is written in place.
        let [keys, values] = match self.buffers.take() {
            Some(buffers) => buffers,
            None => unreachable!("a slot is put back after every use"),
        };
        let keys = keys.slice_assign(ranges.clone(), k);
        let values = values.slice_assign(ranges, v);
        *self.buffers = Some([keys.clone(), values.clone()]);
        (keys, values, end)
    }
}
