//! How a folder came about: its `retie.json`, that of the model it was made from, and so on.

use anyhow::Context;
use retie_checkpoint::{HubId, Provenance};
use retie_config::{DataConfig, UptrainConfig, document};
use retie_report::number::grouped;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Longest chain that is followed.
const MOST_STEPS: usize = 32;
/// Configuration and rows of a run, beside the folder of its model.
const RUN_FILES: [&str; 2] = ["config.resolved.yaml", "metrics.jsonl"];

/// Steps that made a folder, the first one first.
pub struct History {
    steps: Vec<Provenance>,
    /// Folder that the first step began with.
    base: Option<PathBuf>,
    run: Option<Run>,
}

/// A training run among the steps.
struct Run {
    data: DataConfig,
    steps: u64,
    tokens: u64,
}

impl History {
    /// Reads the chain of `folder`, as far as its folders are still there.
    ///
    /// # Errors
    /// A file of it is damaged.
    pub fn of(folder: &Path) -> anyhow::Result<Self> {
        let mut found = Self { steps: Vec::new(), base: None, run: None };
        let mut at = folder.to_owned();
        for _ in 0..MOST_STEPS {
            let Some(step) = Provenance::load(&at)? else { break };
            if found.run.is_none() {
                found.run = Run::beside(&at)?;
            }
            let parent = step.parent.as_ref().map(|parent| PathBuf::from(&parent.model));
            found.steps.insert(0, step);
            found.base.clone_from(&parent);
            match parent {
                Some(parent) => at = parent,
                None => break,
            }
        }
        Ok(found)
    }

    /// The model that the first step began with, as it was named.
    pub fn base(&self) -> Option<&str> {
        self.base.as_ref()?.to_str()
    }

    /// The same, if it is a repository of the hub.
    pub fn hub_base(&self) -> Option<String> {
        let base = self.base.as_ref().filter(|base| !base.exists())?;
        Some(HubId::parse(base.to_str()?)?.repo)
    }

    /// The licence that the card of the base states.
    pub fn license(&self) -> Option<String> {
        let text = fs_err::read_to_string(self.base.as_ref()?.join("README.md")).ok()?;
        let metadata = text.strip_prefix("---\n")?.split_once("\n---")?.0;
        let stated = metadata.lines().find_map(|line| line.strip_prefix("license:"))?;
        Some(stated.trim().trim_matches(['"', '\'']).to_owned()).filter(|stated| !stated.is_empty())
    }

    /// The command of each step.
    pub fn commands(&self) -> Vec<String> {
        let word = |word: &String| crate::output::word(Path::new(word));
        self.steps.iter().map(|step| step.command.iter().map(word).collect::<Vec<_>>().join(" ")).collect()
    }

    /// A sentence with the programs and dates of the steps.
    pub fn programs(&self) -> String {
        let program = |step: &Provenance| {
            let commit = step.commit.as_ref().map_or_else(String::new, |commit| format!(" ({commit})"));
            format!("{} {}{commit} on {}", step.tool, step.version, step.date.split('T').next().unwrap_or_default())
        };
        let mut programs: Vec<String> = self.steps.iter().map(program).collect();
        programs.dedup();
        format!("By {}.", programs.join(", then "))
    }

    /// A paragraph about the training run.
    pub fn training(&self) -> Option<String> {
        let Run { data, steps, tokens } = self.run.as_ref()?;
        let sources = data.sources();
        let files = sources.iter().flat_map(|source| &source.files).map(|file| format!("`{}`", file.display()));
        let files = files.collect::<Vec<_>>().join(", ");
        let tokens = grouped(*tokens);
        Some(format!("Uptrained for {} steps, {tokens} tokens of {files}.", grouped(*steps)))
    }
}

impl Run {
    /// The run whose model is in `folder`, which is in the folder of the run.
    fn beside(folder: &Path) -> anyhow::Result<Option<Self>> {
        let Some(dir) = folder.parent() else { return Ok(None) };
        let [config, metrics] = RUN_FILES.map(|file| dir.join(file));
        if !config.is_file() || !metrics.is_file() {
            return Ok(None);
        }
        let data = document::load::<UptrainConfig>(&config, &[])?.data;
        let text = fs_err::read_to_string(&metrics)?;
        let Some(last) = text.lines().rfind(|line| !line.trim().is_empty()) else { return Ok(None) };
        let row: Value = serde_json::from_str(last)
            .with_context(|| format!("the last line of `{}` is not JSON", metrics.display()))?;
        let number = |key: &str| row[key].as_u64().unwrap_or(0);
        Ok(Some(Self { data, steps: number("step"), tokens: number("tokens") }))
    }
}
