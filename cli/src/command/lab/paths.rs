//! `retie lab paths`: logical queries over a knowledge graph, answered by a recursive path encoder
//! and by single facts that are composed.

use crate::{args::JsonArgs, error::Status, output};
use anyhow::{Context, ensure};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use retie_lab::paths::{
    Composition, FitSettings, LinkKind, PathformerConfig, Question, Scores, Split, fit_links, fit_pathformer,
    questions, score,
};
use retie_report::Table;
use retie_tasks::{
    Random,
    graph::{Graph, Query, QueryType},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    num::NonZero,
    path::{Path, PathBuf},
};

/// Answer logical queries over a knowledge graph: a path encoder beside composed single facts
#[derive(Debug, Args)]
pub struct Paths {
    /// Folder with train.txt, valid.txt and test.txt, each with a fact a line: subject, relation
    /// and object, with tabs between
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Types of queries that are asked, with commas between [default: all fourteen]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    types: Vec<String>,
    /// Which held-out facts answers have to need
    #[arg(long, value_name = "FACTS", value_enum, default_value_t)]
    held_out: HeldOut,
    /// Queries of a type that are asked
    #[arg(long, value_name = "N", default_value_t = at_least_one(200))]
    queries: NonZero<usize>,
    /// Networks of each kind, with the seeds 0, 1, …; queries are the same for all
    #[arg(long, value_name = "N", default_value_t = at_least_one(3))]
    seeds: NonZero<usize>,
    /// Steps of the path encoder; those of single facts are five times as many
    #[arg(long, value_name = "N", default_value_t = at_least_one(400))]
    steps: NonZero<usize>,
    /// Write the numbers here too, as JSON, for `retie lab report`
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

fn at_least_one(count: usize) -> NonZero<usize> {
    NonZero::new(count).unwrap_or(NonZero::<usize>::MIN)
}

/// Facts that are not trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum HeldOut {
    /// Those of valid.txt, over train.txt: to choose settings by
    Valid,
    /// Those of test.txt, over train.txt and valid.txt
    #[default]
    Test,
}

/// Settings of the path encoder.
const BATCH_SIZE: usize = 256;
const NEGATIVES: usize = 128;
const QUERIES_TO_FIT: usize = 3000;
const LEARNING_RATE: f64 = 3e-3;

/// Settings of the embedding of single facts.
const LINK_WIDTH: usize = 64;
const LINK_BATCH_SIZE: usize = 512;
const LINK_LEARNING_RATE: f64 = 2e-2;

/// What answers, in the order of the columns.
const SYSTEMS: [&str; 5] = ["pathformer", "distmult vectors", "distmult sets", "complex vectors", "complex sets"];

/// Scores of a system's networks for a type.
#[derive(Debug, Serialize)]
struct SystemScores {
    system: &'static str,
    /// Mean over seeds.
    mrr: f64,
    hits_at_10: f64,
    seeds: Vec<SeedScores>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct SeedScores {
    seed: u64,
    mrr: f64,
    hits_at_10: f64,
}

#[derive(Debug, Serialize)]
struct TypeScores {
    #[serde(rename = "type")]
    kind: &'static str,
    queries: usize,
    systems: Vec<SystemScores>,
}

impl Paths {
    pub fn run(self) -> anyhow::Result<Status> {
        if let Some(path) = &self.output {
            output::check_file(path)?;
        }
        let kinds = kinds(&self.types)?;
        let split = Split::read(&self.folder)?;
        let (known, whole) = match self.held_out {
            HeldOut::Valid => (&split.train, &split.valid),
            HeldOut::Test => (&split.valid, &split.test),
        };
        let mut asked = Vec::with_capacity(kinds.len());
        for kind in &kinds {
            let mut random = Random::new(0, "paths questions", 0);
            asked.push(questions(*kind, known, whole, self.queries.get(), &mut random)?);
        }
        // By system, then seed, then type.
        let mut all: Vec<Vec<Vec<Scores>>> = vec![Vec::new(); SYSTEMS.len()];
        for seed in 0..self.seeds.get() as u64 {
            let scored =
                self.scored(&split.train, &asked, seed).with_context(|| format!("networks of the seed {seed}"))?;
            all.iter_mut().zip(scored).for_each(|(system, scored)| system.push(scored));
        }
        let types: Vec<TypeScores> = kinds
            .iter()
            .zip(&asked)
            .enumerate()
            .map(|(index, (kind, questions))| TypeScores {
                kind: kind.name,
                queries: questions.len(),
                systems: SYSTEMS
                    .iter()
                    .zip(&all)
                    .map(|(system, seeds)| SystemScores::of(system, seeds, index))
                    .collect(),
            })
            .collect();
        self.print(&types)
    }

