//! The loss on the CPU: products into buffers that every chunk uses again, then one pass over each row of logits.

use super::{Chunks, HeadInput, HeadLoss, LossWeights};
use crate::kernels::host::{
    matmul::{Matrix, add_product, write_product},
    simd::{exp, max, sum_exp, vectorised},
    tensor::{matrix, on_host, values},
    weight::Weight,
};
use burn::{
    backend::flex::FlexTensor,
    tensor::{Device, Tensor, TensorData},
};
use rayon::prelude::*;

/// Hidden states and head as slices, and a buffer for the logits of one chunk.
struct Head {
    hidden: FlexTensor,
    weight: FlexTensor,
    hidden_size: usize,
    vocab_size: usize,
    logits: Vec<f32>,
}

impl Head {
    fn new(input: &HeadInput, chunks: Chunks) -> Self {
        let [vocab_size, hidden_size] = input.weight.dims();
        let (hidden, weight) = (on_host(input.hidden.clone()), on_host(input.weight.clone()));
        Self { hidden, weight, hidden_size, vocab_size, logits: vec![0.0; chunks.rows * vocab_size] }
    }

    fn hidden(&self, start: usize, rows: usize) -> Matrix<'_> {
        let width = self.hidden_size;
        Matrix::new(&values(&self.hidden)[start * width..(start + rows) * width], [rows, width])
    }

    /// Computes the logits of a chunk.
    fn fill(&mut self, start: usize, rows: usize) {
        let mut logits = std::mem::take(&mut self.logits);
        Weight::of(&self.weight).write_apply(&mut logits[..rows * self.vocab_size], self.hidden(start, rows));
        self.logits = logits;
    }
}

pub fn head_loss(
    student: &HeadInput,
    teacher: Option<&HeadInput>,
    targets: &[u32],
    weights: LossWeights,
    chunks: Chunks,
) -> HeadLoss {
    let mut student = Head::new(student, chunks);
    let mut teacher = teacher.map(|teacher| Head::new(teacher, chunks));
    let (tokens, width, vocab_size) = (chunks.tokens, student.hidden_size, student.vocab_size);
    assert!(teacher.as_ref().is_none_or(|teacher| teacher.vocab_size == vocab_size), "one vocabulary");
    let row_loss = RowLoss { weights, tokens: tokens as f32 };
    let mut grad_hidden = vec![0.0; tokens * width];
    let mut grad_weight = vec![0.0; vocab_size * width];
    let (mut cross_entropy, mut forward_kl) = (0.0, 0.0);
    for (start, rows) in chunks.iter() {
        student.fill(start, rows);
        if let Some(teacher) = &mut teacher {
            teacher.fill(start, rows);
        }
        let count = rows * vocab_size;
        let teacher_logits = teacher.as_ref().map(|teacher| &teacher.logits[..count]);
        let sums =
            row_loss.rows(&mut student.logits[..count], teacher_logits, &targets[start..start + rows], vocab_size);
        cross_entropy += sums[0];
        forward_kl += sums[1];
        let grad = Matrix::new(&student.logits[..count], [rows, vocab_size]);
        write_product(&mut grad_hidden[start * width..(start + rows) * width], grad, matrix(&student.weight));
        add_product(&mut grad_weight, grad.t(), student.hidden(start, rows));
    }
    HeadLoss {
        cross_entropy: cross_entropy / tokens as f64,
        forward_kl: teacher.map(|_| forward_kl / tokens as f64),
        grad_hidden: tensor(grad_hidden, [tokens, width]),
        grad_weight: tensor(grad_weight, [vocab_size, width]),
    }
}

fn tensor(values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

pub fn token_log_probs(head: &HeadInput, targets: &[u32], chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
    let mut head = Head::new(head, chunks);
    let mut results = Vec::with_capacity(chunks.tokens);
    for (start, rows) in chunks.iter() {
        head.fill(start, rows);
        let logits = head.logits[..rows * head.vocab_size].par_chunks_exact(head.vocab_size);
        let scores: Vec<_> = logits.zip(&targets[start..start + rows]).map(score_row).collect();
        results.extend(scores);
    }
    results.into_iter().unzip()
}

/// Log-probability of the target, and whether it is the first of the most probable tokens.
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
    /// Turns the student's logits into their gradient; gives the sums of cross-entropy and KL.
    fn rows(self, logits: &mut [f32], teacher: Option<&[f32]>, targets: &[u32], vocab_size: usize) -> [f64; 2] {
        let sums: Vec<[f32; 2]> = logits
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
        sums.iter().fold([0.0; 2], |[a, b], [x, y]| [a + f64::from(*x), b + f64::from(*y)])
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
}
