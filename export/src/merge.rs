//! The weight that a linear has at one depth, in f64, rounded once.
//!
//! LoRA: `W' + B A`. DoRA: `m / ‖W' + B A‖ ⊙ (W' + B A)`, with the length of each row; a row of
//! zeros stays one. A residual scale `s` multiplies the rows.
//!
//! Shapes: `W' [out, in]`, `A [r, in]`, `B [out, r]`, `m [out]`, `s [out]`, row-major.

use crate::round::narrow_f64;
use rayon::prelude::*;
use retie_checkpoint::Dtype;

/// Parts of a linear at one depth.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// `W'`.
    pub weight: Vec<f32>,
    /// Length of its rows, `in`.
    pub inp: usize,
    /// `A` and `B`.
    pub factors: Option<[Vec<f32>; 2]>,
    /// `m`.
    pub magnitudes: Option<Vec<f32>>,
    /// `s`.
    pub scale: Option<Vec<f32>>,
}

impl Parts {
    /// Little-endian elements of the merged weight, `[out, in]`.
    pub fn merged(&self, dtype: Dtype) -> Vec<u8> {
        let mut bytes = vec![0; self.weight.len() * dtype.size()];
        bytes.par_chunks_mut((self.inp * dtype.size()).max(1)).enumerate().for_each(|(row, bytes)| {
            bytes.copy_from_slice(&narrow_f64(&self.row(row), dtype));
        });
        bytes
    }

    /// One row of the merged weight.
    fn row(&self, row: usize) -> Vec<f64> {
        let inp = self.inp;
        let mut sum: Vec<f64> = self.weight[row * inp..][..inp].iter().map(|w| f64::from(*w)).collect();
        if let Some([a, b]) = &self.factors {
            let rank = a.len() / inp;
            for (b, a) in b[row * rank..][..rank].iter().zip(a.chunks_exact(inp)) {
                sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += f64::from(*b) * f64::from(*a));
            }
        }
        let mut factor = 1.0;
        if let Some(magnitudes) = &self.magnitudes {
            let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
            factor = f64::from(magnitudes[row]) / if length == 0.0 { 1.0 } else { length };
        }
        if let Some(scale) = &self.scale {
            factor *= f64::from(scale[row]);
        }
        if factor != 1.0 {
            sum.iter_mut().for_each(|x| *x *= factor);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_checkpoint::widen;

    fn merged(parts: Parts) -> Vec<f32> {
        widen(&parts.merged(Dtype::F32), Dtype::F32)
    }

    /// `W' + B A` is (3, 4), (0, 0), (0, 2).
    fn parts() -> Parts {
        Parts {
            weight: vec![3.0, 0.0, -1.0, 2.0, 0.0, 2.0],
            inp: 2,
            factors: Some([vec![0.0, 2.0, 1.0, -2.0], vec![2.0, 0.0, 0.0, 1.0, 0.0, 0.0]]),
            ..Parts::default()
        }
    }

    #[test]
    fn factors_are_added_rows_are_set_to_their_magnitudes_and_scaled() {
        assert_eq!(merged(parts()), [3.0, 4.0, 0.0, 0.0, 0.0, 2.0]);
        let dora = Parts { magnitudes: Some(vec![10.0, 7.0, 1.0]), ..parts() };
        assert_eq!(merged(dora), [6.0, 8.0, 0.0, 0.0, 0.0, 1.0]);
        let scaled = Parts { magnitudes: Some(vec![10.0, 7.0, 1.0]), scale: Some(vec![0.5, 1.0, -3.0]), ..parts() };
        assert_eq!(merged(scaled), [3.0, 4.0, 0.0, 0.0, 0.0, -3.0]);
        let plain = Parts { factors: None, scale: Some(vec![1.0, 2.0, 1.0]), ..parts() };
        assert_eq!(merged(plain), [3.0, 0.0, -2.0, 4.0, 0.0, 2.0]);
    }
}
