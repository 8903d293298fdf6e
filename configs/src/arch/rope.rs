//! Rotary position embedding (RoPE). Both spellings are read: `rope_theta` + `rope_scaling` (before
//! transformers 5) and `rope_parameters` (since). Where they disagree, the one counts that counts
//! in transformers 5 (`RotaryEmbeddingConfigMixin` of
//! <https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py>).

use crate::{ConfigError, keys::Keys};
use serde_json::Value;

const OLD: &str = "rope_scaling";
const NEW: &str = "rope_parameters";
const THETA: &str = "rope_theta";
const PARTIAL: &str = "partial_rotary_factor";
const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";

/// Keys of an object of parameters. Others change nothing for the supported types.
const KEYS: [&str; 8] =
    ["rope_type", "type", THETA, PARTIAL, "factor", "low_freq_factor", "high_freq_factor", ORIGINAL_CONTEXT];
/// Keys of the objects of families that have a rotary embedding for each kind of layer.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

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
pub(super) fn read(keys: &Keys<'_>, head_dim: usize) -> Result<Rope, ConfigError> {
    let parameters = parameters(keys)?;
    refuse_partial([Some(*keys), parameters])?;
    of_parameters(keys, parameters, keys.number(THETA)?, head_dim)
}

/// Refuses a part of the head in a family that rotates whole heads.
pub(super) fn refuse_partial<'a>(objects: impl IntoIterator<Item = Option<Keys<'a>>>) -> Result<(), ConfigError> {
    for keys in objects.into_iter().flatten() {
        if let Some(factor) = keys.optional_number(PARTIAL)?.filter(|factor| *factor != 1.0) {
            return Err(keys.unsupported(PARTIAL, &factor.into(), "this family rotates whole heads"));
        }
    }
    Ok(())
}

/// The object of parameters of a model that has one rotary embedding: `rope_scaling` if it holds
/// anything, else `rope_parameters`.
pub(super) fn parameters<'a>(keys: &Keys<'a>) -> Result<Option<Keys<'a>>, ConfigError> {
    let found = match keys.object(OLD)?.filter(|parameters| !parameters.map.is_empty()) {
        Some(parameters) => Some(parameters),
        None => keys.object(NEW)?,
    };
    let kind = found.and_then(|parameters| KINDS.into_iter().find_map(|kind| Some((kind, parameters.present(kind)?))));
    match kind {
        Some((kind, value)) => {
            Err(keys.unsupported(kind, value, "this family has one rotary embedding for all layers"))
        }
        None => Ok(found),
    }
}

/// Rotary embedding from an object of parameters in the file `file`; `default_theta` is its base
/// where the object names none.
pub(super) fn of_parameters(
    file: &Keys<'_>,
    parameters: Option<Keys<'_>>,
    default_theta: f64,
    rotary_dim: usize,
) -> Result<Rope, ConfigError> {
    let Some(keys) = parameters else {
        return Ok(Rope { theta: default_theta, scaling: RopeScaling::Default, rotary_dim });
    };
    let theta = keys.optional_number(THETA)?.unwrap_or(default_theta);
    let kind = keys.present("rope_type").or_else(|| keys.present("type"));
    let scaling = match kind.map(|kind| (kind, kind.as_str())) {
        None | Some((_, Some("default"))) => RopeScaling::Default,
        Some((_, Some("linear"))) => RopeScaling::Linear { factor: keys.number("factor")? },
        Some((_, Some("llama3"))) => RopeScaling::Llama3 {
            factor: keys.number("factor")?,
            low_freq_factor: keys.number("low_freq_factor")?,
            high_freq_factor: keys.number("high_freq_factor")?,
            original_max_position_embeddings: match (
                file.optional_number(ORIGINAL_CONTEXT)?,
                keys.optional_number(ORIGINAL_CONTEXT)?,
            ) {
                (Some(original), _) | (None, Some(original)) => original,
                (None, None) => file.number("max_position_embeddings")?,
            },
        },
        Some((found, _)) => {
            return Err(keys.unsupported("rope_type", found, "supported: `default`, `linear`, `llama3`"));
        }
    };
    Ok(Rope { theta, scaling, rotary_dim })
}

/// What a reader should be told of the rotary keys of `file`; `by_kind` says whether its family has
/// a rotary embedding for each kind of layer.
pub(super) fn remarks(file: &Keys<'_>, by_kind: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    let object = |key| file.object(key).ok().flatten().filter(|object| !object.map.is_empty());
    let (old, new) = (object(OLD), object(NEW));
    if let (Some(old), Some(new), false) = (old, new, by_kind) {
        let theta = match (new.present(THETA), old.present(THETA).or(file.present(THETA))) {
            (Some(theta), None) if file.number(THETA).ok() != theta.as_f64() => {
                format!(", and `{THETA}: {theta}` of `{NEW}` is ignored with it")
            }
            _ => String::new(),
        };
        remarks.push(format!("`{OLD}` stands beside `{NEW}`: `{OLD}` counts, as in transformers 5{theta}"));
    }
    let counts = old.or(new).filter(|_| !by_kind);
    if let Some((inner, outer)) = counts.and_then(|object| Some((object.present(THETA)?, file.present(THETA)?)))
        && inner.as_f64() != outer.as_f64()
    {
        let name = if old.is_some() { OLD } else { NEW };
        remarks.push(format!("`{THETA}` is `{outer}`, and `{inner}` in `{name}`, which counts, as in transformers 5"));
    }
    if let (true, Some(kind), None) =
        (by_kind, old.and_then(|old| old.present("type")), old.and_then(|old| old.present("rope_type")))
    {
        remarks
            .push(format!("`type: {kind}` in `{OLD}` is ignored, as in transformers 5: the key is `rope_type` here"));
    }
    if let Some((name, object)) = counts.map(|object| (if old.is_some() { OLD } else { NEW }, object)) {
        let kind = object.present("rope_type").or_else(|| object.present("type"));
        if let (None | Some("default"), true) =
            (kind.map(|kind| kind.as_str().unwrap_or("")), object.present("factor").is_some())
        {
            let stated = if kind.is_none() { "names no `rope_type`" } else { "has `rope_type: default`" };
            remarks.push(format!("`factor` in `{name}` is ignored: the object {stated}, as in transformers 5"));
        }
        if let (Some(counts), Some(other)) = (object.present("rope_type"), object.present("type"))
            && counts != other
        {
            remarks.push(format!(
                "`type: {other}` in `{name}` is ignored beside `rope_type: {counts}`, as in transformers 5"
            ));
        }
    }
    let objects = [(OLD, old), (NEW, new)].into_iter().filter_map(|(name, object)| Some((name, object?)));
    for (name, object) in objects {
        let known: &[&str] = if by_kind && name == NEW { &KINDS } else { &KEYS };
        for (key, _) in object.map.iter().filter(|(key, value)| !value.is_null() && !known.contains(&key.as_str())) {
            remarks.push(format!("`{key}` in `{name}` is ignored"));
        }
    }
    remarks
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
