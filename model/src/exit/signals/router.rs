//! Router of the next recursion (expert choice): `1 − σ(u)` of the logit `u` by which it selects at
//! inference. A threshold makes it stricter than it was trained to be.

use super::{Passed, column};

pub fn signal(passed: &Passed<'_>) -> Vec<f32> {
    let logits = passed.model.causal_router_logits(passed.recursions, passed.after.clone());
    let Some(logits) = logits else { unreachable!("`check_exit_rule` asks for a router with weights") };
    column(logits).into_iter().map(|u| 1.0 / (1.0 + u.exp())).collect()
}
