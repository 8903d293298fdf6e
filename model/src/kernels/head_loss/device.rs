//! The loss in plain burn operations, for every device but the CPU.

use super::{Chunks, HeadInput, HeadLoss, LossWeights};
use crate::kernels::plain::linear;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation};

pub fn head_loss(
    student: &HeadInput,
    teacher: Option<&HeadInput>,
    targets: &[u32],
    weights: LossWeights,
    chunks: Chunks,
) -> HeadLoss {
    let tokens = chunks.tokens;
    let (mut cross_entropy, mut forward_kl) = (0.0, 0.0);
    let mut grads_hidden = Vec::new();
    let mut grad_weight: Option<Tensor<2>> = None;
    for (start, rows) in chunks.iter() {
        let hidden = student.hidden.clone().narrow(0, start, rows);
        let logits = linear(hidden.clone(), student.weight.clone());
        let teacher = teacher.map(|t| linear(t.hidden.clone().narrow(0, start, rows), t.weight.clone()));
        let (grad, sums) = grad_of_logits(logits, teacher, &targets[start..start + rows], weights, tokens as f32);
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

pub fn token_log_probs(head: &HeadInput, targets: &[u32], chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
    let (mut log_probs, mut greedy) = (Vec::new(), Vec::new());
    for (start, rows) in chunks.iter() {
        let logits = linear(head.hidden.clone().narrow(0, start, rows), head.weight.clone());
        let ids = target_ids(&targets[start..start + rows], &logits);
        let chosen = activation::log_softmax(logits.clone(), 1).gather(1, ids.clone());
        log_probs.extend(floats(chosen));
        greedy.extend(floats(logits.argmax(1).equal(ids).float()).iter().map(|is_best| *is_best != 0.0));
    }
    (log_probs, greedy)
}

/// `[rows, 1]`, on the device of `logits`.
fn target_ids(targets: &[u32], logits: &Tensor<2>) -> Tensor<2, Int> {
    let ids: Vec<i32> = targets.iter().map(|t| *t as i32).collect();
    Tensor::<1, Int>::from_ints(ids.as_slice(), &logits.device()).reshape([targets.len(), 1])
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    crate::kernels::f32_slice(&tensor.into_data()).to_vec()
}

/// The gradient of one chunk's logits, and the sums of cross-entropy and KL.
fn grad_of_logits(
    logits: Tensor<2>,
    teacher: Option<Tensor<2>>,
    targets: &[u32],
    weights: LossWeights,
    tokens: f32,
) -> (Tensor<2>, [f64; 2]) {
    let LossWeights { cross_entropy, forward_kl, temperature } = weights;
    let device = logits.device();
    let [rows, vocab_size] = logits.dims();
    let ids = target_ids(targets, &logits);
    let log_q = activation::log_softmax(logits.clone(), 1);
    let chosen = log_q.clone().gather(1, ids.clone());
    let loss = -f64::from(chosen.sum().into_scalar::<f32>());
    let one_hot = Tensor::<2>::zeros([rows, vocab_size], &device).scatter(
        1,
        ids,
        Tensor::ones([rows, 1], &device),
        IndexingUpdateOp::Add,
    );
    let mut grad = (log_q.exp() - one_hot) * (cross_entropy / tokens);
    let mut divergence = 0.0;
    if let Some(teacher) = teacher {
        let log_p = activation::log_softmax(teacher / temperature, 1);
        let log_q = activation::log_softmax(logits / temperature, 1);
        let p = log_p.clone().exp();
        divergence = f64::from((p.clone() * (log_p - log_q.clone())).sum().into_scalar::<f32>());
        grad = grad + (log_q.exp() - p) * (forward_kl * temperature / tokens);
    }
    (grad, [loss, divergence])
}
