//! `retie uptrain`: train a recursive model, usually by distillation from its own original.

use crate::{
    args::{DeviceArgs, JsonArgs, SetArgs},
    command::convert::command_line,
    console::{Console, Rows},
    dashboard::Dashboard,
    error::Status,
    model,
    number::{duration, grouped, parse_duration, rate},
    output,
    progress::{Progress, Unit},
    ranks, signal,
};
use anyhow::bail;
use burn::tensor::Device;
use clap::Args;
use retie_checkpoint::{HubAddress, Provenance};
use retie_config::{LoggerKind, UptrainConfig, document};
use retie_trainer::{Collective, Event, Outcome, Resume, Spike, Stage, StepRow, lead_first};
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Train a recursive model, usually by distillation from its own original
#[derive(Debug, Args)]
pub struct Uptrain {
    /// The run, a YAML file
    #[arg(value_name = "CONFIG.yaml")]
    config: PathBuf,
    #[command(flatten)]
    set: SetArgs,
    /// Go on from the run's last checkpoint, bit for bit, or from its start if there is none (`auto`), or from the checkpoint named; one of
    /// another run begins a new run in `run.dir`
    #[arg(long, value_name = "auto|CHECKPOINT", num_args = 0..=1, require_equals = true, default_missing_value = AUTO)]
    resume: Option<String>,
    /// Go on although this key, or what begins with it, is not as in the configuration of the run, e.g. `optimizer.lr`
    #[arg(long, value_name = "KEY", requires = "resume")]
    allow_change: Vec<String>,
    /// Check everything and show the run's configuration, size and time; train nothing, write nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Save and stop after the step that leaves no time for another, e.g. 90m or 1h30m; `--resume` goes on
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,
    /// Draw curves and numbers on the terminal after every step; lines where stderr is none
    #[arg(long)]
    tui: bool,
    #[command(flatten)]
    device: DeviceArgs,
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
        let device = retie_model::device(&self.device.device)?;
        lead_first(ranks, || stages.iter().try_for_each(|stage| fetch(&stage.on_first_model())))?;
        if self.dry_run {
            return if ranks.leads() { self.plan(&stages, &device, ranks.world()) } else { Ok(Status::Done) };
        }
        let staged = stages.iter().any(|stage| stage.name.is_some());
        if let (true, Some(checkpoint)) = (staged, self.resume.as_ref().filter(|from| *from != AUTO)) {
            bail!(
                "`--resume={checkpoint}` names a checkpoint, and `{}` has stages\nhint: `--resume` goes on with the stage that was under way",
                self.config.display()
            );
        }
        if staged {
            // What the last stage needs should not be missed after hours of the first.
            stages.iter().try_for_each(Stage::check)?;
        }
        let stop = signal::stop_flag()?;
        let mut clock = Clock::new(self.time_limit);
        let mut done = Vec::new();
        for stage in &stages {
            if let (Some(name), Some(model), true) = (&stage.name, stage.finished(), self.resume.is_some()) {
                if ranks.leads() {
                    output::line(&format!("stage {name} is done: {}", model.display()));
                }
                continue;
            }
            if let (Some(name), true) = (&stage.name, ranks.leads()) {
                output::line(&format!("stage {name}, {} steps", stage.config.num_steps()));
            }
            let (summary, outcome) = self.train(&stage.config, &device, ranks, &stop, &mut clock)?;
            if ranks.leads() {
                match self.json.json {
                    true => done.push((stage.name.clone(), summary.to_json(&outcome))),
                    false => output::data(summary.text())?,
                }
            }
            match (&outcome, ranks.leads()) {
                (Outcome::Finished { .. }, _) => {}
                (Outcome::Interrupted { .. }, false) => return Ok(status(&outcome)),
                (Outcome::Interrupted { .. }, true) => {
                    self.print(done, staged)?;
                    return self.end(&stage.config, &outcome);
                }
            }
        }
        if !ranks.leads() {
            return Ok(Status::Done);
        }
        self.print(done, staged)?;
        match stages.last().and_then(|last| Some((&last.config, last.finished()?))) {
            Some((config, model)) => self.end(config, &Outcome::Finished { model }),
            None => Ok(Status::Done),
        }
    }

    fn train(
        &self,
        config: &UptrainConfig,
        device: &Device,
        ranks: &dyn Collective,
        stop: &AtomicBool,
        clock: &mut Clock,
    ) -> anyhow::Result<(Summary, Outcome)> {
        let parent = model::parent(&model::open(&config.student.model)?)?;
        let provenance = Provenance::now(command_line(), Some(parent));
        let mut watcher = Watcher::new(config, self.tui && ranks.leads());
        // Not the signals' own flag: with that set, the next signal would end the process while it saves.
        let halt = AtomicBool::new(false);
        let outcome = retie_trainer::uptrain(config, device, self.resume(), &provenance, ranks, &halt, &mut |event| {
            if matches!(event, Event::Step { .. } | Event::Skipped { .. }) {
                halt.store(clock.is_over() || stop.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            if ranks.leads() {
                watcher.see(event);
            }
        });
        let summary = watcher.finish();
        Ok((summary, outcome?))
    }

    /// `--dry-run`: the configuration and the size of each stage.
    fn plan(&self, stages: &[Stage], device: &Device, ranks: usize) -> anyhow::Result<Status> {
        let mut found = Vec::new();
        for stage in stages {
            let plan = retie_trainer::plan(&stage.on_first_model(), device, ranks)?;
            if self.json.json {
                found.push((stage.name.clone(), json!({ "config": stage.config, "plan": plan })));
                continue;
            }
            if let Some(name) = &stage.name {
                output::data(format!("# stage {name}"))?;
            }
            output::data(format!("{}\n{plan}", document::to_yaml(&stage.config)?))?;
        }
        self.print(found, stages.iter().any(|stage| stage.name.is_some()))?;
        output::next(&format!("retie uptrain {}{}", output::word(&self.config), self.sets()));
        Ok(Status::Done)
    }

    /// With `--json`: what there is to say of each stage, or of the only one.
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

fn status(outcome: &Outcome) -> Status {
    match outcome {
        Outcome::Finished { .. } => Status::Done,
        Outcome::Interrupted { .. } => Status::Interrupted,
    }
}

/// Downloads the models and texts of `config` that are on the hub, with progress bars; the trainer finds them in the cache.
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

/// The time that a run has.
struct Clock {
    limit: Option<Duration>,
    start: Instant,
    last: Instant,
    /// The longest time from one step to the next, with measurements and checkpoints.
    longest: Duration,
}

impl Clock {
    fn new(limit: Option<Duration>) -> Self {
        let start = Instant::now();
        Self { limit, start, last: start, longest: Duration::ZERO }
    }

    /// Whether a step and a checkpoint, in the longest time that a step took yet, would end after the limit.
    fn is_over(&mut self) -> bool {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
        self.limit.is_some_and(|limit| now - self.start + 2 * self.longest > limit)
    }
}

/// Shows a run while it goes on.
pub struct Watcher {
    tokenizing: Option<(&'static str, Progress)>,
    shown: Option<Box<dyn Rows>>,
    summary: Summary,
}

/// What a run came to.
#[derive(Default)]
pub struct Summary {
    baseline: Option<f64>,
    first: Option<StepRow>,
    last: Option<StepRow>,
    /// Last measurement on the held-out text.
    heldout: Option<f64>,
    seconds: f64,
}

impl Watcher {
    /// For a run of `config`, whose rows are shown if `run.loggers` says so, or as a picture with `tui` on a terminal.
    pub fn new(config: &UptrainConfig, tui: bool) -> Self {
        let shown: Option<Box<dyn Rows>> = if tui && io::stderr().is_terminal() {
            Some(Box::new(Dashboard::new(config)))
        } else if tui || config.run.logs_to(LoggerKind::Console) {
            Some(Box::new(Console::new(config.num_steps())))
        } else {
            None
        };
        Self { tokenizing: None, shown, summary: Summary::default() }
    }

    /// Shows one event.
    pub fn see(&mut self, event: Event<'_>) {
        let shown = match event {
            Event::Tokenizing { what, progress } => {
                if self.tokenizing.as_ref().is_none_or(|(current, _)| *current != what) {
                    self.tokenizing = None;
                    let bar = Progress::new(&format!("tokenize {what} text"), Unit::Bytes, progress.bytes_total);
                    self.tokenizing = Some((what, bar));
                }
                if let Some((_, bar)) = &mut self.tokenizing {
                    bar.set(progress.bytes_done, progress.bytes_total, &format!("{} tokens", grouped(progress.tokens)));
                }
                return;
            }
            Event::Resumed { step, path, changes } => {
                output::line(&format!("resumed after step {step} from {}", path.display()));
                changes.iter().for_each(|change| output::line(&format!("changed: {change}")));
                self.shown.iter_mut().for_each(|shown| shown.start_at(step));
                Ok(())
            }
            Event::Baseline(baseline) => {
                self.tokenizing = None;
                let loss = Some(baseline.heldout_cross_entropy);
                (self.summary.baseline, self.summary.heldout) = (loss, loss);
                self.shown.as_mut().map_or(Ok(()), |shown| shown.baseline(baseline))
            }
            Event::Step { row, .. } => {
                self.tokenizing = None;
                self.summary.add(row);
                self.shown.as_mut().map_or(Ok(()), |shown| shown.step(row))
            }
            Event::Spike { step, loss, spike } => {
                let Spike { median, deviations, path } = spike;
                output::line(&format!(
                    "step {step} stands out: loss {loss:.4}, {deviations:.1} spreads above the median {median:.4}; text in {}",
                    path.display()
                ));
                Ok(())
            }
            Event::Skipped { step, loss, grad_norm, path } => {
                let text =
                    format!("step {step} left out: loss {loss}, gradient norm {grad_norm}; text in {}", path.display());
                output::line(&text);
                Ok(())
            }
            Event::Checkpoint { step, path } => {
                tracing::info!(step, path = %path.display(), "checkpoint");
                Ok(())
            }
        };
        if let Err(error) = shown {
            tracing::warn!(%error, "cannot be shown");
        }
    }

    /// Takes the bars off the screen and gives what the run came to.
    pub fn finish(self) -> Summary {
        self.summary
    }
}

impl Summary {
    fn add(&mut self, row: &StepRow) {
        self.first.get_or_insert_with(|| row.clone());
        self.heldout = row.heldout_cross_entropy.or(self.heldout);
        self.seconds += row.seconds;
        self.last = Some(row.clone());
    }

    fn text(&self) -> String {
        let (Some(first), Some(last)) = (&self.first, &self.last) else {
            return "no step was left to do".to_owned();
        };
        let steps = last.step + 1 - first.step;
        let speed = (last.tokens - first.tokens + first_tokens(first)) as f64 / self.seconds.max(f64::MIN_POSITIVE);
        let mut lines = vec![
            format!("steps       {} to {}, {} tokens in all", first.step, last.step, grouped(last.tokens)),
            format!("loss        {:.4} → {:.4}", first.loss, last.loss),
            format!("time        {} for {steps} steps, {} tok/s", duration(self.seconds), rate(speed)),
        ];
        if let (Some(before), Some(after)) = (self.baseline, self.heldout) {
            lines.insert(2, format!("held-out    {before:.4} → {after:.4}"));
        } else if let Some(after) = self.heldout {
            lines.insert(2, format!("held-out    {after:.4}"));
        }
        lines.join("\n")
    }

    fn to_json(&self, outcome: &Outcome) -> Value {
        let (name, path) = match outcome {
            Outcome::Finished { model } => ("finished", model),
            Outcome::Interrupted { checkpoint, .. } => ("interrupted", checkpoint),
        };
        json!({
            "outcome": name,
            "path": path,
            "first": self.first,
            "last": self.last,
            "heldout_cross_entropy": { "before": self.baseline, "after": self.heldout },
            "seconds": self.seconds,
        })
    }
}

/// Tokens of the step itself.
fn first_tokens(row: &StepRow) -> u64 {
    (row.tokens_per_second * row.seconds).round() as u64
}
