//! Output head and loss in one, in chunks of tokens: no `tokens × vocabulary` tensor is ever whole.
//!
//! The student's head reads its hidden states at one place or at several: the final ones, and those of early exits. Such a place
//! is a [`Readout`] and has terms of its own. For one token let `s` be the logits of a readout, `q = softmax(s)`, `Z = log Σ exp(s)`:
//!
//! - cross-entropy with label smoothing ε: `CE = −Σ y log q`, `y = (1 − ε)·1[target] + ε/V` (<https://arxiv.org/abs/1512.00567>);
//! - z-loss: `Z²` (<https://arxiv.org/abs/2204.02311>);
//! - a divergence `D(p_T, q_T)` from the logits `t` of a reference, `p_T = softmax(t/T)`, `q_T = softmax(s/T)`; see [`divergence`].
//!
//! A teacher is a model, or the probabilities of its most probable tokens; see [`TopProbs`].
//!
//! `loss = Σ over readouts of w_ce (CE + ζ Z²) + w T² D`, each a mean over tokens, in nats. `T²` keeps the size of a KL's gradient
//! when the temperature changes (Hinton et al., <https://arxiv.org/abs/1503.02531>). A reference has no gradient.

mod device;
mod divergence;
mod host;
mod row;
#[cfg(test)]
mod tests;
mod top;

pub use top::{TopProbs, top_probs};

use super::{is_cpu, is_cuda};
use burn::tensor::{Device, Tensor};
use retie_config::Divergence;

/// Logits in flight at once, in elements: 64 MB of f32 for each of student, teacher and early exit.
const CHUNK_ELEMENTS: usize = 1 << 24;
/// The same on CUDA, where few rows leave most of the device idle: 256 MB.
const CUDA_CHUNK_ELEMENTS: usize = 1 << 26;

/// Final hidden states `[M, D]` and the head `[V, D]` that reads them. Both without autodiff.
#[derive(Clone, Debug)]
pub struct HeadInput {
    /// After the final norm.
    pub hidden: Tensor<2>,
    /// What reads them.
    pub head: Head,
}

/// The table that turns hidden states into logits, and what becomes of those.
#[derive(Clone, Debug)]
pub struct Head {
    /// `lm_head.weight`, or the embedding if it is tied, `[V, D]`.
    pub weight: Tensor<2>,
    /// `c` of `c·tanh(z/c)`: the logits are its values.
    pub softcap: Option<f32>,
}

impl Head {
    /// Without autodiff.
    #[must_use]
    pub fn inner(self) -> Self {
        Self { weight: self.weight.inner(), ..self }
    }
}

impl From<Tensor<2>> for Head {
    fn from(weight: Tensor<2>) -> Self {
        Self { weight, softcap: None }
    }
}

/// What stands for the teacher's logits.
#[derive(Clone, Debug)]
pub enum Teacher {
    /// A model's head and hidden states.
    Model(Box<HeadInput>),
    /// What was kept of them, at the temperature of the term.
    Top(TopProbs),
}

/// Hidden states after the final norm, `[M, D]`, without autodiff, and the terms that their logits have.
#[derive(Clone, Debug)]
pub struct Readout {
    /// What the head reads.
    pub hidden: Tensor<2>,
    /// What is asked of the logits.
    pub terms: HeadTerms,
}

/// Terms of one readout.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeadTerms {
    /// Against the text.
    pub cross_entropy: CrossEntropyTerm,
    /// Against the teacher's logits.
    pub teacher: Option<DistillTerm>,
    /// Against the logits of the last readout; not for the last one itself.
    pub last: Option<DistillTerm>,
}

/// Cross-entropy and z-loss; all zero is no term.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyTerm {
    /// `w_ce`.
    pub weight: f32,
    /// ε.
    pub label_smoothing: f32,
    /// ζ.
    pub z_loss: f32,
}

/// A divergence from a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillTerm {
    /// `w`.
    pub weight: f32,
    /// `D`.
    pub divergence: Divergence,
    /// `T`.
    pub temperature: f32,
}

/// What [`head_loss`] gives.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// One for each readout.
    pub readouts: Vec<ReadoutLoss>,
    /// Gradient of the weighted loss for the student's head `[V, D]`.
    pub grad_weight: Tensor<2>,
}

/// The part of one readout.
#[derive(Clone, Debug)]
pub struct ReadoutLoss {
    /// Means over tokens.
    pub values: HeadValues,
    /// Gradient of the weighted loss for the readout's hidden states `[M, D]`.
    pub grad_hidden: Tensor<2>,
}

