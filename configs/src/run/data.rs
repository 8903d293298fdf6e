//! The text that a run trains and is measured on.

use super::check_text;
use crate::{document::Checks, named::named};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

named! {
    /// What the rows of data files are.
    DataFormat, "data format" {
        /// Text, learnt from its first token to its last.
        Text = "text",
        /// Conversations, of which the answers of the assistant are learnt.
        Chat = "chat",
    }
}

impl DataFormat {
    fn is_text(&self) -> bool {
        *self == Self::Text
    }
}

/// The text that is trained and measured on. A file is `.jsonl` or `.txt`, plain or with `.gz` or
/// `.zst` behind, or `.parquet`; a name with `*`, `?` or `[…]` stands for all files that it
/// matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training files; either these or a mixture.
    #[serde(default)]
    pub train: Vec<PathBuf>,
    /// Sources of training text, each with its part of the whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<SourceConfig>,
    /// Held-out files.
    #[serde(default)]
    pub heldout: Vec<PathBuf>,
    /// In place of held-out files: the fraction of the training documents that are held out, chosen
    /// by their hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heldout_fraction: Option<f64>,
    /// Text, or conversations.
    #[serde(default = "default_format", skip_serializing_if = "DataFormat::is_text")]
    pub format: DataFormat,
    /// Key or column that holds the text of a `.jsonl` or `.parquet` row. Conversations have their
    /// messages in it, and `messages` in its place by default.
    #[serde(default = "default_text_field")]
    pub text_field: String,
    /// Tokens of one sequence.
    pub sequence_length: usize,
    /// Context of the tokens of a sequence.
    #[serde(default)]
    pub packing: Packing,
    /// Folder of tokenised text, kept between runs; nothing is kept if absent.
    #[serde(default)]
    pub cache_dir: Option<PathBuf>,
}

/// A source of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Its part of the tokens, in the ratio of all weights.
    pub weight: f64,
    /// Replaces `data.text_field` for these files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_field: Option<String>,
}

/// Context of the tokens of a sequence, and how sequences are cut from the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// All that is before them, across the ends of documents.
    #[default]
    Plain,
    /// The tokens before them in their own document; positions begin anew in each.
    Documents,
    /// As `documents`, and sequences are made of whole documents, of which only those longer than
    /// one are cut.
    BestFit,
}

/// Field of the messages of conversations, where `text_field` is the default of texts.
const MESSAGES: &str = "messages";

fn default_text_field() -> String {
    "text".into()
}

fn default_format() -> DataFormat {
    DataFormat::Text
}

impl DataConfig {
    /// Plain training files and nothing else.
    #[must_use]
    pub fn from_files(train: Vec<PathBuf>, sequence_length: usize) -> Self {
        Self {
            train,
            mixture: Vec::new(),
            heldout: Vec::new(),
            heldout_fraction: None,
            format: DataFormat::Text,
            text_field: default_text_field(),
            sequence_length,
            packing: Packing::Plain,
            cache_dir: None,
        }
    }

    /// The sources of the training text: those of the mixture, or the training files as one.
    #[must_use]
    pub fn sources(&self) -> Vec<SourceConfig> {
        if self.mixture.is_empty() {
            return vec![SourceConfig { files: self.train.clone(), weight: 1.0, text_field: None }];
        }
        self.mixture.clone()
    }

    /// Key or column of the text or the messages; `own` is that of a source.
    #[must_use]
    pub fn field<'a>(&'a self, own: Option<&'a str>) -> &'a str {
        match (own, self.format) {
            (Some(own), _) => own,
            (None, DataFormat::Chat) if self.text_field == default_text_field() => MESSAGES,
            _ => &self.text_field,
        }
    }

    /// Whether there is held-out text.
    #[must_use]
    pub fn has_heldout(&self) -> bool {
        self.heldout_fraction.is_some() || !self.heldout.is_empty()
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        match (self.train.is_empty(), self.mixture.is_empty()) {
            (true, true) => {
                let message = "there is no text to train on, expected one of `data.train` and `data.mixture`";
                checks.problem("data.train", message).also(&["data.mixture"]);
            }
            (false, false) => {
                checks
                    .problem("data.mixture", "both `data.train` and `data.mixture` are given, expected one of them")
                    .also(&["data.train"]);
            }
            _ => {}
        }
        for (index, source) in self.mixture.iter().enumerate() {
            source.check(&format!("data.mixture.{index}"), checks);
        }
        self.check_files(checks);
        if let Some(fraction) = self.heldout_fraction {
            let key = "data.heldout_fraction";
            checks.require(fraction > 0.0 && fraction < 1.0, key, fraction, "a number between 0 and 1");
            if !self.heldout.is_empty() {
                checks
                    .problem(key, format!("both `data.heldout` and `{key}` are given, expected one of them"))
                    .also(&["data.heldout"]);
            }
        }
        check_text("data.text_field", &self.text_field, checks);
        let length = self.sequence_length;
        checks.require(length >= 2, "data.sequence_length", length, "2 or more (the first token is not predicted)");
        if let Some(dir) = &self.cache_dir {
            check_text("data.cache_dir", &dir.to_string_lossy(), checks);
        }
    }

    /// No file stands twice.
    fn check_files(&self, checks: &mut Checks) {
        let sources =
            self.mixture.iter().enumerate().map(|(i, source)| (format!("data.mixture.{i}.files"), &source.files));
        let lists = std::iter::once(("data.train".to_owned(), &self.train))
            .chain(sources)
            .chain([("data.heldout".to_owned(), &self.heldout)]);
        let mut seen: Vec<(&PathBuf, String)> = Vec::new();
        for (list, files) in lists {
            for (index, file) in files.iter().enumerate() {
                let key = format!("{list}.{index}");
                check_text(&key, &file.to_string_lossy(), checks);
                if let Some((_, first)) = seen.iter().find(|(other, _)| *other == file) {
                    let message = format!("`{key}` is `{}`, which stands already at `{first}`", file.display());
                    checks.problem(key.clone(), message).also(&[first]);
                }
                seen.push((file, key));
            }
        }
    }
}

impl SourceConfig {
    fn check(&self, key: &str, checks: &mut Checks) {
        if self.files.is_empty() {
            checks.problem(format!("{key}.files"), format!("`{key}.files` is empty, expected at least one file"));
        }
        let fits = self.weight.is_finite() && self.weight > 0.0;
        checks.require(fits, format!("{key}.weight"), self.weight, "a finite number above 0");
        if let Some(field) = &self.text_field {
            check_text(&format!("{key}.text_field"), field, checks);
        }
    }
}
