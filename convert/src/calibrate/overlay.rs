//! One layer's weights in memory, under the names of layer 0 and depth 0 of the checkpoint layout.

use retie_checkpoint::{CheckpointError, Dtype, LayerRun, ProbePoint, TensorInfo, TensorSource, narrow};
use retie_config::{Depth, ExtraVector, LayerIndex, ModelConfig, Projection, TensorOwner, TensorPart, TensorRole};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// A layer that is on no disk.
pub(crate) struct Overlay {
    /// Layer of the source whose kind of depth it is.
    kind: LayerIndex,
    tensors: BTreeMap<String, (TensorInfo, Vec<f32>)>,
}

impl Overlay {
    /// The layer that it is under its own names.
    const LAYER: TensorOwner = TensorOwner::Layer(LayerIndex(0));

    /// Without tensors, for a depth of the kind of a layer of the source.
    pub fn new(kind: LayerIndex) -> Self {
        Self { kind, tensors: BTreeMap::new() }
    }

    /// A copy of a layer of the source.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn from_source(
        source: &dyn TensorSource,
        config: &ModelConfig,
        layer: LayerIndex,
    ) -> Result<Self, CheckpointError> {
        let (mut overlay, owner) = (Self::new(layer), TensorOwner::Layer(layer));
        for (projection, shape) in config.projection_shapes() {
            let role = TensorRole::Projection(projection);
            overlay.set(role, TensorPart::Weight, &shape, source.read_f32(&owner.weight(role))?);
        }
        for (role, part, size) in config.layer_vectors() {
            overlay.set(role, part, &[size], source.read_f32(&owner.tensor_name(role, part))?);
        }
        Ok(overlay)
    }

    /// Scales what attention and feed-forward network add to the residual stream, of `width`
    /// channels, by `gate`.
    pub fn set_gates(&mut self, width: usize, gate: f32) {
        for vector in [ExtraVector::AttentionScale, ExtraVector::MlpScale] {
            self.set_own(TensorRole::Extra(vector), &[width], vec![gate; width]);
        }
    }

    /// Puts a tensor of the layer there.
    pub fn set(&mut self, role: TensorRole, part: TensorPart, shape: &[usize], values: Vec<f32>) {
        self.insert(Self::LAYER.tensor_name(role, part), shape, values);
    }

    /// Puts a tensor there that the depth owns.
    pub fn set_own(&mut self, role: TensorRole, shape: &[usize], values: Vec<f32>) {
        self.insert(TensorOwner::Depth(Depth(0)).weight(role), shape, values);
    }

    /// Takes away what the depth owns.
    pub fn clear_own(&mut self) {
        let prefix = TensorOwner::Depth(Depth(0)).prefix();
        self.tensors.retain(|name, _| !name.starts_with(&prefix));
    }

    fn insert(&mut self, name: String, shape: &[usize], values: Vec<f32>) {
        self.tensors.insert(name, (TensorInfo { dtype: Dtype::F32, shape: shape.to_vec() }, values));
    }

    /// Weight of a linear, `[out, in]`.
    pub fn weight(&self, projection: Projection) -> Result<&[f32], CheckpointError> {
        self.get(&Self::LAYER.weight(TensorRole::Projection(projection)))
    }

    /// Runs it.
    pub fn run(&self, until: Option<ProbePoint>) -> LayerRun<'_> {
        LayerRun { tensors: self, layer: LayerIndex(0), depth: Depth(0), kind: Depth(self.kind.0), from: None, until }
    }

    fn get(&self, name: &str) -> Result<&[f32], CheckpointError> {
        let missing = || CheckpointError::NoTensor { path: self.path_of(name).to_owned(), tensor: name.to_owned() };
        self.tensors.get(name).map(|(_, values)| values.as_slice()).ok_or_else(missing)
    }
}

impl TensorSource for Overlay {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    fn path_of(&self, _: &str) -> &Path {
        Path::new("a layer in memory")
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        Ok(narrow(self.get(name)?, Dtype::F32).into())
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        Ok(self.get(name)?.to_vec())
    }
}
