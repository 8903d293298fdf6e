//! Report of a conversion: stored as `convert.json`, shown as text (see `render.rs`).

use crate::{
    Calibration, Check, ConvertError, ParameterCounts, SearchReport, SelectionReport, SourceModel,
    calibrate::Effect,
    factorize::LoraFactors,
    kinds,
    lints::{lints, unused_keys},
    plan::{ConversionPlan, PlannedLora},
};
use retie_config::{Compensation, Conversion, Init, LoraBase, LoraConfig, RecursionConfig, TensorPart};
use serde::{Deserialize, Serialize};

/// Report of a conversion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvertReport {
    /// Version of these keys: 1.
    pub schema: u32,
    /// The `recursion` object of the new model; absent for a copy (one recursion).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recursion: Option<RecursionConfig>,
    /// Seed of the random choices.
    pub seed: u64,
    /// Length of the unrolled stack.
    pub num_depths: usize,
    /// Layers that are stored.
    pub num_layers: usize,
    /// Parameters that are stored.
    pub parameters: ParameterCounts,
    /// Parameters of the source.
    pub source_parameters: ParameterCounts,
    /// Bytes of the weights.
    pub bytes: u64,
    /// Bytes of the source's weights (of a quantised source: as f32).
    pub source_bytes: u64,
    /// Layer and source layers of every depth.
    pub aliases: Vec<Alias>,
    /// How much of what sharing changed the LoRA gives back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraReport>,
    /// Text and scores of a calibrated start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationReport>,
    /// How close the start is to the source on a text, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Scores>,
    /// The search that chose this start, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchReport>,
    /// The selection of source layers that chose this start, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<SelectionReport>,
    /// Source tensors that hold nothing the model needs, and were left out.
    pub left_out: Vec<String>,
    /// Remarks for the reader.
    pub notes: Vec<String>,
    /// Checks of the written folder.
    pub checks: Vec<Check>,
}

/// One depth of the unrolled stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// Position in the unrolled stack.
    pub depth: usize,
    /// Stored layer that it runs.
    pub layer: usize,
    /// Pass over the shared block; absent for an unshared layer.
    pub recursion: Option<usize>,
    /// Layer of the source in whose place it runs, where that is not the one of the same number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_for: Option<usize>,
    /// Source layers whose mean the stored layer is, or that it was fitted to.
    pub sources: Vec<usize>,
}

/// A start beside its source, on held-out text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Name of the text.
    pub text: String,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Tokens that were scored; nothing was fitted to them.
    pub tokens: usize,
    /// NLL of the source, nats per token.
    pub source_nll: f64,
    /// NLL of this model minus that of the source.
    pub delta_nll: f64,
    /// This model, as it was written.
    #[serde(flatten)]
    pub effect: Effect,
}

/// A calibrated start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationReport {
    /// Name of the text.
    pub text: String,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Tokens that were fitted to.
    pub tokens: usize,
    /// Tokens of the same text, not among them, on which the scores below are.
    pub heldout_tokens: usize,
    /// NLL of the source, nats per token.
    pub source_nll: f64,
    /// For comparison: the mean over the tied group with plain LoRA of the same rank; of a
    /// selection the kept layers as they are in the source; of a low-rank model factors of the same
    /// ranks by the plain singular value decomposition.
    pub average: Effect,
    /// This model, as it was written: calibrated, compensated or fitted.
    pub calibrated: Effect,
    /// How far every fitted weight is from the source's in the plain sense, which calibration does
    /// not minimise: the check `fit` compares them with the folder.
    pub plain_errors: Vec<PlainError>,
}

/// Distance of a depth's weight from the source's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlainError {
    /// Position in the unrolled stack.
    #[serde(default)]
    pub depth: usize,
    /// Weight of the source.
    pub source: String,
    /// `‖W_d − W' − B A‖²`, Frobenius.
    pub error: f64,
}

