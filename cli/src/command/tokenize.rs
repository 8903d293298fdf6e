//! `retie tokenize`: tokenises text into the token cache of later runs.

use crate::{
    args::JsonArgs,
    choice::choice,
    error::Status,
    model, output,
    progress::{Progress, Unit},
};
use anyhow::Context;
use clap::Args;
use retie_config::{DataConfig, DataFormat, UptrainConfig, document};
use retie_report::number::grouped;
use retie_trainer::{TokenizedText, document_ends, tokenize};
use serde_json::json;
use std::path::PathBuf;

/// Tokenise text once, into the folder that `data.cache_dir` of later runs names; one that was
/// stopped goes on
#[derive(Debug, Args)]
pub struct Tokenize {
    /// The texts of this run, for its student and into its `data.cache_dir`
    #[arg(long, value_name = "CONFIG.yaml", conflicts_with_all = ["data", "text_field", "format"])]
    config: Option<PathBuf>,
    /// The text: .jsonl, .txt, .parquet or .arrow files or patterns, as in `data.train`
    #[arg(long, value_name = "FILE", required_unless_present = "config", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Key or column of the text, as in `data.text_field`
    #[arg(long, value_name = "FIELD", default_value = retie_data::DEFAULT_TEXT_FIELD)]
    text_field: String,
    /// Text, or conversations, as in `data.format`
    #[arg(long, value_name = "FORMAT", default_value = DataFormat::Text.name(), value_parser = choice::<DataFormat>(DataFormat::NAMES))]
    format: DataFormat,
    /// Whose tokenizer: a Hugging Face folder, a .gguf file, or a hub id; with `--config` the
    /// student's, unless this is given
    #[arg(long, value_name = "MODEL", required_unless_present = "config")]
    model: Option<String>,
    /// Folder of the tokens, as in `data.cache_dir`; with `--config` the run's, unless this is
    /// given
    #[arg(long, short = 'o', value_name = "DIR", required_unless_present = "config")]
    cache_dir: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

impl Tokenize {
    pub fn run(self) -> anyhow::Result<Status> {
        let run = self.config.as_ref().map(|path| document::load::<UptrainConfig>(path, &[])).transpose()?;
        let model = self.model.clone().or_else(|| run.as_ref().map(|run| run.student.model.clone()));
        let model = model::open(&model.context("no model is named")?)?;
        // The sequence length 2 has no effect: sequences are cut when the tokens are read.
        let text = || DataConfig {
            text_field: self.text_field.clone(),
            format: self.format,
            ..DataConfig::from_files(self.data.clone(), 2)
        };
        let mut data = run.map_or_else(text, |run| run.data);
        data.cache_dir = self.cache_dir.clone().or(data.cache_dir);
        let dir = data.cache_dir.clone().context(
            "the run has no `data.cache_dir`\nhint: name the folder in the file, or here with `--cache-dir`",
        )?;
        let ends = document_ends(&data, &model)?;
        let mut bar: Option<(&'static str, Progress)> = None;
        let texts = tokenize(&data, &model, &mut |what, progress| {
            if bar.as_ref().is_none_or(|(current, _)| *current != what) {
                let label = format!("tokenize {what} text");
                bar = Some((what, Progress::new(&label, Unit::Bytes, progress.bytes_total)));
            }
            if let Some((_, bar)) = &mut bar {
                bar.set(progress.bytes_done, progress.bytes_total, &format!("{} tokens", grouped(progress.tokens)));
            }
        })?;
        drop(bar);
        match self.json.json {
            true => output::json(&json!({ "cache_dir": dir, "texts": texts, "ends": ends }))?,
            false => output::data(texts.iter().map(line).collect::<Vec<_>>().join("\n"))?,
        }
        output::line(&ends);
        output::wrote(&dir);
        let config = self.config.as_ref().map_or_else(|| "CONFIG.yaml".to_owned(), |path| output::word(path));
        output::next(&format!("retie uptrain {config} --set data.cache_dir={}", output::word(&dir)));
        Ok(Status::Done)
    }
}

fn line(text: &TokenizedText) -> String {
    let TokenizedText { name, documents, empty_documents, tokens, rows, fill, folder, from_cache } = text;
    let empty =
        if *empty_documents > 0 { format!(", {} without text", grouped(*empty_documents)) } else { String::new() };
    // Only best-fit packing leaves sequences partly empty.
    let filled = match fill {
        1.0 => String::new(),
        _ => format!(", in {} rows that are {:.2} % full", grouped(*rows), 100.0 * fill),
    };
    let folder = folder.as_ref().map_or_else(String::new, |folder| format!(", in {}", folder.display()));
    let there = if *from_cache { ", there already" } else { "" };
    format!(
        "{name:<10}  {} tokens of {} documents{empty}{filled}{there}{folder}",
        grouped(*tokens),
        grouped(*documents)
    )
}
