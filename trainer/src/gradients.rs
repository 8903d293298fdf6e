//! Gradients by parameter name: summed over micro-batches, measured as a whole.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Gradients as Graph, IndexingUpdateOp, Int, Tensor},
};
use rayon::prelude::*;
use retie_model::{
    CausalLm,
    kernels::{f32_slice, f32_slice_mut, is_cpu},
};
use std::collections::BTreeMap;

/// One flat gradient per parameter; a tied weight has one, the sum over its uses.
#[derive(Debug, Default)]
pub struct Gradients(BTreeMap<String, Tensor<1>>);

impl Gradients {
    /// Adds what one backward pass left for the parameters of `model`.
    pub fn add(&mut self, model: &CausalLm, mut graph: Graph) {
        struct Visitor<'a> {
            path: Vec<String>,
            graph: &'a mut Graph,
            grads: &'a mut Gradients,
        }
        impl ModuleVisitor for Visitor<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(grad) = param.val().grad_remove(self.graph) {
                    self.grads.add_one(&self.path.join("."), flat(grad));
                }
            }
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name.to_owned());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
        }
        model.visit(&mut Visitor { path: Vec::new(), graph: &mut graph, grads: self });
    }

    /// Adds what reaches the tables: `grad_head [V, D]` for the weights of the head, and `grad_rows [M, D]` for the rows of the
    /// embeddings that `ids [M]` name. Where the two are tied, the rows are added in the memory of `grad_head`. Frozen tables get none.
    pub fn add_tables(&mut self, model: &CausalLm, grad_head: Tensor<2>, ids: &[u32], grad_rows: Tensor<2>) {
        const EMBEDDINGS: &str = "model.embed_tokens.weight";
        if !model.model.embed_tokens.weight.val().is_require_grad() {
            return;
        }
        let grad_embeddings = if model.lm_head.is_some() {
            let zeros = grad_head.zeros_like();
            self.add_one("lm_head.weight", flat(grad_head));
            zeros
        } else {
            grad_head
        };
        self.add_one(EMBEDDINGS, flat(add_rows(grad_embeddings, ids, grad_rows)));
    }

    /// Adds to the gradient of `name`.
    pub fn add_one(&mut self, name: &str, grad: Tensor<1>) {
        let sum = match self.0.remove(name) {
            Some(sum) if is_cpu(&sum.device()) => add_in_place(sum, grad),
            Some(sum) => sum + grad,
            None => grad,
        };
        self.0.insert(name.to_owned(), sum);
    }

    /// Whether `name` has a gradient.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Sets the gradient of `name`.
    pub fn put(&mut self, name: &str, grad: Tensor<1>) {
        self.0.insert(name.to_owned(), grad);
    }

    /// Takes the gradient of `name`.
    pub fn take(&mut self, name: &str) -> Option<Tensor<1>> {
        self.0.remove(name)
    }

    /// Squared L2 norm of each parameter's gradient. The root of their sum is the norm over all parameters, each counted once.
    #[must_use]
    pub fn squares(&mut self) -> BTreeMap<String, f64> {
        let Some(device) = self.0.values().next().map(Tensor::device) else { return BTreeMap::new() };
        if !is_cpu(&device) {
            // One read for all: reading waits for the device.
            let sums = self.0.values().map(|grad| grad.clone().square().sum()).collect();
            let sums = Tensor::cat(sums, 0).into_data();
            return self.0.keys().cloned().zip(f32_slice(&sums).iter().map(|x| f64::from(*x))).collect();
        }
        let square = |(name, grad): (&String, &mut Tensor<1>)| {
            let data = std::mem::replace(grad, Tensor::empty([0], &device)).into_data();
            let squares = squares(f32_slice(&data));
            *grad = Tensor::from_data(data, &device);
            (name.clone(), squares)
        };
        self.0.iter_mut().map(square).collect()
    }
}

/// `sum + grad` in the memory of `sum`, on all threads.
fn add_in_place(sum: Tensor<1>, grad: Tensor<1>) -> Tensor<1> {
    let device = sum.device();
    let (mut sum, grad) = (sum.into_data(), grad.into_data());
    f32_slice_mut(&mut sum).par_iter_mut().zip_eq(f32_slice(&grad)).with_min_len(1 << 15).for_each(|(x, y)| *x += y);
    Tensor::from_data(sum, &device)
}

/// `table[ids[m]] += rows[m]`, in order.
fn add_rows(table: Tensor<2>, ids: &[u32], rows: Tensor<2>) -> Tensor<2> {
    let device = table.device();
    let [_, width] = table.dims();
    if !is_cpu(&device) {
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &device);
        return table.select_assign(0, ids, rows, IndexingUpdateOp::Add);
    }
    let (mut table, rows) = (table.into_data(), rows.into_data());
    let sums = f32_slice_mut(&mut table);
    for (id, row) in ids.iter().zip(f32_slice(&rows).chunks_exact(width)) {
        let sum = &mut sums[*id as usize * width..][..width];
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    Tensor::from_data(table, &device)
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.dims().iter().product::<usize>();
    tensor.reshape([count])
}

/// Σ x² in f64, in blocks whose order does not depend on the number of threads.
pub fn squares(values: &[f32]) -> f64 {
    const BLOCK: usize = 1 << 16;
    let blocks: Vec<f64> = values
        .par_chunks(BLOCK)
        .map(|block| {
            let mut lanes = [0.0f64; 8];
            let (chunks, rest) = block.as_chunks::<8>();
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane += f64::from(*x) * f64::from(*x);
                }
            }
            lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
        })
        .collect();
    blocks.iter().sum()
}
