//! Row selections: rows of a matrix that an operation reads or writes.

use super::{layout::Segment, reads::Late};
use burn::tensor::{Device, Int, Tensor};
use retie_config::Gating;
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Row numbers, ascending and without duplicates unless said otherwise. A device may have selected
/// them; the host then reads them only when something asks for them.
#[derive(Clone, Debug)]
pub struct RowSet(Source);

#[derive(Clone, Debug)]
enum Source {
    Host(Arc<[usize]>),
    Device(Arc<DeviceRows>),
}

#[derive(Debug)]
struct DeviceRows {
    /// `[k]`.
    rows: Tensor<1, Int>,
    /// Their indices among the rows that they were selected from, `[k]`.
    among_active: Tensor<1, Int>,
    /// How many rows of each sequence of the forward pass there are.
    per_sequence: Arc<[usize]>,
    is_ascending: bool,
    late: Late,
    host: OnceLock<Arc<[usize]>>,
}

impl RowSet {
    /// Ascending rows that a device has selected among active rows: their numbers, their indices
    /// among the active rows, `[k]` each, and how many there are in each sequence of the forward
    /// pass.
    #[must_use]
    pub fn on_device(rows: Tensor<1, Int>, among_active: Tensor<1, Int>, per_sequence: Arc<[usize]>) -> Self {
        Self::of_device(rows, among_active, per_sequence, true)
    }

    fn of_device(
        rows: Tensor<1, Int>,
        among_active: Tensor<1, Int>,
        per_sequence: Arc<[usize]>,
        is_ascending: bool,
    ) -> Self {
        let (late, host) = (Late::integers(rows.clone()), OnceLock::new());
        Self(Source::Device(Arc::new(DeviceRows { rows, among_active, per_sequence, is_ascending, late, host })))
    }

    /// Whether each row is known to be above the one before; one on a device may be without being
    /// known to.
    #[must_use]
    pub fn is_ascending(&self) -> bool {
        match &self.0 {
            Source::Host(rows) => rows.is_sorted_by(|a, b| a < b),
            Source::Device(rows) => rows.is_ascending,
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Source::Host(rows) => rows.len(),
            Source::Device(rows) => rows.per_sequence.iter().sum(),
        }
    }

    /// True without rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows, which are read if a device has selected them.
    #[must_use]
    pub fn host(&self) -> &Arc<[usize]> {
        match &self.0 {
            Source::Host(rows) => rows,
            Source::Device(rows) => {
                rows.host.get_or_init(|| rows.late.values().iter().map(|row| *row as usize).collect())
            }
        }
    }

    /// The rows, if the host has selected them.
    #[must_use]
    pub fn of_host(&self) -> Option<&Arc<[usize]>> {
        match &self.0 {
            Source::Host(rows) => Some(rows),
            Source::Device(_) => None,
        }
    }

    /// What [`RowSet::host`] reads.
    #[must_use]
    pub fn late(&self) -> Option<&Late> {
        match &self.0 {
            Source::Host(_) => None,
            Source::Device(rows) => Some(&rows.late),
        }
    }

    /// Row numbers on `device`, `[k]`.
    #[must_use]
    pub fn indices(&self, device: &Device) -> Tensor<1, Int> {
        match &self.0 {
            Source::Host(rows) => upload(rows, device),
            Source::Device(device) => device.rows.clone(),
        }
    }

    /// Number of rows in each of `segments`, the sequences of the forward pass.
    #[must_use]
    pub fn per_sequence(&self, segments: &[Segment]) -> Vec<usize> {
        match &self.0 {
            Source::Host(rows) => segments.iter().map(|segment| range(rows, &segment.queries).len()).collect(),
            Source::Device(rows) => rows.per_sequence.to_vec(),
        }
    }

    /// Row numbers modulo `period`; no longer ascending.
    #[must_use]
    pub fn modulo(&self, period: usize) -> Self {
        self.map(|row| row % period, |rows| rows.remainder_scalar(period as i64))
    }

    /// Rows with `numbers` subtracted, one for each of the sequences, which `per_sequence` counts.
    #[must_use]
    pub fn minus_of_sequence(&self, numbers: &[usize], per_sequence: &[usize]) -> Self {
        let all = || numbers.iter().zip(per_sequence).flat_map(|(number, count)| std::iter::repeat_n(*number, *count));
        let mut each = all();
        self.map(
            |row| row - each.next().unwrap_or(0),
            |rows| {
                let device = rows.device();
                rows - upload(&all().collect::<Vec<_>>(), &device)
            },
        )
    }

    /// The same rows under other numbers, where they are.
    fn map(
        &self,
        on_host: impl FnMut(usize) -> usize,
        on_device: impl FnOnce(Tensor<1, Int>) -> Tensor<1, Int>,
    ) -> Self {
        match &self.0 {
            Source::Host(rows) => rows.iter().copied().map(on_host).collect(),
            Source::Device(device) => {
                let rows = on_device(device.rows.clone());
                Self::of_device(rows, device.among_active.clone(), device.per_sequence.clone(), false)
            }
        }
    }

