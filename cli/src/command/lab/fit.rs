//! `retie lab fit`: small networks that are fitted to numbers defined by recursion, and what they
//! make of those beyond.

use crate::{args::JsonArgs, error::Status, output};
use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use retie_report::Table;
use retie_tasks::{
    Random, TaskError,
    numbers::{PsiNumbers, PsiSample, bitwise},
    regression::{Activation, FitSettings, Regression, Row, bitwise_rows, psi_rows},
};
use serde::Serialize;
use serde_json::json;
use std::{
    io::{BufWriter, Write},
    num::NonZero,
    path::{Path, PathBuf},
    thread,
};

/// Fit small networks to numbers that are defined by recursion, and ask for those beyond, by
/// activation
#[derive(Debug, Subcommand)]
pub enum Fit {
    /// r(n) of `retie lab numbers bitwise`, from n
    Bitwise {
        /// Last n that is asked for
        #[arg(long, value_name = "N", default_value_t = 200)]
        last: u32,
        /// Last n that is fitted
        #[arg(long, value_name = "N", default_value_t = 120)]
        known: u32,
        #[command(flatten)]
        networks: Networks,
    },
    /// Logarithms of the numbers of `retie lab numbers psi`, from eleven features of genus and
    /// exponents; a third of the numbers of a known genus is fitted
    Psi {
        /// Largest genus
        #[arg(long, value_name = "G", default_value_t = 8)]
        genus: usize,
        /// Most marked points
        #[arg(long, value_name = "N", default_value_t = 5)]
        points: usize,
        /// Largest genus of which numbers are fitted
        #[arg(long, value_name = "G", default_value_t = 6)]
        known: usize,
        /// Write the predictions of each network to a file of this folder, for `retie lab
        /// conformal`: half of what is known and not fitted is to calibrate on
        #[arg(long, short = 'o', value_name = "DIR")]
        output: Option<PathBuf>,
        #[command(flatten)]
        networks: Networks,
    },
}

#[derive(Debug, Args)]
pub struct Networks {
    /// Activations, with commas between: dra:paper, dra:model, dra:package, snake, relu, silu, tanh
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = Activation::ALL.map(Activation::name))]
    activations: Vec<Activation>,
    /// Networks of each activation, with the seeds 0, 1, …
    #[arg(long, value_name = "N", default_value_t = NonZero::new(5).unwrap_or(NonZero::<u64>::MIN))]
    seeds: NonZero<u64>,
    /// Passes over the fitted numbers [default: 4000 for bitwise, 1000 for psi]
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

/// Numbers by what is done with them.
struct Parts {
    fitted: Vec<Row>,
    /// Known and not fitted.
    within: Vec<Row>,
    beyond: Vec<Row>,
}

/// R² of one network.
#[derive(Debug, Serialize)]
struct SeedFigures {
    seed: u64,
    fitted: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    within: Option<f64>,
    beyond: f64,
}

/// R² of an activation's networks.
#[derive(Debug, Serialize)]
struct ActivationFigures {
    activation: &'static str,
    /// Median over the seeds of `beyond`.
    median: f64,
    seeds: Vec<SeedFigures>,
}

impl Fit {
    pub fn run(self) -> anyhow::Result<Status> {
        match self {
            Self::Bitwise { last, known, networks } => {
                ensure!(
                    (1..last).contains(&known),
                    "`--known` is {known} and `--last` {last}, expected a number from 1 to below `--last`"
                );
                let mut fitted = bitwise_rows(&bitwise(last));
                let beyond = fitted.split_off(known as usize + 1);
                let parts = Parts { fitted, within: Vec::new(), beyond };
                let standardise = false;
                networks.run("bitwise", 4000, standardise, &|_| &parts, &|_, _, _| Ok(()))
            }
            Self::Psi { genus, points, known, output, networks } => {
                ensure!(
                    (1..genus).contains(&known),
                    "`--known` is {known} and `--genus` {genus}, expected a number from 1 to below `--genus`"
                );
                let samples = psi(genus, points)?;
                let divided: Vec<Divided> =
                    (0..networks.seeds.get()).map(|seed| divide(&samples, known, seed)).collect();
                if let Some(folder) = &output {
                    fs_err::create_dir_all(folder)?;
                }
                let write = |activation: Activation, seed: u64, network: &Regression| match &output {
                    Some(folder) => divided[seed as usize].write(folder, activation, seed, network),
                    None => Ok(()),
                };
                networks.run("psi", 1000, true, &|seed| &divided[seed as usize].parts, &write)?;
                output.iter().for_each(|folder| output::wrote(folder));
                Ok(Status::Done)
            }
        }
    }
}

