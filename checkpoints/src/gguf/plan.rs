//! The GGUF file of a model: its metadata, and its tensors with their changes. The inverse of
//! [`super::config`] and [`super::file`], by the same tables.
//!
//! A recursive model is a `nanbeige`, whose stored layers run several times one after the other
//! (<https://github.com/ggml-org/llama.cpp/pull/25994>).
//!
//! The keys and tensors are those of llama.cpp's converter
//! (<https://github.com/ggml-org/llama.cpp/tree/master/conversion>). What they do not state is
//! found by reading the keys back: a model that is not the one that was written is refused.

use super::{
    GgufFileType, GgufType, GgufValue, config,
    family::{FAMILIES, Family, HeadKind},
    file_type::Matrix,
    metadata::Metadata,
    names,
    parse::{Header, RawTensor},
    permute, rope_factors,
    tokenizer_metadata::tokenizer_metadata,
    writer::{GgufWriter, TableEntry},
};
use crate::{CheckpointError, Dtype, TensorSource, narrow};
use retie_config::{ModelConfig, RopeScaling, TensorOwner, TensorRole, TensorSpec};
use std::path::Path;

/// Version of the quantised types, `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// Why a GGUF file cannot hold a model; every reason is a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no GGUF file holds the model: {}", reasons.join("; "))]
pub struct NotHeld {
    /// Every reason.
    pub reasons: Vec<String>,
}

/// Metadata and tensors of the file of a model.
pub struct GgufPlan {
    metadata: Vec<(String, GgufValue)>,
    tensors: Vec<Planned>,
    /// Stored layers.
    num_layers: usize,
    /// True if the embeddings are the head.
    is_tied: bool,
    /// Rotary factors of Llama 3.1.
    rope_freqs: Option<Vec<f32>>,
    /// Sentences about what a reader of the file does otherwise.
    notes: Vec<String>,
}

struct Planned {
    name: String,
    spec: TensorSpec,
    permuted_heads: Option<usize>,
    plus_one: bool,
}

impl GgufPlan {
    /// Plans the file of a plain model, or of one whose stored layers run in a loop, with the
    /// companion files `companions`; `name` becomes `general.name`.
    ///
    /// # Errors
    /// When llama.cpp has no architecture that computes the model, or its tokenizer is of another
    /// kind than those that are written; every reason is listed.
    pub fn new(config: &ModelConfig, companions: &[(String, Vec<u8>)], name: &str) -> Result<Self, NotHeld> {
        let model_type = config.architecture.model_type;
        let Some(family) = Family::for_model(config) else {
            let known: Vec<_> = FAMILIES.iter().map(|family| format!("`{}`", family.name)).collect();
            let reason = format!("`{model_type}` has no writer; those of {} are written", known.join(", "));
            return Err(NotHeld { reasons: vec![reason] });
        };
        let rope_freqs = rope_freqs(config);
        let mut metadata = model_metadata(config, family, name);
        let (tensors, mut reasons) = planned_tensors(config, family);
        let num_layers = config.share_map().num_layers();
        let is_tied = config.anatomy.tie_word_embeddings;
        let table: Vec<RawTensor> = tensors.iter().map(raw).chain(rope_freqs.as_deref().map(raw_rope_freqs)).collect();
        reasons.extend(unstated(config, family, &metadata, table, rope_freqs.as_deref()));
        let mut notes = Vec::new();
        match tokenizer_metadata(config, companions) {
            Ok(tokenizer) => {
                metadata.extend(tokenizer.metadata);
                notes.extend(tokenizer.note);
            }
            Err(reason) => reasons.push(reason),
        }
        if !reasons.is_empty() {
            return Err(NotHeld { reasons });
        }
        Ok(Self { metadata, tensors, num_layers, is_tied, rope_freqs, notes })
    }

