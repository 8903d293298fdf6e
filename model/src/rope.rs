//! Angles of the rotary embedding, with the scalings of Hugging Face's `modeling_rope_utils`.
//!
//! Angles are f32 products, as in the reference: an f64 angle at position 8192 would differ by
//! 5e-4.

use burn::tensor::{Device, Tensor, TensorData};
use retie_config::{ModelConfig, Rope, RopeScaling};

/// Frequencies of the `R/2` rotated pairs of channels, in radians per token.
#[derive(Clone, Debug)]
pub struct RopeFrequencies(Vec<f32>);

/// Cosines and sines of the angles of `T` positions, `[T, R/2]` each.
#[derive(Clone, Debug)]
pub struct RopeAngles {
    pub cos: Tensor<2>,
    pub sin: Tensor<2>,
}

impl RopeFrequencies {
    /// Frequencies of one rotary embedding.
    #[must_use]
    pub fn new(rope: &Rope) -> Self {
        let Rope { theta, scaling, rotary_dim } = *rope;
        let base = theta as f32;
        let plain = (0..rotary_dim / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / rotary_dim as f32));
        Self(plain.map(|frequency| scaled(frequency, scaling)).collect())
    }

    /// Frequencies of every rotary embedding of a model.
    #[must_use]
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        config.anatomy.ropes.iter().map(Self::new).collect()
    }

    /// Number of channels that are rotated, `R`.
    pub(crate) fn rotary_dim(&self) -> usize {
        2 * self.0.len()
    }

    /// Cosines and sines at `positions`, `[T, R/2]`, on the host.
    pub(crate) fn values(&self, positions: &[usize]) -> [Vec<f32>; 2] {
        let angles = positions.iter().flat_map(|position| self.0.iter().map(move |f| f64::from(*position as f32 * f)));
        let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        [cos, sin]
    }

    /// Cosines and sines at `positions`.
    #[must_use]
    pub fn angles(&self, positions: &[usize], device: &Device) -> RopeAngles {
        let [cos, sin] = self.values(positions);
        let tensor = |values| Tensor::from_data(TensorData::new(values, [positions.len(), self.0.len()]), device);
        RopeAngles { cos: tensor(cos), sin: tensor(sin) }
    }
}

fn scaled(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let wavelength = 2.0 * std::f32::consts::PI / frequency;
            let context = original_max_position_embeddings as f32;
            let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
            // The order of `transformers`, which counts where the two limits are swapped.
            if wavelength > context / low {
                frequency / factor as f32
            } else if wavelength < context / high {
                frequency
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_of_llama3_are_those_of_transformers_where_its_limits_are_swapped() {
        // `ROPE_INIT_FUNCTIONS["llama3"]` of transformers 5.24, base 10,000, heads of 16.
        let of = |low_freq_factor, high_freq_factor| -> Vec<f32> {
            let scaling = RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: 64.0,
            };
            RopeFrequencies::new(&Rope { theta: 10_000.0, scaling, rotary_dim: 16 }).0
        };
        let slow = [0.003_952_847_3, 0.00125, 0.000_395_284_73, 0.000_125, 3.952_847_3e-5];
        for (low, high, fast) in
            [(1.0, 4.0, [1.0, 0.244_384_59, 0.013_042_256]), (4.0, 1.0, [1.0, 0.039_528_47, 0.0125])]
        {
            for (found, expected) in of(low, high).into_iter().zip(fast.into_iter().chain(slow)) {
                // One rounding of f32 in another order.
                assert!((found - expected).abs() <= 2e-7 * expected, "{low} {high}: {found}, expected {expected}");
            }
        }
    }
}
