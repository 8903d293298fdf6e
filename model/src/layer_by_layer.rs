//! [`LayerRunner`] on burn: runs a decoder one depth at a time on weights that the caller names,
//! and shows the inputs of its linears.
//!
//! The runner holds no weights: those of a depth are read when it runs and dropped afterwards. The
//! caller holds the hidden states between depths, so that two models can run side by side with one
//! layer of each in memory.
//!
//! # Shapes
//! Hidden states are `[M, D]`, the rows of each sequence consecutive; `M` is a multiple of the
//! sequence length `T`.

use crate::{
    at_depths::AtDepths,
    block::Block,
    kernels::{self, Layout, compare_rows, f32_slice},
    kv::KvSource,
    rope::RopeFrequencies,
    row_context::RowContext,
    weights::{Loader, WeightDtype},
};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use retie_checkpoint::{Activations, CheckpointError, Comparison, LayerRun, LayerRunner, TensorSource};
use retie_config::ModelConfig;
use std::ops::ControlFlow;

/// Rows per batch. More rows amortise the reading of weights, but need memory.
const ROWS: usize = 2048;

/// Logits in memory at once, in elements, for each of the two models.
const LOGITS: usize = 1 << 24;

/// Layer runner for one architecture.
#[derive(Debug)]
pub struct LayerByLayer {
    config: ModelConfig,
    ropes: Vec<RopeFrequencies>,
    device: Device,
}

impl LayerByLayer {
    /// Runner for models with the shape of `config`, on a device without autodiff.
    #[must_use]
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Self { config: config.clone(), ropes: RopeFrequencies::all(config), device: device.clone() }
    }

    fn tensor(&self, values: Vec<f32>, width: usize) -> Tensor<2> {
        let rows = values.len() / width;
        Tensor::from_data(TensorData::new(values, [rows, width]), &self.device)
    }
}

impl LayerRunner for LayerByLayer {
    fn embed(&self, mut rows: Vec<f32>) -> Vec<f32> {
        if let Some(scale) = self.config.anatomy.embedding_scale {
            rows.iter_mut().for_each(|x| *x *= scale as f32);
        }
        rows
    }

    /// # Panics
    /// When `hidden` is not a whole number of sequences, or what is read at `from` has other rows.
    fn run(
        &self,
        run: LayerRun<'_>,
        hidden: &[f32],
        tokens: usize,
        see: &mut dyn FnMut(Activations<'_>),
    ) -> Result<Vec<f32>, CheckpointError> {
        let loader = Loader { tensors: run.tensors, device: &self.device, dtype: WeightDtype::F32 };
        let layer = loader.layer(run.layer, &self.config)?;
        let own = loader.depth(run.depth, &layer, None)?;
        let positions: Vec<usize> = (0..tokens).collect();
        let width = self.config.hidden_size;
        let angles: Vec<_> = self.ropes.iter().map(|rope| rope.angles(&positions, &self.device)).collect();
        let kind = self.config.anatomy.depths[run.kind.0];
        let block = Block { layer: &layer, own: AtDepths::One(&own), config: &self.config, kind };
        assert_eq!(hidden.len() % (tokens * width), 0, "whole sequences");
        let mut observer = |point, read: &Tensor<2>, residual: &Tensor<2>| {
            let (inputs, residual) = (read.clone().into_data(), residual.clone().into_data());
            see(Activations { point, inputs: f32_slice(&inputs), residual: f32_slice(&residual) });
            if run.until == Some(point) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let num_rows = hidden.len() / width;
        assert!(run.from.is_none_or(|(_, read)| read.len().is_multiple_of(num_rows.max(1))), "as many rows are read");
        let step = (ROWS / tokens).max(1) * tokens;
        let mut out = Vec::with_capacity(hidden.len());
        for first in (0..num_rows).step_by(step) {
            let part = first..(first + step).min(num_rows);
            let batch = part.len() / tokens;
            let rows = RowContext { layout: Layout::batch(batch, tokens), batch, angles: angles.clone() };
            let tensor = |values: &[f32]| {
                let width = values.len() / num_rows;
                self.tensor(values[part.start * width..part.end * width].to_vec(), width)
            };
            let x = match run.from {
                Some((point, read)) => block.resume(point, [tensor(read), tensor(hidden)], &rows, &mut observer),
                None => {
                    let kv = KvSource::Computed { cache: None, kept: None };
                    block.forward(tensor(hidden), &rows, kv, Some(&mut observer))
                }
            };
            out.extend_from_slice(f32_slice(&x.into_data()));
        }
        Ok(out)
    }

    /// # Panics
    /// When the lengths of the arguments do not match.
    fn compare(
        &self,
        tensors: &dyn TensorSource,
        [source, other]: [&[f32]; 2],
        targets: &[u32],
    ) -> Result<Comparison, CheckpointError> {
        let (width, vocab_size) = (self.config.hidden_size, self.config.vocab_size);
        assert!(source.len() == other.len() && other.len() == targets.len() * width, "one target a row");
        let loader = Loader { tensors, device: &self.device, dtype: WeightDtype::F32 };
        let norm = loader.final_norm()?;
        let head = loader.head(&self.config)?.val();
        let logits = |hidden: &[f32]| {
            let x = norm.forward(self.tensor(hidden.to_vec(), width), &self.config.anatomy);
            kernels::linear(x, head.clone()).into_data()
        };
        let rows = (LOGITS / vocab_size).max(1);
        let mut sums = [0.0f64; 3];
        let chunks = source.chunks(rows * width).zip(other.chunks(rows * width)).zip(targets.chunks(rows));
        for ((source, other), targets) in chunks {
            let (p, q) = (logits(source), logits(other));
            let rows = f32_slice(&p).par_chunks(vocab_size).zip(f32_slice(&q).par_chunks(vocab_size)).zip(targets);
            let scores: Vec<[f32; 3]> = rows.map(|((p, q), target)| compare_rows(p, q, *target)).collect();
            for score in scores {
                sums.iter_mut().zip(score).for_each(|(sum, x)| *sum += f64::from(x));
            }
        }
        let [source_nll, nll, kl] = sums.map(|sum| sum / targets.len().max(1) as f64);
        Ok(Comparison { source_nll, nll, kl })
    }
}