/// Values of the terms, nats per token, unweighted and without `T²`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeadValues {
    /// `−log q[target]`.
    pub nll: f64,
    /// `CE`; `nll` without label smoothing.
    pub cross_entropy: f64,
    /// `Z²`.
    pub z_loss: f64,
    /// `D` from the teacher, where it is asked for.
    pub teacher: Option<f64>,
    /// `D` from the last readout, where it is asked for.
    pub last: Option<f64>,
}

/// Values and gradients of the terms of `readouts`, which are all read by the student's `head`; `targets` has one id per row. The
/// gradient of the head is that of its table.
///
/// # Panics
/// When the number of targets is not that of the rows, the vocabularies differ, there is no readout, or a term has no reference:
/// the caller has checked them.
#[must_use]
pub fn head_loss(head: Head, readouts: &[Readout], teacher: Option<&Teacher>, targets: &[u32]) -> HeadLoss {
    let Some(last) = readouts.last() else { unreachable!("a loss without a readout") };
    assert!(last.terms.last.is_none(), "the last readout is not its own reference");
    let chunks = Chunks::new(&last.hidden, &head.weight, targets);
    if is_cpu(&head.weight.device()) {
        host::head_loss(&head, readouts, teacher, targets, chunks)
    } else {
        device::head_loss(&head, readouts, teacher, targets, chunks)
    }
}

/// Log-probabilities of `targets` and whether each is the most probable token; one per row of `input.hidden`.
///
/// # Panics
/// When the number of targets is not that of the rows.
#[must_use]
pub fn token_log_probs(input: &HeadInput, targets: &[u32]) -> (Vec<f32>, Vec<bool>) {
    let chunks = Chunks::new(&input.hidden, &input.head.weight, targets);
    if is_cpu(&input.hidden.device()) {
        host::token_log_probs(input, targets, chunks)
    } else {
        device::token_log_probs(input, targets, chunks)
    }
}

/// How far `input` is from a teacher: for each row the forward KL `Σ p (log p − log q)` of its distribution `q` from the teacher's `p`, in
/// nats, and whether the most probable token is the same (the first of them, if several are equal).
///
/// # Panics
/// When rows or vocabularies differ.
#[must_use]
pub fn agreement(input: &HeadInput, teacher: &HeadInput) -> (Vec<f32>, Vec<bool>) {
    let [tokens, _] = input.hidden.dims();
    let [vocab_size, _] = input.head.weight.dims();
    assert_eq!([teacher.hidden.dims()[0], teacher.head.weight.dims()[0]], [tokens, vocab_size], "rows and vocabulary");
    let chunks = Chunks::of(tokens, vocab_size, &input.hidden.device());
    if is_cpu(&input.hidden.device()) {
        host::agreement(input, teacher, chunks)
    } else {
        device::agreement(input, teacher, chunks)
    }
}

/// Runs of rows whose logits are in memory at the same time.
#[derive(Clone, Copy, Debug)]
struct Chunks {
    tokens: usize,
    rows: usize,
}

impl Chunks {
    fn new(hidden: &Tensor<2>, weight: &Tensor<2>, targets: &[u32]) -> Self {
        let [tokens, _] = hidden.dims();
        let [vocab_size, _] = weight.dims();
        assert_eq!(targets.len(), tokens, "one target per row");
        Self::of(tokens, vocab_size, &hidden.device())
    }

    fn of(tokens: usize, vocab_size: usize, device: &Device) -> Self {
        let elements = if is_cuda(device) { CUDA_CHUNK_ELEMENTS } else { CHUNK_ELEMENTS };
        Self { tokens, rows: (elements / vocab_size).clamp(1, tokens.max(1)) }
    }

    /// First row and number of rows of each chunk.
    fn iter(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.tokens).step_by(self.rows).map(move |start| (start, self.rows.min(self.tokens - start)))
    }
}

/// Values of one token or sums over many, in the order of [`HeadValues`].
#[derive(Clone, Copy, Debug, Default)]
struct Sums([f64; 5]);

impl Sums {
    fn add(&mut self, values: [f64; 5]) {
        self.0.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }

    fn mean(self, terms: &HeadTerms, tokens: usize) -> HeadValues {
        let [nll, cross_entropy, z_loss, teacher, last] = self.0.map(|sum| sum / tokens as f64);
        HeadValues {
            nll,
            cross_entropy,
            z_loss,
            teacher: terms.teacher.map(|_| teacher),
            last: terms.last.map(|_| last),
        }
    }
}
