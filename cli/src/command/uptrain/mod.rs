//! `retie uptrain`: train a recursive model, usually by distillation from its own original.

mod clock;
mod watcher;

pub use watcher::Watcher;

use crate::{
    args::{CaptureArgs, DeviceArgs, JsonArgs, SetArgs, parse_duration},
    command::convert::command_line,
    error::Status,
    memory::{self, Need},
    model, output, ranks, signal,
};
use anyhow::bail;
use burn::tensor::Device;
use clap::Args;
use clock::Clock;
use retie_checkpoint::{HubAddress, ModelSource, Provenance};
use retie_collective::{Collective, lead_first};
use retie_config::{UptrainConfig, document};
use retie_trainer::{Event, Job, Outcome, Resume, RunModels, Stage, document_ends, kernels, run_memory};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Train a recursive model, usually by distillation from its own original
#[derive(Debug, Args)]
pub struct Uptrain {
    /// The run, a YAML file
    #[arg(value_name = "CONFIG.yaml")]
    config: PathBuf,
    #[command(flatten)]
    set: SetArgs,
    /// Go on from the run's last checkpoint, bit for bit, or from its start if there is none
    /// (`auto`), or from the checkpoint named; one of another run begins a new run in `run.dir`
    #[arg(long, value_name = "auto|CHECKPOINT", num_args = 0..=1, require_equals = true, default_missing_value = AUTO)]
    resume: Option<String>,
    /// Go on although this key, or what begins with it, is not as in the configuration of the run,
    /// e.g. `optimizer.lr`
    #[arg(long, value_name = "KEY", requires = "resume")]
    allow_change: Vec<String>,
    /// Check everything and show the run's configuration, size and time; train nothing, write
    /// nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Save and stop after the step that leaves no time for another, e.g. 90m or 1h30m; `--resume`
    /// goes on
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,
    /// Draw curves and numbers on the terminal after every step; lines where stderr is none
    #[arg(long)]
    tui: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// `--resume` without a checkpoint.
const AUTO: &str = "auto";

impl Uptrain {
    pub fn run(self) -> anyhow::Result<Status> {
        ranks::run(|ranks| self.on(ranks))
    }

    fn on(self, ranks: &dyn Collective) -> anyhow::Result<Status> {
        let stages = retie_trainer::stages(&self.config, &self.set.set)?;
        self.capture.apply();
        let device = retie_model::device(&self.device.device)?;
        lead_first(ranks, || stages.iter().try_for_each(|stage| fetch(&stage.on_first_model())))?;
        if self.dry_run {
            return if ranks.leads() { self.show_estimate(&stages, &device, ranks.world()) } else { Ok(Status::Done) };
        }
        if is_staged(&stages) {
            self.check_stages(&stages)?;
        }
        let stop = signal::stop_flag()?;
        let mut clock = Clock::new(self.time_limit);
        let mut done = Vec::new();
        let mut ended = None;
        for stage in &stages {
            if self.is_done(stage, ranks) {
                continue;
            }
            let outcome = self.train(stage, Job { device: &device, ranks, stop: &stop }, &mut clock, &mut done)?;
            if matches!(outcome, Outcome::Interrupted { .. }) {
                ended = Some((stage, outcome));
                break;
            }
        }
        let ended = ended.or_else(|| {
            let last = stages.last()?;
            Some((last, Outcome::Finished { model: last.finished()? }))
        });
        if ranks.leads() {
            self.print(done, is_staged(&stages))?;
        }
        match ended {
            Some((stage, outcome)) if ranks.leads() => self.end(&stage.config, &outcome),
            Some((_, outcome)) => Ok(status(&outcome)),
            None => Ok(Status::Done),
        }
    }

    /// Checks all stages, so that nothing the last one needs is missed after hours of the first.
    fn check_stages(&self, stages: &[Stage]) -> anyhow::Result<()> {
        if let Some(checkpoint) = self.resume.as_ref().filter(|from| *from != AUTO) {
            bail!(
                "`--resume={checkpoint}` names a checkpoint, and `{}` has stages\nhint: `--resume` goes on with the stage that was under way",
                self.config.display()
            );
        }
        Ok(stages.iter().try_for_each(Stage::check)?)
    }

    /// Whether a resumed run has done `stage` already.
    fn is_done(&self, stage: &Stage, ranks: &dyn Collective) -> bool {
        let (Some(name), Some(model), true) = (&stage.name, stage.finished(), self.resume.is_some()) else {
            return false;
        };
        if ranks.leads() {
            output::line(&format!("stage {name} is done: {}", model.display()));
        }
        true
    }

