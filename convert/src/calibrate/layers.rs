//! What a calibrated start needs of a model: to run one layer and show what its linears read. This crate has no model; the
//! program gives it one.

use retie_checkpoint::{CheckpointError, TensorSource};
use retie_config::{Depth, LayerIndex, ModelConfig, Residual};
use std::ops::Range;

/// Linears that read the same vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// `q_proj`, `k_proj`, `v_proj`: the normalised residual stream.
    Attention,
    /// `o_proj`: the heads' outputs.
    Output,
    /// `gate_proj`, `up_proj`: the normalised residual stream.
    Mlp,
    /// `down_proj`: the gated product.
    Down,
}

impl Site {
    /// In the order of the forward pass.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::Mlp, Self::Down];

    /// Positions in `config.projection_shapes()`, which have the order of the sites.
    #[must_use]
    pub fn projections(self, config: &ModelConfig) -> Range<usize> {
        let last = config.projection_shapes().len() - 1;
        match self {
            Self::Attention => 0..3,
            Self::Output => 3..4,
            Self::Mlp => 4..last,
            Self::Down => last..last + 1,
        }
    }

    /// The norm right before, if there is one.
    #[must_use]
    pub fn norm(self, config: &ModelConfig) -> Option<&'static str> {
        match (self, config.anatomy.residual) {
            (Self::Output | Self::Down, _) | (_, Residual::PostNorm) => None,
            (Self::Attention, _) => Some("input_layernorm"),
            (Self::Mlp, Residual::Sandwich) => Some("pre_feedforward_layernorm"),
            (Self::Mlp, Residual::PreNorm | Residual::Parallel) => Some("post_attention_layernorm"),
        }
    }

    /// Whether the output is added to the residual stream as it is, and is the last that is: it can make up for a difference there.
    #[must_use]
    pub fn writes_residual(self, config: &ModelConfig) -> bool {
        match config.anatomy.residual {
            Residual::PreNorm => matches!(self, Self::Output | Self::Down),
            Residual::Parallel => self == Self::Down,
            Residual::Sandwich | Residual::PostNorm => false,
        }
    }
}

/// What the linears of a site read, for some consecutive rows.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Which linears.
    pub site: Site,
    /// `[rows, in]`.
    pub inputs: &'a [f32],
    /// The residual stream there, `[rows, D]`: what the output is added to where a site writes to it.
    pub residual: &'a [f32],
}

/// One depth to run.
#[derive(Clone, Copy)]
pub struct LayerRun<'a> {
    /// Where its weights are, under the names of the checkpoint layout.
    pub tensors: &'a dyn TensorSource,
    /// Stored layer.
    pub layer: LayerIndex,
    /// Position in the stack, for what the depth owns.
    pub depth: Depth,
    /// Layer of the source whose kind of depth it is: what it sees of the text, and how it rotates queries and keys.
    pub kind: LayerIndex,
    /// Stop before the linears of this site; the whole layer if `None`.
    pub until: Option<Site>,
}

/// Two models on the same tokens, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// NLL of the targets under the source.
    pub source_nll: f64,
    /// NLL of the targets under the other.
    pub nll: f64,
    /// `KL(source ‖ other)`, mean over rows.
    pub kl: f64,
}

/// A model that can be run layer by layer. It keeps no weights; hidden states `[M, D]` hold the rows of one sequence after the
/// other. The same call has to give the same bits.
pub trait LayerModel: Sync {
    /// Hidden states before depth 0, from the rows of the embedding table of each token, `[M, D]`.
    fn embed(&self, rows: Vec<f32>) -> Vec<f32>;

    /// Runs a depth on sequences of `tokens` tokens; gives the hidden states after it. Calls `see` for every site that is reached,
    /// `until` included, with consecutive rows from the first to the last.
    ///
    /// # Errors
    /// When the weights cannot be read.
    fn run(
        &self,
        run: LayerRun<'_>,
        hidden: &[f32],
        tokens: usize,
        see: &mut dyn FnMut(Seen<'_>),
    ) -> Result<Vec<f32>, CheckpointError>;

    /// Compares next-token predictions from hidden states after the last depth; `targets` has one token for each row. Final norm
    /// and head are those of `tensors`.
    ///
    /// # Errors
    /// When the weights cannot be read.
    fn compare(
        &self,
        tensors: &dyn TensorSource,
        source: &[f32],
        other: &[f32],
        targets: &[u32],
    ) -> Result<Comparison, CheckpointError>;
}
