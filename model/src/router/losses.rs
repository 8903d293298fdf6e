//! Router losses on logits `u`, beside the language-model loss (Mixture-of-Recursions, §2.2.1 and
//! Table 4): means over the active rows of a recursion, in f64, with their gradients.

use retie_config::TokenChoiceScore;

/// Value of a router loss and its gradient for each logit.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterLoss {
    /// Mean over the tokens.
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

/// Auxiliary loss of expert choice: binary cross-entropy between `σ(u)` and the top-k selection
/// `chosen`. It trains the sign of `u` to predict the selection over the whole sequence, which
/// makes causal selection possible.
#[must_use]
pub fn binary_cross_entropy(logits: &[f32], chosen: &[bool]) -> RouterLoss {
    mean(logits.iter().zip(chosen).map(|(u, chosen)| {
        let (u, target) = (f64::from(*u), f64::from(u8::from(*chosen)));
        // −t·ln σ(u) − (1 − t)·ln σ(−u), without overflow.
        let value = u.max(0.0) - u * target + (-u.abs()).exp().ln_1p();
        (value, sigmoid(u) - target)
    }))
}

/// Router z-loss: `(ln Σ_i e^{u_i})²` over the `outputs` logits of each token; `u²` for one output
/// (Zoph et al., <https://arxiv.org/abs/2202.08906>, Eq. 5).
#[must_use]
pub fn z_loss(logits: &[f32], outputs: usize) -> RouterLoss {
    rows(logits, outputs, |row, grad| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = row.iter().map(|u| (u - largest).exp()).sum::<f64>();
        let log_sum = largest + sum.ln();
        grad.extend(row.iter().map(|u| 2.0 * log_sum * (u - largest).exp() / sum));
        log_sum.powi(2)
    })
}

/// Decisiveness loss: 1 for undecided probabilities, 0 for a certain decision.
///
/// For sigmoids it is `1 − (2σ(u) − 1)²`, a mean over the outputs (the uncertainty-aware loss of
/// ZoomNet, <https://arxiv.org/abs/2203.02688>). For a softmax over `R` recursion counts it is
/// `R/(R − 1)·(1 − Σ q_i²)`, which has the same range for any `R`.
#[must_use]
pub fn decisiveness(logits: &[f32], outputs: usize, score: Option<TokenChoiceScore>) -> RouterLoss {
    if score != Some(TokenChoiceScore::Softmax) {
        return rows(logits, outputs, |row, grad| {
            let share = 1.0 / outputs as f64;
            let mut value = 0.0;
            for u in row {
                let q = sigmoid(*u);
                value += share * 4.0 * q * (1.0 - q);
                grad.push(share * 4.0 * (1.0 - 2.0 * q) * q * (1.0 - q));
            }
            value
        });
    }
    let scale = outputs as f64 / (outputs as f64 - 1.0);
    rows(logits, outputs, |row, grad| {
        let q = softmax(row);
        let squares = q.iter().map(|q| q * q).sum::<f64>();
        grad.extend(q.iter().map(|q| -2.0 * scale * q * (q - squares)));
        scale * (1.0 - squares)
    })
}

/// Balancing loss of token choice (Fedus et al., <https://arxiv.org/abs/2101.03961>, Eq. 4;
/// Mixture-of-Recursions, §2.2.1): `Σ_i P_i·R·f_i`. `P_i` is the mean of `p_i = α·score(u_i)`;
/// `f_i` is the fraction of tokens whose last recursion is `i`, from `chosen`, and has no gradient.
/// With a softmax and `α = 1` the loss is 1 where either of the two is uniform.
#[must_use]
pub fn balancing(logits: &[f32], chosen: &[usize], outputs: usize, score: TokenChoiceScore, alpha: f64) -> RouterLoss {
    let load = outputs as f64 / chosen.len().max(1) as f64;
    let mut loads = vec![0.0; outputs];
    chosen.iter().for_each(|depth| loads[*depth] += load);
    rows(logits, outputs, |row, grad| match score {
        TokenChoiceScore::Softmax => {
            let p = softmax(row);
            let mean = p.iter().zip(&loads).map(|(p, load)| p * load).sum::<f64>();
            grad.extend(p.iter().zip(&loads).map(|(p, load)| alpha * p * (load - mean)));
            alpha * mean
        }
        TokenChoiceScore::Sigmoid => {
            let p: Vec<f64> = row.iter().map(|u| sigmoid(*u)).collect();
            grad.extend(p.iter().zip(&loads).map(|(p, load)| alpha * load * p * (1.0 - p)));
            alpha * p.iter().zip(&loads).map(|(p, load)| p * load).sum::<f64>()
        }
    })
}

