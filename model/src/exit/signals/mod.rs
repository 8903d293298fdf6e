//! The number of each rule. Those of a readout take the hidden state through the final norm and the
//! head, without the layers after the loop: these would need keys and values of their own for every
//! exit of the tokens before.

pub mod agreement;
pub mod change;
pub mod entropy;
pub mod margin;
pub mod probability;
pub mod probe;
pub mod router;

use super::rule::Passed;
use crate::kernels::f32_slice;
use burn::tensor::Tensor;

/// Rows of a readout that are computed at once.
const ROWS: usize = 64;

/// A number of the readout of each row of `hidden [n, D]`: `number` gets the probabilities `[V]`.
fn of_readout(passed: &Passed<'_>, hidden: &Tensor<2>, mut number: impl FnMut(&[f32]) -> f32) -> Vec<f32> {
    let ([rows, _], vocab_size) = (hidden.dims(), passed.model.config().vocab_size);
    let mut found = Vec::with_capacity(rows);
    for start in (0..rows).step_by(ROWS) {
        let part = hidden.clone().narrow(0, start, ROWS.min(rows - start));
        let mut logits = passed.model.logits(passed.model.norm(part)).into_data();
        for logits in crate::kernels::f32_slice_mut(&mut logits).chunks_exact_mut(vocab_size) {
            softmax(logits);
            found.push(number(logits));
        }
    }
    found
}

fn softmax(logits: &mut [f32]) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|x| *x = (*x - highest).exp());
    let sum = logits.iter().map(|x| f64::from(*x)).sum::<f64>() as f32;
    logits.iter_mut().for_each(|x| *x /= sum);
}

/// The two largest of `probabilities`.
fn two_largest(probabilities: &[f32]) -> [f32; 2] {
    probabilities.iter().fold([0.0f32; 2], |[first, second], p| match *p {
        p if p > first => [p, first],
        p => [first, second.max(p)],
    })
}

/// Values of `[n, 1]`.
fn column(x: Tensor<2>) -> Vec<f32> {
    f32_slice(&x.into_data()).to_vec()
}

/// Euclidean norm of each row, `[n, 1]`.
fn norms(x: Tensor<2>) -> Tensor<2> {
    x.square().sum_dim(1).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_and_the_two_largest_have_their_known_values() {
        let mut x = [2.0f32.ln(), 0.0, 5.0f32.ln(), f32::NEG_INFINITY];
        softmax(&mut x);
        for (found, expected) in x.iter().zip([0.25, 0.125, 0.625, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{x:?}");
        }
        assert_eq!(two_largest(&[0.25, 0.125, 0.625, 0.0]), [0.625, 0.25]);
        assert_eq!(two_largest(&[0.5, 0.5]), [0.5, 0.5]);
    }
}
