//! Output head and loss in one, in chunks of tokens: no `tokens × vocabulary` tensor is ever whole.
//!
//! With `s`, `t` the student's and teacher's logits of one token, `q = softmax(s)`, and `q_T`, `p_T` the softmax of `s/T`, `t/T`:
//! cross-entropy `−log q[target]`, forward KL `Σ p_T (log p_T − log q_T)`, and
//! `loss = w_ce · CE + w_kl · T² · KL` (Hinton et al., <https://arxiv.org/abs/1503.02531>), each a mean over tokens, in nats.
//! The gradient of one token's logits is `w_ce (q − 1[target]) + w_kl T (q_T − p_T)`, divided by the number of tokens.

use super::{
    f32_slice, f32_slice_mut,
    host::simd::{exp, max, sum_exp, vectorised},
    is_cpu, linear,
};
use burn::tensor::{Int, Tensor, activation};
use rayon::prelude::*;

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
    let [tokens, _] = student.hidden.dims();
    let [vocab_size, _] = student.weight.dims();
    assert_eq!(targets.len(), tokens, "one target per row");
    let chunk = (CHUNK_ELEMENTS / vocab_size).clamp(1, tokens);
    let row_loss = RowLoss { weights, tokens: tokens as f32 };
    let on_host = is_cpu(&student.hidden.device());
    let (mut cross_entropy, mut forward_kl) = (0.0, 0.0);
    let mut grads_hidden = Vec::with_capacity(tokens.div_ceil(chunk));
    let mut grad_weight: Option<Tensor<2>> = None;
    for start in (0..tokens).step_by(chunk) {
        let rows = chunk.min(tokens - start);
        let hidden = student.hidden.clone().narrow(0, start, rows);
        let logits = linear(hidden.clone(), student.weight.clone());
        let teacher_logits = teacher.map(|t| linear(t.hidden.clone().narrow(0, start, rows), t.weight.clone()));
        let targets = &targets[start..start + rows];
        let (grad, sums) = if on_host {
            row_loss.on_host(logits, teacher_logits, targets)
        } else {
            row_loss.on_device(logits, teacher_logits, targets)
        };
        cross_entropy += sums[0];
        forward_kl += sums[1];
        grads_hidden.push(grad.clone().matmul(student.weight.clone()));
        let part = grad.transpose().matmul(hidden);
        grad_weight = Some(match grad_weight {
            Some(sum) => sum + part,
            None => part,
        });
    }
    HeadLoss {
        cross_entropy: cross_entropy / tokens as f64,
        forward_kl: teacher.map(|_| forward_kl / tokens as f64),
        grad_hidden: Tensor::cat(grads_hidden, 0),
        grad_weight: grad_weight.unwrap_or_else(|| student.weight.zeros_like()),
    }
}

/// Log-probabilities of `targets` and whether each is the most probable token; one per row of `head.hidden`.
#[must_use]
pub fn token_log_probs(head: &HeadInput, targets: &[u32]) -> (Vec<f32>, Vec<bool>) {
    let [tokens, _] = head.hidden.dims();
    let [vocab_size, _] = head.weight.dims();
    assert_eq!(targets.len(), tokens, "one target per row");
    let chunk = (CHUNK_ELEMENTS / vocab_size).clamp(1, tokens.max(1));
    let mut results = Vec::with_capacity(tokens);
    for start in (0..tokens).step_by(chunk) {
        let count = chunk.min(tokens - start);
        let logits = linear(head.hidden.clone().narrow(0, start, count), head.weight.clone());
        let logits = logits.into_data();
        let rows = f32_slice(&logits).par_chunks_exact(vocab_size);
        let scores: Vec<_> = rows.zip(&targets[start..start + count]).map(score_row).collect();
        results.extend(scores);
    }
    results.into_iter().unzip()
}

fn score_row((row, target): (&[f32], &u32)) -> (f32, bool) {
    vectorised(
        #[inline(always)]
        || {
            let target = *target as usize;
            let shift = max(row);
            let log_prob = row[target] - shift - sum_exp(row, 1.0, shift).ln();
            (log_prob, row.iter().position(|x| *x == shift) == Some(target))
        },
    )
}

#[derive(Clone, Copy)]
struct RowLoss {
    weights: LossWeights,
    tokens: f32,
}

