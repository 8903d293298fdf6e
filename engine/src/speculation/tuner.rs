//! Number of tokens to draft at a time, from measured times and the part of the drafts that was
//! right.
//!
//! With `k` drafts of which each is right with probability `a`, a cycle yields `(1 − a^(k+1)) / (1
//! − a)` tokens (Leviathan et al., <https://arxiv.org/abs/2211.17192>, Eq. 1) and takes the time of
//! `k` drafts and one verification. The `k` with the most tokens a second is taken, 0 for plain
//! decoding. After plain steps the drafts are tried again now and then.

/// Maximum number of drafts: with the token before them they are the rows of one few-row product.
pub const MOST_DRAFTS: usize = 7;
/// Plain steps that are measured before the first drafts.
const PLAIN_STEPS: usize = 3;
/// Plain steps between two trials, once drafts have not paid.
const STEPS_BETWEEN_TRIALS: usize = 64;
/// Drafts of a trial.
const TRIAL: usize = 3;
/// Weight of a new observation in a running mean.
const NEW: f64 = 0.1;
/// Time of one more row of a verification, as a part of the whole, until it is measured.
const ROW: f64 = 0.05;

/// Chooses the number of drafts of each cycle.
#[derive(Debug)]
pub(super) struct Tuner {
    fixed: Option<usize>,
    /// Running mean of drafts that were right.
    acceptance: f64,
    /// Seconds of a plain step, of a draft, and of a verification of `k` drafts.
    plain: Option<f64>,
    draft: Option<f64>,
    verify: [Option<f64>; MOST_DRAFTS + 1],
    plain_steps: usize,
    since_trial: usize,
}

impl Tuner {
    /// A tuner that always gives `fixed`, if there is one.
    pub fn new(fixed: Option<usize>) -> Self {
        Self {
            fixed,
            acceptance: 0.7,
            plain: None,
            draft: None,
            verify: [None; MOST_DRAFTS + 1],
            plain_steps: 0,
            since_trial: 0,
        }
    }

    /// Number of drafts of the next cycle, at most `most`; 0 for a plain step.
    pub fn choose(&mut self, most: usize) -> usize {
        let most = most.min(MOST_DRAFTS);
        if let Some(fixed) = self.fixed {
            return fixed.min(most);
        }
        let Some(plain) = self.plain.filter(|_| self.plain_steps >= PLAIN_STEPS) else { return 0 };
        if self.draft.is_none() {
            return most.min(TRIAL);
        }
        let rate = |k: usize| self.rate(k).unwrap_or(0.0);
        let best = (1..=most).max_by(|a, b| rate(*a).total_cmp(&rate(*b))).unwrap_or(0);
        if rate(best) * plain > 1.0 {
            return best;
        }
        self.since_trial += 1;
        if self.since_trial < STEPS_BETWEEN_TRIALS {
            return 0;
        }
        self.since_trial = 0;
        most.min(TRIAL)
    }

    /// Records a plain step.
    pub fn saw_plain(&mut self, seconds: f64) {
        self.plain_steps += 1;
        // The first one is slower.
        if self.plain_steps > 1 {
            update(&mut self.plain, seconds);
        }
    }

    /// Records a cycle: of `drafts`, the first `right` were right.
    pub fn saw_cycle(&mut self, drafts: usize, right: usize, [draft, verify]: [f64; 2]) {
        update(&mut self.draft, draft / drafts as f64);
        update(&mut self.verify[drafts], verify);
        let wrong = usize::from(right < drafts);
        for right in std::iter::repeat_n(1.0, right).chain(std::iter::repeat_n(0.0, wrong)) {
            self.acceptance += NEW / 2.0 * (right - self.acceptance);
        }
    }

    /// Expected tokens a second with `k` drafts.
    fn rate(&self, k: usize) -> Option<f64> {
        let a = self.acceptance.min(0.999);
        let tokens = (1.0 - a.powi(k as i32 + 1)) / (1.0 - a);
        Some(tokens / (k as f64 * self.draft? + self.verification(k)?))
    }

    /// Seconds of a verification of `k` drafts, from the nearest number that was measured.
    fn verification(&self, k: usize) -> Option<f64> {
        let known = self.verify.iter().enumerate().filter_map(|(j, seconds)| Some((j, (*seconds)?)));
        let (nearest, seconds) = known.min_by_key(|(j, _)| j.abs_diff(k))?;
        Some(seconds * (1.0 + ROW * (k as f64 - nearest as f64)))
    }
}

fn update(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |mean| mean + NEW * (value - mean)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Choices after many cycles with a probability of right drafts, and with drafts that cost the
    /// part `cost` of a plain step.
    fn settled(right_of_ten: usize, cost: f64) -> usize {
        let mut tuner = Tuner::new(None);
        let mut seen = 0;
        for _ in 0..400 {
            match tuner.choose(7) {
                0 => tuner.saw_plain(1.0),
                k => {
                    // A draft in ten is wrong, and so on, evenly spread.
                    let right = (0..k).take_while(|_| {
                        seen += 1;
                        seen * right_of_ten % 10 < right_of_ten
                    });
                    let right = right.count();
                    tuner.saw_cycle(k, right, [k as f64 * cost, 1.0 + 0.02 * k as f64]);
                }
            }
        }
        tuner.choose(7)
    }

    #[test]
    fn more_is_drafted_the_better_the_drafts_and_nothing_where_it_does_not_pay() {
        let [good, fair] = [9, 6].map(|right| settled(right, 0.3));
        assert!(good > fair && fair >= 1, "{good} and {fair}");
        assert_eq!(settled(2, 0.6), 0);
    }

    #[test]
    fn a_fixed_number_is_kept_but_for_the_end_of_the_text() {
        let mut tuner = Tuner::new(Some(5));
        assert_eq!([7, 3, 0].map(|most| tuner.choose(most)), [5, 3, 0]);
    }
}
