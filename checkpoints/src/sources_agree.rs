//! Files of a model that say the same thing twice: where they disagree, the one that counts in
//! `transformers` counts here, and a warning says so.

use crate::{CheckpointError, Dtype, TensorSource};
use retie_config::{ModelConfig, TensorOwner, TensorRole, parse_json};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// Name of the settings of generation.
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";

/// Unties the head where the file has one of other values than the embeddings, as `transformers`
/// does (`tie_weights` of
/// <https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_utils.py>).
///
/// # Errors
/// When one of the two cannot be read.
pub(crate) fn untie_another_head(config: &mut ModelConfig, tensors: &dyn TensorSource) -> Result<(), CheckpointError> {
    let [head, embedding] = [TensorRole::Head, TensorRole::Embedding].map(|role| TensorOwner::Model.weight(role));
    let (Some(of_head), Some(of_embedding)) = (tensors.info(&head), tensors.info(&embedding)) else { return Ok(()) };
    if !config.anatomy.tie_word_embeddings || of_head.shape != of_embedding.shape {
        return Ok(());
    }
    let equal = match of_head.dtype == of_embedding.dtype {
        true => tensors.bytes(&head)? == tensors.bytes(&embedding)?,
        false => tensors.read_f32(&head)? == tensors.read_f32(&embedding)?,
    };
    if !equal {
        tracing::warn!(
            path = %tensors.path_of(&head).display(),
            "`{head}` differs from `{embedding}`, though the configuration ties them: they stay apart, as in transformers"
        );
        config.untie();
    }
    Ok(())
}

/// Adds the tokens that end a generation by `generation_config.json`, the content `text` of `path`,
/// to those of the configuration, which come first: the first is the end of a text.
///
/// # Errors
/// When it is not JSON.
pub(crate) fn add_generation_tokens(config: &mut ModelConfig, text: &[u8], path: &Path) -> Result<(), CheckpointError> {
    let value = parse_json(&String::from_utf8_lossy(text))
        .map_err(|source| CheckpointError::BadJson { path: path.to_owned(), source })?;
    let ids = |key: &str| -> Vec<u32> {
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match value.get(key) {
            Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
            Some(id) => one(id).into_iter().collect(),
            None => Vec::new(),
        }
    };
    let more: Vec<u32> = ids("eos_token_id").into_iter().filter(|id| !config.eos_token_ids.contains(id)).collect();
    if !more.is_empty() {
        tracing::info!(path = %path.display(), stated = ?config.eos_token_ids, added = ?more, "generation also ends at these tokens");
        config.eos_token_ids.extend(more);
    }
    config.bos_token_id = config.bos_token_id.or_else(|| ids("bos_token_id").first().copied());
    Ok(())
}

/// Says where most weights are of another type than the configuration states. They keep the type
/// that they are stored in.
pub(crate) fn compare_dtype(config: &ModelConfig, tensors: &dyn TensorSource) {
    let stated = ["dtype", "torch_dtype"].into_iter().find_map(|key| config.other.get(key)?.as_str());
    let of = |name: &str| match name {
        "float32" | "float" => Some(Dtype::F32),
        "bfloat16" => Some(Dtype::BF16),
        "float16" | "half" => Some(Dtype::F16),
        _ => None,
    };
    let Some((name, stated)) = stated.and_then(|name| Some((name, of(name.trim_start_matches("torch."))?))) else {
        return;
    };
    let mut elements: BTreeMap<&str, (Dtype, usize)> = BTreeMap::new();
    for info in tensors.names().into_iter().filter_map(|name| tensors.info(name)) {
        elements.entry(info.dtype.name()).or_insert((info.dtype, 0)).1 += info.num_elements();
    }
    let most = elements.values().max_by_key(|(_, elements)| *elements);
    if let Some((dtype, _)) = most.filter(|(dtype, _)| *dtype != stated) {
        tracing::warn!(
            "the configuration says `{name}`, and the weights are {}: they are read as they are stored",
            dtype.name()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FolderWriter, SafetensorsFolder, TensorInfo, narrow, tiny::tiny_llama};

    /// A folder whose embeddings are 1 and whose head, of type `dtype`, is `head`.
    fn folder(dir: &Path, head: f32, dtype: Dtype) -> SafetensorsFolder {
        let entry = |name: &str, dtype| (name.to_owned(), TensorInfo { dtype, shape: vec![11, 8] });
        let entries = [entry("model.embed_tokens.weight", Dtype::F32), entry("lm_head.weight", dtype)];
        let mut writer = FolderWriter::create(dir, &entries, u64::MAX).unwrap();
        writer.write(&entries[0].0, &narrow(&[1.0; 88], Dtype::F32)).unwrap();
        writer.write(&entries[1].0, &narrow(&[head; 88], dtype)).unwrap();
        writer.finish().unwrap();
        SafetensorsFolder::open(dir).unwrap()
    }

    #[test]
    fn a_head_of_other_values_is_untied_and_an_equal_one_is_not() {
        for (head, dtype, tied) in
            [(1.0, Dtype::F32, true), (1.0, Dtype::BF16, true), (2.0, Dtype::F32, false), (2.0, Dtype::F16, false)]
        {
            let dir = tempfile::tempdir().unwrap();
            let mut config = tiny_llama(1);
            untie_another_head(&mut config, &folder(dir.path(), head, dtype)).unwrap();
            assert_eq!(config.anatomy.tie_word_embeddings, tied, "{head} {dtype:?}");
            assert_eq!(config.to_json()["tie_word_embeddings"], Value::Bool(tied));
        }
    }

    #[test]
    fn generation_ends_at_the_tokens_of_both_files() {
        let mut config = tiny_llama(1);
        assert_eq!(config.eos_token_ids, [2]);
        let mut read = |text: &str| {
            add_generation_tokens(&mut config, text.as_bytes(), Path::new("g.json"))?;
            Ok::<_, CheckpointError>(config.eos_token_ids.clone())
        };
        assert_eq!(read(r#"{"eos_token_id": [5, 2], "temperature": NaN}"#).unwrap(), [2, 5]);
        assert_eq!(read(r#"{"eos_token_id": 7}"#).unwrap(), [2, 5, 7]);
        assert_eq!(read("{}").unwrap(), [2, 5, 7]);
        assert!(read("{").unwrap_err().to_string().starts_with("`g.json` is not valid JSON"));
    }
}
