//! Induced trees on the command line: options, figures as a table and as JSON.

use anyhow::ensure;
use clap::Args;
use retie_lab::trees::{
    Corpus, Figures, ModelSettings, RuleFigures, Selection, Sentence, TrainSettings, Trained, Tree, TreeFigures,
};
use retie_report::Table;
use retie_tasks::TaskSpec;
use serde::Serialize;
use std::{
    num::NonZero,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// Options of every training of a model that induces trees.
#[derive(Debug, Args)]
pub struct TreeArgs {
    /// Models of each kind, with the seeds 0, 1, …
    #[arg(long, value_name = "N", default_value_t = NonZero::<u64>::MIN)]
    pub seeds: NonZero<u64>,
    /// Sentences to train on, at most
    #[arg(long, value_name = "N", default_value_t = 2000)]
    sentences: usize,
    /// Sentences whose trees are compared, at most
    #[arg(long, value_name = "N", default_value_t = 300)]
    held_out: usize,
    /// Lengths of sentences in tokens; others are left out
    #[arg(long, value_name = "A..B", default_value = "4..20", value_parser = parse_lengths)]
    tokens: RangeInclusive<usize>,
    /// Steps of the optimizer
    #[arg(long, value_name = "N", default_value_t = TrainSettings::default().steps)]
    steps: usize,
    /// Sentences of a step
    #[arg(long, value_name = "N", default_value_t = TrainSettings::default().batch_sentences)]
    batch_size: usize,
    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = TrainSettings::default().learning_rate)]
    learning_rate: f64,
    /// Part of the words that are masked
    #[arg(long, value_name = "P", default_value_t = TrainSettings::default().mask)]
    mask: f64,
    /// Most splits of a cell; the chart has 2 (M + 1) cells a token at most
    #[arg(long, value_name = "M", default_value_t = ModelSettings::default().window)]
    window: usize,
    /// Features of a cell, a multiple of 4
    #[arg(long, value_name = "D", default_value_t = ModelSettings::default().hidden_size)]
    hidden_size: usize,
}

fn parse_lengths(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 2 <= first && first <= last => Ok(first..=last),
        _ => Err("expected a number of tokens from 2 on, or two of them, as in 4..20".to_owned()),
    }
}

/// Where sentences come from.
#[derive(Debug)]
pub enum Source {
    /// A generated task.
    Task(TaskSpec),
    /// A file with a sentence a line.
    File(PathBuf),
}

/// The sources that are named by `tasks` and `files`.
///
/// # Errors
/// A task that is unknown, or a key of it.
pub fn sources(tasks: &[String], files: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::with_capacity(tasks.len() + files.len());
    for task in tasks {
        sources.push(Source::Task(TaskSpec::parse(task)?));
    }
    sources.extend(files.iter().cloned().map(Source::File));
    Ok(sources)
}

