//! The networks that are fitted, by activation and seed.

use super::parts::{Numbers, Parts, SeedFigures};
use crate::{args::JsonArgs, error::Status, output};
use anyhow::Context;
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use retie_lab::{
    DraForm,
    dynamicformer::{DynamicFormerConfig, FittedFormer, FormerSettings},
};
use retie_report::Table;
use retie_tasks::regression::{Activation, FitSettings, Regression};
use serde::Serialize;
use serde_json::json;
use std::{num::NonZero, thread};

/// Which network is fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// Hidden layers of 64 and 32 on features
    #[default]
    Mlp,
    /// DynamicFormer, on the exponents and the coefficients of the recursion
    Dynamicformer,
}

#[derive(Debug, Args)]
pub struct Networks {
    /// Activations, with commas between: dra:paper, dra:model, dra:package, snake, relu, silu, tanh
    /// [default: all; dra:model of dynamicformer, which has only forms of dra]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    activations: Vec<Activation>,
    /// Networks of each activation, with the seeds 0, 1, …
    #[arg(long, value_name = "N", default_value_t = NonZero::new(5).unwrap_or(NonZero::<u64>::MIN))]
    pub seeds: NonZero<u64>,
    /// Passes over the fitted numbers [default: 4000 for bitwise, 1000 for psi, 60 of
    /// dynamicformer]
    #[arg(long, value_name = "N")]
    epochs: Option<NonZero<usize>>,
    #[command(flatten)]
    json: JsonArgs,
}

/// Widths of the hidden layers, rows of a step and learning rate: those of the experiment with
/// r(n) in the code of the paper on the dynamic range activator.
const HIDDEN: [usize; 2] = [64, 32];
const BATCH_SIZE: usize = 10;
const LEARNING_RATE: f64 = 1e-3;

/// Learning rate of DynamicFormer: its paper has 5e-4 and more samples.
const FORMER_LEARNING_RATE: f64 = 2e-3;

/// A network that is to be fitted.
#[derive(Clone, Copy)]
pub struct Fitted<'n> {
    pub numbers: &'n Numbers,
    pub parts: &'n Parts,
    pub activation: Activation,
    pub epochs: usize,
    pub seed: u64,
}

impl Fitted<'_> {
    /// Predictions of all numbers by a network with hidden layers on features.
    pub fn mlp(self, standardise: bool) -> anyhow::Result<Vec<f64>> {
        let Self { activation, epochs, seed, .. } = self;
        let (hidden, batch_size, learning_rate) = (HIDDEN.to_vec(), BATCH_SIZE, LEARNING_RATE);
        let settings = FitSettings { standardise, activation, hidden, epochs, batch_size, learning_rate, seed };
        let network = Regression::fit(&self.numbers.rows(&self.parts.fitted), &settings)?;
        Ok(self.numbers.rows.iter().map(|row| network.predict(&row.features)).collect())
    }

    /// Predictions of all numbers by DynamicFormer.
    pub fn dynamicformer(self) -> anyhow::Result<Vec<f64>> {
        let form = form(self.activation)?;
        let samples = |places: &[usize]| places.iter().map(|place| &self.numbers.samples[*place]).collect::<Vec<_>>();
        let settings = FormerSettings {
            epochs: self.epochs,
            learning_rate: FORMER_LEARNING_RATE,
            ..FormerSettings::published(self.seed)
        };
        let config = DynamicFormerConfig { dropout: 0.0, ..DynamicFormerConfig::small(form) };
        let fitted = samples(&self.parts.fitted);
        let network = FittedFormer::fit(&fitted, &config, &settings, &Device::flex().autodiff())?;
        Ok(network.predict(&self.numbers.samples.iter().collect::<Vec<_>>())?)
    }
}

/// R² of an activation's networks.
#[derive(Debug, Serialize)]
struct ActivationFigures {
    activation: &'static str,
    /// Median over the seeds of `beyond`.
    median: f64,
    seeds: Vec<SeedFigures>,
}

