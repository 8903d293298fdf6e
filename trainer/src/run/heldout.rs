//! Measurements on the held-out rows of a run: the baseline before the first step, and the losses
//! and routing that some steps add to their row.

use super::routing;
use crate::{
    TrainError,
    log::{Baseline, StepRow, replace},
    objective::{Objective, cross_entropy},
};
use retie_collective::Collective;
use retie_config::UptrainConfig;
use retie_data::TokenDataset;
use retie_model::CausalLm;
use serde_json::{Value, json};

/// The held-out rows, of which each rank runs a part.
pub struct Heldout<'a> {
    config: &'a UptrainConfig,
    rows: Option<TokenDataset>,
    ranks: &'a dyn Collective,
}

impl<'a> Heldout<'a> {
    /// Measurements of a run on `rows`, if there are any.
    pub fn new(config: &'a UptrainConfig, rows: Option<TokenDataset>, ranks: &'a dyn Collective) -> Self {
        Self { config, rows, ranks }
    }

    /// `model` without a graph, and with the thresholds that a routed model has in inference.
    ///
    /// # Errors
    /// When the rows cannot be had.
    pub fn for_inference(&self, model: &CausalLm) -> Result<CausalLm, TrainError> {
        routing::for_inference(model, self.rows.as_ref(), &self.config.train)
    }

    /// Losses of student and teacher before the first step; `None` without held-out rows.
    ///
    /// # Errors
    /// When the rows cannot be had or the disk fails.
    pub fn baseline(&self, student: &CausalLm, objective: &Objective) -> Result<Option<Baseline>, TrainError> {
        let Some(heldout_cross_entropy) = self.loss(student)? else { return Ok(None) };
        let heldout_exits = self.exits(student, objective)?;
        let teacher = objective.teacher().map(|teacher| self.loss(teacher)).transpose()?.flatten();
        let baseline = Baseline { heldout_cross_entropy, heldout_exits, teacher_heldout_cross_entropy: teacher };
        let row = json!({
            "step": 0,
            "tokens": 0,
            "heldout_cross_entropy": heldout_cross_entropy,
            "heldout_exits": baseline.heldout_exits,
            "teacher_heldout_cross_entropy": baseline.teacher_heldout_cross_entropy,
        });
        self.write(0, &row)?;
        Ok(Some(baseline))
    }

    /// Adds losses and routing of `model` to the row of a step, and the loss of `averaged`, which
    /// has the average of its weights.
    ///
    /// # Errors
    /// When the rows cannot be had or the disk fails.
    pub fn measure(
        &self,
        model: &CausalLm,
        averaged: Option<&CausalLm>,
        objective: &Objective,
        row: &mut StepRow,
    ) -> Result<(), TrainError> {
        row.heldout_cross_entropy = self.loss(model)?;
        row.averaged_heldout_cross_entropy = averaged.map(|averaged| self.loss(averaged)).transpose()?.flatten();
        row.heldout_exits = self.exits(model, objective)?;
        row.heldout_routing = routing::heldout(model, self.rows.as_ref(), &self.config.train, self.ranks)?;
        let Some(loss) = row.heldout_cross_entropy else { return Ok(()) };
        let mut measured = json!({
            "step": row.step,
            "tokens": row.tokens,
            "heldout_cross_entropy": loss,
            "heldout_exits": row.heldout_exits,
        });
        if let Some(loss) = row.averaged_heldout_cross_entropy {
            measured["averaged_heldout_cross_entropy"] = json!(loss);
        }
        self.write(row.step, &measured)
    }

    fn loss(&self, model: &CausalLm) -> Result<Option<f64>, TrainError> {
        self.loss_at(model, None)
    }

    /// Loss of the exit after `recursions` recursions, or of the whole stack.
    fn loss_at(&self, model: &CausalLm, recursions: Option<usize>) -> Result<Option<f64>, TrainError> {
        let Some(rows) = &self.rows else { return Ok(None) };
        let train = &self.config.train;
        let batches = rows.heldout_batches(train.batch_size, Some(train.eval_sequences))?;
        Ok(Some(cross_entropy(model, recursions, batches, self.ranks)?))
    }

    /// Loss of every early exit that is trained.
    fn exits(&self, model: &CausalLm, objective: &Objective) -> Result<Vec<f64>, TrainError> {
        let losses = objective.exits().into_iter().map(|recursions| self.loss_at(model, Some(recursions)));
        Ok(losses.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    fn write(&self, step: u64, row: &Value) -> Result<(), TrainError> {
        if !self.ranks.leads() {
            return Ok(());
        }
        let dir = self.config.run.dir.join("eval");
        fs_err::create_dir_all(&dir)?;
        replace(&dir.join(format!("step-{step}.json")), format!("{row}\n").as_bytes())
    }
}
