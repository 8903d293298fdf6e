//! One rounding from f64 to a stored type.

use retie_checkpoint::{Dtype, narrow};

/// Rounds f64 to little-endian elements of `dtype`, to nearest even, once: a value between two
/// neighbours of `dtype` does not become a tie by being rounded to f32 first.
pub(crate) fn narrow_f64(values: &[f64], dtype: Dtype) -> Vec<u8> {
    let floats: Vec<f32> = match dtype {
        Dtype::F32 => values.iter().map(|x| *x as f32).collect(),
        Dtype::F16 | Dtype::BF16 => values.iter().map(|x| to_odd(*x)).collect(),
    };
    narrow(&floats, dtype)
}

/// Rounds to odd: an f32 as it is, anything else to the neighbour whose last bit is 1. A second
/// rounding to fewer bits is then that of the exact value (Boldo, Melquiond,
/// <https://doi.org/10.1109/TC.2007.70819>).
fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || !nearest.is_finite() {
        return nearest;
    }
    let toward_zero = match f64::from(nearest).abs() > x.abs() {
        true => nearest.to_bits() - 1,
        false => nearest.to_bits(),
    };
    f32::from_bits(toward_zero | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_checkpoint::widen;

    #[test]
    fn a_value_beside_a_tie_is_rounded_to_its_side() {
        // 1 + 2⁻⁸ is the tie between 1 and 1 + 2⁻⁷ of bf16; f32 has no bit for 2⁻⁴⁰.
        let tie = 1.0 + 2f64.powi(-8);
        let values = [tie, tie + 2f64.powi(-40), tie - 2f64.powi(-40), -tie - 2f64.powi(-40), 0.0, f64::INFINITY];
        let rounded = widen(&narrow_f64(&values, Dtype::BF16), Dtype::BF16);
        assert_eq!(rounded, [1.0, 1.007_812_5, 1.0, -1.007_812_5, 0.0, f32::INFINITY]);
        assert_eq!(widen(&narrow_f64(&[0.1, tie], Dtype::F32), Dtype::F32), [0.1, tie as f32]);
        let half = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(widen(&narrow_f64(&[half], Dtype::F16), Dtype::F16), [1.0 + 2f32.powi(-10)]);
    }
}
