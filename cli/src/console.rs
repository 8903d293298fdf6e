//! Progress of a run on stderr: a bar on a terminal, a line every ten seconds elsewhere.

use crate::{
    output,
    progress::{Progress, Unit},
};
use retie_report::number::{duration, rate};
use retie_trainer::{Baseline, Logger, StepRow, TrainError};
use std::time::{Duration, Instant};

/// Time between lines where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A logger that shows the progress of a run on the terminal.
pub trait RunDisplay: Logger {
    /// Starts the display of a run that was resumed after `step` steps.
    fn start_at(&mut self, step: u64);
}

/// The display of a run without a dashboard.
pub struct Console {
    num_steps: u64,
    bar: Option<Progress>,
    last_line: Option<Instant>,
}

impl Console {
    pub fn new(num_steps: u64) -> Self {
        Self { num_steps, bar: None, last_line: None }
    }

    fn bar(&mut self) -> &mut Progress {
        self.bar.get_or_insert_with(|| Progress::new("train", Unit::Count("steps"), self.num_steps))
    }
}

impl RunDisplay for Console {
    fn start_at(&mut self, step: u64) {
        self.bar().start_at(step);
    }
}

impl Logger for Console {
    fn baseline(&mut self, baseline: &Baseline) -> Result<(), TrainError> {
        let Baseline { heldout_cross_entropy: loss, heldout_exits, teacher_heldout_cross_entropy } = baseline;
        let teacher = teacher_heldout_cross_entropy.map(|loss| format!(", of the teacher {loss:.4}"));
        let teacher = teacher.unwrap_or_default();
        output::line(&format!("held-out cross-entropy before training {loss:.4}{}{teacher}", exits(heldout_exits)));
        Ok(())
    }

    fn step(&mut self, row: &StepRow) -> Result<(), TrainError> {
        let num_steps = self.num_steps;
        let message = message(row);
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        let keep = row.heldout_cross_entropy.is_some() || row.step == num_steps;
        let left = (num_steps - row.step) as f64 * row.seconds;
        let bar = self.bar();
        if keep {
            bar.set_and_keep(row.step, num_steps, &message);
        } else if bar.is_drawn() {
            bar.set(row.step, num_steps, &message);
        } else if due {
            bar.set_and_keep(row.step, num_steps, &format!("{message}  {} left", duration(left)));
        }
        if keep || due {
            self.last_line = Some(Instant::now());
        }
        Ok(())
    }
}

/// Losses of the early exits, appended to the loss of the whole model.
fn exits(losses: &[f64]) -> String {
    let losses: Vec<String> = losses.iter().map(|loss| format!("{loss:.4}")).collect();
    if losses.is_empty() { String::new() } else { format!(" (exits {})", losses.join(", ")) }
}

fn message(row: &StepRow) -> String {
    let terms: Vec<String> = row.terms.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let average = row.averaged_heldout_cross_entropy.map(|loss| format!(", averaged {loss:.4}")).unwrap_or_default();
    let heldout =
        row.heldout_cross_entropy.map(|loss| format!("  held-out {loss:.4}{average}{}", exits(&row.heldout_exits)));
    let heldout = heldout.unwrap_or_default();
    format!(
        "loss {:.4} ({})  lr {:.2e}  {} tok/s{heldout}",
        row.loss,
        terms.join(", "),
        row.lr,
        rate(row.tokens_per_second)
    )
}
