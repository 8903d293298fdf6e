//! Head loss in plain burn operations, for every device except the CPU.

use super::{
    terms::{
        Chunks, CrossEntropyTerm, DistillTerm, Head, HeadInput, HeadLoss, KernelValues, Readout, ReadoutLoss, Teacher,
    },
    top::TopProbs,
};
use crate::kernels::{plain::linear, reads::Late};
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use retie_config::Divergence;

pub fn head_loss(
    head: &Head,
    readouts: &[Readout],
    teacher: Option<&Teacher>,
    targets: &[u32],
    chunks: Chunks,
) -> HeadLoss<KernelValues> {
    let mut sums: Vec<Vec<Tensor<1>>> = vec![Vec::new(); readouts.len()];
    let mut grads_hidden: Vec<Vec<Tensor<2>>> = vec![Vec::new(); readouts.len()];
    let mut grad_weight = head.weight.zeros_like();
    for (start, rows) in chunks.iter() {
        let hidden = |all: &Tensor<2>| all.clone().narrow(0, start, rows);
        let teacher = teacher.map(|teacher| match teacher {
            Teacher::Model(t) => Reference::logits(logits(hidden(&t.hidden), &t.head)),
            Teacher::Top(top) => Reference::top(top, start, rows, &head.weight.device()),
        });
        let all: Vec<Tensor<2>> = readouts.iter().map(|r| logits(hidden(&r.hidden), head)).collect();
        let last = all.last().cloned().map(Reference::logits);
        for (index, readout) in readouts.iter().enumerate() {
            let references = [&teacher, &last]
                .into_iter()
                .zip([readout.terms.teacher, readout.terms.last])
                .map(|(logits, term)| term.zip(logits.clone()));
            let targets = &targets[start..start + rows];
            let (grad, values) =
                grad_of_logits(&all[index], references, targets, readout.terms.cross_entropy, chunks.tokens as f32);
            sums[index].push(values);
            let grad = match head.softcap {
                Some(cap) => grad * ((all[index].clone() / cap).square().neg() + 1.0),
                None => grad,
            };
            grads_hidden[index].push(grad.clone().matmul(head.weight.clone()));
            grad_weight = grad_weight + grad.transpose().matmul(hidden(&readout.hidden));
        }
    }
    let readouts = sums.into_iter().zip(grads_hidden).map(|(sums, grads)| ReadoutLoss {
        values: KernelValues::Sums(Box::new(Late::new(Tensor::cat(sums, 0)))),
        grad_hidden: Tensor::cat(grads, 0),
    });
    HeadLoss { readouts: readouts.collect(), grad_weight }
}

pub fn token_log_probs(input: &HeadInput, targets: &[u32], chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
    let (mut log_probs, mut greedy) = (Vec::new(), Vec::new());
    for (start, rows) in chunks.iter() {
        let logits = logits(input.hidden.clone().narrow(0, start, rows), &input.head);
        let ids = target_ids(&targets[start..start + rows], &logits);
        let chosen = log_softmax(logits.clone()).gather(1, ids.clone());
        log_probs.extend(floats(chosen));
        greedy.extend(floats(logits.argmax(1).equal(ids).float()).iter().map(|is_best| *is_best != 0.0));
    }
    (log_probs, greedy)
}

pub fn agreement(input: &HeadInput, teacher: &HeadInput, chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
    let (mut kl, mut same) = (Vec::new(), Vec::new());
    for (start, rows) in chunks.iter() {
        let [own, theirs] =
            [input, teacher].map(|input| logits(input.hidden.clone().narrow(0, start, rows), &input.head));
        let [log_q, log_p] = [own.clone(), theirs.clone()].map(log_softmax);
        kl.extend(floats(row_sums(log_p.clone().exp() * (log_p - log_q))));
        same.extend(floats(own.argmax(1).equal(theirs.argmax(1)).float()).iter().map(|is_same| *is_same != 0.0));
    }
    (kl, same)
}

fn logits(hidden: Tensor<2>, head: &Head) -> Tensor<2> {
    let logits = linear(hidden, head.weight.clone());
    match head.softcap {
        Some(cap) => (logits / cap).tanh() * cap,
        None => logits,
    }
}

/// `log softmax(x)`, `[rows, V]`, and `log Σ exp(x)`, `[rows, 1]`.
fn log_softmax_and_sum(x: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let largest = reduce_rows(x.clone(), |x| x.max_dim(1));
    let x = x - largest.clone();
    let log_sum = row_sums(x.clone().exp()).log();
    (x - log_sum.clone(), log_sum + largest)
}