/// The LoRA of a conversion; of DoRA its matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraReport {
    /// The rank, or the largest of several.
    pub rank: usize,
    /// The seven linears.
    pub projections: Vec<ProjectionEnergy>,
}

/// Residual energy that the LoRA of one projection keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProjectionEnergy {
    /// Name of the linear, e.g. `mlp.up_proj`.
    pub projection: String,
    /// Its rank, or the largest of several.
    pub rank: usize,
    /// Mean of `kept` over the depths that have a residual; absent if none has.
    pub kept: Option<f64>,
    /// Every depth with a LoRA.
    pub depths: Vec<DepthEnergy>,
}

/// Residual energy at one depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DepthEnergy {
    /// Position in the unrolled stack.
    pub depth: usize,
    /// Stored layer.
    pub layer: usize,
    /// Rank there; absent where it is that of the projection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// `‖W_d − W'‖²`: Frobenius, or of a calibrated start in the metric of what the linear reads,
    /// with the weight that answers the tied model's inputs in place of `W_d`.
    pub residual_energy: f64,
    /// `‖B A‖²`, likewise.
    pub kept_energy: f64,
    /// Their ratio; absent when there is no residual.
    pub kept: Option<f64>,
}

/// Scores of a calibrated start and of what it is compared with.
pub(crate) struct CalibratedScores {
    /// NLL of the source.
    pub source_nll: f64,
    /// The plain start of the same ranks.
    pub average: Effect,
    /// The calibrated start as it was written.
    pub written: Effect,
}

impl ConvertReport {
    /// The report of `plan`, without energies, scores and checks.
    pub(crate) fn new(
        plan: &ConversionPlan,
        source: SourceModel<'_>,
        conversion: &Conversion,
    ) -> Result<Self, ConvertError> {
        let source_infos = source.tensors.names().into_iter().filter_map(|name| source.tensors.info(name));
        let steps = plan.map().depths().iter();
        let aliases = steps.map(|step| Alias {
            depth: step.depth.0,
            layer: step.layer.0,
            recursion: step.recursion,
            stands_for: Some(plan.source_layer(step.depth).0).filter(|layer| *layer != step.depth.0),
            sources: plan.layer_sources[step.layer.0].clone(),
        });
        let lora = plan.config.recursion.as_ref().and_then(|r| r.lora.as_ref()).map(|lora| {
            let (shapes, depths) = (plan.config.projection_shapes().into_iter(), plan.map().depths());
            let projections = shapes.map(|(projection, [out, inp])| ProjectionEnergy {
                projection: projection.name().to_owned(),
                rank: depths.iter().map(|step| lora.rank_at(step.depth, projection, [out, inp])).max().unwrap_or(0),
                kept: None,
                depths: Vec::new(),
            });
            LoraReport { rank: lora.rank, projections: projections.collect() }
        });
        Ok(Self {
            schema: 1,
            recursion: plan.config.recursion.clone(),
            seed: conversion.target.seed,
            num_depths: plan.map().num_depths(),
            num_layers: plan.map().num_layers(),
            parameters: ParameterCounts::from_config(&plan.config),
            source_parameters: ParameterCounts::from_config(source.config),
            bytes: plan.entries().iter().map(|(_, info)| info.num_bytes() as u64).sum(),
            source_bytes: source_infos.map(|info| info.num_bytes() as u64).sum(),
            aliases: aliases.collect(),
            lora,
            calibration: None,
            scores: None,
            search: None,
            selection: None,
            left_out: plan.redundant.clone(),
            notes: notes(plan, conversion),
            checks: Vec::new(),
        })
    }

