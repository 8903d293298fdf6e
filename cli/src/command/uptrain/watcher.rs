//! Progress of a run on the terminal, and its summary.

use crate::{
    console::{Console, RunDisplay},
    dashboard::Dashboard,
    output,
    progress::{Progress, Unit},
};
use retie_config::{LoggerKind, UptrainConfig};
use retie_report::number::{duration, grouped, rate};
use retie_trainer::{Event, Outcome, Spike, StepRow};
use serde_json::{Value, json};
use std::io::{self, IsTerminal};

/// Shows a run while it goes on.
pub struct Watcher {
    tokenizing: Option<(&'static str, Progress)>,
    shown: Option<Box<dyn RunDisplay>>,
    summary: Summary,
}

/// First and last numbers of a run.
#[derive(Default)]
pub struct Summary {
    baseline: Option<f64>,
    first: Option<StepRow>,
    last: Option<StepRow>,
    /// Last measurement on the held-out text.
    heldout: Option<f64>,
    /// The same with the averaged weights, where an average is kept.
    averaged: Option<f64>,
    seconds: f64,
}

impl Watcher {
    /// A watcher of a run of `config`, whose rows are shown if `run.loggers` says so, or as a
    /// dashboard with `tui` on a terminal.
    pub fn new(config: &UptrainConfig, tui: bool) -> Self {
        let shown: Option<Box<dyn RunDisplay>> = if tui && io::stderr().is_terminal() {
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
                self.tokenizing(what, progress);
                Ok(())
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
            Event::Spike { step, loss, spike: Spike { median, deviations, path } } => {
                output::line(&format!(
                    "step {step} stands out: loss {loss:.4}, {deviations:.1} spreads above the median {median:.4}; text in {}",
                    path.display()
                ));
                Ok(())
            }
            Event::Skipped { step, loss, grad_norm, path } => {
                let path = path.display();
                output::line(&format!("step {step} left out: loss {loss}, gradient norm {grad_norm}; text in {path}"));
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

    /// Moves the bar of the text `what`.
    fn tokenizing(&mut self, what: &'static str, progress: retie_data::Progress) {
        if self.tokenizing.as_ref().is_none_or(|(current, _)| *current != what) {
            self.tokenizing = None;
            let bar = Progress::new(&format!("tokenize {what} text"), Unit::Bytes, progress.bytes_total);
            self.tokenizing = Some((what, bar));
        }
        if let Some((_, bar)) = &mut self.tokenizing {
            bar.set(progress.bytes_done, progress.bytes_total, &format!("{} tokens", grouped(progress.tokens)));
        }
    }

    /// Takes the bars off the screen and gives the summary.
    pub fn finish(self) -> Summary {
        self.summary
    }
}

impl Summary {
    fn add(&mut self, row: &StepRow) {
        self.first.get_or_insert_with(|| row.clone());
        self.heldout = row.heldout_cross_entropy.or(self.heldout);
        self.averaged = row.averaged_heldout_cross_entropy.or(self.averaged);
        self.seconds += row.seconds;
        self.last = Some(row.clone());
    }

    pub fn text(&self) -> String {
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
        if let Some(averaged) = self.averaged {
            lines.insert(lines.len() - 1, format!("averaged    {averaged:.4} held-out"));
        }
        lines.join("\n")
    }

    pub fn to_json(&self, outcome: &Outcome) -> Value {
        let (name, path) = match outcome {
            Outcome::Finished { model } => ("finished", model),
            Outcome::Interrupted { checkpoint, .. } => ("interrupted", checkpoint),
        };
        let mut summary = json!({
            "outcome": name,
            "path": path,
            "first": self.first,
            "last": self.last,
            "heldout_cross_entropy": { "before": self.baseline, "after": self.heldout },
            "seconds": self.seconds,
        });
        if let Some(averaged) = self.averaged {
            summary["averaged_heldout_cross_entropy"] = json!(averaged);
        }
        summary
    }
}

/// Tokens of the step itself.
fn first_tokens(row: &StepRow) -> u64 {
    (row.tokens_per_second * row.seconds).round() as u64
}