    /// What a reader of the file does otherwise, a sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Writes the file with the values of `tensors`. Matrices have the types that llama.cpp gives
    /// them in a file of the type `kind`, or without it those that they have; where rows are not
    /// whole blocks the type is another one. Norms and biases are F32. Returns the numbers of
    /// tensors and of their bytes, and the matrices that have another type than asked for.
    ///
    /// # Errors
    /// When a tensor cannot be read, or the disk fails.
    pub fn write(
        &self,
        tensors: &dyn TensorSource,
        kind: Option<GgufFileType>,
        path: &Path,
        progress: &mut dyn FnMut(usize, usize, &str),
    ) -> Result<GgufContents, CheckpointError> {
        let mut contents = GgufContents::default();
        let mut kinds = Vec::with_capacity(self.tensors.len());
        for planned in &self.tensors {
            let own = planned.own_type(tensors)?;
            let Some(file) = kind.filter(|_| planned.is_matrix()) else {
                kinds.push(own);
                continue;
            };
            let matrix = self.matrix(planned);
            let found = file.of_matrix(matrix);
            // The type of a row that is whole blocks of any.
            let wanted = file.of_matrix(Matrix { row: 0, ..matrix });
            contents.instead.extend((found != wanted).then(|| (planned.name.clone(), found)));
            kinds.push(found);
        }
        let table = self.table(&kinds);
        contents.tensors = table.len();
        contents.bytes = table.iter().map(|entry| entry.num_bytes as u64).sum();
        let embedding = self.tensors.iter().zip(&kinds).find(|(planned, _)| planned.spec.role == TensorRole::Embedding);
        let own = embedding.map_or(GgufFileType::F32, |(_, kind)| GgufFileType::of(*kind));
        let file_type = kind.unwrap_or(own).id();
        let mut metadata = self.metadata.clone();
        metadata.push(("general.file_type".to_owned(), GgufValue::U32(file_type)));
        let mut writer = GgufWriter::create(path, &metadata, &table)?;
        if let Some(factors) = &self.rope_freqs {
            writer.write(names::ROPE_FREQS, &narrow(factors, Dtype::F32))?;
        }
        for (done, (planned, kind)) in self.tensors.iter().zip(kinds).enumerate() {
            writer.write(&planned.name, &planned.encode(tensors, kind)?)?;
            progress(done + 1, self.tensors.len(), &planned.name);
        }
        writer.finish()?;
        Ok(contents)
    }

    fn matrix(&self, planned: &Planned) -> Matrix {
        let layer = match planned.spec.owner {
            TensorOwner::Layer(layer) => layer.0,
            _ => 0,
        };
        let row = planned.spec.shape.last().copied().unwrap_or(1);
        Matrix { role: planned.spec.role, layer, num_layers: self.num_layers, is_head: self.is_tied, row }
    }

    /// Tensor table of a file whose tensors have the types `kinds`.
    fn table(&self, kinds: &[GgufType]) -> Vec<TableEntry> {
        let entry = |raw: RawTensor, kind: GgufType, num_bytes: usize| TableEntry {
            name: raw.name,
            dimensions: raw.dimensions,
            type_id: kind.id(),
            num_bytes,
        };
        let factors = self.rope_freqs.as_deref();
        let factors = factors.map(|factors| entry(raw_rope_freqs(factors), GgufType::F32, size_of_val(factors)));
        let tensors = self.tensors.iter().zip(kinds);
        factors
            .into_iter()
            .chain(tensors.map(|(planned, kind)| entry(raw(planned), *kind, num_bytes(*kind, planned))))
            .collect()
    }
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufContents {
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Matrices whose rows are not whole blocks of the type that was asked for, with the type that
    /// they have.
    pub instead: Vec<(String, GgufType)>,
}

impl Planned {
    fn is_matrix(&self) -> bool {
        self.spec.shape.len() >= 2
    }

    /// Type that a matrix has; F32 for a vector.
    fn own_type(&self, tensors: &dyn TensorSource) -> Result<GgufType, CheckpointError> {
        let source = self.spec.name();
        match tensors.info(&source) {
            None => Err(CheckpointError::NoTensor { path: tensors.path_of(&source).to_owned(), tensor: source }),
            Some(_) if !self.is_matrix() => Ok(GgufType::F32),
            Some(info) => Ok(GgufType::of(info.dtype)),
        }
    }

