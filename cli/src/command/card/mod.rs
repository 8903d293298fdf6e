//! `retie card`: the model card of a folder, `README.md` with the metadata of the hub.

mod history;
mod results;

use crate::{args::JsonArgs, error::Status, model, output};
use anyhow::{Context, bail};
use clap::Args;
use history::History;
use results::Results;
use retie_checkpoint::ModelSource;
use retie_config::ModelConfig;
use retie_report::number::grouped;
use serde_json::json;
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// File of the card in the folder.
const CARD: &str = "README.md";

/// Write the model card of a folder: what it was made from and how, its numbers beside other models
#[derive(Debug, Args)]
pub struct Card {
    /// The folder of a model, or of an export
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// A file of `retie eval --json`, and the name of its row: the first is of this model, the
    /// others are of models to compare it with, such as the base
    #[arg(long = "eval", value_name = "NAME=FILE")]
    evals: Vec<String>,
    /// Licence of the base, as the hub names it; without it what the card of the base says, if
    /// that is at hand
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// The base on the hub, where the folder was made from a local copy
    #[arg(long, value_name = "ORG/NAME")]
    base: Option<String>,
    /// Write it here, and not into the folder
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

impl Card {
    pub fn run(self) -> anyhow::Result<Status> {
        let gguf = self.folder.join("model.gguf");
        let path = if gguf.is_file() { gguf } else { self.folder.clone() };
        let source = model::open(path.to_str().with_context(|| format!("`{}` is not UTF-8", path.display()))?)?;
        let history = History::of(&self.folder)?;
        let results = Results::read(&self.evals)?;
        let license = self.license.clone().or_else(|| history.license());
        let Some(license) = license else {
            bail!(
                "the licence of the base is not known: `{}` has no card that states one\n\
                 hint: name it with `--license`, such as `apache-2.0`",
                history.base().unwrap_or("the base")
            );
        };
        let out = self.output.clone().unwrap_or_else(|| self.folder.join(CARD));
        if out.exists() {
            bail!("`{}` exists\nhint: remove it, or name another file with `-o`", out.display());
        }
        let base = self.base.clone().or_else(|| history.hub_base());
        let text = Content { folder: &self.folder, source: &source, history: &history, results: &results }
            .text(&license, base.as_deref())?;
        fs_err::write(&out, &text)?;
        if self.json.json {
            output::json(&json!({ "card": out, "license": license, "base": base, "steps": history.commands() }))?;
        }
        output::wrote(&out);
        output::next(&format!("retie push {} ORG/NAME", output::word(&self.folder)));
        Ok(Status::Done)
    }
}

struct Content<'a> {
    folder: &'a Path,
    source: &'a ModelSource,
    history: &'a History,
    results: &'a Results,
}

impl Content<'_> {
    fn text(&self, license: &str, base: Option<&str>) -> anyhow::Result<String> {
        let name = self.folder.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
        let mut text = format!("---\nlicense: {}\npipeline_tag: text-generation\n", scalar(license));
        if let Some(base) = base {
            write!(text, "base_model: {}\nbase_model_relation: finetune\n", scalar(base))?;
        }
        if self.is_for_transformers() {
            text.push_str("library_name: transformers\n");
        }
        text.push_str("tags:\n- recursive-transformer\n- retie\n");
        text.push_str(&self.results.metadata(&name));
        write!(text, "---\n\n# {name}\n\n{}\n", self.description(base))?;
        write!(text, "\n{}\n", self.usage(&name))?;
        if let Some(table) = self.results.table() {
            write!(text, "\n## Results\n\n{table}\n")?;
        }
        if let Some(training) = self.history.training() {
            write!(text, "\n## Training\n\n{training}\n")?;
        }
        let commands = self.history.commands();
        if !commands.is_empty() {
            write!(
                text,
                "\n## How it was made\n\n```sh\n{}\n```\n\n{}\n",
                commands.join("\n"),
                self.history.programs()
            )?;
        }
        Ok(text)
    }

    /// Whether the folder has its own Python files, or is of a class of `transformers`.
    fn is_for_transformers(&self) -> bool {
        let is_plain = self.source.config.recursion.is_none() && self.folder.join("config.json").is_file();
        is_plain || self.folder.join("modeling_retie.py").is_file()
    }

    /// Whether the folder is that of a looped Llama, as other programs have it.
    fn is_nanbeige(&self) -> bool {
        let keys = fs_err::read_to_string(self.folder.join("config.json")).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&keys).is_ok_and(|keys| keys["model_type"] == "nanbeige")
    }

    /// What the model is, from its configuration.
    fn description(&self, base: Option<&str>) -> String {
        let config = &self.source.config;
        let class = config.architecture.class_name.trim_end_matches("ForCausalLM");
        let of = base.or(self.history.base()).map_or_else(String::new, |base| format!(", made of `{base}`"));
        let parameters = grouped(parameters(config));
        let Some(recursion) = &config.recursion else {
            return format!("A {class} of {} layers{of}, with {parameters} parameters.", config.num_hidden_layers);
        };
        let map = config.share_map();
        let mut text = format!(
            "A Recursive Transformer{of}: a {class} whose {} stored layers make a stack of {} by `{}` sharing with {} \
             recursions, initialised as `{}`. It has {parameters} parameters.",
            map.num_layers(),
            map.num_depths(),
            recursion.sharing,
            recursion.num_recursions,
            recursion.init,
        );
        if let Some(lora) = &recursion.lora {
            _ = write!(text, " Depths of shared layers have their own {} of rank {}.", lora.relax.title(), lora.rank);
        }
        if !recursion.share_norms {
            text.push_str(" Each depth has its own norms.");
        }
        if let Some(router) = &recursion.router {
            _ = write!(text, " `{}` routers choose the recursions of each token.", router.kind());
        }
        text
    }

    /// How the folder is loaded.
    fn usage(&self, name: &str) -> String {
        if self.folder.join("model.gguf").is_file() {
            let (llama, retie) = ("llama-cli -m model.gguf", format!("retie generate {name}/model.gguf"));
            let prompt = "-p \"The water cycle\"";
            return format!("```sh\n{llama} {prompt}   # llama.cpp\n{retie} {prompt}\n```");
        }
        if self.is_nanbeige() {
            return "It is a `nanbeige`, which mlx-lm, SGLang and llama.cpp's converter know (`num_loops`).".to_owned();
        }
        if !self.is_for_transformers() {
            return format!(
                "It is read by `retie`, not by other programs:\n\n```sh\nretie generate {name} -p \"The water cycle\"\n```"
            );
        }
        let trust = if self.folder.join("modeling_retie.py").is_file() { ", trust_remote_code=True" } else { "" };
        format!(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"{name}\"{trust})\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{name}\")\n```"
        )
    }
}

/// Parameters of a model, each stored one once.
fn parameters(config: &ModelConfig) -> u64 {
    config.tensors().iter().map(|spec| spec.num_elements() as u64).sum()
}

/// A text as a YAML scalar; JSON's strings are YAML's.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(plain);
    if is_plain { text.to_owned() } else { json!(text).to_string() }
}
