//! Head loss on the CPU: matrix products into buffers that all chunks share, then one pass over
//! each row of logits.

use super::{
    row::{Reference, References, row},
    terms::{Chunks, Head, HeadInput, HeadLoss, HeadTerms, KernelValues, Readout, ReadoutLoss, Sums, Teacher},
    top::TopProbs,
};
use crate::kernels::cpu::{
    matmul::{Matrix, add_product, write_product},
    simd::{cap, exp, max, slopes, sum_exp, sum_of_pairs, vectorised},
    tensor::{matrix, on_host, values},
    weight::Weight,
};
use burn::{
    backend::flex::FlexTensor,
    tensor::{Device, Tensor, TensorData},
};
use rayon::prelude::*;

/// Hidden states and head as slices.
struct TokenRows {
    hidden: FlexTensor,
    weight: FlexTensor,
    softcap: Option<f32>,
    hidden_size: usize,
    vocab_size: usize,
}

impl TokenRows {
    fn new(hidden: &Tensor<2>, head: &Head) -> Self {
        let [vocab_size, hidden_size] = head.weight.dims();
        let (hidden, weight) = (on_host(hidden.clone()), on_host(head.weight.clone()));
        Self { hidden, weight, softcap: head.softcap, hidden_size, vocab_size }
    }

    fn hidden(&self, start: usize, rows: usize) -> Matrix<'_> {
        let width = self.hidden_size;
        Matrix::new(&values(&self.hidden)[start * width..(start + rows) * width], [rows, width])
    }

    /// Computes the logits of a chunk.
    fn fill(&self, start: usize, rows: usize, logits: &mut [f32]) {
        let logits = &mut logits[..rows * self.vocab_size];
        Weight::from_tensor(&self.weight).write_apply(logits, self.hidden(start, rows));
        if let Some(limit) = self.softcap {
            logits.par_chunks_mut(self.vocab_size).for_each(|row| {
                vectorised(
                    #[inline(always)]
                    || cap(row, 1.0, limit),
                );
            });
        }
    }
}

/// Reference of a chunk of rows.
#[derive(Clone, Copy)]
enum ReferenceChunk<'a> {
    /// Logits of the chunk.
    Logits(&'a [f32]),
    /// Most probable tokens; the chunk starts at this row.
    Top(&'a TopProbs, usize),
}

impl<'a> ReferenceChunk<'a> {
    fn row(self, index: usize, vocab_size: usize) -> Reference<'a> {
        match self {
            Self::Logits(all) => Reference::Logits(&all[index * vocab_size..(index + 1) * vocab_size]),
            Self::Top(top, start) => {
                let (ids, log_probs) = top.row(start + index);
                Reference::Top(ids, log_probs)
            }
        }
    }
}

pub fn head_loss(
    head: &Head,
    readouts: &[Readout],
    teacher: Option<&Teacher>,
    targets: &[u32],
    chunks: Chunks,
) -> HeadLoss<KernelValues> {
    let [vocab_size, width] = head.weight.dims();
    let heads: Vec<TokenRows> = readouts.iter().map(|r| TokenRows::new(&r.hidden, head)).collect();
    let Some((last, exits)) = heads.split_last() else { unreachable!("a loss without a readout") };
    let model = match teacher {
        Some(Teacher::Model(teacher)) => Some(TokenRows::new(&teacher.hidden, &teacher.head)),
        Some(Teacher::Top(_)) | None => None,
    };
    assert!(model.as_ref().is_none_or(|teacher| teacher.vocab_size == vocab_size), "one vocabulary");
    let logits = || vec![0.0; chunks.rows * vocab_size];
    let mut last_logits = logits();
    let mut exit_logits = if exits.is_empty() { Vec::new() } else { logits() };
    let mut teacher_logits = model.as_ref().map(|_| logits());
    let mut grad_weight = vec![0.0; vocab_size * width];
    let mut grads_hidden: Vec<Vec<f32>> = readouts.iter().map(|_| vec![0.0; chunks.tokens * width]).collect();
    let mut sums = vec![Sums::default(); readouts.len()];
    for (start, rows) in chunks.iter() {
        let count = rows * vocab_size;
        let targets = &targets[start..start + rows];
        last.fill(start, rows, &mut last_logits);
        if let (Some(teacher), Some(logits)) = (&model, &mut teacher_logits) {
            teacher.fill(start, rows, logits);
        }
        let teacher = match (teacher, &teacher_logits) {
            (Some(Teacher::Top(top)), _) => Some(ReferenceChunk::Top(top, start)),
            (_, Some(logits)) => Some(ReferenceChunk::Logits(&logits[..count])),
            (_, None) => None,
        };
        let mut take =
            |index: usize, head: &TokenRows, logits: &mut [f32], references: [Option<ReferenceChunk<'_>>; 2]| {
                sums[index].add(all_rows(
                    &readouts[index].terms,
                    (chunks.tokens, head.softcap),
                    logits,
                    references,
                    targets,
                ));
                let grad = Matrix::new(logits, [rows, vocab_size]);
                let grad_hidden = &mut grads_hidden[index][start * width..(start + rows) * width];
                write_product(grad_hidden, grad, matrix(&head.weight));
                add_product(&mut grad_weight, grad.t(), head.hidden(start, rows));
            };
        for (index, exit) in exits.iter().enumerate() {
            exit.fill(start, rows, &mut exit_logits);
            let last = ReferenceChunk::Logits(&last_logits[..count]);
            take(index, exit, &mut exit_logits[..count], [teacher, Some(last)]);
        }
        take(readouts.len() - 1, last, &mut last_logits[..count], [teacher, None]);
    }
    let parts = readouts.iter().zip(sums).zip(grads_hidden);
    let readouts = parts.map(|((readout, sums), grad)| ReadoutLoss {
        values: KernelValues::Known(sums.mean(&readout.terms, chunks.tokens)),
        grad_hidden: tensor(grad, [chunks.tokens, width]),
    });
    HeadLoss { readouts: readouts.collect(), grad_weight: tensor(grad_weight, [vocab_size, width]) }
}

