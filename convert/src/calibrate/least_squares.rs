//! One weight for several depths: weighted least squares, alternating with each depth's correction.
//!
//! Depth `d` wants the weight `T_d [out, in]` and counts errors in its metric `C_d`. Minimised is
//! `Σ_d ‖T_d − W' − B_d A_d‖²_{C_d}`: for given corrections `W' = (Σ_d (T_d − B_d A_d) C_d) (Σ_d
//! C_d)⁻¹`.
//!
//! For a given `W'`, with `E = T_d − W'`, the best correction of rank `r` is `U (Uᵀ E)` with `U
//! [out, r]` the leading eigenvectors of `E C_d Eᵀ` (see [`low_rank`](super::low_rank)). They need
//! not be exact before `W'` is: each round takes `U` from the round before and does [`STEPS`] of
//! orthogonal iteration, `U ← orth(E C_d Eᵀ U)`, which forms no product of two large matrices. Such
//! a step never lowers `tr(Uᵀ E C_d Eᵀ U)`, and `Uᵀ E` is the best second factor for any `U`, so no
//! round raises the objective.

use super::metric::{Metric, orthonormal, product};
use crate::{ConvertError, factorize::gaussian};
use faer::Mat;
use rayon::prelude::*;

/// Rounds of the alternation in [`tie`]; the objective falls little after them.
pub(super) const ROUNDS: usize = 6;

/// Steps of orthogonal iteration in a round.
const STEPS: usize = 2;

/// One depth of a tied group.
pub(super) struct Member<'a> {
    /// `T_d`.
    pub target: Mat<f64>,
    /// `C_d`.
    pub metric: &'a Metric,
    /// Rank of its correction; 0 for none.
    pub rank: usize,
}

