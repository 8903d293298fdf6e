//! `retie uptrain`: train a recursive model, usually by distillation from its own original.

use crate::{
    args::{DeviceArgs, JsonArgs, SetArgs},
    command::convert::command_line,
    error::Status,
    model,
    number::{duration, grouped, parse_duration, rate},
    output,
    progress::{Progress, Unit},
    signal,
};
use clap::Args;
use retie_checkpoint::Provenance;
use retie_config::{UptrainConfig, document};
use retie_trainer::{Baseline, Event, Outcome, Resume, StepRow};
use serde_json::json;
use std::{
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
    /// Go on from the run's last checkpoint, bit for bit
    #[arg(long)]
    resume: bool,
    /// Check everything and show the run's configuration, size and time; train nothing, write nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Save and stop after the step that leaves no time for another, e.g. 90m or 1h30m; `--resume` goes on
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

impl Uptrain {
    pub fn run(self) -> anyhow::Result<Status> {
        let config: UptrainConfig = document::load(&self.config, &self.set.set)?;
        let device = retie_model::device(&self.device.device)?;
        fetch(&config)?;
        if self.dry_run {
            let plan = retie_trainer::plan(&config, &device)?;
            match self.json.json {
                true => output::json(&json!({ "config": config, "plan": plan }))?,
                false => output::data(format!("{}\n{plan}", document::to_yaml(&config)?))?,
            }
            output::next(&format!("retie uptrain {}{}", output::word(&self.config), self.sets()));
            return Ok(Status::Done);
        }
        let stop = signal::stop_flag()?;
        let resume = if self.resume { Resume::Latest } else { Resume::Never };
        let parent = model::parent(&model::open(&config.student.model)?)?;
        let provenance = Provenance::now(command_line(), Some(parent));
        let mut watcher = Watcher::default();
        let mut clock = Clock::new(self.time_limit);
        // Not the signals' own flag: with that set, the next signal would end the process while it saves.
        let halt = AtomicBool::new(false);
        let outcome = retie_trainer::uptrain(&config, &device, resume, &provenance, &halt, &mut |event| {
            if matches!(event, Event::Step { .. } | Event::Skipped { .. }) {
                halt.store(clock.is_over() || stop.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            watcher.see(event);
        });
        let summary = watcher.finish();
        let outcome = outcome?;
        match self.json.json {
            true => output::json(&summary.to_json(&outcome))?,
            false => output::data(summary.text())?,
        }
        self.end(&config, &outcome)
    }

    fn end(&self, config: &UptrainConfig, outcome: &Outcome) -> anyhow::Result<Status> {
        match outcome {
            Outcome::Finished { model } => {
                output::wrote(model);
                let text = config.data.heldout.iter().find(|file| file.exists());
                let text = text.map_or_else(|| "FILE".to_owned(), |file| output::word(file));
                output::next(&format!("retie eval {} --tasks perplexity --text {text}", output::word(model)));
                Ok(Status::Done)
            }
            Outcome::Interrupted { step, checkpoint } => {
                output::line(&format!("interrupted after step {step} of {}", config.num_steps()));
                output::wrote(checkpoint);
                output::next(&format!("retie uptrain {}{} --resume", output::word(&self.config), self.sets()));
                Ok(Status::Interrupted)
            }
        }
    }

    /// The `--set` arguments as they have to be typed again.
    fn sets(&self) -> String {
        self.set.set.iter().map(|set| format!(" --set {}", output::word(Path::new(set)))).collect()
    }
}

/// Downloads the models of `config` that are on the hub, with progress bars; the trainer finds them in the cache.
fn fetch(config: &UptrainConfig) -> anyhow::Result<()> {
    let teacher = config.teacher.iter().filter_map(|teacher| teacher.model.as_ref());
    let models = std::iter::once(&config.student.model).chain(teacher);
    for spec in models.filter(|spec| !Path::new(spec).exists()) {
        model::open(spec)?;
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
#[derive(Default)]
pub struct Watcher {
    tokenizing: Option<(&'static str, Progress)>,
    training: Option<Progress>,
    last_line: Option<Instant>,
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

/// Time between lines where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Watcher {
    /// Shows one event.
    pub fn see(&mut self, event: Event<'_>) {
        match event {
            Event::Tokenizing { what, progress } => {
                if self.tokenizing.as_ref().is_none_or(|(current, _)| *current != what) {
                    self.tokenizing = None;
                    let bar = Progress::new(&format!("tokenize {what} text"), Unit::Bytes, progress.bytes_total);
                    self.tokenizing = Some((what, bar));
                }
                if let Some((_, bar)) = &mut self.tokenizing {
                    bar.set(progress.bytes_done, progress.bytes_total, &format!("{} tokens", grouped(progress.tokens)));
                }
            }
            Event::Resumed { step, path } => {
                output::line(&format!("resumed after step {step} from {}", path.display()));
                self.bar(step).start_at(step);
            }
            Event::Baseline(baseline) => {
                let Baseline { heldout_cross_entropy: loss, heldout_exits, teacher_heldout_cross_entropy } = baseline;
                self.summary.baseline = Some(*loss);
                self.summary.heldout = Some(*loss);
                let teacher = teacher_heldout_cross_entropy.map(|loss| format!(", of the teacher {loss:.4}"));
                let teacher = teacher.unwrap_or_default();
                let exits = exits(heldout_exits);
                output::line(&format!("held-out cross-entropy before training {loss:.4}{exits}{teacher}"));
            }
            Event::Step { row, num_steps } => self.step(row, num_steps),
            Event::Skipped { step, loss, grad_norm, path } => {
                let text =
                    format!("step {step} left out: loss {loss}, gradient norm {grad_norm}; text in {}", path.display());
                output::line(&text);
            }
            Event::Checkpoint { step, path } => {
                tracing::info!(step, path = %path.display(), "checkpoint");
            }
        }
    }

    fn bar(&mut self, total: u64) -> &mut Progress {
        self.tokenizing = None;
        self.training.get_or_insert_with(|| Progress::new("train", Unit::Count("steps"), total))
    }

    fn step(&mut self, row: &StepRow, num_steps: u64) {
        let message = message(row);
        let first = self.summary.first.is_none();
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        let keep = row.heldout_cross_entropy.is_some() || row.step == num_steps;
        let left = (num_steps - row.step) as f64 * row.seconds;
        let bar = self.bar(num_steps);
        if keep {
            bar.set_and_keep(row.step, num_steps, &message);
        } else if bar.is_drawn() {
            bar.set(row.step, num_steps, &message);
        } else if first || due {
            bar.set_and_keep(row.step, num_steps, &format!("{message}  {} left", duration(left)));
        }
        if keep || first || due {
            self.last_line = Some(Instant::now());
        }
        if first {
            self.summary.first = Some(row.clone());
        }
        self.summary.heldout = row.heldout_cross_entropy.or(self.summary.heldout);
        self.summary.seconds += row.seconds;
        self.summary.last = Some(row.clone());
    }

    /// Takes the bars off the screen and gives what the run came to.
    pub fn finish(self) -> Summary {
        self.summary
    }
}

/// Losses of early exits, behind that of the whole model.
fn exits(losses: &[f64]) -> String {
    let losses: Vec<String> = losses.iter().map(|loss| format!("{loss:.4}")).collect();
    if losses.is_empty() { String::new() } else { format!(" (exits {})", losses.join(", ")) }
}

fn message(row: &StepRow) -> String {
    let terms: Vec<String> = row.terms.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let heldout = row.heldout_cross_entropy.map(|loss| format!("  held-out {loss:.4}{}", exits(&row.heldout_exits)));
    let heldout = heldout.unwrap_or_default();
    format!(
        "loss {:.4} ({})  lr {:.2e}  {} tok/s{heldout}",
        row.loss,
        terms.join(", "),
        row.lr,
        rate(row.tokens_per_second)
    )
}

impl Summary {
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

    fn to_json(&self, outcome: &Outcome) -> serde_json::Value {
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
