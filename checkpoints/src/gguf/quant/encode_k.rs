//! Encoding into the "K" types, whose layouts are those of [`super::k_quants`].
//!
//! Every sum runs in f32 in the order of the values, as in ggml's reference rounding
//! (`quantize_row_*_ref` of <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>), so
//! that the bytes are the same. ggml takes that rounding where it has no importance matrix.

/// Values of a block.
pub(super) const BLOCK: usize = 256;
/// Largest scale and minimum of a sub-block of Q4_K and Q5_K, which have 6 bits.
const LARGEST_SCALE: f32 = 63.0;
/// A sub-block of Q6_K without a larger value is zeros.
const ZERO: f32 = 1e-15;

/// Nearest integer, of two the even one.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// Scales that are tried for a sub-block: `(first + step · i + largest) / range`.
#[derive(Clone, Copy)]
struct Search {
    first: f32,
    step: f32,
    last: u8,
}

/// Sub-block of 32 values `scale · q − minimum`.
struct Affine {
    scale: f32,
    minimum: f32,
    q: [u8; 32],
}

impl Affine {
    /// Fit with the least squared error, in which a value counts by its size.
    fn fit(x: &[f32; 32], largest: u8, search: Search) -> Self {
        let mean_square = x.iter().fold(0.0f32, |sum, x| sum + x * x) / 32.0;
        let weights = x.map(|x| mean_square.sqrt() + x.abs());
        let low = x.iter().fold(x[0], |low, x| if *x < low { *x } else { low }).min(0.0);
        let high = x.iter().fold(x[0], |high, x| if *x > high { *x } else { high });
        if high == low {
            return Self { scale: 0.0, minimum: -low, q: [0; 32] };
        }
        let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
        for (w, x) in weights.iter().zip(x).skip(1) {
            sum_w += w;
            sum_x += w * x;
        }
        let levels = f32::from(largest);
        let round = |inverse: f32, low: f32| x.map(|x| nearest(inverse * (x - low)).clamp(0, largest.into()) as u8);
        let error = |scale: f32, low: f32, q: &[u8; 32]| {
            weights.iter().zip(x).zip(q).fold(0.0f32, |sum, ((w, x), q)| {
                let difference = scale * f32::from(*q) + low - x;
                sum + w * (difference * difference)
            })
        };
        let inverse = levels / (high - low);
        let mut best = Self { scale: 1.0 / inverse, minimum: -low, q: round(inverse, low) };
        let mut least = error(best.scale, low, &best.q);
        for i in 0..=search.last {
            // Each trial begins at the minimum of the best one so far.
            let low = -best.minimum;
            let q = round((search.first + search.step * f32::from(i) + levels) / (high - low), low);
            let (mut sum_q, mut sum_qq, mut sum_qx) = (0.0f32, 0.0f32, 0.0f32);
            for ((w, x), q) in weights.iter().zip(x).zip(&q) {
                let wq = w * f32::from(*q);
                sum_q += wq;
                sum_qq += wq * f32::from(*q);
                sum_qx += wq * x;
            }
            let determinant = sum_w * sum_qq - sum_q * sum_q;
            if determinant <= 0.0 {
                continue;
            }
            let mut scale = (sum_w * sum_qx - sum_x * sum_q) / determinant;
            let mut offset = (sum_qq * sum_x - sum_q * sum_qx) / determinant;
            if offset > 0.0 {
                (scale, offset) = (sum_qx / sum_qq, 0.0);
            }
            let found = error(scale, offset, &q);
            if found < least {
                least = found;
                best = Self { scale, minimum: -offset, q };
            }
        }
        best
    }
}

/// Sub-blocks of a block of Q4_K or Q5_K with their scales and minima as they are stored.
struct Blocks {
    d: half::f16,
    dmin: half::f16,
    scales: [u8; 12],
    q: [[u8; 32]; 8],
}

impl Blocks {
    fn fit(x: &[f32; BLOCK], largest: u8, search: Search) -> Self {
        let (parts, _) = x.as_chunks::<32>();
        let fits: Vec<Affine> = parts.iter().map(|part| Affine::fit(part, largest, search)).collect();
        let most = |of: fn(&Affine) -> f32| fits.iter().map(of).fold(0.0f32, |most, x| if x > most { x } else { most });
        let (scale, minimum) = (most(|fit| fit.scale), most(|fit| fit.minimum));
        let inverse = |most: f32| if most > 0.0 { LARGEST_SCALE / most } else { 0.0 };
        let (of_scale, of_minimum) = (inverse(scale), inverse(minimum));
        let six_bits = |x: f32| (nearest(x) as u8).min(LARGEST_SCALE as u8);
        let mut blocks = Self {
            d: half::f16::from_f32(scale / LARGEST_SCALE),
            dmin: half::f16::from_f32(minimum / LARGEST_SCALE),
            scales: [0; 12],
            q: [[0; 32]; 8],
        };
        for (i, (fit, part)) in fits.iter().zip(parts).enumerate() {
            let (scale, minimum) = (six_bits(of_scale * fit.scale), six_bits(of_minimum * fit.minimum));
            if i < 4 {
                blocks.scales[i] = scale;
                blocks.scales[i + 4] = minimum;
            } else {
                blocks.scales[i + 4] = (scale & 0x0f) | ((minimum & 0x0f) << 4);
                blocks.scales[i - 4] |= (scale >> 4) << 6;
                blocks.scales[i] |= (minimum >> 4) << 6;
            }
            let (d, dm) = (blocks.d.to_f32() * f32::from(scale), blocks.dmin.to_f32() * f32::from(minimum));
            blocks.q[i] = match d == 0.0 {
                true => fit.q,
                false => part.map(|x| nearest((x + dm) / d).clamp(0, largest.into()) as u8),
            };
        }
        blocks
    }

