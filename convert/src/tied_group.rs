//! One tied group: the mean of its sources, and the factors that give each depth its own weight
//! back.

use crate::{
    ConvertError,
    factorize::{Draw, LoraFactors, factorize},
    plan::PlannedLora,
};
use rayon::prelude::*;
use retie_checkpoint::{CheckpointError, TensorSource};

/// Residuals that cancel to this part of their length are opposite: what is left is the rounding of
/// the mean in f32.
const OPPOSITE: f64 = 2.0 * f32::EPSILON as f64;

/// Mean over `sources`, summed in f64 and rounded once to f32: equal sources give themselves, bit
/// for bit.
pub(crate) fn mean(source: &dyn TensorSource, sources: &[String]) -> Result<Vec<f32>, CheckpointError> {
    if let [only] = sources {
        return source.read_f32(only);
    }
    let mut sums = Vec::new();
    for name in sources {
        let values = source.read_f32(name)?;
        sums.resize(values.len(), 0.0f64);
        sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += f64::from(x));
    }
    let count = sources.len() as f64;
    Ok(sums.into_iter().map(|sum| (sum / count) as f32).collect())
}

/// For each depth of a group, the factors of its own weight minus `stored` (which is the shared
/// weight as it is stored, after rounding: LoRA corrects that rounding too).
pub(crate) fn group_factors(
    source: &dyn TensorSource,
    stored: &[f32],
    planned: &[PlannedLora],
    seed: u64,
) -> Result<Vec<LoraFactors>, ConvertError> {
    let residuals: Vec<Vec<f32>> = planned
        .par_iter()
        .map(|p| Ok(source.read_f32(&p.source)?.iter().zip(stored).map(|(w, s)| w - s).collect()))
        .collect::<Result<_, CheckpointError>>()?;
    let bad: Vec<_> = planned.iter().zip(&residuals).filter(|(_, e)| !e.iter().all(|x| x.is_finite())).collect();
    if !bad.is_empty() {
        let place = |p: &PlannedLora| (p.source.clone(), source.path_of(&p.source).to_owned());
        return Err(ConvertError::NotFinite { tensors: bad.into_iter().map(|(p, _)| place(p)).collect() });
    }
    let twins: Vec<Option<usize>> =
        (0..residuals.len()).map(|i| (0..i).find(|j| are_opposite(&residuals[i], &residuals[*j]))).collect();
    // One decomposition serves a residual and its twins, at the largest of their ranks.
    let mut ranks: Vec<usize> = planned.iter().map(|p| p.rank).collect();
    for (i, twin) in twins.iter().enumerate() {
        if let Some(j) = twin {
            ranks[*j] = ranks[*j].max(planned[i].rank);
        }
    }
    let own: Vec<Option<LoraFactors>> = planned
        .par_iter()
        .zip(&residuals)
        .zip(&twins)
        .zip(&ranks)
        .map(|(((p, residual), twin), rank)| {
            let draw = Draw { seed, stream: p.stream };
            let run = || factorize(residual, p.shape, *rank, draw);
            let named = |error| match error {
                ConvertError::NoConvergence { .. } => ConvertError::NoConvergence { tensor: p.source.clone() },
                other => other,
            };
            twin.is_none().then(run).transpose().map_err(named)
        })
        .collect::<Result<_, _>>()?;
    let mut all: Vec<LoraFactors> = Vec::with_capacity(own.len());
    for (factors, twin) in own.into_iter().zip(&twins) {
        let factors = factors.or_else(|| twin.map(|j| all[j].negated()));
        all.extend(factors);
    }
    Ok(all.into_iter().zip(planned).map(|(factors, p)| factors.cut(p.shape, p.rank)).collect())
}

/// The mean of two weights lies half-way: their residuals are opposite, and one decomposition
/// serves both.
pub(crate) fn are_opposite(x: &[f32], y: &[f32]) -> bool {
    let (mut left, mut length) = (0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        left += f64::from(x + y).powi(2);
        length += f64::from(*x).powi(2);
    }
    length > 0.0 && left <= OPPOSITE * OPPOSITE * length
}
