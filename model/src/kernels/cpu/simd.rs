//! Loops over slices that compile to vector code, with the widest instructions of the processor,
//! chosen at run time.
//!
//! Sums run over 16 lanes that are folded in a fixed order, so that a result does not depend on the
//! number of threads.

/// Runs `f` with the best vector instructions of this processor. `f` and its callees must be
/// `#[inline(always)]`.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Call<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Call(f))
}

/// Number of parallel accumulators.
pub const LANES: usize = 16;

/// `exp(x)` to about 2 ulp, without branches; 0 below -87.3 and clamped above 88.3.
///
/// Cody–Waite reduction by ln 2 and a polynomial of degree 7 (coefficients of Cephes `expf`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const ROUND: f32 = 12_582_912.0; // 1.5 × 2²³: adding and subtracting it rounds to an integer
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_40e-4;
    let x = x.clamp(-87.3, 88.3);
    let n = (x * LOG2_E + ROUND) - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_150_0e-4;
    let p = p * r + 1.398_199_950_7e-3;
    let p = p * r + 8.333_451_907_3e-3;
    let p = p * r + 4.166_579_589_4e-2;
    let p = p * r + 1.666_666_545_9e-1;
    let p = p * r + 5.000_000_120_1e-1;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits((((n as i32) + 127) << 23) as u32)
}

/// `ln(x)` of a positive normal number to about 2 ulp, without branches (Cephes `logf`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn ln(x: f32) -> f32 {
    const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_40e-4;
    let bits = x.to_bits();
    // x = m·2ⁿ with m in [½, 1), then in [√½, √2).
    let m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let n = ((bits >> 23) as i32 - 126) as f32;
    let small = m < SQRT_HALF;
    let n = if small { n - 1.0 } else { n };
    let r = if small { m + m - 1.0 } else { m - 1.0 };
    let p = 7.037_683_629_2e-2;
    let p = p * r - 1.151_461_031_0e-1;
    let p = p * r + 1.167_699_874_0e-1;
    let p = p * r - 1.242_014_084_6e-1;
    let p = p * r + 1.424_932_278_7e-1;
    let p = p * r - 1.666_805_766_5e-1;
    let p = p * r + 2.000_071_476_5e-1;
    let p = p * r - 2.499_999_399_3e-1;
    let p = p * r + 3.333_333_117_4e-1;
    let square = r * r;
    r + (p * square * r + n * LN2_LOW - 0.5 * square) + n * LN2_HIGH
}

/// Error function to about 3 ulp, without branches.
///
/// A rational function of degrees 13 and 8 on [-4, 4], beyond which f32 has no other value than ±1
/// (coefficients of Eigen's `erf`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let p = -2.726_142_258_013_06e-10;
    let p = p * square + 2.770_681_424_959_02e-8;
    let p = p * square - 2.101_024_020_825_08e-6;
    let p = p * square - 5.692_506_394_623_46e-5;
    let p = p * square - 7.349_906_303_268_55e-4;
    let p = p * square - 2.954_599_808_540_25e-3;
    let p = p * square - 1.609_603_332_624_15e-2;
    let q = -1.456_607_184_649_96e-5;
    let q = q * square - 2.133_740_552_789_05e-4;
    let q = q * square - 1.682_826_974_382_03e-3;
    let q = q * square - 7.373_329_167_204_68e-3;
    let q = q * square - 1.426_473_905_141_89e-2;
    x * p / q
}

