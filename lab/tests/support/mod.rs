//! Weights of golden files, loaded by the path of their fields.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Gradients, Tensor},
};
use retie_testing::{Golden, differences, values};
use std::path::Path;

/// Opens `tests/golden/NAME.safetensors`.
pub fn golden(name: &str) -> Golden {
    Golden::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors")))
}

/// The module with the weights of a file, all of which it has.
pub fn loaded<M: Module>(module: M, golden: &Golden) -> M {
    let mut load = Load { golden, path: Vec::new(), names: Vec::new() };
    let module = module.map(&mut load);
    load.names.sort_unstable();
    assert_eq!(load.names, golden.weight_names());
    module
}

struct Load<'g> {
    golden: &'g Golden,
    path: Vec<String>,
    names: Vec<String>,
}

impl ModuleMapper for Load<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let value = self.golden.tensor::<D>(&name, &param.lazy_device());
        assert_eq!(param.lazy_shape().to_vec(), value.dims(), "{name}");
        self.names.push(name);
        Param::initialized(param.id, value.require_grad())
    }
}

/// Compares the gradients of a module with those of a file, within `tolerance` of the largest
/// element of each (at least 1e-2).
pub fn assert_gradients<M: Module>(module: &M, grads: &Gradients, golden: &Golden, tolerance: f32) {
    let mut compare = Compare { grads, golden, tolerance, path: Vec::new(), count: 0 };
    module.visit(&mut compare);
    assert_eq!(compare.count, golden.names_after("golden.grad.").len());
}

struct Compare<'g> {
    grads: &'g Gradients,
    golden: &'g Golden,
    tolerance: f32,
    path: Vec<String>,
    count: usize,
}

impl ModuleVisitor for Compare<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".");
        let expected = self.golden.floats(&format!("golden.grad.{name}"));
        let found = param.val().grad(self.grads).map_or_else(|| vec![0.0; expected.len()], values);
        let most = expected.iter().fold(1e-2_f32, |most, value| most.max(value.abs()));
        let apart = differences(&found, &expected).0;
        assert!(apart <= self.tolerance * most, "{name}: {apart} of {most}");
        self.count += 1;
    }
}
