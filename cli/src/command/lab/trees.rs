//! `retie lab trees`: trees that a small model induces from masked words, beside gold trees.

use crate::{
    args::JsonArgs,
    error::Status,
    output,
    progress::{Progress, Unit},
    trees::{self, Measured, TreeArgs},
};
use clap::Args;
use retie_lab::trees::train;
use serde_json::json;
use std::{num::NonZero, path::PathBuf};

/// Train small models to induce trees from masked words, and compare the trees with gold ones
#[derive(Debug, Args)]
pub struct Trees {
    /// Generated tasks whose problems have a tree, with commas between: listops, dyck, arithmetic,
    /// json, with keys as in listops?length=2..8 [default: listops, without --data]
    #[arg(long, value_name = "TASKS", value_delimiter = ',')]
    grammar: Vec<String>,
    /// A file of sentences: {"tokens": ["…"], "spans": [[start, end], …]} a line; every fifth
    /// sentence is compared
    #[arg(long, value_name = "FILE.jsonl")]
    data: Vec<PathBuf>,
    /// Contextual inside-outside layers
    #[arg(long, value_name = "N", default_value_t = NonZero::new(2).unwrap_or(NonZero::<usize>::MIN))]
    layers: NonZero<usize>,
    #[command(flatten)]
    trees: TreeArgs,
    /// Write the figures and some trees here too, as JSON, for `retie lab report`
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

impl Trees {
    pub fn run(mut self) -> anyhow::Result<Status> {
        self.output.iter().try_for_each(|path| output::check_file(path))?;
        if self.grammar.is_empty() && self.data.is_empty() {
            self.grammar.push("listops".to_owned());
        }
        let sources = trees::sources(&self.grammar, &self.data)?;
        let mut all = Vec::with_capacity(sources.len());
        for source in &sources {
            let corpus = self.trees.corpus(source)?;
            let mut measured = Measured::new(source, &corpus);
            let mut models = Vec::new();
            for seed in 0..self.trees.seeds.get() {
                let settings = self.trees.settings(self.layers.get(), seed)?;
                let mut bar = Progress::new(&format!("seed {seed}"), Unit::Count("steps"), settings.steps as u64);
                models.push(train(&corpus, None, &settings, |done, loss| {
                    bar.set(done as u64, settings.steps as u64, &format!("loss {loss:.3}"));
                })?);
            }
            measured.add("induced", models);
            if !self.json.json {
                output::data(measured.to_text())?;
            }
            all.push(measured);
        }
        let settings = self.trees.settings(self.layers.get(), 0)?;
        let result = json!({ "trees": all, "settings": settings });
        if self.json.json {
            output::json(&result)?;
        }
        self.output.iter().try_for_each(|path| trees::write(path, &result))?;
        Ok(Status::Done)
    }
}
