//! All progress bars of the process, so that lines of text can be written above them.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use std::sync::LazyLock;

static BARS: LazyLock<MultiProgress> = LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// Runs `write`, which writes to stderr, with the progress bars hidden.
pub fn write_above(write: impl FnOnce()) {
    BARS.suspend(write);
}

/// Adds `bar` to the bars that are drawn.
pub fn add(bar: ProgressBar) -> ProgressBar {
    BARS.add(bar)
}

/// Removes `bar` from the bars that are drawn.
pub fn remove(bar: &ProgressBar) {
    BARS.remove(bar);
}