    /// Indices within these rows of `selected`, which were selected among them.
    #[must_use]
    pub fn positions(&self, selected: &Self) -> Self {
        match &selected.0 {
            Source::Device(rows) => {
                let at = &rows.among_active;
                Self::on_device(at.clone(), at.clone(), rows.per_sequence.clone())
            }
            Source::Host(rows) => positions(self.host(), rows).into(),
        }
    }
}

/// Index range within the ascending `all` of the rows in `rows`.
pub(crate) fn range(all: &[usize], rows: &Range<usize>) -> Range<usize> {
    let to = |bound: usize| all.partition_point(|row| *row < bound);
    to(rows.start)..to(rows.end)
}

/// Indices within `all` of the rows `some`; both are ascending.
pub(crate) fn positions(all: &[usize], some: &[usize]) -> Vec<usize> {
    let mut at = 0;
    let position = |row: &usize| {
        at += all[at..].partition_point(|other| other < row);
        at
    };
    some.iter().map(position).collect()
}

impl From<Arc<[usize]>> for RowSet {
    fn from(rows: Arc<[usize]>) -> Self {
        Self(Source::Host(rows))
    }
}

impl From<Vec<usize>> for RowSet {
    fn from(rows: Vec<usize>) -> Self {
        Self(Source::Host(rows.into()))
    }
}

impl From<&[usize]> for RowSet {
    fn from(rows: &[usize]) -> Self {
        Self(Source::Host(rows.into()))
    }
}

impl<const N: usize> From<[usize; N]> for RowSet {
    fn from(rows: [usize; N]) -> Self {
        Self(Source::Host(rows.into()))
    }
}

impl FromIterator<usize> for RowSet {
    fn from_iter<I: IntoIterator<Item = usize>>(rows: I) -> Self {
        Self(Source::Host(rows.into_iter().collect()))
    }
}

/// Rows that went through a block, and the gating that combines its output with its input
/// (Mixture-of-Recursions, Eq. 2.1, <https://arxiv.org/abs/2507.10524>).
#[derive(Clone, Debug)]
pub struct Merge {
    /// Selected rows.
    pub rows: RowSet,
    /// Gating of the output.
    pub gating: Gating,
}

/// Copy of consecutive rows into a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCopy {
    /// Source rows.
    pub rows: Range<usize>,
    /// First destination row in the buffer.
    pub at: usize,
}

/// LoRA of consecutive rows: `a [rank, in]`, `b [out, rank]`.
#[derive(Clone, Debug)]
pub struct RowsLora {
    /// Rows that it corrects.
    pub rows: Range<usize>,
    /// Factor `A`.
    pub a: Tensor<2>,
    /// Factor `B`.
    pub b: Tensor<2>,
}

/// Row numbers on a device, `[k]`.
pub(super) fn upload(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    Tensor::from_ints(rows.as_slice(), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_indices_within_all_rows() {
        assert_eq!(positions(&[0, 2, 3, 6, 8], &[2, 8]), [1, 4]);
    }

    #[test]
    fn rows_of_a_device_are_those_of_the_host() {
        let device = Device::flex();
        let tensor = |rows: &[usize]| upload(rows, &device);
        let active: RowSet = [0, 2, 3, 6, 8].into();
        let selected = RowSet::on_device(tensor(&[2, 8]), tensor(&[1, 4]), [1, 1].into());
        assert_eq!((selected.len(), selected.of_host().is_none()), (2, true));
        assert_eq!(**selected.host(), [2, 8]);
        assert_eq!(**active.positions(&selected).host(), **active.positions(&[2, 8].into()).host());
        let segments = [0..4, 4..9].map(|rows| Segment::last(rows.clone(), 0..0, rows));
        assert_eq!(selected.per_sequence(&segments), active.positions(&selected).per_sequence(&[]));
        assert_eq!(RowSet::from([2, 8]).per_sequence(&segments), [1, 1]);
    }
}

/// Rows that each tap of a filter reads, as many for each.
#[derive(Clone, Debug)]
pub(super) struct Taps(Arc<[Arc<[usize]>]>);

impl Taps {
    /// # Panics
    /// Without taps, or when they have different numbers of rows.
    pub fn new(taps: Arc<[Arc<[usize]>]>) -> Self {
        assert!(taps.windows(2).all(|pair| pair[0].len() == pair[1].len()), "taps of different numbers of rows");
        assert!(!taps.is_empty(), "a filter without taps");
        Self(taps)
    }

    /// Rows of the result.
    pub fn num_rows(&self) -> usize {
        self.0[0].len()
    }
}

impl std::ops::Deref for Taps {
    type Target = [Arc<[usize]>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
