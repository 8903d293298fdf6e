//! The trained parameters of a model as one line of numbers, in the order of the module tree: the
//! same on every rank.

use burn::{module::Param, tensor::Tensor};
use retie_config::{GroupsConfig, ParameterGroup, TensorSpec};
use retie_model::{CausalLm, NamedMapper, NamedVisitor, map_named, visit_named};
use std::{collections::BTreeMap, ops::Range};

/// A tensor that is trained.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: String,
    /// Its group; `None` for one that is no part of the model, which has the optimizer's own rate
    /// and decay.
    pub group: Option<ParameterGroup>,
    pub shape: Vec<usize>,
}

impl Parameter {
    /// The tensor `spec` of a model.
    pub fn from_spec(spec: &TensorSpec) -> Self {
        Self { name: spec.name(), group: Some(spec.group), shape: spec.shape.clone() }
    }

    /// Its shape, of a matrix.
    pub fn matrix(&self) -> [usize; 2] {
        match *self.shape.as_slice() {
            [rows, columns] => [rows, columns],
            _ => unreachable!("`{}` of shape {:?} is no matrix", self.name, self.shape),
        }
    }
}

/// A parameter and its place in the line.
#[derive(Debug)]
pub struct ParameterRange {
    pub parameter: Parameter,
    /// Its elements in the line.
    pub range: Range<usize>,
}

/// Every trained parameter of a model.
#[derive(Debug, Default)]
pub struct ParameterList {
    ranges: Vec<ParameterRange>,
    indices: BTreeMap<String, usize>,
}

impl ParameterList {
    /// The parameters of `model` that are trained, in some step or in all.
    pub fn for_model(model: &CausalLm, groups: &GroupsConfig) -> Self {
        struct Visitor<'a> {
            settings: &'a GroupsConfig,
            groups: BTreeMap<String, ParameterGroup>,
            list: ParameterList,
        }
        impl NamedVisitor for Visitor<'_> {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                let group = self.groups[name];
                if self.settings.get(group).is_trained() {
                    self.list.push(name, group, param.val().dims().to_vec());
                }
            }
        }
        let mut visitor = Visitor { settings: groups, groups: groups_by_name(model), list: Self::default() };
        visit_named(model, &mut visitor);
        visitor.list
    }

    /// Appends a parameter of the model.
    pub fn push(&mut self, name: &str, group: ParameterGroup, shape: Vec<usize>) {
        let start = self.len();
        let range = start..start + shape.iter().product::<usize>();
        self.indices.insert(name.to_owned(), self.ranges.len());
        let parameter = Parameter { name: name.to_owned(), group: Some(group), shape };
        self.ranges.push(ParameterRange { parameter, range });
    }

    /// The parameters in order.
    pub fn ranges(&self) -> &[ParameterRange] {
        &self.ranges
    }

    /// The number of a parameter.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.indices.get(name).copied()
    }

    /// A parameter by its name.
    pub fn get(&self, name: &str) -> Option<&ParameterRange> {
        self.index(name).map(|index| &self.ranges[index])
    }

    /// Elements of all of them.
    pub fn len(&self) -> usize {
        self.ranges.last().map_or(0, |last| last.range.end)
    }
}

/// `model` with gradients for the groups that are trained after `updates` updates, and none for the
/// others.
pub fn set_trained(model: CausalLm, groups: &GroupsConfig, updates: u64) -> CausalLm {
    struct SetTrained<'a> {
        settings: &'a GroupsConfig,
        groups: BTreeMap<String, ParameterGroup>,
        updates: u64,
    }
    impl NamedMapper for SetTrained<'_> {
        fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.set_require_grad(self.settings.get(self.groups[name]).is_trained_after(self.updates))
        }
    }
    let mut set = SetTrained { settings: groups, groups: groups_by_name(&model), updates };
    map_named(model, &mut set)
}

/// The group of every tensor of a model.
fn groups_by_name(model: &CausalLm) -> BTreeMap<String, ParameterGroup> {
    model.config().tensors_for(model.share_map()).into_iter().map(|spec| (spec.name(), spec.group)).collect()
}
