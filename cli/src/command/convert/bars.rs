//! Progress of a conversion on the terminal.

use crate::progress::{Progress, Unit};
use retie_convert::Phase;

/// The bar of the phase that is under way.
#[derive(Default)]
pub struct Bars(Option<(Phase, Progress)>);

impl Bars {
    /// Shows how far it is.
    pub fn see(&mut self, progress: retie_convert::Progress<'_>) {
        if self.0.as_ref().is_none_or(|(phase, _)| *phase != progress.phase) {
            let (label, things) = match progress.phase {
                Phase::Search => ("search", "candidates"),
                Phase::Remove => ("remove", "layers"),
                Phase::Loop => ("loop", "blocks"),
                Phase::Spread => ("ranks", "steps"),
                Phase::Tie => ("tie", "layers"),
                Phase::Refit => ("refit", "depths"),
                Phase::Compensate => ("compensate", "depths"),
                Phase::Measure => ("measure", "depths"),
                Phase::Write => ("convert", "tensors"),
                Phase::Check => ("check", "tensors"),
            };
            // The bar before is taken off before the next one is drawn.
            self.0 = None;
            self.0 = Some((progress.phase, Progress::new(label, Unit::Count(things), progress.total as u64)));
        }
        if let Some((_, bar)) = &mut self.0 {
            bar.set(progress.done as u64, progress.total as u64, progress.tensor);
        }
    }
}