impl RowLoss {
    /// Turns the student's logits into their gradient; gives it and the sums of cross-entropy and KL.
    fn on_host(self, logits: Tensor<2>, teacher: Option<Tensor<2>>, targets: &[u32]) -> (Tensor<2>, [f64; 2]) {
        let device = logits.device();
        let [_, vocab_size] = logits.dims();
        let mut logits = logits.into_data();
        let teacher = teacher.map(Tensor::into_data);
        let teacher = teacher.as_ref().map(f32_slice);
        let sums: Vec<[f32; 2]> = f32_slice_mut(&mut logits)
            .par_chunks_exact_mut(vocab_size)
            .zip(targets)
            .enumerate()
            .map(|(row, (logits, target))| {
                let teacher = teacher.map(|t| &t[row * vocab_size..][..vocab_size]);
                vectorised(
                    #[inline(always)]
                    || self.row(logits, teacher, *target as usize),
                )
            })
            .collect();
        let sums = sums.iter().fold([0.0; 2], |[a, b], [x, y]| [a + f64::from(*x), b + f64::from(*y)]);
        (Tensor::from_data(logits, &device), sums)
    }

    /// One token: `student` holds logits and then their gradient.
    #[inline(always)]
    fn row(self, student: &mut [f32], teacher: Option<&[f32]>, target: usize) -> [f32; 2] {
        let LossWeights { cross_entropy, forward_kl, temperature } = self.weights;
        let shift = max(student);
        let log_sum = shift + sum_exp(student, 1.0, shift).ln();
        let loss = log_sum - student[target];
        let ce = cross_entropy / self.tokens;
        let mut divergence = 0.0;
        match teacher {
            None => {
                for s in student.iter_mut() {
                    *s = ce * exp(*s - log_sum);
                }
            }
            Some(teacher) => {
                let teacher = &teacher[..student.len()];
                let inverse = 1.0 / temperature;
                let teacher_shift = max(teacher) * inverse;
                let teacher_log_sum = teacher_shift + sum_exp(teacher, inverse, teacher_shift).ln();
                let log_sum_t = if temperature == 1.0 {
                    log_sum
                } else {
                    shift * inverse + sum_exp(student, inverse, shift * inverse).ln()
                };
                let kl = forward_kl * temperature / self.tokens;
                let mut lanes = [0.0f32; 16];
                let (students, student_rest) = student.as_chunks_mut::<16>();
                let (teachers, teacher_rest) = teacher.as_chunks::<16>();
                for (students, teachers) in students.iter_mut().zip(teachers) {
                    for i in 0..16 {
                        let (s, t) = (students[i], teachers[i]);
                        let log_p = t * inverse - teacher_log_sum;
                        let log_q = s * inverse - log_sum_t;
                        let p = exp(log_p);
                        lanes[i] += p * (log_p - log_q);
                        students[i] = ce * exp(s - log_sum) + kl * (exp(log_q) - p);
                    }
                }
                for lane in lanes {
                    divergence += lane;
                }
                for (s, t) in student_rest.iter_mut().zip(teacher_rest) {
                    let log_p = t * inverse - teacher_log_sum;
                    let log_q = *s * inverse - log_sum_t;
                    let p = exp(log_p);
                    divergence += p * (log_p - log_q);
                    *s = ce * exp(*s - log_sum) + kl * (exp(log_q) - p);
                }
            }
        }
        student[target] -= ce;
        [loss, divergence]
    }

    /// The same in plain burn operations.
    fn on_device(self, logits: Tensor<2>, teacher: Option<Tensor<2>>, targets: &[u32]) -> (Tensor<2>, [f64; 2]) {
        let LossWeights { cross_entropy, forward_kl, temperature } = self.weights;
        let device = logits.device();
        let [rows, vocab_size] = logits.dims();
        let ids: Vec<i32> = targets.iter().map(|t| *t as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &device).reshape([rows, 1]);
        let log_q = activation::log_softmax(logits.clone(), 1);
        let chosen = log_q.clone().gather(1, ids.clone());
        let loss = -f64::from(chosen.sum().into_scalar::<f32>());
        let one_hot = Tensor::<2>::zeros([rows, vocab_size], &device).scatter(
            1,
            ids,
            Tensor::ones([rows, 1], &device),
            burn::tensor::IndexingUpdateOp::Add,
        );
        let mut grad = (log_q.exp() - one_hot) * (cross_entropy / self.tokens);
        let mut divergence = 0.0;
        if let Some(teacher) = teacher {
            let log_p = activation::log_softmax(teacher / temperature, 1);
            let log_q = activation::log_softmax(logits / temperature, 1);
            let p = log_p.clone().exp();
            divergence = f64::from((p.clone() * (log_p - log_q.clone())).sum().into_scalar::<f32>());
            grad = grad + (log_q.exp() - p) * (forward_kl * temperature / self.tokens);
        }
        (grad, [loss, divergence])
    }
}
