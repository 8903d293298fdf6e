//! The trained parameters of a model as one line of numbers, in the order of the module tree: the
//! same on every rank.

use burn::{module::Param, tensor::Tensor};
use retie_config::{GroupsConfig, ParameterGroup};
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
    /// The parameters of `model` that want gradients.
    pub fn for_model(model: &CausalLm) -> Self {
        struct Visitor {
            groups: BTreeMap<String, ParameterGroup>,
            list: ParameterList,
        }
        impl NamedVisitor for Visitor {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                let value = param.val();
                if value.is_require_grad() {
                    self.list.push(name, self.groups[name], value.dims().to_vec());
                }
            }
        }
        let mut visitor = Visitor { groups: groups_by_name(model), list: Self::default() };
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

/// `model` without gradients for the groups whose rate is 0.
pub fn freeze(model: CausalLm, groups: &GroupsConfig) -> CausalLm {
    struct Freeze<'a> {
        settings: &'a GroupsConfig,
        groups: BTreeMap<String, ParameterGroup>,
    }
    impl NamedMapper for Freeze<'_> {
        fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let is_trained = self.settings.get(self.groups[name]).lr > 0.0;
            if is_trained { param } else { param.set_require_grad(false) }
        }
    }
    let mut freeze = Freeze { settings: groups, groups: groups_by_name(&model) };
    map_named(model, &mut freeze)
}

/// The group of every tensor of a model.
fn groups_by_name(model: &CausalLm) -> BTreeMap<String, ParameterGroup> {
    model.config().tensors_for(model.share_map()).into_iter().map(|spec| (spec.name(), spec.group)).collect()
}
