//! Output head and loss in one, in chunks of tokens: no `tokens × vocabulary` tensor is ever whole.
//!
//! With `s`, `t` the student's and teacher's logits of one token, `q = softmax(s)`, and `q_T`, `p_T` the softmax of `s/T`, `t/T`:
//! cross-entropy `−log q[target]`, forward KL `Σ p_T (log p_T − log q_T)`, and
//! `loss = w_ce · CE + w_kl · T² · KL` (Hinton et al., <https://arxiv.org/abs/1503.02531>), each a mean over tokens, in nats.
//! The gradient of one token's logits is `w_ce (q − 1[target]) + w_kl T (q_T − p_T)`, divided by the number of tokens.

mod device;
mod host;

use super::is_cpu;
use burn::tensor::Tensor;

/// Logits in flight at once, in elements: 64 MB of f32 for each model.
const CHUNK_ELEMENTS: usize = 1 << 24;

/// Final hidden states `[M, D]` and the head `[V, D]` that reads them. Both without autodiff.
#[derive(Clone, Debug)]
pub struct HeadInput {
    /// After the final norm.
    pub hidden: Tensor<2>,
    /// `lm_head.weight`, or the embedding if it is tied.
    pub weight: Tensor<2>,
}

/// Weights of the loss's terms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeights {
    /// `w_ce`.
    pub cross_entropy: f32,
    /// `w_kl`; counts only with a teacher.
    pub forward_kl: f32,
    /// `T`.
    pub temperature: f32,
}

/// What [`head_loss`] gives.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// Mean next-token cross-entropy, nats per token, unweighted.
    pub cross_entropy: f64,
    /// Mean forward KL at the temperature, nats per token, unweighted and without `T²`; `None` without a teacher.
    pub forward_kl: Option<f64>,
    /// Gradient of the weighted loss for the student's hidden states `[M, D]`.
    pub grad_hidden: Tensor<2>,
    /// Gradient of the weighted loss for the student's head `[V, D]`.
    pub grad_weight: Tensor<2>,
}

/// The loss of `targets` (one id per row of `student.hidden`) and its gradients.
///
/// # Panics
/// When the number of targets is not that of the rows, or the two vocabularies differ: the caller has checked both.
#[must_use]
pub fn head_loss(student: &HeadInput, teacher: Option<&HeadInput>, targets: &[u32], weights: LossWeights) -> HeadLoss {
    let chunks = student.chunks(targets);
    if is_cpu(&student.hidden.device()) {
        host::head_loss(student, teacher, targets, weights, chunks)
    } else {
        device::head_loss(student, teacher, targets, weights, chunks)
    }
}

/// Log-probabilities of `targets` and whether each is the most probable token; one per row of `head.hidden`.
///
/// # Panics
/// When the number of targets is not that of the rows.
#[must_use]
pub fn token_log_probs(head: &HeadInput, targets: &[u32]) -> (Vec<f32>, Vec<bool>) {
    let chunks = head.chunks(targets);
    if is_cpu(&head.hidden.device()) {
        host::token_log_probs(head, targets, chunks)
    } else {
        device::token_log_probs(head, targets, chunks)
    }
}

/// Runs of rows whose logits are in memory at the same time.
#[derive(Clone, Copy, Debug)]
struct Chunks {
    tokens: usize,
    rows: usize,
}

impl Chunks {
    /// First row and number of rows of each chunk.
    fn iter(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.tokens).step_by(self.rows).map(move |start| (start, self.rows.min(self.tokens - start)))
    }
}

impl HeadInput {
    fn chunks(&self, targets: &[u32]) -> Chunks {
        let [tokens, _] = self.hidden.dims();
        let [vocab_size, _] = self.weight.dims();
        assert_eq!(targets.len(), tokens, "one target per row");
        Chunks { tokens, rows: (CHUNK_ELEMENTS / vocab_size).clamp(1, tokens.max(1)) }
    }
}
