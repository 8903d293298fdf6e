//! Terms, values and gradients of the loss at the output head.

use super::top::TopProbs;
use crate::kernels::reads::Late;
use burn::tensor::Tensor;
use retie_config::Divergence;

/// Hidden states `[M, D]` and the head `[V, D]` that reads them, both without autodiff.
#[derive(Clone, Debug)]
pub struct HeadInput {
    /// Hidden states after the final norm.
    pub hidden: Tensor<2>,
    /// Output head.
    pub head: Head,
}

/// Output head: weight and logit soft cap.
#[derive(Clone, Debug)]
pub struct Head {
    /// `lm_head.weight`, or the embedding if it is tied, `[V, D]`.
    pub weight: Tensor<2>,
    /// Soft cap `c` of the logits: `c·tanh(z/c)`.
    pub softcap: Option<f32>,
}

impl Head {
    /// Head without autodiff.
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

/// Teacher: a model, or its most probable tokens.
#[derive(Clone, Debug)]
pub enum Teacher {
    /// Hidden states and head of a model.
    Model(Box<HeadInput>),
    /// Top probabilities, at the temperature of the term.
    Top(TopProbs),
}

/// Readout: hidden states after the final norm, `[M, D]`, without autodiff, and the loss terms of
/// their logits.
#[derive(Clone, Debug)]
pub struct Readout {
    /// Input of the head.
    pub hidden: Tensor<2>,
    /// Loss terms of the logits.
    pub terms: HeadTerms,
}

/// Loss terms of one readout.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeadTerms {
    /// Cross-entropy and z-loss with the next tokens as targets.
    pub cross_entropy: CrossEntropyTerm,
    /// Distillation from the teacher.
    pub teacher: Option<DistillTerm>,
    /// Self-distillation from the last readout; `None` for the last readout itself.
    pub last: Option<DistillTerm>,
}

/// Cross-entropy and z-loss; without effect if all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyTerm {
    /// Weight `w_ce`.
    pub weight: f32,
    /// Label smoothing ε.
    pub label_smoothing: f32,
    /// Weight ζ of the z-loss.
    pub z_loss: f32,
}

/// Distillation: a divergence from a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillTerm {
    /// Weight `w`.
    pub weight: f32,
    /// Divergence `D`.
    pub divergence: Divergence,
    /// Temperature `T`.
    pub temperature: f32,
}

/// Result of [`head_loss`](crate::kernels::head_loss). Of a kernel the values are those that may
/// have to be read from the device.
#[derive(Clone, Debug)]
pub struct HeadLoss<V = HeadValues> {
    /// One per readout.
    pub readouts: Vec<ReadoutLoss<V>>,
    /// Gradient of the weighted loss for the student's head, `[V, D]`.
    pub grad_weight: Tensor<2>,
}

/// Loss of one readout.
#[derive(Clone, Debug)]
pub struct ReadoutLoss<V = HeadValues> {
    /// Means over tokens.
    pub values: V,
    /// Gradient of the weighted loss for the readout's hidden states, `[M, D]`.
    pub grad_hidden: Tensor<2>,
}

/// Values of a kernel's readout.
#[derive(Clone, Debug)]
pub enum KernelValues {
    /// Those of the host.
    Known(HeadValues),
    /// Five sums over the rows of each chunk: `−log q` of the target, the mean of `−log q` over the
    /// vocabulary, `Z²`, and the divergences from the teacher and the last readout.
    Sums(Box<Late>),
}

impl HeadLoss<KernelValues> {
    /// What has to be read.
    pub fn late(&self) -> impl Iterator<Item = &Late> {
        self.readouts.iter().filter_map(|readout| match &readout.values {
            KernelValues::Known(_) => None,
            KernelValues::Sums(sums) => Some(&**sums),
        })
    }

    /// The loss with its values, means over `tokens` rows.
    pub fn read(self, readouts: &[Readout], tokens: usize) -> HeadLoss {
        let of_readout = |(loss, Readout { terms, .. }): (ReadoutLoss<KernelValues>, &Readout)| ReadoutLoss {
            values: match loss.values {
                KernelValues::Known(values) => values,
                KernelValues::Sums(sums) => Sums::of_chunks(sums.values(), terms.cross_entropy).mean(terms, tokens),
            },
            grad_hidden: loss.grad_hidden,
        };
        let readouts = self.readouts.into_iter().zip(readouts).map(of_readout).collect();
        HeadLoss { readouts, grad_weight: self.grad_weight }
    }
}

/// Values of the terms in nats per token, unweighted and without `T²`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeadValues {
    /// Negative log-likelihood `−log q[target]`.
    pub nll: f64,
    /// Cross-entropy `CE`; `nll` without label smoothing.
    pub cross_entropy: f64,
    /// z-loss `Z²`.
    pub z_loss: f64,
    /// Divergence `D` from the teacher, if requested.
    pub teacher: Option<f64>,
    /// Divergence `D` from the last readout, if requested.
    pub last: Option<f64>,
}

/// Chunks of rows whose logits are in memory at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    /// Number of rows in all chunks.
    pub tokens: usize,
    /// Rows per chunk; the last chunk may have fewer.
    pub rows: usize,
}

impl Chunks {
    /// Chunks of at most `max_elements` logits for `tokens` rows.
    pub fn new(tokens: usize, vocab_size: usize, max_elements: usize) -> Self {
        Self { tokens, rows: (max_elements / vocab_size).clamp(1, tokens.max(1)) }
    }

    /// First row and number of rows of each chunk.
    pub fn iter(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.tokens).step_by(self.rows).map(move |start| (start, self.rows.min(self.tokens - start)))
    }
}

/// Values of one token, or sums over many, in the order of [`HeadValues`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums(pub [f64; 5]);

impl Sums {
    /// Sums over all chunks of [`KernelValues::Sums`].
    fn of_chunks(values: &[f32], text: CrossEntropyTerm) -> Self {
        let mut sums = Self::default();
        let smoothing = f64::from(text.label_smoothing);
        for chunk in values.as_chunks::<5>().0 {
            let [nll, uniform, z_loss, teacher, last] = chunk.map(f64::from);
            sums.add([nll, (1.0 - smoothing) * nll + smoothing * uniform, z_loss, teacher, last]);
        }
        sums
    }

    pub fn add(&mut self, values: [f64; 5]) {
        self.0.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }

    pub fn mean(self, terms: &HeadTerms, tokens: usize) -> HeadValues {
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
