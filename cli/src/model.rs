//! Opening of MODEL arguments: files, tokenizer, weights on a device.

use crate::progress::{Progress, Unit};
use anyhow::{Context, bail};
use burn::tensor::Device;
use retie_checkpoint::{Hub, INDEX_FILE, ModelSource, Parent};
use retie_data::{ChatTemplate, DecodeStream, Tokenizer};
use retie_model::{CausalLm, WeightDtype};
use retie_trainer::END_OF_TEXT;
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// The hub, with a progress bar for each download.
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

/// Opens the MODEL `spec`.
///
/// # Errors
/// There is no such model, or its tensors do not fit its configuration.
pub fn open(spec: &str) -> anyhow::Result<ModelSource> {
    let source = ModelSource::open_with(spec, &hub())?;
    source.validate()?;
    Ok(source)
}

/// Files of `source` with their hashes, for provenance.
pub fn parent(source: &ModelSource) -> anyhow::Result<Parent> {
    let tensors = &source.tensors;
    let mut files: BTreeSet<_> = tensors.names().into_iter().map(|name| tensors.path_of(name).to_owned()).collect();
    let beside = ["config.json", INDEX_FILE].map(|name| source.path.join(name));
    files.extend(beside.into_iter().filter(|path| path.is_file()));
    Ok(Parent::from_files(&source.spec, files.iter().map(|path| path.as_path()))?)
}

/// Tokenizer of `source`.
///
/// # Errors
/// There is no `tokenizer.json`, or it does not match the model's vocabulary.
pub fn tokenizer(source: &ModelSource) -> anyhow::Result<Tokenizer> {
    let Some(tokenizer) = Tokenizer::from_model_files(&source.companions, &source.path)? else {
        let has = |name: &str| source.companions.iter().any(|(file, _)| file == name);
        let hint = match has("tokenizer.model") || has("vocab.json") {
            true => {
                "`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` of transformers makes it of the files there"
            }
            false => "copy the one that belongs to the model into the folder",
        };
        bail!("`{}` has no `tokenizer.json`\nhint: {hint}", source.path.display());
    };
    Ok(tokenizer.for_model(source.config.vocab_size)?)
}

/// Chat template of `source`.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn chat_template(source: &ModelSource) -> anyhow::Result<ChatTemplate> {
    ChatTemplate::from_model_files(&source.companions, &source.path)?.with_context(|| {
        format!(
            "`{}` has no chat template, expected `chat_template.jinja` or a key of `tokenizer_config.json`\n\
             hint: `retie generate` without `--chat` needs none",
            source.path.display()
        )
    })
}

/// A model on a device with its tokenizer.
pub struct TextModel {
    pub model: CausalLm,
    pub tokenizer: Tokenizer,
    pub device: Device,
}

impl TextModel {
    /// Puts the weights of `source` on `device`.
    pub fn load(source: &ModelSource, device: &Device, dtype: WeightDtype) -> anyhow::Result<Self> {
        let tokenizer = tokenizer(source)?;
        let model = CausalLm::load_with(&source.config, source.tensors.as_ref(), device, dtype)?;
        Ok(Self { model, tokenizer, device: device.clone() })
    }

    /// Token that stands for an empty context: BOS, or EOS for a model without BOS.
    ///
    /// # Errors
    /// The model has neither.
    pub fn prefix_token(&self) -> anyhow::Result<u32> {
        let config = self.model.config();
        let stated = config.bos_token_id.into_iter().chain(config.eos_token_ids.iter().copied());
        let mut stated = stated.filter(|id| (*id as usize) < config.vocab_size);
        let prefix = self.tokenizer.bos_token().or_else(|| stated.next());
        prefix.or_else(|| self.tokenizer.token_id(END_OF_TEXT)).context(
            "the model's configuration has neither `bos_token_id` nor `eos_token_id`, expected one of them\n\
             hint: set `eos_token_id` in `config.json` to the id of the token that ends a text",
        )
    }

    /// Ids of the prompt that `template` makes of `messages`, up to the beginning of the answer.
    pub fn encode_messages(&self, template: &ChatTemplate, messages: &Value) -> anyhow::Result<Vec<u32>> {
        let variables = Map::from_iter([("add_generation_prompt".to_owned(), Value::Bool(true))]);
        // The template writes the BOS token where there is one.
        Ok(self.tokenizer.encode(&template.render(messages, &variables)?)?)
    }

    /// The text of each of `ids` where it stands; the bytes of a character that several tokens make
    /// up are the last one's.
    pub fn pieces(&self, ids: &[u32]) -> anyhow::Result<Vec<String>> {
        let mut decoder = DecodeStream::new(&self.tokenizer, false);
        Ok(ids.iter().map(|id| decoder.step(*id)).collect::<Result<_, _>>()?)
    }
}
