//! Weights of golden files, loaded by the path of their fields.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::Tensor,
};
use retie_testing::Golden;
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
        // What norms over batches have seen is no weight.
        if name.contains("running_") {
            return param;
        }
        let value = self.golden.tensor::<D>(&name, &param.lazy_device());
        assert_eq!(param.lazy_shape().to_vec(), value.dims(), "{name}");
        self.names.push(name);
        Param::initialized(param.id, if value.device().is_autodiff() { value.require_grad() } else { value })
    }
}
