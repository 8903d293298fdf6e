//! `retie demo`: the whole way, on a small model, a text and recipes that are in the binary. It
//! calls what the other commands call.

mod assets;
mod recipe;

use crate::{
    args::{DeviceArgs, JsonArgs},
    command::{
        convert,
        eval::{Evaluation, write_json},
        report::Content,
        uptrain,
    },
    error::Status,
    model::{self, TextModel},
    output, signal,
};
use anyhow::Context;
use burn::tensor::Device;
use clap::Args;
use retie_checkpoint::{CheckpointError, Provenance};
use retie_collective::Single;
use retie_eval::{EvalReport, PerplexityOptions, TokenExits};
use retie_model::WeightDtype;
use retie_report::number::{duration, grouped};
use retie_trainer::{Job, Outcome, Resume};
use std::{
    cell::Cell,
    path::{Path, PathBuf},
    time::Instant,
};

/// Convert, uptrain and measure a small bundled model; needs no network and no files
#[derive(Debug, Args)]
pub struct Demo {
    /// Folder to write; it may not hold anything yet
    #[arg(short, long, value_name = "DIR", default_value = "retie-demo")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// The models that are measured: a name and a folder in the demo's folder.
const MODELS: [(&str, &str); 3] = [("base", "base"), ("converted", "converted"), ("uptrained", "run/model")];

impl Demo {
    pub fn run(self) -> anyhow::Result<Status> {
        let start = Instant::now();
        let out = self.out.as_path();
        let device = retie_model::device(&self.device.device)?;
        refuse_occupied(out)?;
        let stop = signal::stop_flag()?;

        step(1, "write the bundled model and text");
        assets::write(out)?;

        step(2, "convert: 2 recursions");
        let config = recipe::convert(out)?;
        let resolved = config.validate()?;
        convert::convert(&model::open(&resolved.model)?, &resolved)?;

        step(3, "uptrain the converted model, with its original as the teacher");
        let config = recipe::uptrain(out)?;
        let parent = model::parent(&model::open(&config.student.model)?)?;
        let provenance = Provenance::now(convert::command_line(), Some(parent));
        let mut watcher = uptrain::Watcher::new(&config, false);
        let job = Job { device: &device, ranks: &Single, stop: &stop };
        let outcome = retie_trainer::uptrain(&config, Resume::Never, &provenance, job, &mut |event| watcher.see(event));
        drop(watcher);
        if let Outcome::Interrupted { step, checkpoint } = outcome? {
            output::line(&format!("interrupted after step {step} of {}", config.num_steps()));
            output::wrote(&checkpoint);
            return Ok(Status::Interrupted);
        }

        step(4, "measure all three on held-out text");
        let evals = measure(out, &device)?;

        step(5, "report");
        let content = Content::read(&[out.join("run").as_path().into()], &evals)?;
        let report = out.join("report.html");
        let losses = content.losses();
        let took = start.elapsed().as_secs_f64();
        content.write(&report, "retie demo".to_owned(), summary(&losses, took))?;
        if self.json.json {
            output::json(&content.to_json())?;
        } else {
            output::data(content.text())?;
        }
        output::line(&format!("the whole demo took {}", duration(took)));
        output::wrote(&report);
        output::next(&format!("retie generate {} -p 'The war began'", output::word(&out.join("run/model"))));
        Ok(Status::Done)
    }
}

fn step(number: usize, what: &str) {
    output::line(&format!("[{number}/5] {what}"));
}

/// Refuses a place that holds something before anything is computed.
fn refuse_occupied(out: &Path) -> anyhow::Result<()> {
    if !out.exists() {
        return Ok(());
    }
    if !out.is_dir() {
        return Err(CheckpointError::OutputIsFile { path: out.to_owned() }.into());
    }
    let mut holds = Vec::new();
    for entry in fs_err::read_dir(out)? {
        holds.push(entry?.file_name().to_string_lossy().into_owned());
    }
    holds.sort();
    if holds.is_empty() { Ok(()) } else { Err(CheckpointError::OutputOccupied { path: out.to_owned(), holds }.into()) }
}

/// Measures the models on the held-out text; gives the file of each.
fn measure(out: &Path, device: &Device) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let text_path = assets::heldout(out);
    let text = retie_data::joined_text(&text_path)?;
    let folder = out.join("eval");
    fs_err::create_dir_all(&folder)?;
    let mut files = Vec::new();
    for (name, dir) in MODELS {
        let source = model::open(&out.join(dir).display().to_string())?;
        let model = TextModel::load(&source, device, WeightDtype::Auto)
            .with_context(|| format!("the {name} model cannot be loaded"))?;
        let window = source.config.max_position_embeddings;
        let batch_size = recipe::EVAL_BATCH_SIZE;
        let options = PerplexityOptions { window, stride: window, limit: None, batch_size };
        let mut evaluation = Evaluation {
            model: &model,
            exits: TokenExits::Never,
            counts: &Cell::default(),
            teacher: None,
            batch_size,
            ranks: &Single,
        };
        let perplexity = evaluation.text("heldout.jsonl", &text, options)?;
        let report = EvalReport {
            model: dir.to_owned(),
            limit: None,
            tasks: Vec::new(),
            generated: Vec::new(),
            perplexity: Some(perplexity),
            router: None,
        };
        let file = folder.join(format!("{name}.json"));
        write_json(&file, &source, &report, [])?;
        files.push((name.to_owned(), file));
    }
    Ok(files)
}

/// What the numbers say; `losses` are those of [`MODELS`].
fn summary(losses: &[(f64, u64)], seconds: f64) -> Vec<String> {
    let mut paragraphs = vec![format!(
        "A small Llama was converted to a Recursive Transformer with 2 recursions, uptrained with its original as the \
         teacher, and measured before and after on text that none of them was trained on. All of it took {} on this machine.",
        duration(seconds)
    )];
    if let [(base, base_size), (converted, size), (uptrained, _)] = losses {
        let back = 100.0 * (converted - uptrained) / (converted - base);
        paragraphs.push(format!(
            "The recursive model stores {} parameters, {:.0} % of the original's {}. Conversion raised the loss on held-out \
             text from {base:.3} to {converted:.3} nats per token; uptraining brought it down to {uptrained:.3}, {back:.0} % of the \
             way back.",
            grouped(*size),
            100.0 * *size as f64 / *base_size as f64,
            grouped(*base_size),
        ));
    }
    paragraphs
}