    /// Bytes of the tensor in the type `kind`.
    fn encode(&self, tensors: &dyn TensorSource, kind: GgufType) -> Result<Vec<u8>, CheckpointError> {
        let source = self.spec.name();
        let same = tensors.info(&source).is_some_and(|info| kind.dtype() == Some(info.dtype));
        let bytes = if same && !self.plus_one {
            tensors.bytes(&source)?.into_owned()
        } else {
            let mut values = tensors.read_f32(&source)?;
            if self.plus_one {
                values.iter_mut().for_each(|x| *x += 1.0);
            }
            kind.encode(&values)
        };
        Ok(match self.permuted_heads {
            // The rows of a vector are its values.
            Some(heads) => permute::apply(&bytes, bytes.len() / self.spec.shape[0], heads),
            None => bytes,
        })
    }
}

/// Bytes of a tensor in a type.
fn num_bytes(kind: GgufType, planned: &Planned) -> usize {
    let bytes = kind.format().and_then(|format| format.num_bytes(planned.spec.num_elements() as u64));
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
}

fn raw(planned: &Planned) -> RawTensor {
    let dimensions = planned.spec.shape.iter().rev().map(|dimension| *dimension as u64).collect();
    RawTensor { name: planned.name.clone(), dimensions, type_id: GgufType::F32.id(), start: 0 }
}

fn raw_rope_freqs(factors: &[f32]) -> RawTensor {
    let dimensions = vec![factors.len() as u64];
    RawTensor { name: names::ROPE_FREQS.to_owned(), dimensions, type_id: GgufType::F32.id(), start: 0 }
}

/// Tensors of the file, and reasons why llama.cpp does not read all that the model has.
fn planned_tensors(config: &ModelConfig, family: &Family) -> (Vec<Planned>, Vec<String>) {
    let (mut planned, mut reasons) = (Vec::new(), Vec::new());
    let biased = config.projection_shapes().into_iter().map(|(projection, _)| projection);
    for projection in biased.filter(|projection| config.has_bias(*projection) && !family.biases.contains(projection)) {
        reasons.push(format!("llama.cpp reads no bias of `{projection}` in a `{}`", family.name));
    }
    match (family.head, config.anatomy.tie_word_embeddings) {
        (HeadKind::Tied, false) => reasons.push(format!("llama.cpp ties the embeddings of a `{}`", family.name)),
        (HeadKind::Own, true) => reasons.push(format!("llama.cpp does not tie the embeddings of a `{}`", family.name)),
        _ => {}
    }
    for spec in config.tensors() {
        let Some(name) = names::to_gguf(spec.owner, spec.role, spec.part, family) else {
            reasons.push(format!("`{}` has no name in a `{}`", spec.name(), family.name));
            continue;
        };
        let permuted_heads = family.permuted_heads(spec.role, config);
        let plus_one = family.is_plus_one(spec.role, spec.part);
        planned.push(Planned { name, spec, permuted_heads, plus_one });
    }
    (planned, reasons)
}

/// Keys that describe the model.
fn model_metadata(config: &ModelConfig, family: &Family, name: &str) -> Vec<(String, GgufValue)> {
    let anatomy = &config.anatomy;
    let size = |n: usize| GgufValue::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let mut metadata = vec![
        ("general.architecture".to_owned(), GgufValue::Text(family.name.to_owned())),
        ("general.type".to_owned(), GgufValue::Text("model".to_owned())),
        ("general.name".to_owned(), GgufValue::Text(name.to_owned())),
        ("general.quantization_version".to_owned(), GgufValue::U32(QUANTIZATION_VERSION)),
    ];
    let mut keys = vec![
        ("block_count", size(config.share_map().num_layers())),
        ("context_length", size(config.max_position_embeddings)),
        ("embedding_length", size(config.hidden_size)),
        ("feed_forward_length", size(config.intermediate_size)),
        ("attention.head_count", size(config.num_attention_heads)),
        ("attention.head_count_kv", size(config.num_key_value_heads)),
        ("attention.key_length", size(config.head_dim)),
        ("attention.value_length", size(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", GgufValue::F32(anatomy.norm_eps as f32)),
    ];
    if let Some(rope) = anatomy.ropes.first() {
        keys.push(("rope.freq_base", GgufValue::F32(rope.theta as f32)));
        if let RopeScaling::Linear { factor } = rope.scaling {
            keys.push(("rope.scaling.type", GgufValue::Text("linear".to_owned())));
            keys.push(("rope.scaling.factor", GgufValue::F32(factor as f32)));
        }
    }
    keys.extend((family.metadata)(config));
    metadata.extend(keys.into_iter().map(|(key, value)| (family.key(key), value)));
    metadata
}

/// Rotary factors that are stored as a tensor.
fn rope_freqs(config: &ModelConfig) -> Option<Vec<f32>> {
    let rope = config.anatomy.ropes.first()?;
    match rope.scaling {
        RopeScaling::Llama3 { factor, .. } => Some(rope_factors::of_llama3(factor, rope.theta, rope.rotary_dim)),
        RopeScaling::Default | RopeScaling::Linear { .. } => None,
    }
}

/// Properties of the model that are other ones after the keys were read back.
fn unstated(
    config: &ModelConfig,
    family: &Family,
    metadata: &[(String, GgufValue)],
    tensors: Vec<RawTensor>,
    rope_freqs: Option<&[f32]>,
) -> Vec<String> {
    let mut read = Metadata::default();
    for (key, value) in metadata {
        if let Err(error) = read.insert(key.clone(), value.read()) {
            return vec![first_line(&error)];
        }
    }
    let header = Header { metadata: read, tensors };
    let json = match config::hugging_face(&header, family, rope_freqs) {
        Ok(json) => json,
        Err(error) => return vec![first_line(&error)],
    };
    let back = match ModelConfig::from_json(json, Path::new("GGUF")) {
        Ok(back) => back,
        Err(error) => return vec![first_line(&error)],
    };
    let sizes = |c: &ModelConfig| {
        [
            c.hidden_size,
            c.intermediate_size,
            c.num_hidden_layers,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
        ]
    };
    let (ours, theirs) = (&config.anatomy, &back.anatomy);
    let differing = [
        ("sizes", sizes(config) != sizes(&back)),
        ("`query_pre_attn_scalar`", ours.query_pre_attn_scalar != theirs.query_pre_attn_scalar),
        ("`attn_logit_softcapping`", ours.attn_logit_softcapping != theirs.attn_logit_softcapping),
        ("`final_logit_softcapping`", ours.final_logit_softcapping != theirs.final_logit_softcapping),
        ("rotary embeddings", ours.ropes != theirs.ropes),
        ("attention window or rotation of each depth", ours.depths != theirs.depths),
        ("`rms_norm_eps`", ours.norm_eps != theirs.norm_eps),
        (
            "biases",
            [ours.qkv_bias, ours.output_bias, ours.mlp_bias] != [theirs.qkv_bias, theirs.output_bias, theirs.mlp_bias],
        ),
        (
            "embeddings",
            (ours.embedding_scale, ours.tie_word_embeddings) != (theirs.embedding_scale, theirs.tie_word_embeddings),
        ),
        (
            "layers",
            (ours.norm, ours.residual, ours.qk_norm, ours.mlp)
                != (theirs.norm, theirs.residual, theirs.qk_norm, theirs.mlp),
        ),
    ];
    let differing = differing.into_iter().filter(|(_, differs)| *differs);
    differing.map(|(what, _)| format!("a `{}` has no key for its {what}", family.name)).collect()
}

/// First line of a message, without its hint.
fn first_line(error: &dyn std::error::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
