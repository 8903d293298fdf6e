//! Check of written weights: each is the exact one, rounded to the type that it is stored in.

use crate::{ExportError, StoredType};
use retie_checkpoint::{Dtype, TensorSource};
use serde::Serialize;

/// Values of a block of Q8_0, which have one scale.
const BLOCK: usize = 32;
/// Values of a block of the K types.
pub(crate) const K_BLOCK: usize = 256;

/// Result of a check of weights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WeightCheck {
    /// Tensors that were compared.
    pub tensors: usize,
    /// Names of those with a value that rounding does not explain.
    pub outside: Vec<String>,
}

/// Compares every tensor of `written`, an export of `exact` in the type `stored`, with the exact
/// values.
///
/// # Errors
/// When a tensor is missing or cannot be read.
pub fn check_weights(
    exact: &dyn TensorSource,
    written: &dyn TensorSource,
    stored: StoredType,
) -> Result<WeightCheck, ExportError> {
    let mut check = WeightCheck::default();
    for name in exact.names() {
        let (values, found) = (exact.read_f32(name)?, written.read_f32(name)?);
        let dtype = written.info(name).map_or(Dtype::F32, |info| info.dtype);
        let row = exact.info(name).and_then(|info| info.shape.last().copied()).unwrap_or(1).max(1);
        let is_vector = values.len() == row;
        let k_error = stored.k_error().filter(|_| !is_vector);
        let block = if k_error.is_some() { K_BLOCK } else { BLOCK };
        let rows = values.chunks(row).zip(found.chunks(row));
        let fits = values.len() == found.len()
            && rows.flat_map(|(a, b)| a.chunks(block).zip(b.chunks(block))).all(|(exact, found)| {
                match (k_error, stored) {
                    (Some(error), _) => in_k_block(exact, found, error),
                    (None, StoredType::Q8_0) if !is_vector => in_block(exact, found),
                    _ => exact.iter().zip(found).all(|(a, b)| is_rounded(*a, *b, dtype, is_vector)),
                }
            });
        check.tensors += 1;
        if !fits {
            check.outside.push(name.to_owned());
        }
    }
    Ok(check)
}

/// True if `found` is `exact` rounded to `dtype`. The exact value itself is rounded to f32, and the
/// weight of a norm may be stored as `1 + w`.
fn is_rounded(exact: f32, found: f32, dtype: Dtype, is_vector: bool) -> bool {
    let (roundoff, least) = match dtype {
        Dtype::F32 => (2f64.powi(-24), 2f64.powi(-149)),
        Dtype::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        Dtype::BF16 => (2f64.powi(-8), 2f64.powi(-134)),
    };
    let size = f64::from(exact.abs()) + if is_vector { 1.0 } else { 0.0 };
    let bound = size * (roundoff + 2f64.powi(-23)) + least;
    let (exact, found) = (f64::from(exact), f64::from(found));
    exact == found || (exact - found).abs() <= bound || (exact.is_nan() && found.is_nan())
}

/// True if `found` is a block of Q8_0 of `exact`: multiples of a scale `d = max |x| / 127`, which
/// is itself rounded to f16 (subnormal ones by up to 2⁻²⁵). F16 in its place is closer.
fn in_block(exact: &[f32], found: &[f32]) -> bool {
    let d = f64::from(exact.iter().fold(0.0f32, |most, x| most.max(x.abs()))) / 127.0;
    let bound = d * (0.5 + 127.0 * 2f64.powi(-11) + 1e-3) + 127.0 * 2f64.powi(-25);
    exact.iter().zip(found).all(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() <= bound)
}

/// True if the root mean square of the differences is at most `error` of the largest value. The
/// scale itself, of F16, may be subnormal.
fn in_k_block(exact: &[f32], found: &[f32], error: f64) -> bool {
    let largest = f64::from(exact.iter().fold(0.0f32, |most, x| most.max(x.abs())));
    let squares = exact.iter().zip(found).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    (squares.sum::<f64>() / exact.len() as f64).sqrt() <= error * largest + 63.0 * 31.0 * 2f64.powi(-25)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_rounded_or_it_is_not() {
        assert!(is_rounded(1.0, 1.0, Dtype::BF16, false) && is_rounded(1.0, 1.003_9, Dtype::BF16, false));
        assert!(!is_rounded(1.0, 1.01, Dtype::BF16, false) && !is_rounded(1.0, 1.003_9, Dtype::F16, false));
        assert!(is_rounded(1e-9, 0.0, Dtype::F16, false) && !is_rounded(1e-9, 0.0, Dtype::BF16, false));
        assert!(!is_rounded(f32::NAN, 0.0, Dtype::F32, false) && is_rounded(f32::NAN, f32::NAN, Dtype::F32, false));
        // 1 + w, stored in f32.
        assert!(is_rounded(1e-8, 0.0, Dtype::F32, true) && !is_rounded(1e-5, 0.0, Dtype::F32, true));
        assert!(in_block(&[127.0, 0.4], &[127.0, 0.0]) && !in_block(&[127.0, 0.6], &[127.0, 0.0]));
    }
}
