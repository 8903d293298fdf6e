//! A decoder run one depth at a time on weights that the caller names, showing what each linear reads.
//!
//! It holds no weights: those of a depth are read when it runs and dropped after. What runs between them (hidden states) is in the
//! caller's hands, so that two models can be walked side by side with one layer of each in memory.
//!
//! Shapes: hidden states `[M, D]`, rows of a sequence one after the other, `M` a multiple of the sequence length `T`.

use crate::{
    block::{Block, Rows},
    kernels::{self, Layout, f32_slice},
    kv::Kv,
    rope::RopeFrequencies,
    weights::{Loader, WeightDtype},
};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use retie_checkpoint::{CheckpointError, EMBEDDINGS, LM_HEAD, TensorSource};
use retie_config::{Depth, LayerIndex, ModelConfig, Residual};

/// Rows that run at once; more share the reading of weights, and need memory.
const ROWS: usize = 2048;

/// Logits in memory at once, for each of two models.
const LOGITS: usize = 1 << 24;

/// Where in a layer linears read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// `q_proj`, `k_proj`, `v_proj`.
    Attention,
    /// `o_proj`.
    Output,
    /// `gate_proj`, `up_proj`.
    Mlp,
    /// `down_proj`.
    Down,
}

/// What linears read, for some consecutive rows.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Which linears.
    pub point: Point,
    /// `[rows, in]`.
    pub inputs: &'a [f32],
    /// The residual stream there, `[rows, D]`: what the output of `o_proj` and `down_proj` is added to.
    pub residual: &'a [f32],
}

/// One depth to run.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Where its weights are, under the names of a checkpoint.
    pub tensors: &'a dyn TensorSource,
    /// Stored layer.
    pub layer: LayerIndex,
    /// Position in the stack, for what the depth owns.
    pub depth: Depth,
    /// Depth of the runner's configuration whose kind it is: what it sees of the text, and how it rotates queries and keys.
    pub kind: Depth,
    /// Stop before the linears of this point; the whole layer if `None`.
    pub until: Option<Point>,
}

/// Two models on the same tokens, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// NLL of the targets under the first.
    pub reference_nll: f64,
    /// NLL of the targets under the second.
    pub nll: f64,
    /// `KL(first ‖ second)`, mean over rows.
    pub kl: f64,
}

/// Runs depths of one architecture.
#[derive(Debug)]
pub struct LayerByLayer {
    config: ModelConfig,
    ropes: Vec<RopeFrequencies>,
    device: Device,
}

impl LayerByLayer {
    /// For models of the shape of `config`, on a device without autodiff.
    #[must_use]
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Self { config: config.clone(), ropes: RopeFrequencies::all(config), device: device.clone() }
    }

    /// Hidden states before depth 0, of the embeddings `[M, D]` of the tokens.
    #[must_use]
    pub fn embed(&self, mut rows: Vec<f32>) -> Vec<f32> {
        if let Some(scale) = self.config.anatomy.embedding_scale {
            rows.iter_mut().for_each(|x| *x *= scale as f32);
        }
        rows
    }

    /// Runs a depth on sequences of `tokens` tokens and gives the hidden states after it (or, with `until`, the residual stream
    /// there). `see` is called for every point that is reached, with consecutive rows from the first to the last.
    ///
    /// # Errors
    /// When the weights cannot be read.
    ///
    /// # Panics
    /// When `hidden` is not a whole number of sequences.
    pub fn run(
        &self,
        run: Run<'_>,
        hidden: &[f32],
        tokens: usize,
        see: &mut dyn FnMut(Seen<'_>),
    ) -> Result<Vec<f32>, CheckpointError> {
        let loader = Loader { tensors: run.tensors, device: &self.device, dtype: WeightDtype::F32 };
        let layer = loader.layer(run.layer.0)?;
        let own = loader.depth(run.depth.0, &layer)?;
        let positions: Vec<usize> = (0..tokens).collect();
        let width = self.config.hidden_size;
        let angles: Vec<_> = self.ropes.iter().map(|rope| rope.angles(&positions, &self.device)).collect();
        let kind = self.config.anatomy.depths[run.kind.0];
        let block = Block { layer: &layer, own: &own, config: &self.config, kind };
        assert_eq!(hidden.len() % (tokens * width), 0, "whole sequences");
        let mut out = Vec::with_capacity(hidden.len());
        for rows in hidden.chunks((ROWS / tokens).max(1) * tokens * width) {
            let batch = rows.len() / (tokens * width);
            let x = self.tensor(rows.to_vec(), width);
            let rows = Rows { layout: Layout::batch(batch, tokens), batch, angles: angles.clone() };
            let x = run_rows(block, x, &rows, run.until, see);
            out.extend_from_slice(f32_slice(&x.into_data()));
        }
        Ok(out)
    }

    /// Compares the predictions of two models from their hidden states `[M, D]` after the last depth; `targets` has one token
    /// for each row. Both take final norm and head from `tensors`.
    ///
    /// # Errors
    /// When the weights cannot be read.
    ///
    /// # Panics
    /// When the lengths do not fit each other.
    pub fn compare(
        &self,
        tensors: &dyn TensorSource,
        [reference, other]: [&[f32]; 2],
        targets: &[u32],
    ) -> Result<Comparison, CheckpointError> {
        let (width, vocab_size) = (self.config.hidden_size, self.config.vocab_size);
        assert!(reference.len() == other.len() && other.len() == targets.len() * width, "one target a row");
        let loader = Loader { tensors, device: &self.device, dtype: WeightDtype::F32 };
        let norm = loader.final_norm()?;
        let head = if self.config.anatomy.tie_word_embeddings { EMBEDDINGS } else { LM_HEAD };
        let head = loader.param::<2>(head)?.val();
        let logits = |hidden: &[f32]| {
            let x = norm.forward(self.tensor(hidden.to_vec(), width), &self.config.anatomy);
            kernels::linear(x, head.clone()).into_data()
        };
        let rows = (LOGITS / vocab_size).max(1);
        let mut sums = [0.0f64; 3];
        let chunks = reference.chunks(rows * width).zip(other.chunks(rows * width)).zip(targets.chunks(rows));
        for ((reference, other), targets) in chunks {
            let (p, q) = (logits(reference), logits(other));
            let rows = f32_slice(&p).par_chunks(vocab_size).zip(f32_slice(&q).par_chunks(vocab_size)).zip(targets);
            let scores: Vec<[f64; 3]> = rows.map(|((p, q), target)| score(p, q, *target as usize)).collect();
            for score in scores {
                sums.iter_mut().zip(score).for_each(|(sum, x)| *sum += x);
            }
        }
        let [reference_nll, nll, kl] = sums.map(|sum| sum / targets.len().max(1) as f64);
        Ok(Comparison { reference_nll, nll, kl })
    }

    fn tensor(&self, values: Vec<f32>, width: usize) -> Tensor<2> {
        let rows = values.len() / width;
        Tensor::from_data(TensorData::new(values, [rows, width]), &self.device)
    }
}