/// Replaces the logits of a chunk by their gradient; returns the sums of the values. The references
/// are the teacher and the last readout.
fn all_rows(
    terms: &HeadTerms,
    (tokens, softcap): (usize, Option<f32>),
    logits: &mut [f32],
    [teacher, last]: [Option<ReferenceChunk<'_>>; 2],
    targets: &[u32],
) -> [f64; 5] {
    let vocab_size = logits.len() / targets.len();
    let values: Vec<[f64; 5]> = logits
        .par_chunks_exact_mut(vocab_size)
        .zip(targets)
        .enumerate()
        .map(|(index, (logits, target))| {
            let [teacher, last] = [teacher, last].map(|chunk| chunk.map(|chunk| chunk.row(index, vocab_size)));
            let references = References { teacher, last };
            vectorised(
                #[inline(always)]
                || {
                    let slopes: Option<Vec<f32>> = softcap.map(|limit| slopes(logits, limit).collect());
                    let values = row(terms, tokens as f32, logits, references, *target as usize);
                    if let Some(slopes) = slopes {
                        logits.iter_mut().zip(slopes).for_each(|(grad, slope)| *grad *= slope);
                    }
                    values
                },
            )
        })
        .collect();
    let mut sums = Sums::default();
    values.into_iter().for_each(|values| sums.add(values));
    sums.0
}

/// Calls `see` with the logits of each chunk in turn.
pub fn logits_of(input: &HeadInput, chunks: Chunks, see: &mut dyn FnMut(&[f32])) {
    let head = TokenRows::new(&input.hidden, &input.head);
    let mut logits = vec![0.0; chunks.rows * head.vocab_size];
    for (start, rows) in chunks.iter() {
        head.fill(start, rows, &mut logits);
        see(&logits[..rows * head.vocab_size]);
    }
}

fn tensor(values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

pub fn token_log_probs(input: &HeadInput, targets: &[u32], chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
    let head = TokenRows::new(&input.hidden, &input.head);
    let mut logits = vec![0.0; chunks.rows * head.vocab_size];
    let mut results = Vec::with_capacity(chunks.tokens);
    for (start, rows) in chunks.iter() {
        head.fill(start, rows, &mut logits);
        let each = logits[..rows * head.vocab_size].par_chunks_exact(head.vocab_size);
        let scores: Vec<_> = each.zip(&targets[start..start + rows]).map(score_row).collect();
        results.extend(scores);
    }
    results.into_iter().unzip()
}

/// Log-probability of the target, and whether it is the first of the most probable tokens.
pub fn score_row((row, target): (&[f32], &u32)) -> (f32, bool) {
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

pub fn agreement(input: &HeadInput, teacher: &HeadInput, chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
    let heads = [input, teacher].map(|input| TokenRows::new(&input.hidden, &input.head));
    let vocab_size = heads[0].vocab_size;
    let mut logits = [0; 2].map(|_| vec![0.0; chunks.rows * vocab_size]);
    let mut results = Vec::with_capacity(chunks.tokens);
    for (start, rows) in chunks.iter() {
        for (head, logits) in heads.iter().zip(&mut logits) {
            head.fill(start, rows, logits);
        }
        let [own, theirs] = logits.each_ref().map(|logits| logits[..rows * vocab_size].par_chunks_exact(vocab_size));
        let scores: Vec<_> = own.zip(theirs).map(agreement_of_row).collect();
        results.extend(scores);
    }
    results.into_iter().unzip()
}

/// Forward KL of two rows of logits (`own` is `q`, `theirs` is `p`), and whether both have the same
/// first most probable token.
pub fn agreement_of_row((own, theirs): (&[f32], &[f32])) -> (f32, bool) {
    vectorised(
        #[inline(always)]
        || {
            let [own_max, their_max] = [max(own), max(theirs)];
            let log_q = own_max + sum_exp(own, 1.0, own_max).ln();
            let log_p = their_max + sum_exp(theirs, 1.0, their_max).ln();
            let kl = sum_of_pairs(
                own,
                theirs,
                #[inline(always)]
                |own, theirs| exp(theirs - log_p) * ((theirs - log_p) - (own - log_q)),
            );
            let first = |row: &[f32], max: f32| row.iter().position(|x| *x == max);
            (kl, first(own, own_max) == first(theirs, their_max))
        },
    )
}
