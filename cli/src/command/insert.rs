//! `retie insert`: mechanisms for the recursions of a model.

use crate::{args::JsonArgs, command::enlarge::Enlargement, error::Status, model};
use clap::Args;
use retie_config::{Mechanism, MechanismAt, StepTable, document, steps_with};
use retie_convert::{ConvertError, InsertOptions, insert};
use std::path::PathBuf;

/// Give the recursions of a model mechanisms of other recursive architectures; most of them leave
/// the logits alone until they are trained
#[derive(Debug, Args)]
pub struct Insert {
    /// A recursive model: the folder that `retie convert` or `retie uptrain` wrote
    #[arg(value_name = "MODEL")]
    model: String,
    #[arg(long, value_name = "MECHANISM", required_unless_present = "steps", help = help_of_with())]
    with: Vec<MechanismAt>,
    /// A YAML file with the whole table, `steps:`, a row for each recursion or one for all
    #[arg(long, value_name = "FILE", conflicts_with = "with")]
    steps: Option<PathBuf>,
    /// Longest sequence that the model is to be used for, e.g. with `descriptor` more than it was
    /// trained with [default: as MODEL has it]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Seed of weights that are drawn
    #[arg(long, default_value_t)]
    seed: u64,
    /// Folder to write; it may not hold anything yet
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
}

/// Help of `--with`, with the name of every mechanism.
fn help_of_with() -> String {
    format!(
        "A mechanism with its parameters, and the recursions that get it (from 0, without any all), e.g. `hai`, \
         `nll:ratio=0.25`, `sliced:groups=8@1`. One of: {}",
        Mechanism::NAMES.join(", ")
    )
}

impl Insert {
    pub fn run(self) -> anyhow::Result<Status> {
        let Self { model: spec, with, steps, context, seed, output: out, json } = self;
        let source = model::open(&spec)?;
        let recursion = source.config.recursion.as_ref().ok_or(ConvertError::StepsWithoutRecursion)?;
        let steps = match steps {
            Some(path) => document::load::<StepTable>(&path, &[])?.steps,
            None => steps_with(&recursion.steps, &with, recursion.num_recursions)?,
        };
        let options = InsertOptions { steps, context: context.map(|tokens| tokens as usize), seed };
        let enlargement = Enlargement { spec: &spec, gets: "these mechanisms", out: &out, json: json.json };
        enlargement.run(&source, |source, files, progress| insert(source, &options, files, &out, progress))
    }
}