    /// Scores of a seed's networks, by system and type.
    fn scored(&self, train: &Graph, asked: &[Vec<Question>], seed: u64) -> anyhow::Result<Vec<Vec<Scores>>> {
        let device = Device::flex().autodiff();
        let settings = FitSettings {
            steps: self.steps.get(),
            batch_size: BATCH_SIZE,
            learning_rate: LEARNING_RATE,
            negatives: NEGATIVES,
            queries: QUERIES_TO_FIT,
            seed,
        };
        let (network, losses) = fit_pathformer(train, &PathformerConfig::default(), &settings, &device)?;
        tracing::info!(seed, ?losses, "fitted the path encoder");
        let encoder = |questions: &Vec<Question>| {
            let queries: Vec<&Query> = questions.iter().map(|question| &question.query).collect();
            Ok(score(questions, &network.scores(&queries)?))
        };
        let mut all = vec![asked.iter().map(encoder).collect::<anyhow::Result<Vec<_>>>()?];

        let settings = FitSettings {
            steps: 5 * self.steps.get(),
            batch_size: LINK_BATCH_SIZE,
            learning_rate: LINK_LEARNING_RATE,
            ..settings
        };
        for kind in [LinkKind::DistMult, LinkKind::ComplEx] {
            let (links, losses) = fit_links(train, LINK_WIDTH, kind, &settings, &device)?;
            tracing::info!(seed, ?kind, ?losses, "fitted single facts");
            for how in [Composition::Vectors, Composition::Sets] {
                let composed = |questions: &Vec<Question>| {
                    let predictions = questions.iter().map(|question| links.scores(&question.query, how));
                    Ok(score(questions, &predictions.collect::<Result<Vec<_>, _>>()?))
                };
                all.push(asked.iter().map(composed).collect::<anyhow::Result<Vec<_>>>()?);
            }
        }
        Ok(all)
    }

    fn print(&self, types: &[TypeScores]) -> anyhow::Result<Status> {
        let result = json!({ "paths": {
            "folder": self.folder.display().to_string(),
            "held_out": held_out_name(self.held_out),
            "steps": self.steps,
            "types": types,
        } });
        if let Some(path) = &self.output {
            write(path, &result)?;
        }
        match self.json.json {
            true => output::json(&result)?,
            false => {
                let table = table(types);
                output::line(&table.title);
                output::data(table.to_text())?;
            }
        }
        Ok(Status::Done)
    }
}

fn held_out_name(held_out: HeldOut) -> &'static str {
    match held_out {
        HeldOut::Valid => "valid",
        HeldOut::Test => "test",
    }
}

fn write(path: &Path, result: &Value) -> anyhow::Result<()> {
    fs_err::write(path, serde_json::to_string_pretty(result)? + "\n")?;
    output::wrote(path);
    Ok(())
}

/// The types of names, or all.
fn kinds(names: &[String]) -> anyhow::Result<Vec<QueryType>> {
    if names.is_empty() {
        return Ok(QueryType::ALL.to_vec());
    }
    let unknown: Vec<&str> = names.iter().map(String::as_str).filter(|name| QueryType::named(name).is_none()).collect();
    let known = QueryType::ALL.map(|kind| kind.name).join(", ");
    ensure!(unknown.is_empty(), "`--types` has `{}`, expected of {known}", unknown.join("`, `"));
    Ok(names.iter().filter_map(|name| QueryType::named(name)).collect())
}

impl SystemScores {
    /// Of a system's seeds, for the type number `index`.
    fn of(system: &'static str, seeds: &[Vec<Scores>], index: usize) -> Self {
        let of_type = seeds.iter().map(|types| types[index]);
        let mean = |of: fn(Scores) -> f64| of_type.clone().map(of).sum::<f64>() / seeds.len() as f64;
        let seed = |(seed, scores): (usize, Scores)| SeedScores {
            seed: seed as u64,
            mrr: scores.mrr,
            hits_at_10: scores.hits_at_10,
        };
        Self {
            system,
            mrr: mean(|scores| scores.mrr),
            hits_at_10: mean(|scores| scores.hits_at_10),
            seeds: of_type.clone().enumerate().map(seed).collect(),
        }
    }
}

fn table(types: &[TypeScores]) -> Table {
    let header = ["type", "queries"].into_iter().chain(SYSTEMS).map(str::to_owned).collect();
    let row = |kind: &TypeScores| {
        let cells = [kind.kind.to_owned(), kind.queries.to_string()].into_iter();
        let scores = kind.systems.iter().map(|system| format!("{:.3}, {:.3}", system.mrr, system.hits_at_10));
        cells.chain(scores).map(|cell| cell.as_str().into()).collect()
    };
    let title = "Filtered mean reciprocal rank and hits at 10, means over seeds".to_owned();
    Table { title, header, rows: types.iter().map(row).collect(), note: None }
}
