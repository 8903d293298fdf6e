//! The text that a run trains and is measured on.

use super::check_text;
use crate::document::Checks;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The text that is trained and measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training files: `.jsonl`, `.txt` or `.parquet`.
    pub train: Vec<PathBuf>,
    /// Held-out files.
    #[serde(default)]
    pub heldout: Vec<PathBuf>,
    /// Key or column that holds the text of a `.jsonl` or `.parquet` row.
    #[serde(default = "default_text_field")]
    pub text_field: String,
    /// Tokens of one sequence.
    pub sequence_length: usize,
    /// Where tokenised text is kept between runs; nowhere if absent.
    #[serde(default)]
    pub cache_dir: Option<PathBuf>,
}

fn default_text_field() -> String {
    "text".into()
}

impl DataConfig {
    pub(super) fn check(&self, checks: &mut Checks) {
        if self.train.is_empty() {
            checks.problem("data.train", "`data.train` is empty, expected at least one file");
        }
        let lists = [("data.train", &self.train), ("data.heldout", &self.heldout)];
        let mut seen: Vec<(&PathBuf, String)> = Vec::new();
        for (key, index, file) in lists.into_iter().flat_map(|(k, l)| l.iter().enumerate().map(move |(i, f)| (k, i, f)))
        {
            let key = format!("{key}.{index}");
            check_text(&key, &file.to_string_lossy(), checks);
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == file) {
                checks
                    .problem(key.clone(), format!("`{key}` is `{}`, which stands already at `{first}`", file.display()))
                    .also(&[first]);
            }
            seen.push((file, key));
        }
        check_text("data.text_field", &self.text_field, checks);
        let length = self.sequence_length;
        checks.require(length >= 2, "data.sequence_length", length, "2 or more (the first token is not predicted)");
        if let Some(dir) = &self.cache_dir {
            check_text("data.cache_dir", &dir.to_string_lossy(), checks);
        }
    }
}
