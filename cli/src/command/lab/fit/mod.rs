//! `retie lab fit`: small networks that are fitted to numbers defined by recursion, and what they
//! make of those beyond.

mod networks;
mod parts;

use crate::{error::Status, output};
use anyhow::ensure;
use clap::Subcommand;
use networks::{Fitted, Network, Networks};
use parts::{Numbers, Parts};
use retie_tasks::{
    TaskError,
    numbers::{PsiNumbers, PsiSample, bitwise},
};
use std::path::PathBuf;

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
    /// Logarithms of the numbers of `retie lab numbers psi`; a third of the numbers of a known
    /// genus is fitted
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
        /// What predicts them: from eleven features of genus and exponents, or DynamicFormer
        #[arg(long, value_name = "NETWORK", value_enum, default_value_t)]
        network: Network,
        /// Write the predictions of each network to a file of this folder, for `retie lab
        /// conformal`: half of what is known and not fitted is to calibrate on
        #[arg(long, short = 'o', value_name = "DIR")]
        output: Option<PathBuf>,
        #[command(flatten)]
        networks: Networks,
    },
}

impl Fit {
    pub fn run(self) -> anyhow::Result<Status> {
        match self {
            Self::Bitwise { last, known, networks } => {
                ensure!(
                    (1..last).contains(&known),
                    "`--known` is {known} and `--last` {last}, expected a number from 1 to below `--last`"
                );
                let numbers = Numbers::bitwise(&bitwise(last));
                let (known, last) = (known as usize, last as usize);
                let parts =
                    Parts { fitted: (0..=known).collect(), within: Vec::new(), beyond: (known + 1..=last).collect() };
                networks.run("bitwise", Network::Mlp, 4000, &|activation, epochs, seed| {
                    let fitted = Fitted { numbers: &numbers, parts: &parts, activation, epochs, seed };
                    let standardise = false;
                    Ok(numbers.figures(&parts, &fitted.mlp(standardise)?, seed))
                })
            }
            Self::Psi { genus, points, known, network, output, networks } => {
                ensure!(
                    (1..genus).contains(&known),
                    "`--known` is {known} and `--genus` {genus}, expected a number from 1 to below `--genus`"
                );
                let numbers = Numbers::psi(psi(genus, points)?);
                if let Some(folder) = &output {
                    fs_err::create_dir_all(folder)?;
                }
                let (epochs, name) = match network {
                    Network::Mlp => (1000, "psi"),
                    Network::Dynamicformer => (60, "psi-dynamicformer"),
                };
                networks.run("psi", network, epochs, &|activation, epochs, seed| {
                    let parts = numbers.divide(known, seed);
                    let fitted = Fitted { numbers: &numbers, parts: &parts, activation, epochs, seed };
                    let predictions = match network {
                        Network::Mlp => fitted.mlp(true)?,
                        Network::Dynamicformer => fitted.dynamicformer()?,
                    };
                    if let Some(folder) = &output {
                        let file = format!("{name}-{}-{seed}.jsonl", activation.name().replace(':', "-"));
                        numbers.write(&parts, &predictions, &folder.join(file))?;
                    }
                    Ok(numbers.figures(&parts, &predictions, seed))
                })?;
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
