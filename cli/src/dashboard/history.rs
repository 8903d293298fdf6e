//! Metrics of a run so far, as the dashboard draws them.

use retie_trainer::{Baseline, StepRow};

/// Losses by step, and the last row.
#[derive(Default)]
pub struct History {
    /// The run's folder.
    pub title: String,
    /// Steps of the whole run.
    pub num_steps: u64,
    /// Training loss after each step.
    pub losses: Vec<(f64, f64)>,
    /// Held-out cross-entropy where it was measured, nats per token.
    pub heldout: Vec<(f64, f64)>,
    /// Held-out cross-entropy of the averaged weights, last measurement.
    pub averaged: Option<f64>,
    /// Held-out cross-entropy of the early exits, last measurement.
    pub heldout_exits: Vec<f64>,
    /// Held-out cross-entropy of the teacher.
    pub teacher: Option<f64>,
    /// The last row.
    pub last: Option<StepRow>,
}

impl History {
    /// Adds the measurement before the first step.
    pub fn start(&mut self, baseline: &Baseline) {
        self.teacher = baseline.teacher_heldout_cross_entropy;
        self.heldout.push((0.0, baseline.heldout_cross_entropy));
        self.heldout_exits.clone_from(&baseline.heldout_exits);
    }

    /// Adds a step.
    pub fn add(&mut self, row: &StepRow) {
        let step = row.step as f64;
        self.losses.push((step, row.loss));
        if let Some(loss) = row.heldout_cross_entropy {
            self.heldout.push((step, loss));
            self.averaged = row.averaged_heldout_cross_entropy;
            self.heldout_exits.clone_from(&row.heldout_exits);
        }
        self.last = Some(row.clone());
    }
}