fn log_softmax(x: Tensor<2>) -> Tensor<2> {
    log_softmax_and_sum(x).0
}

/// Sum of each row, `[rows, 1]`.
fn row_sums(x: Tensor<2>) -> Tensor<2> {
    reduce_rows(x, |x| x.sum_dim(1))
}

/// Reduction `[rows, V]` → `[rows, 1]`, by parts of rows first: a device gives a row to few of its
/// threads, and these rows are long.
fn reduce_rows(x: Tensor<2>, reduce: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    const LONGEST: usize = 1024;
    let [rows, width] = x.dims();
    match (2..=LONGEST.min(width / 2)).rev().find(|part| width.is_multiple_of(*part)) {
        Some(part) => reduce(reduce(x.reshape([rows * width / part, part])).reshape([rows, width / part])),
        None => reduce(x),
    }
}

/// Target ids `[rows, 1]`, on the device of `logits`.
fn target_ids(targets: &[u32], logits: &Tensor<2>) -> Tensor<2, Int> {
    let ids: Vec<i32> = targets.iter().map(|t| *t as i32).collect();
    Tensor::<1, Int>::from_ints(ids.as_slice(), &logits.device()).reshape([targets.len(), 1])
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    Late::new(tensor).values().to_vec()
}

/// Gradient of one chunk's logits, and the five numbers of [`KernelValues::Sums`].
fn grad_of_logits(
    logits: &Tensor<2>,
    references: impl Iterator<Item = Option<(DistillTerm, Reference)>>,
    targets: &[u32],
    text: CrossEntropyTerm,
    tokens: f32,
) -> (Tensor<2>, Tensor<1>) {
    let CrossEntropyTerm { weight, label_smoothing, z_loss } = text;
    let device = logits.device();
    let [rows, vocab_size] = logits.dims();
    let ids = target_ids(targets, logits);
    let (log_q, log_sum) = log_softmax_and_sum(logits.clone());
    let none = || Tensor::<1>::zeros([1], &device);
    let uniform = if label_smoothing > 0.0 { -row_sums(log_q.clone()).sum() / vocab_size as f32 } else { none() };
    let nll = -log_q.clone().gather(1, ids.clone()).sum();
    let mut values = [nll, uniform, log_sum.clone().square().sum(), none(), none()];
    let own = log_q.clone().exp() * (log_sum * (2.0 * z_loss) + 1.0);
    let weight = weight / tokens;
    let labels = Tensor::full([rows, 1], (label_smoothing - 1.0) * weight, &device);
    let grad = (own - label_smoothing / vocab_size as f32) * weight;
    let mut grad = grad.scatter(1, ids, labels, IndexingUpdateOp::Add);
    for (value, reference) in values[3..].iter_mut().zip(references) {
        let Some((DistillTerm { weight, divergence, temperature }, reference)) = reference else { continue };
        let log_q = if temperature == 1.0 { log_q.clone() } else { log_softmax(logits.clone() / temperature) };
        let Reference { values, named } = reference;
        let (sum, slope) = match named {
            None => divergence_of(divergence, log_softmax(values / temperature), log_q),
            Some(named) => divergence_of_top(divergence, named, values, log_q),
        };
        *value = sum;
        grad = grad + slope * (weight * temperature / tokens);
    }
    (grad, Tensor::cat(values.to_vec(), 0))
}

/// Rows of a reference.
#[derive(Clone)]
struct Reference {
    /// Logits `[rows, V]`; with `named`, log-probabilities `[rows, k + 1]`.
    values: Tensor<2>,
    named: Option<Named>,
}

/// Tokens that the rows of [`TopProbs`] name, padded to the longest row.
#[derive(Clone)]
struct Named {
    /// `[rows, k]`; 0 as padding.
    ids: Tensor<2, Int>,
    /// `[rows, k]`: 1 for tokens, 0 for padding.
    is_token: Tensor<2>,
}

/// `log p` and `log q` of a padding outcome: small enough to add nothing, large enough for its
/// exponential not to be 0.
const NO_OUTCOME: f32 = -80.0;

impl Reference {
    fn logits(values: Tensor<2>) -> Self {
        Self { values, named: None }
    }

