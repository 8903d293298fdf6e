//! Next-token cross-entropy with label smoothing, and the z-loss: `w (CE + ζ Z²)`; the formulas are in `retie_model::kernels`.
//! Columns: `cross_entropy`, with the smoothed labels, and `z_loss`, `Z²`, where it has a factor.

use super::{Loss, Part};
use retie_config::CrossEntropyConfig;
use retie_model::kernels::{CrossEntropyTerm, HeadTerms, HeadValues};

impl Loss for CrossEntropyConfig {
    fn ask(&self, share: f64, terms: &mut HeadTerms) {
        terms.cross_entropy = CrossEntropyTerm {
            weight: (self.weight * share) as f32,
            label_smoothing: self.label_smoothing as f32,
            z_loss: self.z_loss as f32,
        };
    }

    fn record(&self, found: &HeadValues, losses: &mut Part<'_>) {
        losses.add("cross_entropy", self.weight, found.cross_entropy);
        if self.z_loss > 0.0 {
            losses.add("z_loss", self.weight * self.z_loss, found.z_loss);
        }
    }
}