    /// Name of the factors of linears: see [`LoraConfig::title`].
    #[must_use]
    pub fn factors_title(&self) -> &'static str {
        self.lora_config().map_or("LoRA", LoraConfig::title)
    }

    /// True if factors stand in place of matrices.
    pub(crate) fn has_low_rank(&self) -> bool {
        self.lora_config().is_some_and(|lora| lora.base == LoraBase::None)
    }

    fn lora_config(&self) -> Option<&LoraConfig> {
        self.recursion.as_ref()?.lora.as_ref()
    }

    /// Names of the plain start and of the one that was fitted.
    #[must_use]
    pub fn fit_names(&self) -> [&'static str; 2] {
        match &self.recursion {
            _ if self.has_low_rank() => ["plain SVD", "fitted to the text"],
            Some(recursion) if recursion.init == Init::Calibrated => ["average", "calibrated"],
            _ => ["uncompensated", "compensated"],
        }
    }

    /// Adds the scores of the start as it was written.
    pub(crate) fn set_scores(&mut self, calibration: &Calibration<'_>, source_nll: f64, written: Effect) {
        self.scores = Some(Scores {
            text: calibration.text.clone(),
            sequence_length: calibration.sequence_length,
            tokens: calibration.heldout.len(),
            source_nll,
            delta_nll: written.nll - source_nll,
            effect: written,
        });
    }

    /// Adds what a calibrated start was fitted to, beside the plain start.
    pub(crate) fn set_calibration(
        &mut self,
        calibration: &Calibration<'_>,
        CalibratedScores { source_nll, average, written }: CalibratedScores,
        plain_errors: Vec<PlainError>,
    ) {
        self.calibration = Some(CalibrationReport {
            text: calibration.text.clone(),
            sequence_length: calibration.sequence_length,
            tokens: calibration.train.len(),
            heldout_tokens: calibration.heldout.len(),
            source_nll,
            average,
            calibrated: written,
            plain_errors,
        });
        if written.kl >= average.kl {
            let [plain, fitted] = self.fit_names();
            self.notes.push(format!(
                "on held-out text the {fitted} start is not closer to the source than the {plain} one: more calibration tokens, \
                 or a text like the one the model is for, may help"
            ));
        }
    }

    /// Adds the energy of one LoRA.
    pub(crate) fn add_energy(&mut self, planned: &PlannedLora, factors: &LoraFactors) {
        let Some(lora) = &mut self.lora else { return };
        let name = planned.projection.name();
        let Some(energy) = lora.projections.iter_mut().find(|energy| energy.projection == name) else { return };
        energy.depths.push(DepthEnergy {
            depth: planned.depth.0,
            layer: planned.layer.0,
            rank: (planned.rank != energy.rank).then_some(planned.rank),
            residual_energy: factors.residual_energy,
            kept_energy: factors.kept_energy,
            kept: factors.kept(),
        });
        energy.depths.sort_by_key(|d| d.depth);
        let kept: Vec<f64> = energy.depths.iter().filter_map(|d| d.kept).collect();
        energy.kept = (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64);
    }
}

fn notes(plan: &ConversionPlan, conversion: &Conversion) -> Vec<String> {
    let mut notes: Vec<String> = plan.stack.rest().into_iter().collect();
    if conversion.compensation == Compensation::LeastSquares && !plan.is_compensated() {
        notes.push(
            "nothing is compensated: no layer is removed, or a norm stands between every linear and the residual stream"
                .to_owned(),
        );
    }
    let Some(recursion) = &plan.config.recursion else { return notes };
    if recursion.share_norms && recursion.num_recursions > 1 {
        let what = match plan.config.layer_vectors().iter().any(|(_, part, _)| *part == TensorPart::Bias) {
            true => "norms and biases",
            false => "norms",
        };
        let lora = if recursion.lora.is_some() { ", and LoRA cannot give them back" } else { "" };
        notes.push(format!("{what} are shared{lora}: with `share_norms: false` every depth keeps its own"));
    }
    notes.extend(kinds::note(&plan.config, plan.map()));
    notes.extend(lints(recursion));
    notes.extend(unused_keys(recursion));
    if conversion.remainder.is_some() && plan.stack.rest().is_none() {
        notes.push("`fit` had nothing to do: the recursions divide the layers".to_owned());
    }
    notes
}
