//! Inputs of every part of a calibration: the source, the plan, the model, the tokens.

use super::{calibration::Calibration, overlay::Overlay};
use crate::{
    ConvertError,
    plan::{ConversionPlan, PlannedTensor},
    tied_group::mean,
};
use faer::{Mat, MatRef};
use retie_checkpoint::{Activations, CheckpointError, LayerRun, ProbePoint, TensorSource, narrow, widen};
use retie_config::{Depth, DepthAssignment, LayerIndex, Projection, TensorOwner, TensorPart, TensorRole};
use std::collections::HashMap;

pub(super) struct Context<'a> {
    pub source: &'a dyn TensorSource,
    pub plan: &'a ConversionPlan,
    pub calibration: &'a Calibration<'a>,
    pub seed: u64,
    planned: HashMap<&'a str, &'a PlannedTensor>,
}

impl<'a> Context<'a> {
    pub fn new(
        source: &'a dyn TensorSource,
        plan: &'a ConversionPlan,
        calibration: &'a Calibration<'a>,
        seed: u64,
    ) -> Self {
        let planned = plan.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        Self { source, plan, calibration, seed, planned }
    }

    /// Shape of a linear, `[out, in]`.
    pub fn shape(&self, projection: Projection) -> [usize; 2] {
        self.plan.config.projection_shape(projection)
    }

    /// The linears of a layer.
    pub fn all_projections(&self) -> Vec<Projection> {
        self.plan.config.projection_shapes().into_iter().map(|(projection, _)| projection).collect()
    }

    /// The linears of a point.
    pub fn projections(&self, point: ProbePoint) -> Vec<Projection> {
        point.projections(&self.plan.config)
    }

    /// Length of what the linears of a point read.
    pub fn input_size(&self, point: ProbePoint) -> usize {
        self.shape(self.projections(point)[0])[1]
    }

    /// The plan of a linear of a stored layer.
    pub fn planned(&self, layer: LayerIndex, projection: Projection) -> Option<&'a PlannedTensor> {
        let name = TensorOwner::Layer(layer).weight(TensorRole::Projection(projection));
        self.planned.get(name.as_str()).copied()
    }

    /// Whether factors replace a matrix of a stored layer.
    pub fn has_replaced(&self, layer: LayerIndex) -> bool {
        let mut planned = self.all_projections().into_iter().filter_map(|projection| self.planned(layer, projection));
        planned.any(PlannedTensor::is_replaced)
    }

    /// Whether norms and biases belong to the layer and not to the depth.
    pub fn shares_vectors(&self) -> bool {
        self.plan.config.recursion.as_ref().is_some_and(|recursion| recursion.share_norms)
    }

    /// Hidden states before depth 0.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, ConvertError> {
        let embeddings = TensorOwner::Model.weight(TensorRole::Embedding);
        let (table, width) = (self.source.read_f32(&embeddings)?, self.plan.config.hidden_size);
        let rows = ids.iter().flat_map(|id| &table[*id as usize * width..][..width]).copied();
        Ok(self.calibration.model.embed(rows.collect()))
    }

    /// Runs a layer on the calibration's sequences.
    pub fn run(
        &self,
        run: LayerRun<'_>,
        hidden: &[f32],
        see: &mut dyn FnMut(Activations<'_>),
    ) -> Result<Vec<f32>, ConvertError> {
        Ok(self.calibration.model.run(run, hidden, self.calibration.sequence_length, see)?)
    }

    /// A layer of the source.
    pub fn source_run(&self, layer: LayerIndex, until: Option<ProbePoint>) -> LayerRun<'a> {
        LayerRun { tensors: self.source, layer, depth: Depth(layer.0), kind: Depth(layer.0), from: None, until }
    }

    /// Runs `hidden`, from before the source layer `from`, to before the source layer `to`.
    pub fn source_hidden(&self, mut hidden: Vec<f32>, from: usize, to: usize) -> Result<Vec<f32>, ConvertError> {
        for layer in from..to {
            hidden = self.run(self.source_run(LayerIndex(layer), None), &hidden, &mut |_| {})?;
        }
        Ok(hidden)
    }

    /// Weight of a linear of the source layer that a depth stands for, and its name there.
    pub fn source_weight(&self, depth: Depth, projection: Projection) -> Result<(String, Vec<f32>), CheckpointError> {
        let name = self.source_owner(depth).weight(TensorRole::Projection(projection));
        let values = self.source.read_f32(&name)?;
        Ok((name, values))
    }

    /// A copy of the source layer that a depth stands for.
    pub fn source_layer(&self, depth: Depth) -> Result<Overlay, ConvertError> {
        Ok(Overlay::from_source(self.source, &self.plan.config, self.plan.source_layer(depth))?)
    }

    /// The source layer that a depth stands for.
    fn source_owner(&self, depth: Depth) -> TensorOwner {
        TensorOwner::Layer(self.plan.source_layer(depth))
    }

    /// The norms and biases of the tied model at a depth, without linears.
    pub fn tied_vectors(&self, step: DepthAssignment) -> Result<Overlay, ConvertError> {
        let mut overlay = Overlay::new(self.plan.source_layer(step.depth));
        for (role, part, size) in self.plan.config.layer_vectors() {
            overlay.set(role, part, &[size], self.tied_vector(step, role, part)?);
        }
        Ok(overlay)
    }

    /// A norm or bias of the tied model as it will be stored.
    pub fn tied_vector(
        &self,
        step: DepthAssignment,
        role: TensorRole,
        part: TensorPart,
    ) -> Result<Vec<f32>, CheckpointError> {
        let owner = match self.shares_vectors() {
            true => TensorOwner::Layer(step.layer),
            false => TensorOwner::Depth(step.depth),
        };
        let name = owner.tensor_name(role, part);
        let missing =
            || CheckpointError::NoTensor { path: self.source.path_of(&name).to_owned(), tensor: name.clone() };
        let planned = self.planned.get(name.as_str()).ok_or_else(missing)?;
        let dtype = planned.info.dtype;
        Ok(widen(&narrow(&mean(self.source, &planned.sources)?, dtype), dtype))
    }

    /// By how much the bias of the source exceeds that of the tied model; `None` where there is no
    /// bias, or the depth keeps its own.
    pub fn bias_gap(&self, step: DepthAssignment, projection: Projection) -> Result<Option<Vec<f32>>, CheckpointError> {
        if !self.shares_vectors() || !self.plan.config.has_bias(projection) {
            return Ok(None);
        }
        let role = TensorRole::Projection(projection);
        let own = self.source.read_f32(&self.source_owner(step.depth).bias(role))?;
        let tied = self.tied_vector(step, role, TensorPart::Bias)?;
        Ok(Some(own.iter().zip(tied).map(|(own, tied)| own - tied).collect()))
    }
}

/// A row-major f32 matrix in f64.
pub(super) fn wide(values: &[f32], [rows, columns]: [usize; 2]) -> Mat<f64> {
    let values = MatRef::from_row_major_slice(values, rows, columns);
    Mat::from_fn(rows, columns, |i, j| f64::from(values[(i, j)]))
}

/// An f64 matrix as row-major f32.
pub(super) fn row_major(matrix: MatRef<'_, f64>) -> Vec<f32> {
    (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| matrix[(i, j)] as f32)).collect()
}
