//! Gradients of a whole model beside those of a golden file.

use crate::{Golden, differences, values};
use burn::{
    module::{Param, ParamId},
    tensor::{Gradients, Tensor},
};
use retie_model::{
    CausalLm, NamedVisitor,
    kernels::{CrossEntropyTerm, HeadLoss, HeadTerms, Readout, head_loss},
    visit_named,
};

/// The next-token loss of a batch, and its way back through the decoder.
#[derive(Debug)]
pub struct NextTokenLoss {
    /// Mean cross-entropy in nats.
    pub nll: f64,
    /// A scalar whose backward pass gives the gradients of all but the head. Further losses are
    /// added to it.
    pub graph: Tensor<1>,
    /// The gradient of the head's weight, `[V, D]`.
    pub grad_head: Tensor<2>,
}

impl NextTokenLoss {
    /// The loss of the hidden states `[B·T, D]` of the token ids `rows`. The last position of each
    /// row has no target.
    pub fn new(model: &CausalLm, hidden: Tensor<2>, rows: &[Vec<u32>]) -> Self {
        let (batch, tokens, width) = (rows.len(), rows[0].len(), model.config().hidden_size);
        let hidden = hidden.reshape([batch, tokens, width]).narrow(1, 0, tokens - 1);
        let hidden = hidden.reshape([batch * (tokens - 1), width]);
        let targets: Vec<u32> = rows.iter().flat_map(|row| row[1..].to_vec()).collect();
        let cross_entropy = CrossEntropyTerm { weight: 1.0, ..Default::default() };
        let terms = HeadTerms { cross_entropy, ..Default::default() };
        let readout = Readout { hidden: hidden.clone().inner(), terms };
        let HeadLoss { mut readouts, grad_weight } = head_loss(model.head().inner(), &[readout], None, &targets);
        let head = readouts.remove(0);
        let graph = (hidden * Tensor::from_inner(head.grad_hidden)).sum();
        Self { nll: head.values.nll, graph, grad_head: grad_weight }
    }
}

/// Gradients in a golden file: of the parameter NAME under `prefix` and NAME.
#[derive(Clone, Copy, Debug)]
pub struct GoldenGradients<'a> {
    /// The file.
    pub golden: &'a Golden,
    /// What stands before a parameter's name.
    pub prefix: &'a str,
    /// Largest difference of an element, relative to the largest element of its gradient (at least
    /// 1e-3).
    pub tolerance: f32,
}

/// Goes back from `loss` and compares the gradient of every parameter of `model`.
///
/// # Panics
/// Where one differs or is missing, or the file has others.
pub fn assert_gradients(model: &CausalLm, loss: NextTokenLoss, expected: GoldenGradients<'_>) {
    let head = (model.head_param().id, values(loss.grad_head));
    let mut visitor = Visitor { grads: loss.graph.backward(), head, expected, names: Vec::new() };
    visit_named(model, &mut visitor);
    visitor.names.sort_unstable();
    assert_eq!(visitor.names, expected.golden.names_after(expected.prefix), "{}", expected.golden.path().display());
}

struct Visitor<'a> {
    grads: Gradients,
    head: (ParamId, Vec<f32>),
    expected: GoldenGradients<'a>,
    names: Vec<String>,
}

impl NamedVisitor for Visitor<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let GoldenGradients { golden, prefix, tolerance } = self.expected;
        let what = format!("`{}`: gradient of `{name}` under `{prefix}`", golden.path().display());
        let expected = golden.floats(&format!("{prefix}{name}"));
        let is_head = param.id == self.head.0;
        let mut found = match param.val().grad_remove(&mut self.grads) {
            Some(grad) => values(grad),
            // A head that is not tied is used by the loss alone.
            None if is_head => vec![0.0; expected.len()],
            None => panic!("{what} is missing"),
        };
        if is_head {
            found.iter_mut().zip(&self.head.1).for_each(|(grad, head)| *grad += head);
        }
        let scale = expected.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
        let (max, _) = differences(&found, &expected);
        assert!(max <= tolerance * scale, "{what} differs by {max}, scale {scale}");
        self.names.push(name.to_owned());
    }
}