/// Runs a block; `see` is shown what each point reads.
fn run_rows(
    block: Block<'_>,
    x: Tensor<2>,
    rows: &Rows,
    until: Option<Point>,
    see: &mut dyn FnMut(Seen<'_>),
) -> Tensor<2> {
    let mut show = |point, inputs: &Tensor<2>, residual: &Tensor<2>| {
        let (inputs, residual) = (inputs.clone().into_data(), residual.clone().into_data());
        see(Seen { point, inputs: f32_slice(&inputs), residual: f32_slice(&residual) });
        until == Some(point)
    };
    let x = block.enter(x);
    let read = block.attention_input(x.clone());
    if show(Point::Attention, &read, &x) {
        return x;
    }
    let mixed = block.mix(read, rows, Kv::Own { slot: None, kept: None });
    if show(Point::Output, &mixed, &x) {
        return x;
    }
    let attended = kernels::add(x.clone(), block.attention_output(mixed));
    let read = block.mlp_input(if block.config.anatomy.residual == Residual::Parallel { x } else { attended.clone() });
    if show(Point::Mlp, &read, &attended) {
        return attended;
    }
    let inner = block.inner(read);
    if show(Point::Down, &inner, &attended) {
        return attended;
    }
    kernels::add(attended, block.mlp_output(inner))
}

/// `[−log p[target], −log q[target], KL(p ‖ q)]` of the logits of one row.
fn score(p: &[f32], q: &[f32], target: usize) -> [f64; 3] {
    let log_sum = |logits: &[f32]| {
        let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        largest + logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum::<f64>().ln()
    };
    let (log_p, log_q) = (log_sum(p), log_sum(q));
    let kl = p.iter().zip(q).map(|(p, q)| {
        let p = f64::from(*p) - log_p;
        p.exp() * (p - (f64::from(*q) - log_q))
    });
    [log_p - f64::from(p[target]), log_q - f64::from(q[target]), kl.sum()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `p = (1/2, 1/4, 1/4)`, `q = (1/4, 1/4, 1/2)`: KL = ½ ln 2 − ¼ ln 2.
    #[test]
    fn a_row_has_the_scores_of_its_distributions() {
        let (p, q) = ([2f32.ln() + 3.0, 3.0, 3.0], [0.0, 0.0, 2f32.ln()]);
        let [first, second, kl] = score(&p, &q, 0);
        let ln2 = std::f64::consts::LN_2;
        // Logits are f32: 3e-7 at this size.
        for (found, expected) in [(first, ln2), (second, 2.0 * ln2), (kl, 0.25 * ln2)] {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(score(&p, &p, 1)[2], 0.0);
    }
}
