//! A MODEL argument, opened: its files, its tokenizer, its weights on a device.

use crate::progress::{Progress, Unit};
use anyhow::{Context, bail};
use burn::tensor::{Device, Int, Tensor};
use retie_checkpoint::{Hub, INDEX_FILE, ModelSource, Parent};
use retie_data::Tokenizer;
use retie_model::{CausalLm, KvCache, Routing, WeightDtype, kernels::f32_slice};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// The hub, with a bar for each file that is downloaded.
pub fn hub() -> Hub {
    let current: Mutex<Option<(String, Progress)>> = Mutex::new(None);
    Hub::from_env().with_progress(move |download| {
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|(file, _)| file != download.file) {
            let bar = Progress::new(&format!("get {}", download.file), Unit::Bytes, download.total_bytes);
            *current = Some((download.file.to_owned(), bar));
        }
        if let Some((_, bar)) = current.as_mut() {
            bar.set(download.bytes, download.total_bytes, "");
        }
        if download.bytes >= download.total_bytes {
            *current = None;
        }
    })
}

/// Opens `spec` and checks that its tensors are those of its configuration.
pub fn open(spec: &str) -> anyhow::Result<ModelSource> {
    let source = ModelSource::open_with(spec, &hub())?;
    source.validate()?;
    Ok(source)
}

/// Identifies the files of `source`, for provenance.
pub fn parent(source: &ModelSource) -> anyhow::Result<Parent> {
    let tensors = &source.tensors;
    let mut files: BTreeSet<_> = tensors.names().into_iter().map(|name| tensors.path_of(name).to_owned()).collect();
    let beside = ["config.json", INDEX_FILE].map(|name| source.path.join(name));
    files.extend(beside.into_iter().filter(|path| path.is_file()));
    Ok(Parent::of(&source.spec, files.iter().map(|path| path.as_path()))?)
}

/// The tokenizer of `source`, which has to match its vocabulary.
pub fn tokenizer(source: &ModelSource) -> anyhow::Result<Tokenizer> {
    let Some(json) = source.tokenizer_json() else {
        bail!(
            "`{}` has no `tokenizer.json`\nhint: copy the one that belongs to the model into the folder",
            source.path.display()
        );
    };
    let origin = if source.path.is_dir() { source.path.join("tokenizer.json") } else { source.path.clone() };
    let tokenizer = Tokenizer::from_bytes(json, &origin)?;
    tokenizer.check_vocab(source.config.vocab_size)?;
    Ok(tokenizer)
}

/// A model that reads and writes text.
pub struct TextModel {
    pub model: CausalLm,
    pub tokenizer: Tokenizer,
    pub device: Device,
    /// The token that the tokenizer puts before every text, if it does.
    pub bos_token: Option<u32>,
}

impl TextModel {
    /// Puts the weights of `source` on `device`.
    pub fn load(source: &ModelSource, device: &Device, dtype: WeightDtype) -> anyhow::Result<Self> {
        let tokenizer = tokenizer(source)?;
        let bos_token = bos_token(source)?;
        let model = CausalLm::load_with(&source.config, source.tensors.as_ref(), device, dtype)?;
        Ok(Self { model, tokenizer, device: device.clone(), bos_token })
    }

    /// What an empty context becomes: the BOS token, or the EOS token of a model that has none.
    pub fn prefix_token(&self) -> anyhow::Result<u32> {
        let config = self.model.config();
        let prefix = self.bos_token.or(config.bos_token_id).or(config.eos_token_ids.first().copied());
        prefix.context("the model's configuration has neither `bos_token_id` nor `eos_token_id`, expected one of them")
    }

    /// Logits `[V]` of the token after `ids`, which join the cache.
    pub fn next_logits(&self, ids: &[u32], cache: &mut KvCache) -> Vec<f32> {
        self.next_logits_with(ids, cache, &mut Routing::default())
    }

