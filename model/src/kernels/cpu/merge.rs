//! Merge of a block's output into the rows that went through it; other rows stay, bit for bit.

use super::tensor::{dense, from_values, values, zeros_like};
use crate::kernels::Merge;
use burn::backend::{TensorMetadata, flex::FlexTensor};
use retie_config::Gating;

/// State for the backward pass.
#[derive(Clone, Debug)]
pub struct State {
    /// Selected rows of `x`, `[k, D]`; empty if the gating does not need them.
    entered: Vec<f32>,
    y: FlexTensor,
    gate: FlexTensor,
    merge: Merge,
}

/// Merge: `x [M, D]`, `y [k, D]`, `gate [k, 1]` → `[M, D]`.
pub fn forward(x: FlexTensor, y: FlexTensor, gate: FlexTensor, merge: Merge) -> (FlexTensor, State) {
    let (x, y, gate) = (dense(x), dense(y), dense(gate));
    let [_, width] = x.shape().dims();
    let mut out = values(&x).to_vec();
    let needs_x = matches!(merge.gating, Gating::Delta | Gating::StraightThrough);
    let mut entered = Vec::with_capacity(if needs_x { merge.rows.len() * width } else { 0 });
    let blocks = values(&y).chunks_exact(width).zip(values(&gate));
    for (row, (y, gate)) in merge.rows.host().iter().zip(blocks) {
        let x = &mut out[row * width..][..width];
        if needs_x {
            entered.extend_from_slice(x);
        }
        match merge.gating {
            Gating::StraightThrough => x.copy_from_slice(y),
            Gating::Delta => x.iter_mut().zip(y).for_each(|(x, y)| *x = (1.0 - gate) * *x + gate * y),
            Gating::Weighted => x.iter_mut().zip(y).for_each(|(x, y)| *x += gate * y),
            Gating::Additive => x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
        }
    }
    (from_values(out, x.shape()), State { entered, y, gate, merge })
}

/// Gradients of `x`, `y` and `gate`; additive gating has one of 0, for what the gate was made of.
pub fn backward(state: &State, grad: FlexTensor) -> [Option<FlexTensor>; 3] {
    let State { entered, y, gate, merge } = state;
    let grad = dense(grad);
    let [_, width] = grad.shape().dims();
    let mut grad_x = values(&grad).to_vec();
    let (mut grad_y, mut grad_gate) = (zeros_like(y), zeros_like(gate));
    let (ys, gates) = (values(y), values(gate));
    for (i, row) in merge.rows.host().iter().enumerate() {
        let at = i * width..(i + 1) * width;
        let (grad, y) = (&mut grad_x[row * width..][..width], &ys[at.clone()]);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let factor = match merge.gating {
            Gating::StraightThrough | Gating::Additive => 1.0,
            Gating::Delta | Gating::Weighted => gates[i],
        };
        grad_y[at.clone()].iter_mut().zip(grad.iter()).for_each(|(out, grad)| *out = factor * grad);
        match merge.gating {
            Gating::StraightThrough | Gating::Delta => {
                grad_gate[i] = dot(grad, y) - dot(grad, &entered[at]);
                grad.iter_mut().for_each(|grad| *grad *= 1.0 - factor);
            }
            Gating::Weighted => grad_gate[i] = dot(grad, y),
            Gating::Additive => {}
        }
    }
    [
        Some(from_values(grad_x, grad.shape())),
        Some(from_values(grad_y, y.shape())),
        Some(from_values(grad_gate, gate.shape())),
    ]
}