    /// Trains a stage and shows its summary, or with `--json` adds it to `done`.
    fn train(
        &self,
        stage: &Stage,
        job: Job<'_>,
        clock: &mut Clock,
        done: &mut Vec<(Option<String>, Value)>,
    ) -> anyhow::Result<Outcome> {
        let (config, leads) = (&stage.config, job.ranks.leads());
        if let (Some(name), true) = (&stage.name, leads) {
            output::line(&format!("stage {name}, {} steps", config.num_steps()));
        }
        let student = model::open(&config.student.model)?;
        if leads {
            check_memory(config, &student, job, &self.device.device)?;
        }
        let parent = model::parent(&student)?;
        let provenance = Provenance::now(command_line(), Some(parent));
        let mut watcher = Watcher::new(config, self.tui && leads);
        // Not the signals' own flag: with that set, the next signal would end the process while it
        // saves.
        let halt = AtomicBool::new(false);
        let watched = Job { stop: &halt, ..job };
        let mut has_begun = false;
        let outcome = retie_trainer::uptrain(config, self.resume(), &provenance, watched, &mut |event| {
            if leads && !std::mem::replace(&mut has_begun, true) {
                // Everything is checked by now.
                document_ends(&config.data, &student).iter().for_each(|ends| output::line(ends));
            }
            if matches!(event, Event::Step { .. } | Event::Skipped { .. }) {
                halt.store(clock.is_over() || job.stop.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            if leads {
                watcher.see(event);
            }
        });
        let summary = watcher.finish();
        let outcome = outcome?;
        match (leads, self.json.json) {
            (false, _) => {}
            (true, true) => done.push((stage.name.clone(), summary.to_json(&outcome))),
            (true, false) => output::data(summary.text())?,
        }
        Ok(outcome)
    }

    /// `--dry-run`: the configuration and the size of each stage.
    fn show_estimate(&self, stages: &[Stage], device: &Device, ranks: usize) -> anyhow::Result<Status> {
        let mut found = Vec::new();
        for stage in stages {
            let estimate = retie_trainer::estimate(&stage.on_first_model(), device, ranks)?;
            if self.json.json {
                found.push((stage.name.clone(), json!({ "config": stage.config, "plan": estimate })));
                continue;
            }
            if let Some(name) = &stage.name {
                output::data(format!("# stage {name}"))?;
            }
            output::data(format!("{}\n{estimate}", document::to_yaml(&stage.config)?))?;
        }
        self.print(found, is_staged(stages))?;
        output::next(&format!("retie uptrain {}{}", output::word(&self.config), self.sets()));
        Ok(Status::Done)
    }

    /// With `--json`: prints the value of each stage, or of the only one.
    fn print(&self, found: Vec<(Option<String>, Value)>, staged: bool) -> anyhow::Result<()> {
        if !self.json.json {
            return Ok(());
        }
        if !staged {
            return found.into_iter().try_for_each(|(_, value)| output::json(&value));
        }
        let stages = found.into_iter().map(|(name, mut value)| {
            value["name"] = json!(name);
            value
        });
        output::json(&json!({ "stages": stages.collect::<Vec<_>>() }))
    }

    fn resume(&self) -> Resume {
        let Some(from) = &self.resume else { return Resume::Never };
        let checkpoint = Some(PathBuf::from(from)).filter(|_| from != AUTO);
        Resume::From { checkpoint, allow_change: self.allow_change.clone() }
    }

    fn end(&self, config: &UptrainConfig, outcome: &Outcome) -> anyhow::Result<Status> {
        match outcome {
            Outcome::Finished { model } => {
                output::wrote(model);
                let text = config.data.heldout.iter().find(|file| file.exists());
                let text = text.map_or_else(|| "FILE".to_owned(), |file| output::word(file));
                output::next(&format!("retie eval {} --tasks perplexity --text {text}", output::word(model)));
            }
            Outcome::Interrupted { step, checkpoint } => {
                output::line(&format!("interrupted after step {step} of {}", config.num_steps()));
                output::wrote(checkpoint);
                output::next(&format!("retie uptrain {}{} --resume", output::word(&self.config), self.sets()));
            }
        }
        Ok(status(outcome))
    }

    /// The `--set` arguments as they have to be typed again.
    fn sets(&self) -> String {
        self.set.set.iter().map(|set| format!(" --set {}", output::word(Path::new(set)))).collect()
    }
}

fn is_staged(stages: &[Stage]) -> bool {
    stages.iter().any(|stage| stage.name.is_some())
}

fn status(outcome: &Outcome) -> Status {
    match outcome {
        Outcome::Finished { .. } => Status::Done,
        Outcome::Interrupted { .. } => Status::Interrupted,
    }
}

/// Compares the memory that a run needs on this rank with what is free on the device, which
/// `device` names.
fn check_memory(config: &UptrainConfig, student: &ModelSource, job: Job<'_>, device: &str) -> anyhow::Result<()> {
    let teacher = config.teacher.as_ref().and_then(|teacher| teacher.model.as_ref());
    let teacher = teacher.map(|teacher| model::open(teacher)).transpose()?;
    let models = RunModels::from_sources(student, teacher.as_ref(), job.device);
    let needed = run_memory(config, models, kernels(job.device), job.ranks.world());
    let least = (needed.student() + needed.teacher) as u64;
    let need = Need { least, estimate: needed.total() as u64 };
    let hint = |free: u64| {
        match free.saturating_sub(needed.fixed() as u64) / needed.activations_per_sequence.max(1) as u64 {
        0 => "a smaller `data.sequence_length`, `train.checkpoint_recursions: true`, cached logits in place of a teacher, or `train.shard_optimizer` on several ranks need less".to_owned(),
        sequences => format!("`train.batch_size: {sequences}` would fit; `train.gradient_accumulation` keeps the step as large"),
    }
    };
    match retie_model::is_host(job.device) {
        true => memory::check("the run", need, hint),
        false => memory::check_gpu("the run", need, device, hint),
    }
}

/// Downloads the models and texts of `config` that are on the hub, with progress bars; the trainer
/// finds them in the cache.
fn fetch(config: &UptrainConfig) -> anyhow::Result<()> {
    let teacher = config.teacher.iter().filter_map(|teacher| teacher.model.as_ref());
    let models = std::iter::once(&config.student.model).chain(teacher);
    for spec in models.filter(|spec| !Path::new(spec).exists()) {
        model::open(spec)?;
    }
    let sources = config.data.sources();
    let texts = sources.iter().flat_map(|source| &source.files).chain(&config.data.heldout);
    for address in texts.filter_map(|file| HubAddress::parse(file.to_str()?)) {
        model::hub().dataset_files(&address?)?;
    }
    Ok(())
}