    fn head(&self, bytes: &mut [u8]) {
        bytes[..2].copy_from_slice(&self.d.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.dmin.to_le_bytes());
        bytes[4..16].copy_from_slice(&self.scales);
    }

    /// Low four bits of every value.
    fn nibbles(&self, bytes: &mut [u8]) {
        for (bytes, pair) in bytes.chunks_exact_mut(32).zip(self.q.chunks_exact(2)) {
            for (byte, (low, high)) in bytes.iter_mut().zip(pair[0].iter().zip(&pair[1])) {
                *byte = (low & 0x0f) | ((high & 0x0f) << 4);
            }
        }
    }
}

pub(super) fn q4_k(x: &[f32; BLOCK], bytes: &mut [u8; 144]) {
    let blocks = Blocks::fit(x, 15, Search { first: -1.0, step: 0.1, last: 20 });
    blocks.head(bytes);
    blocks.nibbles(&mut bytes[16..]);
}

pub(super) fn q5_k(x: &[f32; BLOCK], bytes: &mut [u8; 176]) {
    let blocks = Blocks::fit(x, 31, Search { first: -0.5, step: 0.1, last: 15 });
    blocks.head(bytes);
    for (j, byte) in bytes[16..48].iter_mut().enumerate() {
        *byte = blocks.q.iter().enumerate().fold(0, |bits, (i, q)| bits | ((q[j] >> 4) << i));
    }
    blocks.nibbles(&mut bytes[48..]);
}

/// Sub-block of 16 values `scale · (q − 32)`: the scale, and `q`.
fn symmetric(x: &[f32; 16]) -> (f32, [u8; 16]) {
    let largest = x.iter().fold(0.0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    if largest.abs() < ZERO {
        return (0.0, [0; 16]);
    }
    // Sums of `x²·x·q` and `x²·q·q`.
    let round = |inverse: f32| x.map(|x| nearest(inverse * x).clamp(-32, 31));
    let sums = |q: &[i32; 16]| {
        x.iter().zip(q).fold((0.0f32, 0.0f32), |(qx, qq), (x, q)| {
            let (w, q) = (x * x, *q as f32);
            (qx + w * x * q, qq + w * q * q)
        })
    };
    let mut best = round(-32.0 / largest);
    let (qx, qq) = sums(&best);
    let mut scale = if qq == 0.0 { 0.0 } else { qx / qq };
    let mut gain = scale * qx;
    for i in (-9..=9i8).filter(|i| *i != 0) {
        let q = round(-(32.0 + 0.1 * f32::from(i)) / largest);
        let (qx, qq) = sums(&q);
        if qq > 0.0 && qx * qx > gain * qq {
            (best, scale) = (q, qx / qq);
            gain = scale * qx;
        }
    }
    (scale, best.map(|q| (q + 32) as u8))
}

pub(super) fn q6_k(x: &[f32; BLOCK], bytes: &mut [u8; 210]) {
    let (parts, _) = x.as_chunks::<16>();
    let fits: Vec<(f32, [u8; 16])> = parts.iter().map(symmetric).collect();
    let largest = fits.iter().fold(0.0f32, |most, (scale, _)| if scale.abs() > most.abs() { *scale } else { most });
    *bytes = [0; 210];
    if largest.abs() < ZERO {
        return;
    }
    let inverse = -128.0 / largest;
    let d = half::f16::from_f32(1.0 / inverse);
    bytes[208..].copy_from_slice(&d.to_le_bytes());
    let mut q = [0; BLOCK];
    for (i, ((scale, fit), part)) in fits.iter().zip(parts).enumerate() {
        let scale = nearest(inverse * scale).min(127) as i8;
        bytes[192 + i] = scale.cast_unsigned();
        let d = d.to_f32() * f32::from(scale);
        let found = match d == 0.0 {
            true => *fit,
            false => part.map(|x| (nearest(x / d).clamp(-32, 31) + 32) as u8),
        };
        q[16 * i..16 * (i + 1)].copy_from_slice(&found);
    }
    for (run, q) in q.chunks_exact(32).enumerate() {
        let (in_half, k) = (run / 4, run % 4);
        for (j, q) in q.iter().enumerate() {
            bytes[64 * in_half + 32 * (k % 2) + j] |= (q & 0x0f) << (4 * (k / 2));
            bytes[128 + 32 * in_half + j] |= (q >> 4) << (2 * k);
        }
    }
}
