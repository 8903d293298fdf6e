//! Loss spikes, steps whose loss lies far above those before ([`LossSpike`] has the rule): they are
//! counted and their text is kept.

use super::guard::keep_text;
use crate::{TrainError, log::StepRow};
use retie_config::LossSpike;
use retie_data::Batch;
use serde_json::json;
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

/// The standard deviation of a normal distribution over the median distance from its median.
const NORMAL: f64 = 1.4826;
/// Losses that hardly move are not told apart by less than this part of them.
const LEAST_SPREAD: f64 = 0.01;

/// Watches the losses of a run.
#[derive(Debug)]
pub struct Spikes {
    rule: LossSpike,
    /// Losses of the last steps, oldest first, as the log gives them back.
    recent: VecDeque<f64>,
    /// Steps of the run that stood out.
    count: u64,
}

/// A loss that stands out.
#[derive(Clone, Debug, PartialEq)]
pub struct Spike {
    /// Median of the losses before.
    pub median: f64,
    /// Distance of the loss above it, in spreads.
    pub deviations: f64,
    /// File of the text of the step.
    pub path: PathBuf,
}

impl Spikes {
    /// Goes on after `rows`, those of the run so far.
    pub fn new(rule: LossSpike, rows: &[StepRow]) -> Self {
        let window = match rule {
            LossSpike::Ignore => 0,
            LossSpike::Report { window, .. } => window,
        };
        let recent = rows[rows.len().saturating_sub(window)..].iter().map(|row| row.loss).collect();
        Self { rule, recent, count: rows.last().map_or(0, |row| row.loss_spikes) }
    }

    /// Steps that stood out so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Looks at the loss of a step, and keeps the text of one that stands out.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn see(
        &mut self,
        run_dir: &Path,
        step: u64,
        loss: f64,
        batches: &[Batch],
    ) -> Result<Option<Spike>, TrainError> {
        let LossSpike::Report { window, deviations } = self.rule else { return Ok(None) };
        let above = (self.recent.len() >= window).then(|| above(self.recent.make_contiguous(), loss));
        if self.recent.len() >= window {
            self.recent.pop_front();
        }
        self.recent.push_back(as_read(loss));
        let Some((median, found)) = above.filter(|(_, found)| *found > deviations) else { return Ok(None) };
        self.count += 1;
        let facts = json!({ "loss": loss, "median": median, "deviations": found });
        let path = keep_text(&run_dir.join("loss-spikes"), step, facts, Some(batches))?;
        Ok(Some(Spike { median, deviations: found, path }))
    }
}

/// A loss as it is read from the log, where the last bit of a number may be another: so a run that
/// was never stopped goes by what a resumed one reads.
fn as_read(loss: f64) -> f64 {
    serde_json::from_str(&json!(loss).to_string()).unwrap_or(loss)
}

/// The median of `recent`, and how many spreads above it `loss` lies.
fn above(recent: &[f64], loss: f64) -> (f64, f64) {
    let middle = median(recent.to_vec());
    let distances = recent.iter().map(|x| (x - middle).abs()).collect();
    let spread = (NORMAL * median(distances)).max(LEAST_SPREAD * middle.abs()).max(f64::MIN_POSITIVE);
    (middle, (loss - middle) / spread)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::row;

    fn rule(window: usize) -> LossSpike {
        LossSpike::Report { window, deviations: 6.0 }
    }

    fn batch() -> Batch {
        retie_data::TokenDataset::from_tokens(&[5, 6, 7, 8, 9], 2).unwrap().batch(&[1, 0]).unwrap()
    }

    #[test]
    fn a_loss_stands_out_by_the_median_of_distances_from_the_median() {
        // Median 4, distances 2 1 0 1 5: median 1.
        let (median, deviations) = above(&[2.0, 3.0, 4.0, 5.0, 9.0], 10.0);
        assert_eq!(median, 4.0);
        assert!((deviations - 6.0 / 1.4826).abs() < 1e-12, "{deviations}");
        // Losses that do not move: a hundredth of 4.
        let (_, deviations) = above(&[4.0; 6], 4.2);
        assert!((deviations - 5.0).abs() < 1e-9, "{deviations}");
    }

    #[test]
    fn a_spike_is_counted_and_its_text_kept_and_a_fall_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut spikes = Spikes::new(rule(5), &[]);
        let mut found = Vec::new();
        for (index, loss) in [3.0, 3.1, 2.9, 3.0, 3.05, 3.02, 9.0, 1.0, 3.0, 9.0].into_iter().enumerate() {
            found.extend(
                spikes.see(dir.path(), index as u64 + 1, loss, &[batch()]).unwrap().map(|spike| (index, spike)),
            );
        }
        // A loss that stood out is one of the window: the next one is not measured by it.
        assert_eq!(found.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [6, 9], "{found:?}");
        assert_eq!((spikes.count(), found[0].1.median), (2, 3.02));
        let kept: serde_json::Value = serde_json::from_slice(&fs_err::read(&found[0].1.path).unwrap()).unwrap();
        assert_eq!((&kept["step"], &kept["rows"]), (&7.into(), &serde_json::json!([1, 0])));
        assert_eq!(kept["token_ids"], serde_json::json!([[7, 8], [5, 6]]));
        assert_eq!(kept["deviations"].as_f64(), Some(found[0].1.deviations));
    }

    #[test]
    fn a_loss_comes_back_from_the_log_to_the_bit() {
        for index in 0..4096u64 {
            let loss = 12.0 * (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64;
            let line = serde_json::to_string(&StepRow { loss, ..row(1) }).unwrap();
            assert_eq!(serde_json::from_str::<StepRow>(&line).unwrap().loss.to_bits(), loss.to_bits(), "{line}");
        }
    }

    #[test]
    fn nothing_is_reported_before_the_window_is_full_or_where_it_is_off_and_a_resumed_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut early = Spikes::new(rule(5), &[row(1), row(2)]);
        assert_eq!(early.see(dir.path(), 3, 1e9, &[]).unwrap(), None);
        let mut off = Spikes::new(LossSpike::Ignore, &vec![row(1); 9]);
        assert_eq!(off.see(dir.path(), 9, 1e9, &[]).unwrap(), None);
        let rows: Vec<StepRow> = (1..=9).map(|step| StepRow { loss_spikes: step / 4, ..row(step) }).collect();
        let mut resumed = Spikes::new(rule(5), &rows);
        assert_eq!(resumed.recent, rows[4..].iter().map(|row| row.loss).collect::<Vec<_>>());
        assert!(resumed.see(dir.path(), 10, 1e9, &[]).unwrap().is_some());
        assert_eq!(resumed.count(), 3);
    }
}
