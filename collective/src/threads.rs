//! Ranks that are threads of one process, for tests.

use crate::Collective;
use std::{
    fmt,
    sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError},
    thread,
};

/// One rank.
#[derive(Clone)]
pub struct Threads {
    rank: usize,
    board: Arc<Board>,
}

/// The values that ranks leave for one another.
struct Board {
    barrier: Barrier,
    left: Mutex<Vec<Vec<f64>>>,
}

impl Threads {
    /// Runs `job` on `world` ranks and gives the results in their order. A job that fails on one
    /// rank alone leaves the others waiting.
    ///
    /// # Panics
    /// When `job` panics.
    pub fn run<T: Send>(world: usize, job: impl Fn(&Self) -> T + Sync) -> Vec<T> {
        let board = Arc::new(Board { barrier: Barrier::new(world), left: Mutex::new(vec![Vec::new(); world]) });
        thread::scope(|scope| {
            let start = |rank| {
                let ranks = Self { rank, board: board.clone() };
                let job = &job;
                scope.spawn(move || job(&ranks))
            };
            let threads: Vec<_> = (0..world).map(start).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }

    fn left(&self) -> MutexGuard<'_, Vec<Vec<f64>>> {
        self.board.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The values of every rank, in their order. f64 holds an f32 exactly.
    fn exchange(&self, own: Vec<f64>) -> Vec<Vec<f64>> {
        self.left()[self.rank] = own;
        self.board.barrier.wait();
        let all = self.left().clone();
        self.board.barrier.wait();
        all
    }

    fn exchange_f32(&self, own: &[f32]) -> Vec<Vec<f32>> {
        let all = self.exchange(own.iter().map(|x| f64::from(*x)).collect());
        all.into_iter().map(|values| values.into_iter().map(|x| x as f32).collect()).collect()
    }
}

fn sum<T: Copy + std::ops::AddAssign>(all: &[Vec<T>]) -> Vec<T> {
    let mut sum = all[0].clone();
    for other in &all[1..] {
        assert_eq!(other.len(), sum.len(), "ranks that do not ask for the same");
        sum.iter_mut().zip(other).for_each(|(sum, x)| *sum += *x);
    }
    sum
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.world())
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.left().len()
    }

    fn all_reduce(&self, values: &mut [f32]) {
        values.copy_from_slice(&sum(&self.exchange_f32(values)));
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        values.copy_from_slice(&sum(&self.exchange(values.to_vec())));
    }

    fn reduce_scatter(&self, whole: &[f32], part: &mut [f32]) {
        assert_eq!(whole.len(), part.len() * self.world());
        part.copy_from_slice(&sum(&self.exchange_f32(whole))[self.rank * part.len()..][..part.len()]);
    }

    fn all_gather(&self, part: &[f32], whole: &mut [f32]) {
        whole.copy_from_slice(&self.exchange_f32(part).concat());
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        let all = self.exchange(bytes.iter().map(|byte| f64::from(*byte)).collect());
        bytes.iter_mut().zip(&all[0]).for_each(|(byte, x)| *byte = *x as u8);
    }

    fn barrier(&self) {
        self.exchange(Vec::new());
    }
}
