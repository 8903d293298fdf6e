//! AdamW in one pass over many parameters, in place, and the squared norms of many gradients. A
//! launch takes as many tensors as the device can bind, so that a step has few of them.

use super::launch::{Bound, UNITS, dense, empty, parts_of_a_launch, sum_of_cube, units};
use crate::kernels::AdamWStep;
use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use std::cell::RefCell;

/// Cubes of a tensor, which go over it in strides.
const MOST_CUBES: usize = 4096;

/// A parameter in a launch.
#[derive(CubeLaunch, CubeType)]
struct Parameter {
    value: Box<[f32]>,
    grad: Box<[f32]>,
    mean: Box<[f32]>,
    square: Box<[f32]>,
    count: usize,
    step_size: f32,
    inverse_root: f32,
    keep: f32,
    clip: f32,
}

#[cube(launch)]
fn adamw_kernel(parameters: &mut Sequence<Parameter>, beta1: f32, beta2: f32, eps: f32) {
    #[unroll]
    for index in 0..parameters.len() {
        if CUBE_POS_Y as usize == index {
            let parameter = &mut parameters[index];
            let mut at = CUBE_POS_X as usize * comptime!(UNITS) + UNIT_POS as usize;
            while at < parameter.count {
                let grad = parameter.grad[at] * parameter.clip;
                let mean = beta1 * parameter.mean[at] + (1.0f32 - beta1) * grad;
                let square = beta2 * parameter.square[at] + (1.0f32 - beta2) * grad * grad;
                let change = parameter.step_size * mean / (square.sqrt() * parameter.inverse_root + eps);
                parameter.mean[at] = mean;
                parameter.square[at] = square;
                parameter.value[at] = parameter.value[at] * parameter.keep - change;
                at += CUBE_COUNT_X as usize * comptime!(UNITS);
            }
        }
    }
}

/// An update that is to be made: `[value, gradient, mean, square]`.
struct Update {
    tensors: [CubeTensor; 4],
    step: AdamWStep,
}

thread_local! {
    /// Updates of this thread that wait to be made together.
    static WAITING: RefCell<Option<Vec<Update>>> = const { RefCell::new(None) };
}

/// Runs `f`, and makes the updates that it asks for together.
pub fn together(f: &mut dyn FnMut()) {
    WAITING.set(Some(Vec::new()));
    f();
    launch(WAITING.take().unwrap_or_default());
}

/// A parameter and its means after a step, `[n]` each, in place where nothing else holds them.
/// Within [`together`] they have these values when it returns.
pub fn adamw(tensors: [CubeTensor; 4], step: AdamWStep) -> [CubeTensor; 3] {
    let own = |x: CubeTensor| {
        let x = dense(x);
        if x.can_mut() { x } else { x.copy() }
    };
    let [value, grad, mean, square] = tensors;
    let tensors = [own(value), dense(grad), own(mean), own(square)];
    let [value, _, mean, square] = tensors.clone();
    let update = Update { tensors, step };
    let alone = WAITING.with_borrow_mut(|waiting| match waiting {
        Some(waiting) => {
            waiting.push(update);
            None
        }
        None => Some(update),
    });
    launch(alone.into_iter().collect());
    [value, mean, square]
}

fn launch(updates: Vec<Update>) {
    let Some(first) = updates.first() else { return };
    let (client, AdamWStep { beta1, beta2, eps, .. }) = (first.tensors[0].client.clone(), first.step);
    let size = parts_of_a_launch(&first.tensors[0], 4, 0);
    let mut updates = updates.into_iter();
    loop {
        let some: Vec<Update> = updates.by_ref().take(size).collect();
        if some.is_empty() {
            return;
        }
        let longest = some.iter().map(|update| update.tensors[0].shape().num_elements()).max().unwrap_or(0);
        let cubes = longest.div_ceil(UNITS).clamp(1, MOST_CUBES);
        let count = CubeCount::Static(cubes as u32, some.len() as u32, 1);
        let parameters = some.into_iter().map(|Update { tensors, step }| {
            let count = tensors[0].shape().num_elements();
            let [value, grad, mean, square] = tensors.map(Bound::bound);
            let AdamWStep { step_size, inverse_root, keep, clip, .. } = step;
            ParameterLaunch::new(value, grad, mean, square, count, step_size, inverse_root, keep, clip)
        });
        adamw_kernel::launch(&client, count, units(), parameters.collect(), beta1, beta2, eps);
    }
}

/// Elements whose squares a cube sums.
const PART: usize = 64 * UNITS;

/// A vector in a launch, and where the sums of its parts go.
#[derive(CubeLaunch, CubeType)]
struct Vector {
    x: Box<[f32]>,
    count: usize,
    first: usize,
}

#[cube(launch)]
fn squares_kernel(vectors: &Sequence<Vector>, sums: &mut [f32]) {
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    #[unroll]
    for index in 0..vectors.len() {
        if CUBE_POS_Y as usize == index {
            let vector = &vectors[index];
            let start = CUBE_POS_X as usize * comptime!(PART);
            if start < vector.count {
                let mut end = start + comptime!(PART);
                if end > vector.count {
                    end = vector.count;
                }
                let mut sum = 0.0f32;
                let mut i = start + UNIT_POS as usize;
                while i < end {
                    sum += vector.x[i] * vector.x[i];
                    i += comptime!(UNITS);
                }
                let sum = sum_of_cube(sum, &mut scratch);
                if UNIT_POS == 0 {
                    sums[vector.first + CUBE_POS_X as usize] = sum;
                }
            }
        }
    }
}

/// `Σ x²` of parts of the vectors, one after the other, and the number of parts of each.
pub fn squares(vectors: Vec<CubeTensor>) -> Option<(CubeTensor, Vec<usize>)> {
    let parts: Vec<usize> = vectors.iter().map(|x| x.shape().num_elements().div_ceil(PART)).collect();
    let sums = empty(vectors.first()?, [parts.iter().sum::<usize>()]);
    let (client, size) = (sums.client.clone(), parts_of_a_launch(&sums, 1, 1));
    let mut rest = vectors.into_iter();
    let mut first = 0;
    for parts in parts.chunks(size) {
        let count = CubeCount::Static(parts.iter().copied().max().unwrap_or(1).max(1) as u32, parts.len() as u32, 1);
        // Parts first: `zip` asks the left one first, and would lose a vector at the end.
        let vectors = parts.iter().zip(rest.by_ref()).map(|(parts, x)| {
            let (count, start) = (x.shape().num_elements(), first);
            first += parts;
            VectorLaunch::new(dense(x).bound(), count, start)
        });
        squares_kernel::launch(&client, count, units(), vectors.collect(), sums.clone().bound());
    }
    Some((sums, parts))
}
