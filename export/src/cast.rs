//! The tensors of a model in another type.

use crate::format::ExportModel;
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// The tensors that the configuration of a model asks for, in another type. Those that are F32
/// whatever the matrices are (magnitudes, routers) stay so.
pub(crate) struct Cast<'a> {
    source: &'a dyn TensorSource,
    infos: BTreeMap<String, TensorInfo>,
}

impl<'a> Cast<'a> {
    /// Without `dtype` each has the type that it has in the model.
    pub fn new(model: ExportModel<'a>, dtype: Option<Dtype>) -> Self {
        let info = |name: String| {
            let found = model.tensors.info(&name)?;
            let fixed = name.ends_with("lora_magnitude_vector") || name.contains("routers.");
            let dtype = dtype.filter(|_| !fixed).unwrap_or(found.dtype);
            Some((name, TensorInfo { dtype, shape: found.shape.clone() }))
        };
        let names = model.config.tensors().into_iter().map(|spec| spec.name());
        Self { source: model.tensors, infos: names.filter_map(info).collect() }
    }
}

impl TensorSource for Cast<'_> {
    fn names(&self) -> Vec<&str> {
        self.infos.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.infos.get(name)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.source.path_of(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        match (self.infos.get(name), self.source.info(name)) {
            (Some(wanted), Some(found)) if wanted.dtype != found.dtype => {
                Ok(narrow(&self.source.read_f32(name)?, wanted.dtype).into())
            }
            _ => self.source.bytes(name),
        }
    }
}
