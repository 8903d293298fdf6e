//! Next-token cross-entropy with label smoothing, and the z-loss: `w (CE + ζ Z²)`; the formulas are in `retie_model::kernels`.
//! Columns: `cross_entropy`, with the smoothed labels, and `z_loss`, `Z²`, where it has a factor.

use super::{Asked, Loss, Part, Stacks};
use retie_config::CrossEntropyConfig;
use retie_model::kernels::{CrossEntropyTerm, HeadValues};
use std::collections::BTreeMap;

impl Loss for CrossEntropyConfig {
    fn ask(&self, share: f64, stacks: &Stacks, asked: &mut Asked) {
        asked.readout(stacks.num_depths()).cross_entropy = CrossEntropyTerm {
            weight: (self.weight * share) as f32,
            label_smoothing: self.label_smoothing as f32,
            z_loss: self.z_loss as f32,
        };
    }

    fn record(&self, stacks: &Stacks, found: &BTreeMap<usize, HeadValues>, losses: &mut Part<'_>) {
        let found = found[&stacks.num_depths()];
        losses.add("cross_entropy", self.weight, found.cross_entropy);
        if self.z_loss > 0.0 {
            losses.add("z_loss", self.weight * self.z_loss, found.z_loss);
        }
    }
}
