//! `retie probe`: what small models find in the hidden states of a model.

mod states;
mod trees;

use crate::error::Status;
use clap::Subcommand;

/// Ask what the hidden states after each recursion hold
#[derive(Debug, Subcommand)]
pub enum Probe {
    Trees(trees::Trees),
}

impl Probe {
    pub fn run(self) -> anyhow::Result<Status> {
        match self {
            Self::Trees(command) => command.run(),
        }
    }
}
