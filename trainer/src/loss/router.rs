//! What is asked of routers (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, §2.2.1 and Table 4): `w Σ_r L_r`, with `L_r` a
//! mean over the tokens that recursion `r` had before it; the formulas are in `retie_model`. Columns: `router_bce`, `router_z_loss`, the
//! sums.
//!
//! The means are averaged over micro-batches as every loss is. The paper's code does not divide its auxiliary loss by their number: its
//! coefficient 0.001 in 16 micro-batches is a weight of 0.016 here.

use super::{Loss, Part};
use retie_config::{RouterBceConfig, RouterZLossConfig};
use retie_model::{RouterLoss, binary_cross_entropy, z_loss};

impl Loss for RouterBceConfig {
    fn of_router(&self, logits: &[f32], chosen: &[bool], losses: &mut Part<'_>) -> Option<(f64, RouterLoss)> {
        let loss = binary_cross_entropy(logits, chosen);
        losses.add("router_bce", self.weight, loss.value);
        Some((self.weight, loss))
    }
}

impl Loss for RouterZLossConfig {
    fn of_router(&self, logits: &[f32], _: &[bool], losses: &mut Part<'_>) -> Option<(f64, RouterLoss)> {
        let loss = z_loss(logits);
        losses.add("router_z_loss", self.weight, loss.value);
        Some((self.weight, loss))
    }
}
