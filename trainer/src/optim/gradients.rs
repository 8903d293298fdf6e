//! Gradients by parameter name: summed over micro-batches, measured as a whole.

use burn::{
    module::Param,
    tensor::{Gradients as Graph, Tensor},
};
use retie_config::{TensorOwner, TensorRole};
use retie_model::{CausalLm, NamedVisitor, kernels::kernels_of, visit_named};
use std::collections::BTreeMap;

/// One flat gradient per parameter; a tied weight has one, the sum over its uses.
#[derive(Debug, Default)]
pub struct Gradients(BTreeMap<String, Tensor<1>>);

impl Gradients {
    /// Adds what one backward pass left for the parameters of `model`.
    pub fn add(&mut self, model: &CausalLm, mut graph: Graph) {
        struct Visitor<'a> {
            graph: &'a mut Graph,
            grads: &'a mut Gradients,
        }
        impl NamedVisitor for Visitor<'_> {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                if let Some(grad) = param.val().grad_remove(self.graph) {
                    self.grads.add_one(name, flat(grad));
                }
            }
        }
        visit_named(model, &mut Visitor { graph: &mut graph, grads: self });
    }

    /// Adds what reaches the tables: `grad_head [V, D]` for the weights of the head, and `grad_rows
    /// [M, D]` for the rows of the embeddings that `ids [M]` name. Where the two are tied, the rows
    /// are added in the memory of `grad_head`. Frozen tables get none.
    pub fn add_tables(&mut self, model: &CausalLm, grad_head: Tensor<2>, ids: &[u32], grad_rows: Tensor<2>) {
        if !model.model.embed_tokens.weight.val().is_require_grad() {
            return;
        }
        let grad_embeddings = if model.lm_head.is_some() {
            let zeros = grad_head.zeros_like();
            self.add_one(&TensorOwner::Model.weight(TensorRole::Head), flat(grad_head));
            zeros
        } else {
            grad_head
        };
        let embeddings = TensorOwner::Model.weight(TensorRole::Embedding);
        self.add_one(
            &embeddings,
            flat(kernels_of(&grad_embeddings.device()).add_rows(grad_embeddings, ids, grad_rows)),
        );
    }

    /// Adds to the gradient of `name`.
    pub fn add_one(&mut self, name: &str, grad: Tensor<1>) {
        let sum = match self.0.remove(name) {
            Some(sum) => kernels_of(&sum.device()).accumulate(sum, grad),
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

    /// Squared L2 norm of each parameter's gradient. The root of their sum is the norm over all
    /// parameters, each counted once.
    #[must_use]
    pub fn squares(&mut self) -> BTreeMap<String, f64> {
        let Some(device) = self.0.values().next().map(Tensor::device) else { return BTreeMap::new() };
        let mut grads: Vec<&mut Tensor<1>> = self.0.values_mut().collect();
        let squares = kernels_of(&device).squared_norms(&mut grads);
        self.0.keys().cloned().zip(squares).collect()
    }
}

/// `tensor` as a vector.
pub fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.dims().iter().product::<usize>();
    tensor.reshape([count])
}