impl Networks {
    /// Calls `one` with every activation, number of epochs and seed, and prints how well each
    /// network predicts.
    pub fn run(
        &self,
        sequence: &str,
        network: Network,
        epochs: usize,
        one: &(dyn Fn(Activation, usize, u64) -> anyhow::Result<SeedFigures> + Sync),
    ) -> anyhow::Result<Status> {
        let activations = self.activations(network)?;
        let epochs = self.epochs.map_or(epochs, NonZero::get);
        let one = |activation: Activation, seed: u64| {
            one(activation, epochs, seed)
                .with_context(|| format!("a network with the activation {} and the seed {seed}", activation.name()))
        };
        let seeds = 0..self.seeds.get();
        let all: Vec<(Activation, u64)> =
            activations.iter().flat_map(|activation| seeds.clone().map(|seed| (*activation, seed))).collect();
        let figures = in_threads(&all, &|(activation, seed)| one(*activation, *seed));
        let mut figures = figures.into_iter();
        let mut rows = Vec::with_capacity(activations.len());
        for activation in &activations {
            let seeds = figures.by_ref().take(all.len() / activations.len()).collect::<Result<Vec<_>, _>>()?;
            let median = median(seeds.iter().map(|seed| seed.beyond).collect());
            rows.push(ActivationFigures { activation: activation.name(), median, seeds });
        }
        match self.json.json {
            true => output::json(&json!({ "fit": { "sequence": sequence, "epochs": epochs, "activations": rows } }))?,
            false => {
                let table = table(sequence, &rows);
                output::line(&table.title);
                output::data(table.to_text())?;
            }
        }
        Ok(Status::Done)
    }

    fn activations(&self, network: Network) -> anyhow::Result<Vec<Activation>> {
        let all = match network {
            Network::Mlp => Activation::ALL.to_vec(),
            Network::Dynamicformer => vec![Activation::DraModel],
        };
        let chosen = if self.activations.is_empty() { all } else { self.activations.clone() };
        if network == Network::Dynamicformer {
            chosen.iter().try_for_each(|activation| form(*activation).map(|_| ()))?;
        }
        Ok(chosen)
    }
}

/// The form of DRA that DynamicFormer has as its activation.
fn form(activation: Activation) -> anyhow::Result<DraForm> {
    DraForm::of(activation).with_context(|| {
        format!(
            "`--network dynamicformer` has no activation {}, expected dra:paper, dra:model or dra:package",
            activation.name()
        )
    })
}

/// What `of` makes of every item, in their order, on all threads.
fn in_threads<T: Sync, U: Send>(items: &[T], of: &(dyn Fn(&T) -> U + Sync)) -> Vec<U> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    // Items beside one another take alike: each thread has every so many-th.
    let mut results: Vec<(usize, U)> = thread::scope(|scope| {
        let part = |first: usize| {
            let mine = items.iter().enumerate().skip(first).step_by(threads);
            scope.spawn(move || mine.map(|(index, item)| (index, of(item))).collect::<Vec<_>>())
        };
        let running: Vec<_> = (0..threads).map(part).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined.flat_map(|results| results.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

fn table(sequence: &str, rows: &[ActivationFigures]) -> Table {
    let seeds = rows.first().map_or(0, |row| row.seeds.len());
    let header = ["activation", "median beyond"].map(str::to_owned).into_iter();
    let header = header.chain((0..seeds).map(|seed| format!("seed {seed}"))).collect();
    let cell = |figures: &SeedFigures| {
        let within = figures.within.map(|within| format!(", {within:.3}")).unwrap_or_default();
        format!("{:.3}{within}, {:.3}", figures.fitted, figures.beyond)
    };
    let row = |row: &ActivationFigures| {
        let cells = [row.activation.to_owned(), format!("{:.3}", row.median)].into_iter();
        cells.chain(row.seeds.iter().map(cell)).map(|cell| cell.as_str().into()).collect()
    };
    let within = rows.iter().flat_map(|row| &row.seeds).any(|seed| seed.within.is_some());
    let parts = if within { "fitted, known and not fitted, beyond" } else { "fitted, beyond" };
    let title = format!("R² of {sequence} ({parts})");
    Table { title, header, rows: rows.iter().map(row).collect(), note: None }
}
