//! Linears that read the same rows as one product: their weights, with LoRA merged into them, stand
//! one below the other.

use super::{
    launch::{Bound, cubes_for_units, dense, dims, empty, parts_of_a_launch, position, units},
    linear, lora,
};
use burn::backend::ops::FloatTensorOps;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;

/// A weight with LoRA in a launch: `[out, in]`, `[rank, in]`, `[out, rank]`.
#[derive(CubeLaunch, CubeType)]
struct MergedPart {
    weight: Box<[f32]>,
    a: Box<[f32]>,
    b: Box<[f32]>,
    rank: usize,
    count: usize,
    /// Where it begins in the result.
    first: usize,
}

#[cube(launch)]
fn merge_parts_kernel(parts: &Sequence<MergedPart>, out: &mut [f32], input: usize) {
    let at = position();
    #[unroll]
    for index in 0..parts.len() {
        let part = &parts[index];
        if at >= part.first && at < part.first + part.count {
            let own = at - part.first;
            let (row, column) = (own / input, own % input);
            let mut sum = 0.0f32;
            for r in 0..part.rank {
                sum += part.b[row * part.rank + r] * part.a[r * input + column];
            }
            out[at] = part.weight[own] + sum;
        }
    }
}

/// A weight in a launch.
#[derive(CubeLaunch, CubeType)]
struct Part {
    weight: Box<[f32]>,
    count: usize,
    first: usize,
}

#[cube(launch)]
fn stack_parts_kernel(parts: &Sequence<Part>, out: &mut [f32]) {
    let at = position();
    #[unroll]
    for index in 0..parts.len() {
        let part = &parts[index];
        if at >= part.first && at < part.first + part.count {
            out[at] = part.weight[at - part.first];
        }
    }
}

/// Weights one below the other, `[Σ out, in]`, and what their gradients need.
#[derive(Clone, Debug)]
pub struct Stacked {
    pub weight: CubeTensor,
    /// Rows of each weight, and its `[A, B]`.
    parts: Vec<(usize, Option<[CubeTensor; 2]>)>,
}

impl Stacked {
    /// Of plain weights.
    pub fn plain(weights: impl IntoIterator<Item = CubeTensor>) -> Self {
        let weights: Vec<CubeTensor> = weights.into_iter().map(dense).collect();
        let parts: Vec<_> = weights.iter().map(|weight| (dims::<2>(weight)[0], None)).collect();
        if let Some(weight) = in_one_buffer(&weights) {
            return Self { weight, parts };
        }
        let (out, input) = stack(&weights);
        let mut first = 0;
        let launched = weights.into_iter().map(|weight| {
            let [rows, _] = dims(&weight);
            let start = first;
            first += rows * input;
            PartLaunch::new(weight.bound(), rows * input, start)
        });
        let launched = launched.collect();
        let (client, count) = (out.client.clone(), cubes_for_units(first));
        stack_parts_kernel::launch(&client, count, units(), launched, out.clone().bound());
        Self { weight: out, parts }
    }

    /// Of weights with LoRA `[W, A, B]`, merged.
    pub fn merged(all: impl IntoIterator<Item = [CubeTensor; 3]>) -> Self {
        let all: Vec<[CubeTensor; 3]> = all.into_iter().map(|part| part.map(dense)).collect();
        let weights: Vec<CubeTensor> = all.iter().map(|[weight, ..]| weight.clone()).collect();
        let (out, input) = stack(&weights);
        let (mut first, mut parts) = (0, Vec::new());
        let (client, size) = (out.client.clone(), parts_of_a_launch(&out, 3, 1));
        for some in all.chunks(size) {
            let launched = some.iter().cloned().map(|[weight, a, b]| {
                let ([rows, _], [rank, _], start) = (dims(&weight), dims(&a), first);
                first += rows * input;
                parts.push((rows, Some([a.clone(), b.clone()])));
                let (weight, a, b) = (weight.bound(), a.bound(), b.bound());
                MergedPartLaunch::new(weight, a, b, rank, rows * input, start)
            });
            let launched = launched.collect();
            let count = cubes_for_units(first);
            merge_parts_kernel::launch(&client, count, units(), launched, out.clone().bound(), input);
        }
        Self { weight: out, parts }
    }

    /// Gradients of the input and of each part: of its weight and, with LoRA, of `A` and `B`, in
    /// that order; none if none is wanted.
    pub fn backward(
        self,
        x: CubeTensor,
        grad: CubeTensor,
        [wants_x, wants_parts]: [bool; 2],
    ) -> (Option<CubeTensor>, Vec<CubeTensor>) {
        let [grad_x, of_all] = linear::backward(x, self.weight, grad, [wants_x, wants_parts]);
        let Some(of_all) = of_all else { return (grad_x, Vec::new()) };
        let factors: Vec<_> = self.parts.iter().filter_map(|(_, lora)| lora.clone()).collect();
        let mut of_factors = lora::gradients(&of_all, &factors).into_iter();
        let (mut first, mut grads) = (0, Vec::new());
        for (rows, lora) in self.parts {
            grads.push(CubeBackend::float_slice(of_all.clone(), &[(first..first + rows).into()]));
            first += rows;
            grads.extend(lora.and_then(|_| of_factors.next()).into_iter().flatten());
        }
        (grad_x, grads)
    }
}

/// Weights that stand one below the other in memory, as one; `None` where they do not.
fn in_one_buffer(weights: &[CubeTensor]) -> Option<CubeTensor> {
    let ([first, ..], [.., last]) = (weights, weights) else { return None };
    let begin = |x: &CubeTensor| x.handle.offset_start.unwrap_or(0);
    let follows = |[x, y]: &[CubeTensor; 2]| {
        let bytes = (x.meta.num_elements() * x.dtype.size()) as u64;
        let is_shared = x.handle.memory.descriptor() == y.handle.memory.descriptor();
        is_shared && begin(x) + bytes == begin(y)
    };
    if !weights.array_windows::<2>().all(follows) {
        return None;
    }
    let ([_, input], mut handle) = (dims(first), first.handle.clone());
    handle.offset_end = last.handle.offset_end;
    let rows: usize = weights.iter().map(|weight| dims::<2>(weight)[0]).sum();
    Some(CubeTensor::new_contiguous(
        first.client.clone(),
        first.device.clone(),
        [rows, input].into(),
        handle,
        first.dtype,
    ))
}

/// The same weights one below the other in memory, so that [`Stacked::plain`] of them copies
/// nothing; where the device can bind no buffer from their rows on, each is a copy.
pub fn adjoined(weights: Vec<CubeTensor>) -> Vec<CubeTensor> {
    let Stacked { weight, parts } = Stacked::plain(weights);
    let mut first = 0;
    let rows = parts.into_iter().map(|(rows, _)| {
        first += rows;
        CubeBackend::float_slice(weight.clone(), &[(first - rows..first).into()])
    });
    rows.collect()
}

/// Memory for `weights` one below the other, and their width.
fn stack(weights: &[CubeTensor]) -> (CubeTensor, usize) {
    let input = weights.first().map_or(0, |weight| dims::<2>(weight)[1]);
    let rows: usize = weights.iter().map(|weight| dims::<2>(weight)[0]).sum();
    match weights.first() {
        Some(first) => (empty(first, [rows, input]), input),
        None => unreachable!("a linear has a weight"),
    }
}