/// All numbers of genus 1 to `genus` with at most so many points.
fn psi(genus: usize, points: usize) -> Result<Vec<PsiSample>, TaskError> {
    let mut numbers = PsiNumbers::new();
    let mut samples = Vec::new();
    for (g, n) in (1..=genus).flat_map(|g| (1..=points).map(move |n| (g, n))) {
        samples.extend(numbers.all(g, n)?);
    }
    Ok(samples)
}

/// Numbers divided by a seed.
struct Divided {
    parts: Parts,
    /// Genus of each number of `within` and `beyond`, and whether it is to calibrate on.
    points: Vec<(usize, bool)>,
}

fn divide(samples: &[PsiSample], known: usize, seed: u64) -> Divided {
    let mut random = Random::new(seed, "psi parts", 0);
    let mut parts = Parts { fitted: Vec::new(), within: Vec::new(), beyond: Vec::new() };
    let (mut within, mut beyond) = (Vec::new(), Vec::new());
    for (sample, row) in samples.iter().zip(psi_rows(samples)) {
        match random.below(3) {
            _ if sample.genus > known => {
                beyond.push((sample.genus, false));
                parts.beyond.push(row);
            }
            0 => parts.fitted.push(row),
            part => {
                within.push((sample.genus, part == 1));
                parts.within.push(row);
            }
        }
    }
    within.extend(beyond);
    Divided { parts, points: within }
}

impl Divided {
    /// Writes what `network` predicts of the numbers that it was not fitted to.
    fn write(&self, folder: &Path, activation: Activation, seed: u64, network: &Regression) -> anyhow::Result<()> {
        let path = folder.join(format!("psi-{}-{seed}.jsonl", activation.name().replace(':', "-")));
        let mut out = BufWriter::new(fs_err::File::create(path)?);
        for (row, (genus, calibration)) in self.parts.within.iter().chain(&self.parts.beyond).zip(&self.points) {
            let (value, prediction) = (row.target, network.predict(&row.features));
            let point = json!({ "group": genus, "value": value, "prediction": prediction, "calibration": calibration });
            writeln!(out, "{point}")?;
        }
        Ok(out.flush()?)
    }
}

impl Networks {
    /// Fits every network to the parts of its seed, calls `fitted` with it, and prints how well it
    /// predicts.
    fn run<'p>(
        &self,
        sequence: &str,
        epochs: usize,
        standardise: bool,
        parts: &(dyn Fn(u64) -> &'p Parts + Sync),
        fitted: &(dyn Fn(Activation, u64, &Regression) -> anyhow::Result<()> + Sync),
    ) -> anyhow::Result<Status> {
        let epochs = self.epochs.map_or(epochs, NonZero::get);
        let one = |activation: Activation, seed: u64| -> anyhow::Result<SeedFigures> {
            let parts = parts(seed);
            let (hidden, batch_size, learning_rate) = (HIDDEN.to_vec(), BATCH_SIZE, LEARNING_RATE);
            let settings = FitSettings { standardise, activation, hidden, epochs, batch_size, learning_rate, seed };
            let network = Regression::fit(&parts.fitted, &settings)
                .with_context(|| format!("a network with the activation {} and the seed {seed}", activation.name()))?;
            fitted(activation, seed, &network)?;
            Ok(SeedFigures {
                seed,
                fitted: network.r_squared(&parts.fitted),
                within: (!parts.within.is_empty()).then(|| network.r_squared(&parts.within)),
                beyond: network.r_squared(&parts.beyond),
            })
        };
        let seeds = 0..self.seeds.get();
        let all: Vec<(Activation, u64)> =
            self.activations.iter().flat_map(|activation| seeds.clone().map(|seed| (*activation, seed))).collect();
        let figures = in_threads(&all, &|(activation, seed)| one(*activation, *seed));
        let mut figures = figures.into_iter();
        let mut rows = Vec::with_capacity(self.activations.len());
        for activation in &self.activations {
            let seeds = figures.by_ref().take(all.len() / self.activations.len()).collect::<Result<Vec<_>, _>>()?;
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
