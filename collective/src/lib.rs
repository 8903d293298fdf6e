//! Ranks: processes that share the work on one model, each on its part of the data. All
//! communication goes through [`Collective`]; training and evaluation know no more of where ranks
//! run.
//!
//! Every rank calls the same operations in the same order. None of them fails: an implementation
//! whose connection breaks ends the process, because ranks that are left alone cannot go on. A rank
//! that meets an error of its own has to end the whole job.

#[cfg(feature = "threads")]
mod threads;

#[cfg(feature = "threads")]
pub use threads::Threads;

use std::fmt::Debug;

/// Communication among all ranks.
pub trait Collective: Debug {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world(&self) -> usize;

    /// The sum over all ranks, element by element; the same bits on each.
    fn all_reduce(&self, values: &mut [f32]);

    /// As [`Collective::all_reduce`], for the few numbers that are told in f64.
    fn all_reduce_f64(&self, values: &mut [f64]);

    /// `part` of rank `r` becomes the `r`-th of the equal parts of the sum of `whole` over all
    /// ranks.
    ///
    /// # Panics
    /// When `whole` is not [`Collective::world`] times as long as `part`.
    fn reduce_scatter(&self, whole: &[f32], part: &mut [f32]);

    /// `whole` becomes the parts of all ranks, one after the other.
    ///
    /// # Panics
    /// When `whole` is not [`Collective::world`] times as long as `part`.
    fn all_gather(&self, part: &[f32], whole: &mut [f32]);

    /// `bytes` becomes what it is on rank 0.
    fn broadcast(&self, bytes: &mut [u8]);

    /// Waits until every rank is here.
    fn barrier(&self);

    /// Whether this is the rank that writes and speaks for all.
    fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// The sum of `value` over all ranks.
    fn total(&self, value: f64) -> f64 {
        let mut sum = [value];
        self.all_reduce_f64(&mut sum);
        sum[0]
    }

    /// Whether `value` holds on some rank.
    fn any(&self, value: bool) -> bool {
        self.total(f64::from(u8::from(value))) > 0.0
    }

    /// Each value becomes the largest of all ranks; f64 holds sizes exactly.
    fn max(&self, values: &mut [usize]) {
        let mut all = vec![0.0; values.len() * self.world()];
        let own = &mut all[self.rank() * values.len()..][..values.len()];
        own.iter_mut().zip(values.iter()).for_each(|(slot, value)| *slot = *value as f64);
        self.all_reduce_f64(&mut all);
        for row in all.chunks_exact(values.len().max(1)) {
            values.iter_mut().zip(row).for_each(|(value, other)| *value = (*value).max(*other as usize));
        }
    }
}

/// The result of `make`, which rank 0 runs before the others: they find its files on the disk.
///
/// # Errors
/// Those of `make`. The job has to end then, because the other ranks wait for it.
pub fn lead_first<T, E>(ranks: &dyn Collective, make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    if !ranks.leads() {
        ranks.barrier();
    }
    let made = make()?;
    if ranks.leads() {
        ranks.barrier();
    }
    Ok(made)
}

/// One process alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Collective for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&self, _values: &mut [f32]) {}

    fn all_reduce_f64(&self, _values: &mut [f64]) {}

    fn reduce_scatter(&self, whole: &[f32], part: &mut [f32]) {
        part.copy_from_slice(whole);
    }

    fn all_gather(&self, part: &[f32], whole: &mut [f32]) {
        whole.copy_from_slice(part);
    }

    fn broadcast(&self, _bytes: &mut [u8]) {}

    fn barrier(&self) {}
}
