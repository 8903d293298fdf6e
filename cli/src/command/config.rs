//! `retie config`: validates and prints YAML files without running them.

use crate::{
    args::{JsonArgs, SetArgs},
    error::Status,
    output,
};
use clap::{Args, Subcommand, ValueEnum};
use retie_config::{ConvertConfig, document};
use retie_trainer::Stage;
use serde_json::json;
use std::path::PathBuf;

/// Look at YAML files
#[derive(Debug, Subcommand)]
pub enum Config {
    Validate(Validate),
}

/// Check a YAML file and print it with every default
#[derive(Debug, Args)]
pub struct Validate {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Which command it is for; by default what most of its keys belong to
    #[arg(long)]
    kind: Option<Kind>,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// Kinds of YAML files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// For `retie convert --config`
    Convert,
    /// For `retie uptrain`
    Uptrain,
}

impl Config {
    pub fn run(self) -> anyhow::Result<Status> {
        match self {
            Self::Validate(command) => command.run(),
        }
    }
}

impl Validate {
    fn run(self) -> anyhow::Result<Status> {
        let text = fs_err::read_to_string(&self.file)?;
        match self.kind.unwrap_or_else(|| Kind::guess(&text)) {
            Kind::Convert => {
                let config: ConvertConfig = document::parse(&text, &self.file, &self.set.set)?;
                match self.json.json {
                    true => output::json(&json!({ "kind": "convert", "config": config }))?,
                    false => output::data(document::to_yaml(&config)?)?,
                }
                self.valid("convert")
            }
            Kind::Uptrain => self.uptrain(),
        }
    }

    /// Validates and prints a run, or each of its stages.
    fn uptrain(&self) -> anyhow::Result<Status> {
        let stages = retie_trainer::stages(&self.file, &self.set.set)?;
        if let [Stage { name: None, config, .. }] = stages.as_slice() {
            match self.json.json {
                true => output::json(&json!({ "kind": "uptrain", "config": config }))?,
                false => output::data(document::to_yaml(config)?)?,
            }
        } else if self.json.json {
            let stage = |Stage { name, config, .. }: &Stage| json!({ "name": name, "config": config });
            let stages: Vec<_> = stages.iter().map(stage).collect();
            output::json(&json!({ "kind": "uptrain", "stages": stages }))?;
        } else {
            for Stage { name, config, .. } in &stages {
                let name = name.as_deref().unwrap_or_default();
                output::data(format!("# stage {name}\n{}", document::to_yaml(config)?))?;
            }
        }
        self.valid("uptrain")
    }

    fn valid(&self, kind: &str) -> anyhow::Result<Status> {
        output::line(&format!("`{}` is a valid `{kind}` configuration", self.file.display()));
        Ok(Status::Done)
    }
}

impl Kind {
    /// Top-level keys that only one kind of file has.
    const CONVERT_KEYS: [&str; 10] =
        ["model", "recursions", "sharing", "map", "init", "lora_rank", "share_norms", "dtype", "seed", "output"];
    const UPTRAIN_KEYS: [&str; 9] =
        ["run", "student", "teacher", "data", "losses", "optimizer", "schedule", "train", "stages"];

    /// The kind that most top-level keys of `text` belong to.
    fn guess(text: &str) -> Self {
        let tops = || text.lines().filter_map(|line| line.split_once(':').map(|(key, _)| key));
        let count = |keys: &[&str]| tops().filter(|key| keys.contains(key)).count();
        if count(&Self::CONVERT_KEYS) > count(&Self::UPTRAIN_KEYS) { Self::Convert } else { Self::Uptrain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_known_by_their_keys() {
        let convert = include_str!("../../../configs/recipes/convert-smollm2-r2.yaml");
        let uptrain = include_str!("../../../configs/recipes/uptrain-smollm2-r2.yaml");
        assert_eq!([convert, uptrain].map(Kind::guess), [Kind::Convert, Kind::Uptrain]);
    }
}
