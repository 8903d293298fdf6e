//! Measured limits of the CPU, with all threads that the kernels use.

use super::simd::{sum, vectorised};
use crate::kernels::Ceilings;
use rayon::prelude::*;
use std::{hint::black_box, time::Instant};

/// Measures the limits, for about a second.
#[must_use]
pub fn ceilings() -> Ceilings {
    Ceilings { flops_per_second: multiply_adds::<8>().max(multiply_adds::<16>()), bytes_per_second: reads() }
}

/// Best of eight tries.
fn best(mut rate: impl FnMut() -> f64) -> f64 {
    (0..8).map(|_| rate()).fold(0.0, f64::max)
}

/// Independent accumulators. They fill the registers of AVX2 or AVX-512 and hide the latency of an
/// addition.
const SUMS: usize = 10;

fn multiply_adds<const LANES: usize>() -> f64 {
    const ROUNDS: usize = 1 << 20;
    best(|| {
        let start = Instant::now();
        rayon::broadcast(|_| {
            vectorised(
                #[inline(always)]
                || {
                    let (factor, term) = ([black_box(0.999f32); LANES], [black_box(1e-3f32); LANES]);
                    let mut sums = [[1.0f32; LANES]; SUMS];
                    for _ in 0..ROUNDS {
                        for sum in &mut sums {
                            for i in 0..LANES {
                                sum[i] = sum[i].mul_add(factor[i], term[i]);
                            }
                        }
                    }
                    black_box(sums);
                },
            );
        });
        let flops = 2 * ROUNDS * SUMS * LANES * rayon::current_num_threads();
        flops as f64 / start.elapsed().as_secs_f64()
    })
}

fn reads() -> f64 {
    /// 256 MiB: larger than any cache.
    const LEN: usize = 1 << 26;
    const CHUNK: usize = 1 << 14;
    let values = vec![1.0f32; LEN];
    best(|| {
        let start = Instant::now();
        let total: f32 = values
            .par_chunks(CHUNK)
            .map(|chunk| {
                vectorised(
                    #[inline(always)]
                    || sum(chunk),
                )
            })
            .sum();
        black_box(total);
        (LEN * 4) as f64 / start.elapsed().as_secs_f64()
    })
}