/// Mean of `of_row` over rows of `outputs` logits; `of_row` also appends the row's gradient.
fn rows(logits: &[f32], outputs: usize, mut of_row: impl FnMut(&[f64], &mut Vec<f64>) -> f64) -> RouterLoss {
    let share = outputs as f64 / logits.len().max(1) as f64;
    let mut grad = Vec::with_capacity(logits.len());
    let mut value = 0.0;
    for row in logits.chunks_exact(outputs) {
        let row: Vec<f64> = row.iter().map(|u| f64::from(*u)).collect();
        value += share * of_row(&row, &mut grad);
    }
    RouterLoss { value, grad: grad.into_iter().map(|x| (share * x) as f32).collect() }
}

fn sigmoid(u: f64) -> f64 {
    1.0 / (1.0 + (-u).exp())
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut exponents: Vec<f64> = row.iter().map(|u| (u - largest).exp()).collect();
    let sum = exponents.iter().sum::<f64>();
    exponents.iter_mut().for_each(|x| *x /= sum);
    exponents
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [2.0, -1.0, 0.5, -3.0];

    /// `torch.nn.functional.binary_cross_entropy_with_logits` and `logsumexp` on these four logits.
    #[test]
    fn values_are_those_of_torch() {
        let bce = binary_cross_entropy(&LOGITS, &[true, false, true, false]);
        assert!((bce.value - 0.240_713_508_6).abs() < 1e-10, "ten digits are given: {}", bce.value);
        assert_eq!(z_loss(&LOGITS, 1).value, 3.5625);
    }

    /// Values of the paper's code on four tokens and three recursion counts.
    #[test]
    fn balancing_and_z_loss_have_the_values_of_the_reference() {
        let logits = [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, -1.0];
        let balance = balancing(&logits, &[0, 1, 0, 0], 3, TokenChoiceScore::Softmax, 1.0).value;
        let z = z_loss(&logits, 3).value;
        for (found, expected) in [(balance, 1.175_752_745_4), (z, 2.572_849_769_8)] {
            assert!((found - expected).abs() < 1e-10, "ten digits are given: {found}");
        }
    }

    #[test]
    fn a_router_that_is_sure_is_decisive() {
        for score in [None, Some(TokenChoiceScore::Sigmoid), Some(TokenChoiceScore::Softmax)] {
            let outputs = if score.is_some() { 2 } else { 1 };
            let alike = decisiveness(&vec![0.0; 2 * outputs], outputs, score);
            assert!((alike.value - 1.0).abs() < 1e-15 && alike.grad.iter().all(|x| *x == 0.0), "{alike:?}");
            let sure = decisiveness(&[60.0, -60.0], outputs, score);
            assert!(sure.value < 1e-20, "{sure:?}");
        }
        // A gradient step moves the probability away from ½.
        let [above, below] = [[0.3], [-0.3]].map(|u| decisiveness(&u, 1, None).grad[0]);
        assert!(above < 0.0 && below > 0.0);
        // A softmax over two recursion counts is a sigmoid of the difference.
        let (two, one) =
            (decisiveness(&[0.7, -0.2], 2, Some(TokenChoiceScore::Softmax)), decisiveness(&[0.9], 1, None));
        assert!((two.value - one.value).abs() < 1e-7, "0.9 is rounded to f32: {two:?} {one:?}");
    }

    type Loss<'a> = &'a dyn Fn(&[f32]) -> RouterLoss;

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let targets = [true, false, false, true];
        let step = 1.0 / 64.0;
        let softmax = TokenChoiceScore::Softmax;
        let losses: [Loss<'_>; 7] = [
            &|u| binary_cross_entropy(u, &targets),
            &|u| z_loss(u, 1),
            &|u| z_loss(u, 2),
            &|u| decisiveness(u, 1, None),
            &|u| decisiveness(u, 2, Some(softmax)),
            &|u| balancing(u, &[0, 0], 2, softmax, 0.5),
            &|u| balancing(u, &[1], 4, TokenChoiceScore::Sigmoid, 0.1),
        ];
        for f in losses {
            for (i, grad) in f(&LOGITS).grad.into_iter().enumerate() {
                let moved = |by: f32| {
                    let mut logits = LOGITS;
                    logits[i] += by;
                    f(&logits).value
                };
                let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
                // Third derivatives are below 0.4 here: 0.4·step²/6 = 1.6e-5.
                assert!((f64::from(grad) - slope).abs() < 2e-5, "{i}: {grad} {slope}");
            }
        }
        let far = binary_cross_entropy(&[-800.0, 800.0], &[true, false]);
        assert_eq!((far.value, far.grad), (800.0, vec![-0.5, 0.5]));
    }
}
