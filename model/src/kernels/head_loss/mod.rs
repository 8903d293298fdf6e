//! Output head fused with the loss, in chunks of tokens: a `tokens × vocabulary` tensor never
//! exists as a whole.
//!
//! The student's head reads hidden states at one or more [`Readout`]s: the final ones, and those of
//! early exits. Each readout has its own terms. For one token let `s` be the logits of a readout,
//! `q = softmax(s)` and `Z = log Σ exp(s)`:
//!
//! - cross-entropy with label smoothing ε: `CE = −Σ y log q`, `y = (1 − ε)·1[target] + ε/V`
//!   (<https://arxiv.org/abs/1512.00567>);
//! - z-loss: `Z²` (<https://arxiv.org/abs/2204.02311>);
//! - divergence `D(p_T, q_T)` from a reference with logits `t`, with `p_T = softmax(t/T)` and
//!   `q_T = softmax(s/T)`; see [`divergence`].
//!
//! A teacher is a model, or the probabilities of its most probable tokens; see [`TopProbs`].
//!
//! `loss = Σ over readouts of w_ce (CE + ζ Z²) + w T² D`, each a mean over tokens, in nats. The
//! factor `T²` keeps the size of a KL's gradient independent of the temperature (Hinton et al.,
//! <https://arxiv.org/abs/1503.02531>). A reference has no gradient.

pub(super) mod cpu;
mod divergence;
pub(super) mod plain;
mod row;
mod terms;
#[cfg(test)]
mod tests;
mod top;

pub(super) use terms::{Chunks, KernelValues};
pub use terms::{
    CrossEntropyTerm, DistillTerm, Head, HeadInput, HeadLoss, HeadTerms, HeadValues, Readout, ReadoutLoss, Teacher,
};
pub use top::TopProbs;
pub(super) use top::top_of_row;

/// Comparison of two rows of logits, `source` of `p` and `other` of `q`:
/// `[−log p[target], −log q[target], KL(p ‖ q)]`, in nats.
pub(crate) fn compare_rows(source: &[f32], other: &[f32], target: u32) -> [f32; 3] {
    let nll = |row| -cpu::score_row((row, &target)).0;
    [nll(source), nll(other), cpu::agreement_of_row((other, source)).0]
}
