//! Llama 3.1's rotary scaling, which GGUF stores as a tensor of divisors, one for each of the
//! `H / 2` frequencies.
//!
//! Source: `_compute_llama3_parameters` of transformers ([`modeling_rope_utils.py`][source]): a
//! frequency `f` with wavelength `w = 2π / f` is kept where `w < L / high`, divided by `factor`
//! where `w > L / low`, and becomes `(1 − s)·f / factor + s·f` between, with
//! `s = (L / w − low) / (high − low)`; `L` is the context of the pretraining.
//!
//! [source]:
//! https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py

use super::GgufError;
use serde_json::{Value, json};
use std::f64::consts::TAU;

/// Parameters of every Llama 3.1, 3.2 and 3.3; only `factor` differs (8 or 32).
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL_CONTEXT: f64 = 8192.0;

/// Tolerance for factors computed in f32 from f32 frequencies: a few units in the last place,
/// enlarged by the ramp.
const RELATIVE_TOLERANCE: f64 = 1e-4;

fn divisor(frequency: f64, factor: f64) -> f64 {
    let wavelength = TAU / frequency;
    if wavelength < ORIGINAL_CONTEXT / HIGH {
        1.0
    } else if wavelength > ORIGINAL_CONTEXT / LOW {
        factor
    } else {
        let s = (ORIGINAL_CONTEXT / wavelength - LOW) / (HIGH - LOW);
        1.0 / ((1.0 - s) / factor + s)
    }
}

fn divisors(factor: f64, theta: f64, head_dim: usize) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| divisor(theta.powf(-2.0 * i as f64 / head_dim as f64), factor))
}

/// Divisors of a Llama 3.1 whose low frequencies are divided by `factor`, `[H / 2]`.
pub(super) fn of_llama3(factor: f64, theta: f64, head_dim: usize) -> Vec<f32> {
    divisors(factor, theta, head_dim).map(|divisor| divisor as f32).collect()
}

/// `rope_scaling` object whose divisors are `found`; `null` if they are all 1.
pub(super) fn llama3(found: &[f32], theta: f64, head_dim: usize) -> Result<Value, GgufError> {
    let factor = found.iter().copied().fold(1.0, f32::max);
    let same = |(found, expected): (&f32, f64)| (f64::from(*found) / expected - 1.0).abs() < RELATIVE_TOLERANCE;
    let factor = f64::from(factor);
    if found.len() != head_dim / 2 || !found.iter().zip(divisors(factor, theta, head_dim)).all(same) {
        return Err(GgufError::RopeFactors);
    }
    if factor == 1.0 {
        return Ok(Value::Null);
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": ORIGINAL_CONTEXT as u64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers 5.23: `inv_freq_default / ROPE_INIT_FUNCTIONS["llama3"](config)[0]` for
    /// head_dim 64, rope_theta 5e5, factor 32, low 1, high 4, original context 8192 (Llama 3.2 1B).
    const LLAMA_3_2_1B: [f32; 32] = [
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.651_329_2,
        3.292_262_6,
        9.666_73,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
        32.0,
    ];

    #[test]
    fn the_factors_of_llama_3_2_are_recognised() {
        let scaling = llama3(&LLAMA_3_2_1B, 500_000.0, 64).unwrap();
        assert_eq!((&scaling["rope_type"], &scaling["factor"]), (&json!("llama3"), &json!(32.0)));
        assert_eq!(scaling["original_max_position_embeddings"], json!(8192));
        let made = of_llama3(32.0, 500_000.0, 64);
        assert!(made.iter().zip(&LLAMA_3_2_1B).all(|(made, found)| (made / found - 1.0).abs() < 1e-5), "{made:?}");
    }

    #[test]
    fn factors_of_one_are_no_scaling_and_others_are_refused() {
        assert_eq!(llama3(&[1.0; 32], 500_000.0, 64).unwrap(), Value::Null);
        let mut factors = LLAMA_3_2_1B;
        factors[17] *= 1.01;
        assert!(llama3(&factors, 500_000.0, 64).is_err());
        assert!(llama3(&LLAMA_3_2_1B, 10_000.0, 64).is_err());
        assert!(llama3(&LLAMA_3_2_1B[1..], 500_000.0, 64).is_err());
        assert!(llama3(&[f32::NAN; 32], 500_000.0, 64).is_err());
    }
}