/// Short name of a source, for tables and files.
fn name_of(source: &Source) -> String {
    match source {
        Source::Task(spec) => spec.name().to_owned(),
        Source::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

impl TreeArgs {
    /// The sentences of a source.
    ///
    /// # Errors
    /// Those of [`Corpus::of_task`] and [`Corpus::of_file`].
    pub fn corpus(&self, source: &Source) -> anyhow::Result<Corpus> {
        for (option, value) in [("--sentences", self.sentences), ("--held-out", self.held_out)] {
            ensure!(value > 0, "`{option}` is 0, expected 1 or more");
        }
        let (train, held_out) = (self.sentences, self.held_out);
        let selection = Selection { tokens: self.tokens.clone(), train, held_out };
        Ok(match source {
            Source::Task(spec) => Corpus::of_task(spec, &selection)?,
            Source::File(path) => Corpus::of_file(path, &selection)?,
        })
    }

    /// Settings of a training with `num_layers`.
    ///
    /// # Errors
    /// Settings that no model has.
    pub fn settings(&self, num_layers: usize, seed: u64) -> anyhow::Result<TrainSettings> {
        let model = ModelSettings {
            hidden_size: self.hidden_size,
            intermediate_size: 2 * self.hidden_size,
            num_layers,
            window: self.window,
            ..ModelSettings::default()
        };
        model.check()?;
        Ok(TrainSettings {
            model,
            steps: self.steps,
            batch_sentences: self.batch_size,
            learning_rate: self.learning_rate,
            mask: self.mask,
            seed,
        })
    }
}

/// Trees of a source.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Name of the source.
    source: String,
    train_sentences: usize,
    held_out_sentences: usize,
    rules: RuleFigures,
    groups: Vec<Group>,
    drawn: Vec<Drawn>,
}

/// Models that differ by their seed.
#[derive(Debug, Serialize)]
struct Group {
    name: String,
    /// One a seed, from 0 on.
    seeds: Vec<TreeFigures>,
}

/// A held-out sentence with its trees.
#[derive(Debug, Serialize)]
struct Drawn {
    tokens: Vec<String>,
    gold: Vec<(usize, usize)>,
    trees: Vec<DrawnTree>,
}

#[derive(Debug, Serialize)]
struct DrawnTree {
    name: String,
    /// Start, first token of the right part, end.
    nodes: Vec<[usize; 3]>,
}

/// Sentences whose trees are written.
const DRAWN: usize = 3;

impl Measured {
    /// Figures of the rules, without models yet.
    pub fn new(source: &Source, corpus: &Corpus) -> Self {
        let drawn = |sentence: &Sentence| Drawn {
            tokens: sentence.tokens.clone(),
            gold: sentence.spans.clone(),
            trees: Vec::new(),
        };
        Self {
            source: name_of(source),
            train_sentences: corpus.train.len(),
            held_out_sentences: corpus.held_out.len(),
            rules: RuleFigures::of(&corpus.held_out),
            groups: Vec::new(),
            drawn: corpus.held_out.iter().take(DRAWN).map(drawn).collect(),
        }
    }

    /// Adds the models of a group, one a seed. The trees of the first one are drawn.
    pub fn add(&mut self, name: &str, trained: Vec<Trained>) {
        if let Some(first) = trained.first() {
            for (drawn, induced) in self.drawn.iter_mut().zip(&first.trees) {
                let nodes = |tree: &Tree| tree.iter().map(|node| [node.start, node.split, node.end]).collect();
                drawn.trees.push(DrawnTree { name: name.to_owned(), nodes: nodes(&induced.chart) });
            }
        }
        let seeds = trained.into_iter().map(|trained| trained.figures).collect();
        self.groups.push(Group { name: name.to_owned(), seeds });
    }

    /// The figures in percent.
    pub fn table(&self) -> Table {
        let percent = |number: f64| format!("{:.1}", 100.0 * number);
        let header = ["trees", "F1", "recall", "F1 of the parser", "loss", "F1 of the seeds"];
        let rule = |name: &str, figures: &Figures| {
            let cells = [name, &percent(figures.f1), &percent(figures.recall), "–", "–", "–"];
            cells.map(Into::into).to_vec()
        };
        let RuleFigures { right_branching, left_branching, balanced, random } = &self.rules;
        let mut rows = vec![
            rule("right-branching", right_branching),
            rule("left-branching", left_branching),
            rule("balanced", balanced),
            rule("random", random),
        ];
        for Group { name, seeds } in &self.groups {
            let mean = |of: fn(&TreeFigures) -> f64| seeds.iter().map(of).sum::<f64>() / seeds.len().max(1) as f64;
            let each: Vec<String> = seeds.iter().map(|figures| percent(figures.chart.f1)).collect();
            let cells = [
                name.as_str(),
                &percent(mean(|figures| figures.chart.f1)),
                &percent(mean(|figures| figures.chart.recall)),
                &percent(mean(|figures| figures.parser.f1)),
                &format!("{:.3}", mean(|figures| figures.loss)),
                &each.join(", "),
            ];
            rows.push(cells.map(Into::into).to_vec());
        }
        Table {
            title: format!("Trees of {}", self.source),
            header: header.map(str::to_owned).to_vec(),
            rows,
            note: Some(format!(
                "Unlabelled F1 and recall in percent over {} held-out sentences; a binary tree with all gold spans has {}. \
                 Loss of masked words in nats.",
                self.rules.random.sentences,
                percent(self.rules.random.ceiling)
            )),
        }
    }

    /// The table as text, with its title and note.
    pub fn to_text(&self) -> String {
        let table = self.table();
        format!("{}\n{}{}", table.title, table.to_text(), table.note.unwrap_or_default())
    }
}

/// Writes the figures as JSON, for `retie lab report`.
pub fn write(path: &Path, measured: &serde_json::Value) -> anyhow::Result<()> {
    fs_err::write(path, serde_json::to_string_pretty(measured)? + "\n")?;
    crate::output::wrote(path);
    Ok(())
}
