//! The trained parameters of a model as one line of numbers, in the order of the module tree: the same on every rank.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use retie_model::CausalLm;
use std::ops::Range;

/// Where each trained parameter lies.
#[derive(Debug)]
pub struct Layout {
    entries: Vec<Entry>,
}

/// A parameter.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    /// Its elements in the line.
    pub range: Range<usize>,
    /// Dimensions of the tensor.
    pub rank: usize,
}

impl Layout {
    /// Of the parameters of `model` that want gradients.
    pub fn of(model: &CausalLm) -> Self {
        struct Visitor {
            path: Vec<String>,
            layout: Layout,
        }
        impl ModuleVisitor for Visitor {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                if value.is_require_grad() {
                    let start = self.layout.len();
                    let range = start..start + value.dims().iter().product::<usize>();
                    self.layout.entries.push(Entry { name: self.path.join("."), range, rank: D });
                }
            }
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name.to_owned());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
        }
        let mut visitor = Visitor { path: Vec::new(), layout: Self { entries: Vec::new() } };
        model.visit(&mut visitor);
        visitor.layout
    }

    /// The parameters in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The number of a parameter.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name == name)
    }

    /// Elements of all of them.
    pub fn len(&self) -> usize {
        self.entries.last().map_or(0, |entry| entry.range.end)
    }
}
