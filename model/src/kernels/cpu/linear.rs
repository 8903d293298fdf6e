//! Linear layers `y = x·Wᵀ`, alone and with LoRA: `y = x·Wᵀ + (x·Aᵀ)·Bᵀ`, or merged, `y = x·(W +
//! B·A)ᵀ`.
//!
//! `x [M, in]`, `W [out, in]`, `A [rank, in]`, `B [out, rank]`, `y [M, out]`. The matrix products
//! accumulate sums themselves. Weights are f32, or bf16 without a backward pass.

use super::{
    matmul::{Matrix, add_product, product},
    tensor::{dense, from_values, matrix, on_host, values},
    weight::Weight,
};
use crate::kernels::RowsLora;
use burn::{
    backend::{TensorMetadata, flex::FlexTensor},
    tensor::{Tensor, TensorData},
};

/// Linear `x·Wᵀ`.
pub fn forward(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
    let (x, weight) = (dense(x), dense(weight));
    let [rows, _] = x.shape().dims();
    let [out, _] = weight.shape().dims();
    from_values(Weight::from_tensor(&weight).apply(matrix(&x)), [rows, out])
}

/// Gradients of `x` and `W`, where requested.
pub fn backward(
    (x, weight): (FlexTensor, FlexTensor),
    grad: FlexTensor,
    [x_wanted, weight_wanted]: [bool; 2],
) -> [Option<FlexTensor>; 2] {
    let (x, weight, grad) = (dense(x), dense(weight), dense(grad));
    let grad_x = x_wanted.then(|| from_values(product(matrix(&grad), matrix(&weight)), x.shape()));
    let grad_weight = weight_wanted.then(|| from_values(product(matrix(&grad).t(), matrix(&x)), weight.shape()));
    [grad_x, grad_weight]
}

/// State of [`forward_lora`] for its backward pass, with `h = x·Aᵀ`. `X` is the input, or `()` if
/// the backward pass recomputes it.
#[derive(Clone, Debug)]
pub struct LoraState<X = FlexTensor> {
    x: X,
    weight: FlexTensor,
    a: FlexTensor,
    b: FlexTensor,
    h: FlexTensor,
}

impl LoraState {
    /// Drops the input.
    pub fn forget_x(self) -> LoraState<()> {
        let Self { x: _, weight, a, b, h } = self;
        LoraState { x: (), weight, a, b, h }
    }
}

impl LoraState<()> {
    /// Adds the recomputed input.
    pub fn with_x(self, x: FlexTensor) -> LoraState {
        let Self { x: (), weight, a, b, h } = self;
        LoraState { x, weight, a, b, h }
    }
}

/// Linear with LoRA, `x·Wᵀ + h·Bᵀ` with `h = x·Aᵀ`.
pub fn forward_lora([x, weight, a, b]: [FlexTensor; 4]) -> (FlexTensor, LoraState) {
    let (x, weight, a, b) = (dense(x), dense(weight), dense(a), dense(b));
    let [rows, _] = x.shape().dims();
    let [out, rank] = b.shape().dims();
    let h = Weight::from_tensor(&a).apply(matrix(&x));
    let mut y = Weight::from_tensor(&weight).apply(matrix(&x));
    Weight::from_tensor(&b).add_apply(&mut y, Matrix::new(&h, [rows, rank]));
    (from_values(y, [rows, out]), LoraState { x, weight, a, b, h: from_values(h, [rows, rank]) })
}

/// Linear `x·Wᵀ` of all rows, with `h·Bᵀ`, `h = x·Aᵀ`, added to the rows of each LoRA. Without a
/// backward pass: the tensors must be untracked.
pub fn forward_loras(x: Tensor<2>, weight: Tensor<2>, loras: &[RowsLora]) -> Tensor<2> {
    let device = x.device();
    let ([rows, input], [out, _]) = (x.dims(), weight.dims());
    let (x, weight) = (on_host(x), on_host(weight));
    let mut y = Weight::from_tensor(&weight).apply(matrix(&x));
    for RowsLora { rows, a, b } in loras {
        let [rank, _] = a.dims();
        let (a, b) = (on_host(a.clone()), on_host(b.clone()));
        let part = Matrix::new(&values(&x)[rows.start * input..rows.end * input], [rows.len(), input]);
        let h = Weight::from_tensor(&a).apply(part);
        let corrected = &mut y[rows.start * out..rows.end * out];
        Weight::from_tensor(&b).add_apply(corrected, Matrix::new(&h, [rows.len(), rank]));
    }
    Tensor::from_data(TensorData::new(y, [rows, out]), &device)
}