/// The shared weight of `members`, whose metrics sum up to `sum`, next to the corrections of each,
/// after `rounds`; where none has one that of weighted least squares alone.
///
/// # Errors
/// [`ConvertError::BadMoments`] with empty fields for the caller to fill, when a target is not
/// finite.
///
/// # Panics
/// When there are no members.
pub(super) fn tie(members: &[Member<'_>], sum: &Metric, rounds: usize) -> Result<Mat<f64>, ConvertError> {
    let (rows, columns) = (members[0].target.nrows(), members[0].target.ncols());
    let total = |parts: &[Mat<f64>]| Mat::from_fn(rows, columns, |i, j| parts.iter().map(|p| p[(i, j)]).sum::<f64>());
    // Relative to the plain mean, so that equal targets give themselves.
    let count = members.len() as f64;
    let mean = Mat::from_fn(rows, columns, |i, j| members.iter().map(|m| m.target[(i, j)]).sum::<f64>() / count);
    let wanted: Vec<Mat<f64>> = members.par_iter().map(|m| m.metric.times((&m.target - &mean).as_ref())).collect();
    let alone = &mean + &sum.divide(total(&wanted));
    if members.iter().all(|member| member.rank == 0) {
        return Ok(alone);
    }
    let mut shared = alone.clone();
    let mut bases: Vec<Mat<f64>> = members.iter().zip(0..).map(|(m, i)| gaussian(rows, m.rank, i)).collect();
    for _ in 0..rounds {
        let corrections: Vec<(Mat<f64>, Mat<f64>)> = members
            .par_iter()
            .zip(bases)
            .map(|(m, mut basis)| {
                if m.rank == 0 {
                    return Ok((basis, Mat::zeros(rows, columns)));
                }
                let residual = &m.target - &shared;
                for _ in 0..STEPS {
                    let inputs = m.metric.times(product(basis.transpose(), residual.as_ref()).as_ref()); // Uᵀ E C
                    basis = orthonormal(product(residual.as_ref(), inputs.transpose()))?;
                }
                let a = product(basis.transpose(), residual.as_ref());
                let given = product(basis.as_ref(), sum.divide(m.metric.times(a.as_ref())).as_ref());
                Ok((basis, given))
            })
            .collect::<Result<_, ConvertError>>()?;
        let given: Vec<Mat<f64>>;
        (bases, given) = corrections.into_iter().unzip();
        shared = &alone - &total(&given);
    }
    Ok(shared)
}

/// `Σ_d ‖T_d − W' − B_d A_d‖²_{C_d}` with the best corrections of their ranks.
#[cfg(test)]
fn objective(members: &[Member<'_>], shared: &Mat<f64>) -> Result<f64, ConvertError> {
    let one = |m: &Member<'_>| {
        let residual = &m.target - shared;
        if m.rank == 0 {
            return Ok(m.metric.energy(residual.as_ref()));
        }
        let best = crate::calibrate::low_rank::LowRank::from_residual(residual.as_ref(), m.metric, m.rank)?;
        Ok(best.residual_energy - best.kept_energy)
    };
    members.iter().map(one).sum()
}

/// What a depth wants, given that its linear reads `x̂` where that of the source reads `x`: the
/// weight `T` whose output on `x̂` is closest to `W x + e`. In the normal equations, damped towards
/// `W`: `T = W + (W E[(x − x̂) x̂ᵀ] + E[e x̂ᵀ]) C⁻¹`. Where nothing differs that is exactly `W`.
pub(super) fn target(
    weight: Mat<f64>,
    metric: &Metric,
    shift: Option<&Mat<f64>>,
    extra: Option<&Mat<f64>>,
) -> Mat<f64> {
    let mut wanted = shift.map(|shift| product(weight.as_ref(), shift.as_ref()));
    if let Some(extra) = extra {
        wanted = Some(wanted.map_or_else(|| extra.clone(), |wanted| &wanted + extra));
    }
    match wanted {
        Some(wanted) => &weight + &metric.divide(wanted),
        None => weight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{metric::inner, testing::Random};

    fn distance(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
        let left = x - y;
        inner(left.as_ref(), left.as_ref()).sqrt()
    }

    /// Stacks the rows `x` of every depth and solves the normal equations of `X W'ᵀ ≈ X W_dᵀ` by
    /// elimination.
    #[test]
    fn a_shared_weight_is_the_direct_solution_of_the_stacked_problem() {
        let mut random = Random::new(8);
        let (out, inp, rows) = (4, 6, 40);
        let inputs: Vec<Mat<f64>> = (0..3).map(|_| random.matrix(rows, inp)).collect();
        let weights: Vec<Mat<f64>> = (0..3).map(|_| random.matrix(out, inp)).collect();
        let metrics: Vec<Metric> =
            inputs.iter().map(|x| Metric::new(product(x.transpose(), x.as_ref()), 0.0).unwrap()).collect();
        let sum = Metric::sum(&metrics.iter().collect::<Vec<_>>()).unwrap();
        let members: Vec<Member<'_>> =
            weights.iter().zip(&metrics).map(|(w, metric)| Member { target: w.clone(), metric, rank: 0 }).collect();
        let found = tie(&members, &sum, 4).unwrap();
        let x = Mat::from_fn(3 * rows, inp, |i, j| inputs[i / rows][(i % rows, j)]);
        let outputs: Vec<Mat<f64>> =
            inputs.iter().zip(&weights).map(|(x, w)| product(x.as_ref(), w.transpose())).collect();
        let y = Mat::from_fn(3 * rows, out, |i, j| outputs[i / rows][(i % rows, j)]);
        let expected =
            solve(product(x.transpose(), x.as_ref()), product(x.transpose(), y.as_ref())).transpose().to_owned();
        // f64 on a well-conditioned problem.
        assert!(distance(&found, &expected) < 1e-10);
        let left = &y - &product(x.as_ref(), expected.transpose());
        let objective = objective(&members, &found).unwrap();
        assert!((objective - inner(left.as_ref(), left.as_ref())).abs() < 1e-9);
    }

    /// Gaussian elimination with pivots.
    fn solve(mut a: Mat<f64>, mut b: Mat<f64>) -> Mat<f64> {
        let n = a.nrows();
        for k in 0..n {
            let pivot = (k..n).max_by(|i, j| a[(*i, k)].abs().total_cmp(&a[(*j, k)].abs())).unwrap();
            for j in 0..n {
                (a[(k, j)], a[(pivot, j)]) = (a[(pivot, j)], a[(k, j)]);
            }
            for j in 0..b.ncols() {
                (b[(k, j)], b[(pivot, j)]) = (b[(pivot, j)], b[(k, j)]);
            }
            for i in (0..n).filter(|i| *i != k) {
                let factor = a[(i, k)] / a[(k, k)];
                (0..n).for_each(|j| a[(i, j)] -= factor * a[(k, j)]);
                (0..b.ncols()).for_each(|j| b[(i, j)] -= factor * b[(k, j)]);
            }
        }
        Mat::from_fn(n, b.ncols(), |i, j| b[(i, j)] / a[(i, i)])
    }

    #[test]
    fn no_round_raises_the_objective() {
        let mut random = Random::new(9);
        for [out, inp] in [[7, 9], [9, 7]] {
            let metrics: Vec<Metric> = (0..3).map(|_| Metric::new(random.moments(inp), 1e-2).unwrap()).collect();
            let sum = Metric::sum(&metrics.iter().collect::<Vec<_>>()).unwrap();
            let targets: Vec<Mat<f64>> = (0..3).map(|_| random.matrix(out, inp)).collect();
            // Equal ranks, and one depth without a correction.
            for ranks in [[2, 2, 2], [0, 3, 1]] {
                let members = targets.iter().zip(&metrics).zip(ranks);
                let members: Vec<Member<'_>> =
                    members.map(|((target, metric), rank)| Member { target: target.clone(), metric, rank }).collect();
                let after = |rounds| objective(&members, &tie(&members, &sum, rounds).unwrap()).unwrap();
                let objectives: Vec<f64> = (0..8).map(after).collect();
                // Rounding of f64.
                assert!(objectives.windows(2).all(|w| w[1] <= w[0] * (1.0 + 1e-12)), "{objectives:?}");
                assert!(objectives[7] < 0.99 * objectives[0], "{objectives:?}");
            }
        }
    }

    #[test]
    fn equal_targets_are_shared_exactly() {
        let mut random = Random::new(10);
        let metrics: Vec<Metric> = (0..2).map(|_| Metric::new(random.moments(5), 1e-2).unwrap()).collect();
        let target = random.matrix(3, 5);
        let sum = Metric::sum(&metrics.iter().collect::<Vec<_>>()).unwrap();
        for rank in [0, 2] {
            let members: Vec<Member<'_>> =
                metrics.iter().map(|metric| Member { target: target.clone(), metric, rank }).collect();
            assert_eq!(tie(&members, &sum, 3).unwrap(), target);
        }
    }

    /// Regression of the outputs `W x + e` on `x̂`, row by row.
    #[test]
    fn a_target_answers_the_inputs_of_the_tied_model_as_the_source_answers_its_own() {
        let mut random = Random::new(11);
        let (out, inp, rows) = (3, 5, 60);
        let [x, x_hat] = [random.matrix(rows, inp), random.matrix(rows, inp)];
        let (e, weight) = (random.matrix(rows, out), random.matrix(out, inp));
        let metric = Metric::new(product(x_hat.transpose(), x_hat.as_ref()), 0.0).unwrap();
        let shift = product((&x - &x_hat).transpose(), x_hat.as_ref());
        let extra = product(e.transpose(), x_hat.as_ref());
        let found = target(weight.clone(), &metric, Some(&shift), Some(&extra));
        let y = &product(x.as_ref(), weight.transpose()) + &e;
        let gram = product(x_hat.transpose(), x_hat.as_ref());
        let expected = solve(gram, product(x_hat.transpose(), y.as_ref())).transpose().to_owned();
        assert!(distance(&found, &expected) < 1e-10); // f64 on a well-conditioned problem
        assert_eq!(target(weight.clone(), &metric, None, None), weight);
    }
}