    /// As [`TextModel::next_logits`], with what routers do in `routing`.
    pub fn next_logits_with(&self, ids: &[u32], cache: &mut KvCache, routing: &mut Routing) -> Vec<f32> {
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let tokens = ids.len();
        let input = Tensor::<1, Int>::from_ints(ids.as_slice(), &self.device).reshape([1, tokens]);
        let hidden = self.model.forward_with(input, Some(cache), routing); // [T, D]
        let last = hidden.narrow(0, tokens - 1, 1); // [1, D]
        f32_slice(&self.model.logits(last).into_data()).to_vec()
    }

    /// The text of each of `ids` where it stands; the bytes of a character that several tokens make up are the last one's.
    pub fn pieces(&self, ids: &[u32]) -> anyhow::Result<Vec<String>> {
        let mut decoder = self.tokenizer.decode_stream(false);
        Ok(ids.iter().map(|id| decoder.step(*id)).collect::<Result<_, _>>()?)
    }

    /// Ids of a text that starts at the beginning: after the BOS token where the tokenizer puts one.
    pub fn encode_start(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.bos_token.into_iter().collect();
        ids.extend(self.tokenizer.encode(text)?);
        Ok(ids)
    }
}

/// The token that the tokenizer of `source` puts before every text: what the template in `tokenizer.json` begins with, or, in a
/// file without a template, `bos_token` if `tokenizer_config.json` has `add_bos_token: true`.
pub fn bos_token(source: &ModelSource) -> anyhow::Result<Option<u32>> {
    let parse = |name: &str| -> anyhow::Result<Value> {
        let Some((_, bytes)) = source.companions.iter().find(|(file, _)| file == name) else { return Ok(Value::Null) };
        serde_json::from_slice(bytes).with_context(|| format!("`{}` is not JSON", source.path.join(name).display()))
    };
    let tokenizer = parse("tokenizer.json")?;
    Ok(bos_of_template(&tokenizer).or_else(|| {
        let config = parse("tokenizer_config.json").ok()?;
        let bos = config.get("bos_token")?;
        let bos = bos.as_str().or_else(|| bos.get("content")?.as_str())?;
        let added = tokenizer.get("added_tokens")?.as_array()?;
        let token = added.iter().find(|token| token["content"] == bos)?;
        (config.get("add_bos_token")? == true).then(|| token["id"].as_u64())?.and_then(|id| u32::try_from(id).ok())
    }))
}

fn bos_of_template(tokenizer: &Value) -> Option<u32> {
    let post = tokenizer.get("post_processor")?;
    let steps = match post["type"].as_str()? {
        "Sequence" => post["processors"].as_array()?.iter().collect(),
        _ => vec![post],
    };
    let template = steps.into_iter().find(|step| step["type"] == "TemplateProcessing")?;
    let first = template["single"].as_array()?.first()?.get("SpecialToken")?["id"].as_str()?;
    template["special_tokens"].get(first)?["ids"].get(0)?.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The text of `path`: of a `.jsonl`, `.parquet` or `.arrow` file the texts of its rows with blank lines between, else the whole file.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    if !retie_data::document::has_rows(path) {
        return Ok(retie_data::read_text(path)?);
    }
    let documents = retie_data::documents(path, retie_data::DEFAULT_TEXT_FIELD)?;
    let texts = documents.map(|document| Ok(document?.text)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(texts.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bos_token_is_what_the_template_begins_with() {
        let template = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}
        });
        assert_eq!(bos_of_template(&json!({ "post_processor": template })), Some(7));
        let sequence = json!({ "type": "Sequence", "processors": [{"type": "ByteLevel"}, template] });
        assert_eq!(bos_of_template(&json!({ "post_processor": sequence })), Some(7));
        assert_eq!(bos_of_template(&json!({ "post_processor": null })), None);
        assert_eq!(bos_of_template(&json!({ "post_processor": {"type": "ByteLevel"} })), None);
    }

    #[test]
    fn rows_of_a_jsonl_are_joined_and_other_files_are_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let [rows, raw] = ["a.jsonl", "a.raw"].map(|name| folder.path().join(name));
        fs_err::write(&rows, "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap();
        fs_err::write(&raw, "{\"text\"").unwrap();
        assert_eq!(read_text(&rows).unwrap(), "a\n\nb");
        assert_eq!(read_text(&raw).unwrap(), "{\"text\"");
    }
}