/// Gradients of `x`, `W`, `A` and `B`, where requested.
///
/// With `dh = dy·B`: `dx = dy·W + dh·A`, `dW = dyᵀ·x`, `dA = dhᵀ·x`, `dB = dyᵀ·h`.
pub fn backward_lora(state: LoraState, grad: FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
    let LoraState { x, weight, a, b, h } = state;
    let [x_wanted, weight_wanted, a_wanted, b_wanted] = wanted;
    let grad = dense(grad);
    let dy = matrix(&grad);
    let dh = product(dy, matrix(&b));
    let dh = Matrix::new(&dh, h.shape().dims());
    let grad_x = x_wanted.then(|| {
        let mut dx = product(dy, matrix(&weight));
        add_product(&mut dx, dh, matrix(&a));
        from_values(dx, x.shape())
    });
    [
        grad_x,
        weight_wanted.then(|| from_values(product(dy.t(), matrix(&x)), weight.shape())),
        a_wanted.then(|| from_values(product(dh.t(), matrix(&x)), a.shape())),
        b_wanted.then(|| from_values(product(dy.t(), matrix(&h)), b.shape())),
    ]
}

/// Weight `W` and the factors `A`, `B` of its LoRA, for a backward pass that merges them again: the
/// sum has the size of `W`, and each depth would keep one.
#[derive(Clone, Debug)]
pub struct Mergeable {
    weight: FlexTensor,
    a: FlexTensor,
    b: FlexTensor,
}

impl Mergeable {
    pub fn new([weight, a, b]: [FlexTensor; 3]) -> Self {
        Self { weight: dense(weight), a: dense(a), b: dense(b) }
    }

    /// `W + B·A`.
    fn merged(&self) -> FlexTensor {
        let mut merged = values(&self.weight).to_vec();
        add_product(&mut merged, matrix(&self.b), matrix(&self.a));
        from_values(merged, self.weight.shape())
    }
}

/// Linear with merged LoRA, `x·(W + B·A)ᵀ`.
pub fn forward_merged(x: FlexTensor, parts: &Mergeable) -> FlexTensor {
    forward(x, parts.merged())
}

/// Gradients of `x`, `W`, `A` and `B`, where requested: with `dM = dyᵀ·x` they are `dy·(W + B·A)`,
/// `dM`, `Bᵀ·dM` and `dM·Aᵀ`.
pub fn backward_merged(
    (x, parts): (FlexTensor, Mergeable),
    grad: FlexTensor,
    [x_wanted, weight_wanted, a_wanted, b_wanted]: [bool; 4],
) -> [Option<FlexTensor>; 4] {
    let weight = if x_wanted { parts.merged() } else { parts.weight };
    let wanted = [x_wanted, weight_wanted || a_wanted || b_wanted];
    let [grad_x, grad_weight] = backward((x, weight), grad, wanted);
    let of_factor = |wanted: bool, gradient: &dyn Fn(&FlexTensor) -> FlexTensor| {
        grad_weight.as_ref().filter(|_| wanted).map(gradient)
    };
    let (a, b) = (&parts.a, &parts.b);
    let grad_a = of_factor(a_wanted, &|grad| from_values(product(matrix(b).t(), matrix(grad)), a.shape()));
    let grad_b = of_factor(b_wanted, &|grad| from_values(product(matrix(grad), matrix(a).t()), b.shape()));
    [grad_x, grad_weight.filter(|_| weight_wanted), grad_a, grad_b]
}
