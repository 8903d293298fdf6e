//! Top-k form of a teacher's distribution: its `n` most probable tokens, and all others together as
//! one further outcome.
//!
//! A divergence is then taken over `n + 1` outcomes of the teacher and, from its logits, of the
//! student. It never exceeds the divergence over all tokens (data-processing inequality); other
//! terms determine the distribution within the rest. For a token `j` of the rest,
//! `∂D/∂s_j = (∂D/∂s_R) q_j/q_R`, where `∂D/∂s_R = q_R (g_R − Σ q g)` is the gradient of a softmax
//! over the outcomes; see [`super::divergence`].

use super::divergence::{At, Row};
use crate::kernels::cpu::simd::exp;

/// Probabilities of some tokens of each row, and of all others together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopProbs {
    /// End of each row in `ids`.
    ends: Vec<usize>,
    ids: Vec<u32>,
    log_probs: Vec<f32>,
}

impl TopProbs {
    /// Appends a row: ids, the most probable first, and log-probabilities of these tokens and of
    /// the rest.
    ///
    /// # Panics
    /// When `log_probs` does not have one element more than `ids`.
    pub fn push(&mut self, ids: &[u32], log_probs: &[f32]) {
        assert_eq!(log_probs.len(), ids.len() + 1, "a logarithm for each id and the rest");
        self.ids.extend_from_slice(ids);
        self.log_probs.extend_from_slice(log_probs);
        self.ends.push(self.ids.len());
    }

    /// Ids and log-probabilities of a row, as in [`TopProbs::push`].
    ///
    /// # Panics
    /// When there are fewer rows.
    #[must_use]
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = self.ends[row];
        (&self.ids[start..end], &self.log_probs[start + row..=end + row])
    }

    /// All rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = (&[u32], &[f32])> {
        (0..self.ends.len()).map(|row| self.row(row))
    }
}

/// Top-k of a row of logits under softmax(logits / temperature): the `k` most probable tokens, or
/// the fewest of them with a total probability of at least `top_p`, if that is less. Returns their
/// ids, and the log-probabilities of these tokens and of the rest. Equal logits are taken in the
/// order of their ids.
pub fn top_of_row(logits: &[f32], k: usize, top_p: Option<f64>, temperature: f32) -> (Vec<u32>, Vec<f32>) {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if k < ids.len() {
        ids.select_nth_unstable_by(k - 1, by_logit);
    }
    let (top, rest) = ids.split_at_mut(k);
    top.sort_unstable_by(by_logit);
    let scaled = |id: &u32| f64::from(logits[*id as usize]) / f64::from(temperature);
    let shift = scaled(&top[0]);
    let sum = |ids: &[u32]| ids.iter().map(|id| (scaled(id) - shift).exp()).sum::<f64>();
    let (of_top, of_rest) = (sum(top), sum(rest));
    let log_sum = (of_top + of_rest).ln();
    let (top, of_rest) = match top_p {
        Some(p) => {
            let enough = p * (of_top + of_rest);
            let mut sums = top.iter().scan(0.0, |sum, id| {
                *sum += (scaled(id) - shift).exp();
                Some(*sum)
            });
            let count = sums.position(|sum| sum >= enough).map_or(top.len(), |last| last + 1);
            let (top, dropped) = top.split_at(count);
            (top, of_rest + sum(dropped))
        }
        None => (&*top, of_rest),
    };
    // An empty rest gets a positive probability, so that every logarithm is finite.
    let rest = of_rest.max(f64::from(f32::MIN_POSITIVE)).ln() - log_sum;
    let log_probs = top.iter().map(|id| (scaled(id) - shift - log_sum) as f32).chain([rest as f32]);
    (top.to_vec(), log_probs.collect())
}

/// Outcomes of one row.
pub struct Outcomes<'a> {
    /// Log-probabilities of the teacher, `[n + 1]`.
    pub log_p: &'a [f32],
    /// Log-probabilities of the student, `[n + 1]`.
    pub log_q: Vec<f32>,
    /// Gradient for the student's outcomes, `[n + 1]`.
    pub slopes: Vec<f32>,
}

impl Outcomes<'_> {
    #[inline(always)]
    fn all(&self) -> impl Iterator<Item = At> {
        self.log_p.iter().zip(&self.log_q).map(|(log_p, log_q)| At { log_p: *log_p, log_q: *log_q, q: exp(*log_q) })
    }
}

impl Row for Outcomes<'_> {
    #[inline(always)]
    fn sum(&self, f: impl Fn(At) -> [f32; 2]) -> [f32; 2] {
        self.all().map(f).fold([0.0; 2], |[a, b], [x, y]| [a + x, b + y])
    }

    #[inline(always)]
    fn write(&mut self, f: impl Fn(At) -> [f32; 2]) -> f32 {
        let mut total = 0.0;
        let mut slopes = Vec::with_capacity(self.log_q.len());
        for at in self.all() {
            let [value, slope] = f(at);
            total += value;
            slopes.push(slope);
        }
        self.slopes = slopes;
        total
    }
}
