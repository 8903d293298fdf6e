//! `retie probe trees`: trees that a contextual inside-outside layer finds in the states after each
//! recursion.

use super::states::{probed_depths, states};
use crate::{
    args::{DeviceArgs, DtypeArgs, JsonArgs},
    error::Status,
    model::{self, TextModel},
    output,
    progress::{Progress, Unit},
    trees::{self, Measured, TreeArgs},
};
use clap::Args;
use retie_lab::trees::probe;
use retie_model::kernels::on_worker;
use serde_json::json;
use std::path::PathBuf;

/// Fit a layer that induces trees to the frozen states after each recursion, and compare the trees
/// with gold ones; it never sees a gold tree
#[derive(Debug, Args)]
pub struct Trees {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Generated tasks whose problems have a tree, with commas between: listops, dyck, arithmetic,
    /// json [default: listops, without --data]
    #[arg(long, value_name = "TASKS", value_delimiter = ',')]
    tasks: Vec<String>,
    /// A file of sentences: {"tokens": ["…"], "spans": [[start, end], …]} a line; every fifth
    /// sentence is compared
    #[arg(long, value_name = "FILE.jsonl")]
    data: Vec<PathBuf>,
    #[command(flatten)]
    trees: TreeArgs,
    /// Write the figures and some trees here too, as JSON, for `retie lab report`
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

impl Trees {
    pub fn run(mut self) -> anyhow::Result<Status> {
        self.output.iter().try_for_each(|path| output::check_file(path))?;
        if self.tasks.is_empty() && self.data.is_empty() {
            self.tasks.push("listops".to_owned());
        }
        let sources = trees::sources(&self.tasks, &self.data)?;
        let settings = self.trees.settings(1, 0)?;
        let corpora = sources.iter().map(|source| self.trees.corpus(source)).collect::<anyhow::Result<Vec<_>>>()?;
        let device = retie_model::device(&self.device.device)?;
        let text_model = TextModel::load(&model::open(&self.model)?, &device, self.dtype.get())?;
        let depths = probed_depths(&text_model)?;
        let mut all = Vec::with_capacity(sources.len());
        for (source, corpus) in sources.iter().zip(&corpora) {
            let mut measured = Measured::new(source, corpus);
            let states = on_worker(|| states(&text_model, corpus, &depths))?;

            for (recursion, states) in states.into_iter().enumerate() {
                let name = match recursion {
                    0 => "before recursion 1".to_owned(),
                    _ => format!("recursion {recursion}"),
                };
                let mut models = Vec::new();
                for seed in 0..self.trees.seeds.get() {
                    let settings = self.trees.settings(1, seed)?;
                    let label = format!("{name}, seed {seed}");
                    let mut bar = Progress::new(&label, Unit::Count("steps"), settings.steps as u64);
                    models.push(probe(corpus, states.clone(), &settings, |done, loss| {
                        bar.set(done as u64, settings.steps as u64, &format!("loss {loss:.3}"));
                    })?);
                }
                measured.add(&name, models);
            }
            if !self.json.json {
                output::data(measured.to_text())?;
            }
            all.push(measured);
        }
        let result = json!({ "trees": all, "settings": settings, "model": self.model });
        if self.json.json {
            output::json(&result)?;
        }
        self.output.iter().try_for_each(|path| trees::write(path, &result))?;
        Ok(Status::Done)
    }
}
