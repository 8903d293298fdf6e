//! Rotary position embedding (RoPE). Both spellings are read: `rope_theta` + `rope_scaling` (before
//! transformers 5) and `rope_parameters` (since).

use crate::{ConfigError, keys::Keys};
use serde_json::Value;

/// `rope_theta` where the key is absent.
pub(super) const DEFAULT_THETA: f64 = 10_000.0;

/// Rotary embedding of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling of the frequencies for long contexts.
    pub scaling: RopeScaling,
    /// Leading elements of a head that are rotated; an even number.
    pub rotary_dim: usize,
}

/// Scaling of the rotary frequencies for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, interpolated between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the pretraining, in tokens.
        original_max_position_embeddings: f64,
    },
}

/// Rotary embedding of a model that has one for all depths, over whole heads.
pub(super) fn read(keys: &Keys<'_>, default_theta: f64, head_dim: usize) -> Result<Rope, ConfigError> {
    let theta = keys.optional_number("rope_theta")?.unwrap_or(default_theta);
    let parameters = match keys.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => keys.object("rope_scaling")?,
    };
    of_parameters(parameters, theta, head_dim)
}

/// Rotary embedding from an object of parameters (`rope_scaling` or `rope_parameters`).
pub(super) fn of_parameters(
    parameters: Option<Keys<'_>>,
    default_theta: f64,
    rotary_dim: usize,
) -> Result<Rope, ConfigError> {
    let Some(keys) = parameters else {
        return Ok(Rope { theta: default_theta, scaling: RopeScaling::Default, rotary_dim });
    };
    let theta = keys.optional_number("rope_theta")?.unwrap_or(default_theta);
    let kind = keys.present("rope_type").or_else(|| keys.present("type"));
    let scaling = match kind.map(|kind| (kind, kind.as_str())) {
        None | Some((_, Some("default"))) => RopeScaling::Default,
        Some((_, Some("linear"))) => RopeScaling::Linear { factor: keys.number("factor")? },
        Some((_, Some("llama3"))) => RopeScaling::Llama3 {
            factor: keys.number("factor")?,
            low_freq_factor: keys.number("low_freq_factor")?,
            high_freq_factor: keys.number("high_freq_factor")?,
            original_max_position_embeddings: keys.number("original_max_position_embeddings")?,
        },
        Some((found, _)) => {
            return Err(keys.unsupported("rope_type", found, "supported: `default`, `linear`, `llama3`"));
        }
    };
    Ok(Rope { theta, scaling, rotary_dim })
}

/// Rotated elements of a head under partial RoPE: `head_dim × factor`, which has to be an even
/// number.
pub(super) fn partial(keys: &Keys<'_>, key: &'static str, factor: f64, head_dim: usize) -> Result<usize, ConfigError> {
    let rotary_dim = (head_dim as f64 * factor) as usize;
    match rotary_dim.is_multiple_of(2) && (1..=head_dim).contains(&rotary_dim) {
        true => Ok(rotary_dim),
        false => {
            let expected = format!("a part of head_dim = {head_dim} that is an even number");
            Err(keys.bad(key, &Value::from(factor), &expected))
        }
    }
}
