//! Tokenising the texts of a configuration ahead of the runs that read them.

use super::{
    inputs::{conversations, end_of_text, tokenizer},
    texts::{TextFiles, Tokenizing},
};
use crate::TrainError;
use retie_checkpoint::ModelSource;
use retie_config::{DataConfig, DataFormat};
use retie_data::{Progress, TokenDataset};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A text that is tokenised.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenizedText {
    /// `train`, `train.N` for source `N` of a mixture, or `heldout`.
    pub name: String,
    /// Documents with text.
    pub documents: u64,
    /// Documents without.
    pub empty_documents: u64,
    /// Tokens, those that end documents included.
    pub tokens: u64,
    /// Rows of the configuration's sequence length.
    pub rows: u64,
    /// Part of their places that have a token: 1 but for best-fit packing.
    pub fill: f64,
    /// Its folder; the `.tokens` files can be named as data files.
    pub folder: Option<PathBuf>,
    /// Whether it was in the cache already.
    pub from_cache: bool,
}

/// Tokenises what `data` names for models with the tokenizer of `model`, into `data.cache_dir`.
/// Files that are there already stay; a process that is killed leaves the files that it has
/// finished. `events` hears whether it is at `train` or `heldout`, and how far.
///
/// # Errors
/// A file is missing, malformed or too short, the model has no tokenizer, or the disk fails.
pub fn tokenize(
    data: &DataConfig,
    model: &ModelSource,
    events: &mut dyn FnMut(&'static str, Progress),
) -> Result<Vec<TokenizedText>, TrainError> {
    let files = TextFiles::find(data)?;
    let tokenizer = tokenizer(model)?;
    let end_of_text = end_of_text(model, &tokenizer)?;
    let conversations = conversations(data, model)?;
    let mut tokenizing = Tokenizing { tokenizer: &tokenizer, end_of_text, conversations, events };
    let train = files.train(&mut tokenizing)?;
    let name = |index: usize| match data.mixture.is_empty() {
        true => "train".to_owned(),
        false => format!("train.{index}"),
    };
    let mut texts: Vec<_> = train.sources().enumerate().map(|(index, source)| summary(name(index), source)).collect();
    texts.extend(files.heldout(&mut tokenizing)?.map(|heldout| summary("heldout".to_owned(), &heldout)));
    Ok(texts)
}

/// The tokens around each document of `data` for models with the tokenizer of `model`, in words.
///
/// # Errors
/// The model has no tokenizer, or none of its tokens ends a text.
pub fn document_ends(data: &DataConfig, model: &ModelSource) -> Result<String, TrainError> {
    if data.format == DataFormat::Chat {
        return Ok("a conversation has the tokens that its chat template writes, and no others around it".to_owned());
    }
    let tokenizer = tokenizer(model)?;
    let end = end_of_text(model, &tokenizer)?;
    let text = |id: u32| tokenizer.token(id).unwrap_or_else(|| id.to_string());
    Ok(match tokenizer.bos_token() {
        Some(bos) if bos == end => format!("a document ends with `{}`, which is the BOS token of the next", text(end)),
        Some(bos) => format!("a document begins with the BOS token `{}` and ends with `{}`", text(bos), text(end)),
        None => format!("a document begins without a BOS token, and ends with `{}`", text(end)),
    })
}

fn summary(name: String, text: &TokenDataset) -> TokenizedText {
    TokenizedText {
        name,
        documents: text.num_documents(),
        empty_documents: text.num_empty_documents(),
        tokens: text.num_tokens() as u64,
        rows: text.num_rows() as u64,
        fill: text.fill(),
        folder: text.folder().map(Path::to_owned),
        from_cache: text.from_cache(),
    }
}
