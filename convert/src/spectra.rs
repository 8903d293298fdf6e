//! Spectra of what tying loses: the singular values of every residual, of a start that chooses
//! layers or means them.

use crate::{
    ConvertError, Phase, Progress,
    factorize::{eigenvalues, gram},
    plan::{ConversionPlan, PlannedTensor},
    ranks::Spectrum,
    tied_group::{are_opposite, mean},
};
use faer::MatRef;
use rayon::prelude::*;
use retie_checkpoint::{CheckpointError, TensorSource, narrow, widen};
use retie_config::{Depth, LoraSpec, Projection, TensorOwner, TensorRole};

/// The spectra of every linear at every depth that may have LoRA.
///
/// # Errors
/// When the source cannot be read or holds what is not finite.
pub(crate) fn plain_spectra(
    source: &dyn TensorSource,
    plan: &ConversionPlan,
    lora: &LoraSpec,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Spectrum>, ConvertError> {
    let mut spectra = Vec::new();
    for (i, tensor) in plan.tensors.iter().enumerate() {
        if let Some(projection) = tensor.projection {
            spectra.extend(group_spectra(source, plan, lora, tensor, projection)?);
        }
        progress(Progress { phase: Phase::Spread, done: i + 1, total: plan.tensors.len(), tensor: &tensor.name });
    }
    Ok(spectra)
}

/// The spectra of one projection at the depths of a tied group.
fn group_spectra(
    source: &dyn TensorSource,
    plan: &ConversionPlan,
    lora: &LoraSpec,
    tensor: &PlannedTensor,
    projection: Projection,
) -> Result<Vec<Spectrum>, ConvertError> {
    let steps = plan.map().depths();
    let depths = tensor.depths.iter().copied().filter(|depth| lora.is_at(plan.map(), &steps[depth.0]));
    let depths: Vec<Depth> = depths.collect();
    if depths.is_empty() {
        return Ok(Vec::new());
    }
    let dtype = tensor.info.dtype;
    let stored = widen(&narrow(&mean(source, &tensor.sources)?, dtype), dtype);
    let named =
        |depth: &Depth| TensorOwner::Layer(plan.source_layer(*depth)).weight(TensorRole::Projection(projection));
    let read = |depth: &Depth| {
        Ok(source.read_f32(&named(depth))?.iter().zip(&stored).map(|(own, stored)| own - stored).collect())
    };
    let residuals: Vec<Vec<f32>> = depths.par_iter().map(read).collect::<Result<_, CheckpointError>>()?;
    let bad = depths.iter().zip(&residuals).filter(|(_, e)| !e.iter().all(|x| x.is_finite()));
    let bad: Vec<_> = bad.map(|(depth, _)| (named(depth), source.path_of(&named(depth)).to_owned())).collect();
    if !bad.is_empty() {
        return Err(ConvertError::NotFinite { tensors: bad });
    }
    // Opposite residuals have one spectrum.
    let twin = |i: usize| (0..i).find(|j| are_opposite(&residuals[i], &residuals[*j]));
    let twins: Vec<Option<usize>> = (0..residuals.len()).map(twin).collect();
    let one = |i: usize| match twins[i] {
        Some(_) => Ok(Vec::new()),
        None => squared_singular_values(&residuals[i], [tensor.info.shape[0], tensor.info.shape[1]]).map_err(|error| {
            match error {
                ConvertError::NoConvergence { .. } => ConvertError::NoConvergence { tensor: named(&depths[i]) },
                other => other,
            }
        }),
    };
    let own: Vec<Vec<f64>> = (0..residuals.len()).into_par_iter().map(one).collect::<Result<_, _>>()?;
    let spectrum =
        |(i, depth): (usize, Depth)| Spectrum { depth, projection, values: own[twins[i].unwrap_or(i)].clone() };
    Ok(depths.into_iter().enumerate().map(spectrum).collect())
}

/// Largest first, as many as the smaller side has.
fn squared_singular_values(matrix: &[f32], [out, inp]: [usize; 2]) -> Result<Vec<f64>, ConvertError> {
    let wide: Vec<f64> = matrix.iter().map(|x| f64::from(*x)).collect();
    let e = MatRef::from_row_major_slice(&wide, out, inp);
    eigenvalues(gram(if out <= inp { e } else { e.transpose() }).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_checkpoint::SafetensorsFile;
    use std::path::Path;

    /// `tests/golden/lowrank.py`: what numpy's singular values beyond each rank add up to.
    #[test]
    fn singular_values_are_those_of_numpy() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lowrank.safetensors");
        let golden = SafetensorsFile::open(&path).unwrap();
        for name in ["wide", "tall", "square", "decaying", "rank_three"] {
            let shape = &golden.info(&format!("{name}.matrix")).unwrap().shape;
            let matrix = golden.read_f32(&format!("{name}.matrix")).unwrap();
            let tail = golden.read_f32(&format!("{name}.tail")).unwrap();
            let values = squared_singular_values(&matrix, [shape[0], shape[1]]).unwrap();
            assert_eq!(values.len() + 1, tail.len());
            let energy: f64 = values.iter().sum();
            for (rank, tail) in tail.iter().enumerate() {
                let found: f64 = values[rank..].iter().sum();
                // The golden is rounded to f32: 6e-8 of the whole energy.
                assert!((found - f64::from(*tail)).abs() <= 2e-7 * energy, "{name} {rank}: {found} {tail}");
            }
        }
    }
}
