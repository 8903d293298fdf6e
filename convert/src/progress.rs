//! Progress of a conversion.

/// Part of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Candidates of a search are scored, one by one.
    Search,
    /// Source layers are removed, one by one.
    Remove,
    /// Blocks of kept layers are tried as a loop, one by one.
    Loop,
    /// Ranks are chosen within a budget, tensor by tensor, or with a calibration layer by layer.
    Spread,
    /// Shared weights are fitted to a calibration text, layer by layer.
    Tie,
    /// Corrections are fitted, depth by depth.
    Refit,
    /// Kept layers are fitted to what removed layers computed, depth by depth.
    Compensate,
    /// The plain start is scored for comparison, depth by depth.
    Measure,
    /// Tensors are written.
    Write,
    /// The written folder is read back and checked.
    Check,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The phase that is under way.
    pub phase: Phase,
    /// Tensors, layers or depths of this phase that are done.
    pub done: usize,
    /// Tensors, layers or depths of this phase.
    pub total: usize,
    /// Name of the one that was done last, as it begins in a checkpoint.
    pub tensor: &'a str,
}