/// Sine and cosine of `x`, within 1.5e-7 for |x| up to 2²⁰ and 4e-7 up to 2³⁰, without branches;
/// larger numbers count as ±2³⁰.
///
/// Reduction by π/2 in f64 and polynomials of degree 7 and 8 (coefficients of Cephes `sinf`,
/// `cosf`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn sin_cos(x: f32) -> (f32, f32) {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 × 2⁵²
    const LOW: f64 = 6.123_233_995_736_766e-17; // of π/2
    const LARGEST: f32 = 1_073_741_824.0;
    let wide = f64::from(x.clamp(-LARGEST, LARGEST));
    let shifted = wide * std::f64::consts::FRAC_2_PI + ROUND;
    let quadrant = shifted.to_bits() as u32;
    let turns = shifted - ROUND;
    let r = (wide - turns * std::f64::consts::FRAC_PI_2 - turns * LOW) as f32;
    let square = r * r;
    let p = -1.951_529_589_1e-4 * square + 8.332_160_873_6e-3;
    let p = p * square - 1.666_665_461_1e-1;
    let sine = p * square * r + r;
    let q = 2.443_315_711_8e-5 * square - 1.388_731_625_5e-3;
    let q = q * square + 4.166_664_568_3e-2;
    let cosine = q * square * square - 0.5 * square + 1.0;
    let swapped = quadrant & 1 == 1;
    let (s, c) = if swapped { (cosine, sine) } else { (sine, cosine) };
    let turned = |value: f32, sign: u32| f32::from_bits(value.to_bits() ^ ((sign & 2) << 30));
    (turned(s, quadrant), turned(c, quadrant.wrapping_add(1)))
}

/// Soft cap: `x ← c·tanh(x·scale/c)`.
#[inline(always)]
pub fn cap(x: &mut [f32], scale: f32, limit: f32) {
    // tanh(x) = 2·σ(2x) − 1
    let factor = 2.0 * scale / limit;
    for x in x {
        *x = limit * (2.0 / (1.0 + exp(-*x * factor)) - 1.0);
    }
}

/// Derivatives of a soft cap with respect to `x·scale`, from its values: `1 − tanh²`.
#[inline(always)]
pub fn slopes(capped: &[f32], limit: f32) -> impl Iterator<Item = f32> {
    capped.iter().map(move |x| 1.0 - (x / limit) * (x / limit))
}

/// Element type that widens to f32 without loss.
pub trait Scalar: Copy + Send + Sync {
    /// The number in f32.
    fn widen(self) -> f32;

    /// The numbers in f32: `values` itself, or `wide`, which has as many elements.
    fn as_f32s<'a>(values: &'a [Self], wide: &'a mut [f32]) -> &'a [f32];
}

impl Scalar for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn as_f32s<'a>(values: &'a [Self], _wide: &'a mut [f32]) -> &'a [f32] {
        values
    }
}

impl Scalar for half::bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        // The upper half of an f32, spelled out: a call of `to_f32` would not become vector code.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn as_f32s<'a>(values: &'a [Self], wide: &'a mut [f32]) -> &'a [f32] {
        for (wide, value) in wide.iter_mut().zip(values) {
            *wide = value.widen();
        }
        wide
    }
}

/// Sum of the lanes, added pairwise; their number is a power of two.
#[inline(always)]
pub fn fold<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

// The loops below take whole lanes as arrays instead of indexing slices: a loop with a bounds check
// does not become vector code.

/// Σ f(x).
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += f(x[i]);
        }
    }
    rest.iter().fold(fold(lanes), |total, x| total + f(*x))
}

/// Σ f(x, y) over two slices of equal length.
#[inline(always)]
pub fn sum_of_pairs(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y[..x.len()].as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    x_rest.iter().zip(y_rest).fold(fold(lanes), |total, (x, y)| total + f(*x, *y))
}

/// Σ x.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    sum_of(x, |x| x)
}

/// Σ x·y over four times as many lanes: with fewer, the latency of an addition limits the speed,
/// even if `y` is read from memory.
#[inline(always)]
pub fn dot<T: Scalar>(x: &[f32], y: &[T]) -> f32 {
    const WIDE: usize = 4 * LANES;
    let mut lanes = [0.0f32; WIDE];
    let (xs, x_rest) = x.as_chunks::<WIDE>();
    let (ys, y_rest) = y[..x.len()].as_chunks::<WIDE>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..WIDE {
            lanes[i] += x[i] * y[i].widen();
        }
    }
    x_rest.iter().zip(y_rest).fold(fold(lanes), |total, (x, y)| total + x * y.widen())
}

