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

    /// Cosines and sines at `positions`.
    #[must_use]
    pub fn angles(&self, positions: &[usize], device: &Device) -> RopeAngles {
        let angles = positions.iter().flat_map(|position| self.0.iter().map(move |f| f64::from(*position as f32 * f)));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
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
            if wavelength < context / high {
                frequency
            } else if wavelength > context / low {
                frequency / factor as f32
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
            }
        }
    }
}
