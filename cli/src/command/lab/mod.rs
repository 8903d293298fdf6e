//! `retie lab`: numbers that are defined by recursion, networks that predict them, conformal
//! intervals, induced trees, logical queries over a graph, and a page about what models compute
//! recursively.

mod conformal;
mod fit;
mod numbers;
mod paths;
mod report;
mod trees;

use crate::error::Status;
use clap::Subcommand;

/// Ask whether a model computes recursively: numbers, intervals, trees, and a page of results
#[derive(Debug, Subcommand)]
pub enum Lab {
    Report(report::Report),
    Conformal(conformal::Conformal),
    #[command(subcommand)]
    Numbers(numbers::Numbers),
    #[command(subcommand)]
    Fit(fit::Fit),
    Paths(paths::Paths),
    Trees(trees::Trees),
}

impl Lab {
    pub fn run(self) -> anyhow::Result<Status> {
        match self {
            Self::Report(command) => command.run(),
            Self::Conformal(command) => command.run(),
            Self::Numbers(command) => command.run(),
            Self::Fit(command) => command.run(),
            Self::Paths(command) => command.run(),
            Self::Trees(command) => command.run(),
        }
    }
}