/// Σ x·y·z.
#[inline(always)]
pub fn dot3(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y[..x.len()].as_chunks::<LANES>();
    let (zs, z_rest) = z[..x.len()].as_chunks::<LANES>();
    for ((x, y), z) in xs.iter().zip(ys).zip(zs) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i] * z[i];
        }
    }
    x_rest.iter().zip(y_rest).zip(z_rest).fold(fold(lanes), |total, ((x, y), z)| total + x * y * z)
}

/// Largest element; −∞ for an empty slice.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (best, value) in lanes.iter_mut().zip(chunk) {
            *best = if *value > *best { *value } else { *best };
        }
    }
    let mut best = f32::NEG_INFINITY;
    for value in lanes.iter().chain(rest) {
        best = best.max(*value);
    }
    best
}

/// `x ← exp(scale·x − shift)`; returns the sum.
#[inline(always)]
pub fn exp_in_place(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    for value in x.iter_mut() {
        *value = exp(*value * scale - shift);
    }
    sum(x)
}

/// Σ exp(scale·x − shift), without writing.
#[inline(always)]
pub fn sum_exp(x: &[f32], scale: f32, shift: f32) -> f32 {
    sum_of(x, |x| exp(x * scale - shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_vanishes_far_below_zero() {
        for i in -8700..8830 {
            let x = i as f32 * 0.01;
            let expected = f64::from(x).exp();
            let error = (f64::from(vectorised(|| exp(x))) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): relative error {error}");
        }
        assert!(exp(-1e30) < 2e-38);
    }

    #[test]
    fn ln_is_within_two_ulp() {
        for i in -8700..8800 {
            let x = (f64::from(i) * 0.01).exp() as f32;
            let expected = f64::from(x).ln();
            let error = (f64::from(vectorised(|| ln(x))) - expected).abs();
            assert!(error <= 2.0 * f64::from(f32::EPSILON) * expected.abs(), "ln({x}): error {error}");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn erf_is_within_three_ulp() {
        /// Power series about 0, which sums in f64 to 1e-10 up to 4.
        fn expected(x: f64) -> f64 {
            let (mut sum, mut term) = (x, x);
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        }
        for i in -4000..=4000 {
            let x = i as f32 * 1e-3;
            let expected = expected(f64::from(x));
            let error = (f64::from(vectorised(|| erf(x))) - expected).abs();
            assert!(error <= 3.0 * f64::from(f32::EPSILON) * expected.abs() + 1e-9, "erf({x}): {error}");
        }
        assert_eq!([erf(9.0), erf(f32::NEG_INFINITY)].map(|x| (x.abs() - 1.0).abs() < 2e-7), [true; 2]);
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn sine_and_cosine_are_within_their_bounds() {
        let check = |x: f32, bound: f64| {
            let (sine, cosine) = vectorised(|| sin_cos(x));
            let (expected_sine, expected_cosine) = f64::from(x).sin_cos();
            let error = (f64::from(sine) - expected_sine).abs().max((f64::from(cosine) - expected_cosine).abs());
            assert!(error <= bound, "{x}: {error}");
        };
        for i in -40_000..40_000 {
            check(i as f32 * 0.000_37, 1.5e-7);
            check(i as f32 * 26.2, 1.5e-7);
            check(i as f32 * 26_800.0, 4e-7);
        }
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
        assert!(sin_cos(f32::NAN).0.is_nan());
        assert!(sin_cos(f32::MAX).0.abs() <= 1.0 && sin_cos(f32::NEG_INFINITY).1.abs() <= 1.0);
    }

    #[test]
    fn sums_and_maxima_cover_the_tail() {
        let x: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(sum(&x), 666.0);
        assert_eq!(max(&x), 36.0);
        assert_eq!(dot(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
        assert_eq!(dot3(&x, &x, &[1.0; 37]), dot(&x, &x));
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
