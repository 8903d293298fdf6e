//! From `data` of a configuration to tokenised text.

use crate::TrainError;
use retie_checkpoint::{Hub, HubAddress};
use retie_collective::{Collective, lead_first};
use retie_config::DataConfig;
use retie_data::{
    Conversations, DatasetOptions, Mixture, Progress, Split, TextFile, TokenDataset, Tokenizer,
    document::{check_distinct, check_files, expand},
};
use std::{path::PathBuf, sync::Arc};

/// Tokenised text.
pub struct Texts {
    pub train: Arc<Mixture>,
    pub heldout: Option<TokenDataset>,
}

/// The files of a configuration, with those that its patterns match.
#[derive(Debug)]
pub struct TextFiles {
    data: DataConfig,
    /// For each source its files and its weight.
    train: Vec<(Vec<TextFile>, f64)>,
    heldout: Vec<TextFile>,
}

/// Tokenizer, end-of-text token, and receiver of progress, which gets the name of the text: `train`
/// or `heldout`.
pub struct Tokenizing<'a> {
    pub tokenizer: &'a Tokenizer,
    pub end_of_text: u32,
    /// Where the text is conversations.
    pub conversations: Option<Conversations>,
    pub events: &'a mut dyn FnMut(&'static str, Progress),
}

/// Puts in the place of each address of the hub the files that it names, which are downloaded where
/// they are missing.
fn fetched(files: &[PathBuf]) -> Result<Vec<PathBuf>, TrainError> {
    let mut found = Vec::with_capacity(files.len());
    for file in files {
        match file.to_str().and_then(HubAddress::parse).transpose()? {
            Some(address) => found.extend(Hub::from_env().dataset_files(&address)?),
            None => found.push(file.clone()),
        }
    }
    Ok(found)
}

impl TextFiles {
    /// Finds the files and checks, without reading text, that they can be used.
    ///
    /// # Errors
    /// A pattern matches nothing; a file is missing, of an unknown format, or named twice.
    pub fn find(data: &DataConfig) -> Result<Self, TrainError> {
        let files = |files: &[PathBuf], field: Option<&String>| -> Result<Vec<TextFile>, TrainError> {
            let text_field = data.field(field.map(String::as_str));
            let paths = expand(&fetched(files)?)?.into_iter();
            Ok(paths.map(|path| TextFile { path, text_field: text_field.to_owned() }).collect())
        };
        let sources = data.sources();
        let train = sources.iter().map(|s| Ok((files(&s.files, s.text_field.as_ref())?, s.weight)));
        let train = train.collect::<Result<Vec<_>, TrainError>>()?;
        let heldout = files(&data.heldout, None)?;
        let all = train.iter().flat_map(|(files, _)| files).chain(&heldout).map(|file| file.path.clone());
        let all: Vec<PathBuf> = all.collect();
        check_files(&all)?;
        check_distinct(&all)?;
        Ok(Self { data: data.clone(), train, heldout })
    }

    /// The result of `make` on every rank: from the cache that the first has filled, if there is
    /// one, else all at once.
    ///
    /// # Errors
    /// Errors of `make`.
    pub fn on_ranks<T>(
        &self,
        ranks: &dyn Collective,
        make: impl FnOnce(&Self) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        if self.data.cache_dir.is_some() { lead_first(ranks, || make(self)) } else { make(self) }
    }

    /// Tokenises the text to train on.
    ///
    /// # Errors
    /// When a text is missing, malformed or too short.
    pub fn train(&self, tokenizing: &mut Tokenizing<'_>) -> Result<Mixture, TrainError> {
        let split = self.data.heldout_fraction.map_or(Split::All, |heldout| Split::Train { heldout });
        let mut sources = Vec::with_capacity(self.train.len());
        for (files, weight) in &self.train {
            sources.push((self.build("train", files, split, tokenizing)?, *weight));
        }
        Ok(Mixture::new(sources)?)
    }

    /// Tokenises the held-out text, if there is one.
    ///
    /// # Errors
    /// When a text is missing, malformed or too short.
    pub fn heldout(&self, tokenizing: &mut Tokenizing<'_>) -> Result<Option<TokenDataset>, TrainError> {
        let (files, split) = match self.data.heldout_fraction {
            Some(heldout) => {
                (self.train.iter().flat_map(|(files, _)| files.clone()).collect(), Split::Heldout { heldout })
            }
            None if self.heldout.is_empty() => return Ok(None),
            None => (self.heldout.clone(), Split::All),
        };
        self.build("heldout", &files, split, tokenizing).map(Some)
    }

    fn build(
        &self,
        what: &'static str,
        files: &[TextFile],
        split: Split,
        tokenizing: &mut Tokenizing<'_>,
    ) -> Result<TokenDataset, TrainError> {
        let options = DatasetOptions {
            files: files.to_vec(),
            split,
            sequence_length: self.data.sequence_length,
            packing: self.data.packing,
            conversations: tokenizing.conversations.clone(),
            eos_token_id: tokenizing.end_of_text,
            cache_dir: self.data.cache_dir.clone(),
        };
        let events = &mut *tokenizing.events;
        Ok(TokenDataset::build(&options, tokenizing.tokenizer, &mut |progress| events(what, progress))?)
    }
}
