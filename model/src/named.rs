//! Visitors and maps over the float parameters of a module, each with its path in the module tree.
//! The fields of the model are named so that the path is the tensor's name in a checkpoint.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::Tensor,
};

/// Visitor of named parameters.
pub trait NamedVisitor {
    /// Called once for each parameter, in the order of the module tree.
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>);
}

/// Map over named parameters.
pub trait NamedMapper {
    /// Called once for each parameter, in the order of the module tree.
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Calls `visitor` for every float parameter of `module`.
pub fn visit_named(module: &impl Module, visitor: &mut impl NamedVisitor) {
    module.visit(&mut Walk { path: Vec::new(), inner: visitor });
}

/// Replaces every float parameter of `module` by the result of `mapper`.
#[must_use]
pub fn map_named<M: Module>(module: M, mapper: &mut impl NamedMapper) -> M {
    module.map(&mut Walk { path: Vec::new(), inner: mapper })
}

/// Parameter with a new value and the same id. `update` works on tensors without autodiff; whether
/// the parameter requires gradients does not change.
#[must_use]
pub fn update_value<const D: usize>(
    param: Param<Tensor<D>>,
    update: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    let (id, value, mapper) = param.consume();
    let (is_autodiff, wants_grad) = (value.device().is_autodiff(), value.is_require_grad());
    let value = update(value.inner());
    let value = if is_autodiff { Tensor::from_inner(value) } else { value };
    let value = if wants_grad { value.require_grad() } else { value };
    Param::from_mapped_value(id, value, mapper)
}

/// Walk through a module tree that tracks the path.
struct Walk<'a, T> {
    path: Vec<String>,
    inner: &'a mut T,
}

impl<T: NamedVisitor> ModuleVisitor for Walk<'_, T> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.visit(&self.path.join("."), param);
    }

    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
}

impl<T: NamedMapper> ModuleMapper for Walk<'_, T> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.map(&self.path.join("."), param)
    }

    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
}
