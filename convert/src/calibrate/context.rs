//! What every part of a calibration reads: the source, the plan, the model, the tokens.

use super::{
    Calibration,
    layers::{LayerRun, Seen, Site},
    overlay::Overlay,
};
use crate::{
    ConvertError,
    plan::{Plan, PlannedTensor},
    tied_group::mean,
};
use faer::{Mat, MatRef};
use retie_checkpoint::{CheckpointError, EMBEDDINGS, TensorSource, depth_tensor, layer_tensor, narrow, widen};
use retie_config::{Depth, DepthPlan, LayerIndex};
use std::{collections::HashMap, ops::Range};

pub(super) struct Context<'a> {
    pub source: &'a dyn TensorSource,
    pub plan: &'a Plan,
    pub calibration: &'a Calibration<'a>,
    pub seed: u64,
    planned: HashMap<&'a str, &'a PlannedTensor>,
}

impl<'a> Context<'a> {
    pub fn new(source: &'a dyn TensorSource, plan: &'a Plan, calibration: &'a Calibration<'a>, seed: u64) -> Self {
        let planned = plan.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        Self { source, plan, calibration, seed, planned }
    }

    /// Shape of a projection, `[out, in]`, and its name.
    pub fn projection(&self, projection: usize) -> (&'static str, [usize; 2]) {
        self.plan.config.projection_shapes()[projection]
    }

    /// Linears of a layer.
    pub fn num_projections(&self) -> usize {
        self.plan.config.projection_shapes().len()
    }

    /// The linears of a site, as positions in the configuration's `projection_shapes`.
    pub fn projections(&self, site: Site) -> Range<usize> {
        site.projections(&self.plan.config)
    }

    /// Length of what the linears of a site read.
    pub fn input_size(&self, site: Site) -> usize {
        self.projection(self.projections(site).start).1[1]
    }

    /// The plan of a projection of a stored layer, and its name there.
    pub fn planned(&self, layer: LayerIndex, projection: usize) -> Option<&'a PlannedTensor> {
        let name = layer_tensor(layer, &format!("{}.weight", self.projection(projection).0));
        self.planned.get(name.as_str()).copied()
    }

    /// Whether norms and biases belong to the layer and not to the depth.
    pub fn shares_vectors(&self) -> bool {
        self.plan.config.recursion.as_ref().is_some_and(|recursion| recursion.share_norms)
    }

    /// Hidden states before depth 0.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, ConvertError> {
        let (table, width) = (self.source.read_f32(EMBEDDINGS)?, self.plan.config.hidden_size);
        let rows = ids.iter().flat_map(|id| &table[*id as usize * width..][..width]).copied();
        Ok(self.calibration.model.embed(rows.collect()))
    }

    /// Runs a layer on the calibration's sequences.
    pub fn run(
        &self,
        run: LayerRun<'_>,
        hidden: &[f32],
        see: &mut dyn FnMut(Seen<'_>),
    ) -> Result<Vec<f32>, ConvertError> {
        Ok(self.calibration.model.run(run, hidden, self.calibration.sequence_length, see)?)
    }

    /// A layer of the source.
    pub fn source_run(&self, layer: LayerIndex, until: Option<Site>) -> LayerRun<'a> {
        LayerRun { tensors: self.source, layer, depth: Depth(layer.0), kind: layer, until }
    }

    /// Runs `hidden`, from before the source layer `from`, to before the source layer `to`.
    pub fn source_hidden(&self, mut hidden: Vec<f32>, from: usize, to: usize) -> Result<Vec<f32>, ConvertError> {
        for layer in from..to {
            hidden = self.run(self.source_run(LayerIndex(layer), None), &hidden, &mut |_| {})?;
        }
        Ok(hidden)
    }

    /// Weight of a projection of the source layer that a depth stands for, and its name there.
    pub fn source_weight(&self, depth: Depth, projection: usize) -> Result<(String, Vec<f32>), CheckpointError> {
        let part = format!("{}.weight", self.projection(projection).0);
        let name = layer_tensor(self.plan.source_layer(depth), &part);
        let values = self.source.read_f32(&name)?;
        Ok((name, values))
    }

    /// A copy of the source layer that a depth stands for.
    pub fn source_layer(&self, depth: Depth) -> Result<Overlay, ConvertError> {
        let mut overlay = Overlay::new(self.plan.source_layer(depth));
        for projection in 0..self.num_projections() {
            let (name, shape) = self.projection(projection);
            overlay.set(&format!("{name}.weight"), &shape, self.source_weight(depth, projection)?.1);
        }
        for (part, size) in self.plan.config.layer_vectors() {
            overlay.set(&part, &[size], self.source.read_f32(&layer_tensor(self.plan.source_layer(depth), &part))?);
        }
        Ok(overlay)
    }

    /// The norms and biases of the tied model at a depth, without linears.
    pub fn tied_vectors(&self, step: DepthPlan) -> Result<Overlay, ConvertError> {
        let mut overlay = Overlay::new(self.plan.source_layer(step.depth));
        for (part, size) in self.plan.config.layer_vectors() {
            overlay.set(&part, &[size], self.tied_vector(step, &part)?);
        }
        Ok(overlay)
    }

    /// A norm or bias of the tied model as it will be stored.
    pub fn tied_vector(&self, step: DepthPlan, part: &str) -> Result<Vec<f32>, CheckpointError> {
        let name = match self.shares_vectors() {
            true => layer_tensor(step.layer, part),
            false => depth_tensor(step.depth, part),
        };
        let missing =
            || CheckpointError::NoTensor { path: self.source.path_of(&name).to_owned(), tensor: name.clone() };
        let planned = self.planned.get(name.as_str()).ok_or_else(missing)?;
        let dtype = planned.info.dtype;
        Ok(widen(&narrow(&mean(self.source, &planned.sources)?, dtype), dtype))
    }

    /// By how much the bias of the source exceeds that of the tied model; `None` where there is no bias, or the depth keeps its own.
    pub fn bias_gap(&self, step: DepthPlan, projection: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
        let (name, _) = self.projection(projection);
        if !self.shares_vectors() || !self.plan.config.has_bias(name) {
            return Ok(None);
        }
        let part = format!("{name}.bias");
        let own = self.source.read_f32(&layer_tensor(self.plan.source_layer(step.depth), &part))?;
        let tied = self.tied_vector(step, &part)?;
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
