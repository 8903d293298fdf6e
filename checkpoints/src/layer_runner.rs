//! Layer-by-layer access to a model, for calibrated initialisation. The trait is in this crate
//! because the crate that calibrates and the crate that has the model both see it, but not each
//! other.

use crate::{CheckpointError, TensorSource};
use retie_config::{Depth, LayerIndex, ModelConfig, NormPosition, Projection, Residual};

/// Probe point: a place in a layer where linears read. All linears of a point read the same vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbePoint {
    /// Normalised residual stream, read by `q_proj`, `k_proj`, `v_proj`.
    Attention,
    /// Outputs of the heads, read by `o_proj`.
    Output,
    /// Normalised residual stream, read by `gate_proj`, `up_proj`.
    Mlp,
    /// Hidden activations of the feed-forward network, read by `down_proj`.
    Down,
}

impl ProbePoint {
    /// Every probe point, in the order of the forward pass.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::Mlp, Self::Down];

    /// Probe point whose vector a linear reads.
    #[must_use]
    pub fn read_by(projection: Projection) -> Self {
        match projection {
            Projection::Q | Projection::K | Projection::V => Self::Attention,
            Projection::O => Self::Output,
            Projection::Gate | Projection::Up => Self::Mlp,
            Projection::Down => Self::Down,
        }
    }

    /// Linears of the model that read at this point, in the order of the forward pass.
    #[must_use]
    pub fn projections(self, config: &ModelConfig) -> Vec<Projection> {
        let all = config.projection_shapes().into_iter().map(|(projection, _)| projection);
        all.filter(|projection| Self::read_by(*projection) == self).collect()
    }

    /// Norm right before this point, if there is one.
    #[must_use]
    pub fn norm(self, config: &ModelConfig) -> Option<NormPosition> {
        match (self, config.anatomy.residual) {
            (Self::Output | Self::Down, _) | (_, Residual::PostNorm) => None,
            (Self::Attention, _) => Some(NormPosition::Input),
            (Self::Mlp, Residual::Sandwich) => Some(NormPosition::PreFeedforward),
            (Self::Mlp, Residual::PreNorm | Residual::Parallel) => Some(NormPosition::PostAttention),
        }
    }

    /// True if the output is added unchanged to the residual stream, so that it can compensate for
    /// a difference there. In a parallel layer only the last of the two outputs counts.
    #[must_use]
    pub fn writes_residual(self, config: &ModelConfig) -> bool {
        match config.anatomy.residual {
            Residual::PreNorm => matches!(self, Self::Output | Self::Down),
            Residual::Parallel => self == Self::Down,
            Residual::Sandwich | Residual::PostNorm => false,
        }
    }
}

/// Inputs of the linears of a point, for some consecutive rows.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// Probe point.
    pub point: ProbePoint,
    /// Inputs of the linears, `[rows, in]`.
    pub inputs: &'a [f32],
    /// Residual stream at this point, `[rows, D]`: the tensor that the output is added to, if the
    /// point writes to it.
    pub residual: &'a [f32],
}

/// Parameters of running one depth.
#[derive(Clone, Copy)]
pub struct LayerRun<'a> {
    /// Weights, under the names of the checkpoint layout.
    pub tensors: &'a dyn TensorSource,
    /// Stored layer.
    pub layer: LayerIndex,
    /// Depth in the stack, for the tensors that the depth owns.
    pub depth: Depth,
    /// Depth of the runner's configuration that gives its attention window and its rotary
    /// embedding.
    pub kind: Depth,
    /// Probe point whose linears are the first to run, and what they read, `[M, in]`, as a run up
    /// to it showed it; `None` runs the layer from its start.
    pub from: Option<(ProbePoint, &'a [f32])>,
    /// Probe point whose linears no longer run; `None` runs the whole layer.
    pub until: Option<ProbePoint>,
}

/// Comparison of two models on the same tokens, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// NLL of the targets under the source.
    pub source_nll: f64,
    /// NLL of the targets under the other model.
    pub nll: f64,
    /// `KL(source ‖ other)`, mean over rows.
    pub kl: f64,
}

/// A model that can be run layer by layer. It keeps no weights; hidden states `[M, D]` hold the
/// rows of one sequence after the other. Equal calls have to give equal bits.
pub trait LayerRunner: Sync {
    /// Hidden states before depth 0, `[M, D]`, from each token's row of the embedding matrix.
    fn embed(&self, rows: Vec<f32>) -> Vec<f32>;

    /// Runs a depth on sequences of `tokens` tokens; returns the hidden states after it (with
    /// `until`, the residual stream there). With `from`, `hidden` is the residual stream there.
    /// Calls `see` for every probe point that is reached, `until` included and `from` not, with
    /// consecutive rows from the first to the last.
    ///
    /// # Errors
    /// When the weights cannot be read.
    fn run(
        &self,
        run: LayerRun<'_>,
        hidden: &[f32],
        tokens: usize,
        see: &mut dyn FnMut(Activations<'_>),
    ) -> Result<Vec<f32>, CheckpointError>;

    /// Compares next-token predictions from the hidden states of source and other after the last
    /// depth; `targets` has one token for each row. Final norm and head are those of `tensors`.
    ///
    /// # Errors
    /// When the weights cannot be read.
    fn compare(
        &self,
        tensors: &dyn TensorSource,
        hidden: [&[f32]; 2],
        targets: &[u32],
    ) -> Result<Comparison, CheckpointError>;
}
