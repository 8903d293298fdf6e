//! Sums over the micro-batches of an optimizer step.

use super::Telemetry;
use crate::{loss::LossValues, optim::Gradients};
use retie_collective::Collective;
use retie_model::RoutingSums;

/// Gradients and values of a step. Each micro-batch adds its share.
#[derive(Debug, Default)]
pub struct StepSums {
    /// Gradients by parameter.
    pub grads: Gradients,
    /// Values of the losses.
    pub losses: LossValues,
    /// Counts of what the routers of a routed model did.
    pub routing: RoutingSums,
    /// Hidden states, where they are measured.
    pub telemetry: Telemetry,
}

impl StepSums {
    /// Makes losses and telemetry the sums over all ranks, which have the same terms and
    /// recursions.
    pub fn reduce_values(&mut self, ranks: &dyn Collective) {
        let Telemetry { hidden_norm, cosine, grad_norm: _ } = &mut self.telemetry;
        let mut all: Vec<&mut f64> = self.losses.all_mut().chain(hidden_norm).chain(cosine).collect();
        let mut values: Vec<f64> = all.iter().map(|value| **value).collect();
        ranks.all_reduce_f64(&mut values);
        all.iter_mut().zip(values).for_each(|(value, sum)| **value = sum);
    }
}