    fn top(top: &TopProbs, start: usize, rows: usize, device: &Device) -> Self {
        let all = (start..start + rows).map(|row| top.row(row));
        let k = all.clone().map(|(ids, _)| ids.len()).max().unwrap_or(0);
        let (mut ids, mut is_token, mut values) = (vec![0; rows * k], vec![0.0; rows * k], Vec::new());
        for (row, (of_row, log_probs)) in all.enumerate() {
            for (i, id) in of_row.iter().enumerate() {
                (ids[row * k + i], is_token[row * k + i]) = (*id as i32, 1.0);
            }
            let (of_tokens, of_rest) = log_probs.split_at(of_row.len());
            values.extend_from_slice(of_tokens);
            values.resize(values.len() + k - of_row.len(), NO_OUTCOME);
            values.extend_from_slice(of_rest);
        }
        let floats = |values: Vec<f32>, width| Tensor::from_data(TensorData::new(values, [rows, width]), device);
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), device).reshape([rows, k]);
        Self { values: floats(values, k + 1), named: Some(Named { ids, is_token: floats(is_token, k) }) }
    }
}

/// Divergence over the outcomes of [`super::top`]; `log_q` is `[rows, V]`.
fn divergence_of_top(kind: Divergence, named: Named, log_p: Tensor<2>, log_q: Tensor<2>) -> (Tensor<1>, Tensor<2>) {
    let Named { ids, is_token } = named;
    let [_, k] = ids.dims();
    let q = log_q.clone().exp();
    let is_named = q.zeros_like().scatter(1, ids.clone(), is_token.clone(), IndexingUpdateOp::Add);
    let of_rest = q * (is_named.neg() + 1.0);
    let q_rest = row_sums(of_rest.clone()).clamp_min(f32::MIN_POSITIVE); // [rows, 1]
    let log_named = log_q.gather(1, ids.clone()) * is_token.clone() + (is_token.clone().neg() + 1.0) * NO_OUTCOME;
    let log_outcomes = Tensor::cat(vec![log_named, q_rest.clone().log()], 1);
    let (value, slopes) = divergence_of(kind, log_p, log_outcomes);
    let rest = of_rest * (slopes.clone().narrow(1, k, 1) / q_rest);
    (value, rest.scatter(1, ids, slopes.narrow(1, 0, k) * is_token, IndexingUpdateOp::Add))
}

/// Calls `see` with the logits of each chunk in turn.
pub fn logits_of(input: &HeadInput, chunks: Chunks, see: &mut dyn FnMut(&[f32])) {
    for (start, rows) in chunks.iter() {
        let logits = logits(input.hidden.clone().narrow(0, start, rows), &input.head);
        see(Late::new(logits).values());
    }
}

/// `share p + (1 − share) q`, above 0 where both underflow: an outcome of no probability adds 0 to
/// a divergence, and 0 · log 0 would be NaN.
fn mixture(p: &Tensor<2>, share: f32, q: &Tensor<2>) -> Tensor<2> {
    (p.clone() * share + q.clone() * (1.0 - share)).clamp_min(f32::MIN_POSITIVE)
}

/// Divergence summed over the rows, and its gradient for the logits of `q`; see
/// [`super::divergence`].
fn divergence_of(kind: Divergence, log_p: Tensor<2>, log_q: Tensor<2>) -> (Tensor<1>, Tensor<2>) {
    let (p, q) = (log_p.clone().exp(), log_q.clone().exp());
    // q (g − Σ q g)
    let sum = |x: Tensor<2>| row_sums(x).sum();
    let gradient = |g: Tensor<2>| q.clone() * (g.clone() - row_sums(q.clone() * g));
    match kind {
        Divergence::ForwardKl => (sum(p.clone() * (log_p - log_q)), q - p),
        Divergence::ReverseKl => {
            let ratio = log_q - log_p;
            (sum(q.clone() * ratio.clone()), gradient(ratio))
        }
        Divergence::Jsd { beta } => {
            let beta = beta as f32;
            let log_m = mixture(&p, beta, &q).log();
            let of_p = sum(p * (log_p - log_m.clone()));
            let ratio = log_q - log_m;
            let of_q = sum(q.clone() * ratio.clone());
            (of_p * beta + of_q * (1.0 - beta), gradient(ratio * (1.0 - beta)))
        }
        Divergence::Tvd => {
            let difference = q.clone() - p;
            (sum(difference.clone().abs()) * 0.5, gradient(difference.sign() * 0.5))
        }
        Divergence::SkewKl { alpha } => {
            let alpha = alpha as f32;
            let m = mixture(&p, alpha, &q);
            let value = sum(p.clone() * (log_p - m.clone().log()));
            (value, gradient(p / m * (alpha - 1.0)))
        }
    }
}
