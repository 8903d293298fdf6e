//! Self-speculation, for the commands that generate text.

use crate::model::TextModel;
use clap::Args;
use retie_engine::SpeculationOptions;
use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

/// `--speculate` and `--draft-text`.
#[derive(Clone, Debug, Default, Args)]
pub struct SpeculationArgs {
    /// Draft K tokens (1 to 7) at a time by the exit after the first recursion, and verify them by
    /// the whole stack; without K as many as pay, by measurement. The text stays the same
    #[arg(
        long,
        value_name = "K",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "auto",
        value_parser = NumDrafts::from_str
    )]
    pub speculate: Option<NumDrafts>,
    /// Draft only the 4,096 most frequent tokens of this text, which makes drafts cheaper
    #[arg(long, value_name = "FILE", requires = "speculate")]
    pub draft_text: Option<PathBuf>,
}

/// Number of tokens to draft; `None` for as many as pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumDrafts(pub Option<usize>);

/// Number of tokens that a draft head of a text has.
const DRAFT_TOKENS: usize = 4096;

impl FromStr for NumDrafts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = || text.parse().ok().filter(|number| (1..=7).contains(number));
        match text {
            "auto" => Ok(Self(None)),
            _ => number().map(|number| Self(Some(number))).ok_or_else(|| "expected `auto` or 1 to 7".to_owned()),
        }
    }
}

impl SpeculationArgs {
    /// Options of an engine that speculates; `None` for plain decoding.
    ///
    /// # Errors
    /// The text cannot be read.
    pub fn options(&self, model: &TextModel) -> anyhow::Result<Option<SpeculationOptions>> {
        self.speculate.map(|drafts| self.options_with(drafts, model)).transpose()
    }

    /// Options of an engine that drafts as `drafts` says.
    ///
    /// # Errors
    /// The text cannot be read.
    pub fn options_with(
        &self,
        NumDrafts(num_drafts): NumDrafts,
        model: &TextModel,
    ) -> anyhow::Result<SpeculationOptions> {
        let draft_tokens = self.draft_text.as_deref().map(|path| frequent_tokens(model, path)).transpose()?;
        Ok(SpeculationOptions { num_drafts, draft_tokens: draft_tokens.unwrap_or_default() })
    }
}

/// The most frequent tokens of the text at `path`, ascending.
fn frequent_tokens(model: &TextModel, path: &Path) -> anyhow::Result<Vec<u32>> {
    let mut counts = vec![0u64; model.model.config().vocab_size];
    for id in model.tokenizer.encode(&retie_data::joined_text(path)?)? {
        counts[id as usize] += 1;
    }
    let mut tokens: Vec<u32> = (0..).take(counts.len()).filter(|id| counts[*id as usize] > 0).collect();
    tokens.sort_by_key(|id| std::cmp::Reverse(counts[*id as usize]));
    tokens.truncate(DRAFT_TOKENS);
    tokens.sort_unstable();
    Ok(tokens)
}
