//! Next-token cross-entropy with label smoothing, and the z-loss: `CE + ζ Z²`; the formulas are in
//! `retie_model::kernels`. Columns: `cross_entropy`, with the smoothed labels, and `z_loss`, `Z²`,
//! where it has a factor.

use super::{LogitValues, Loss, Stacks, TermRequirements, TermValues};
use retie_config::CrossEntropyConfig;

impl Loss for CrossEntropyConfig {
    fn requirements(&self, stacks: &Stacks, required: &mut TermRequirements<'_>) {
        required.cross_entropy(stacks.num_depths(), 1.0, self.label_smoothing, self.z_loss);
    }

    fn on_logits(&self, stacks: &Stacks, found: &LogitValues, values: &mut TermValues<'_>) {
        let found = found.of_all[&stacks.num_depths()];
        values.add("cross_entropy", 1.0, found.cross_entropy);
        if self.z_loss > 0.0 {
            values.add("z_loss", self.z_loss, found.z_loss);
        }
    }
}
