//! What is asked of a router's logits `u` beside the language-model loss (Mixture-of-Recursions, §2.2.1 and Table 4): means over the
//! tokens that a recursion had before it, in f64, with their gradients.

/// A value, and its gradient for each logit.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterLoss {
    /// The mean.
    pub value: f64,
    /// `∂ value / ∂ u`.
    pub grad: Vec<f32>,
}

fn mean(terms: impl ExactSizeIterator<Item = (f64, f64)>) -> RouterLoss {
    let share = 1.0 / terms.len().max(1) as f64;
    let mut loss = RouterLoss { value: 0.0, grad: Vec::with_capacity(terms.len()) };
    for (value, grad) in terms {
        loss.value += value * share;
        loss.grad.push((grad * share) as f32);
    }
    loss
}

/// The auxiliary loss: binary cross-entropy between `σ(u)` and whether the token was chosen. It makes the sign of `u` say what top-k
/// over the whole sequence says, so that a causal choice is possible.
#[must_use]
pub fn binary_cross_entropy(logits: &[f32], chosen: &[bool]) -> RouterLoss {
    mean(logits.iter().zip(chosen).map(|(u, chosen)| {
        let (u, target) = (f64::from(*u), f64::from(u8::from(*chosen)));
        // −t·ln σ(u) − (1 − t)·ln σ(−u), without overflow.
        let value = u.max(0.0) - u * target + (-u.abs()).exp().ln_1p();
        (value, 1.0 / (1.0 + (-u).exp()) - target)
    }))
}

/// The z-loss, `(ln Σ_i e^{u_i})²` over the outputs of a token's router; of one output `u²` (Zoph et al.,
/// <https://arxiv.org/abs/2202.08906>, Eq. 5).
#[must_use]
pub fn z_loss(logits: &[f32]) -> RouterLoss {
    mean(logits.iter().map(|u| (f64::from(*u).powi(2), 2.0 * f64::from(*u))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [2.0, -1.0, 0.5, -3.0];

    /// `torch.nn.functional.binary_cross_entropy_with_logits` and `logsumexp` on these four.
    #[test]
    fn values_are_those_of_torch() {
        let bce = binary_cross_entropy(&LOGITS, &[true, false, true, false]);
        assert!((bce.value - 0.240_713_508_6).abs() < 1e-10, "ten digits are given: {}", bce.value);
        assert_eq!(z_loss(&LOGITS).value, 3.5625);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let targets = [true, false, false, true];
        let step = 1.0 / 64.0;
        for f in [&(|u: &[f32]| binary_cross_entropy(u, &targets)) as &dyn Fn(&[f32]) -> RouterLoss, &z_loss] {
            for (i, grad) in f(&LOGITS).grad.into_iter().enumerate() {
                let moved = |by: f32| {
                    let mut logits = LOGITS;
                    logits[i] += by;
                    f(&logits).value
                };
                let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
                // The third derivative is below 0.1 here: 0.1·step²/6 = 4e-6.
                assert!((f64::from(grad) - slope).abs() < 5e-6, "{i}: {grad} {slope}");
            }
        }
        let far = binary_cross_entropy(&[-800.0, 800.0], &[true, false]);
        assert_eq!((far.value, far.grad), (800.0, vec![-0.5, 0.5]));
    }
}
