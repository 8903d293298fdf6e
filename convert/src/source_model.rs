//! The model that is converted or routed.

use retie_checkpoint::TensorSource;
use retie_config::ModelConfig;

/// Tensors and the configuration that describes them.
#[derive(Clone, Copy)]
pub struct SourceModel<'a> {
    /// Tensors under the names of the checkpoint layout.
    pub tensors: &'a dyn TensorSource,
    /// Their configuration.
    pub config: &'a ModelConfig,
}
