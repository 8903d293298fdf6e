//! Risk control: the most eager of a sequence of thresholds whose risk is promised to stay within a
//! level.
//!
//! The unit is a document: its loss is the mean over its tokens, from 0 to 1. Tokens of one
//! document are not independent; documents are taken to be drawn independently from the kind of
//! text that the promise is about (exchangeably, for [`conformal`]).
//!
//! - `conformal`, conformal risk control: the expected loss of a new document is at most the level.
//! - `betting`, an upper bound by betting: with the confidence, the mean loss of documents is.
//! - `hoeffding_bentkus`, Learn-then-Test: the same promise, with another test.
//!
//! The last two test thresholds from the safest on and stop at the first that is not accepted
//! (fixed-sequence testing: Angelopoulos et al., "Learn then Test",
//! <https://arxiv.org/abs/2110.01052>), so that they need no loss that falls with the threshold.
//! Conformal risk control does: losses are replaced by their maxima over all safer thresholds.

mod betting;
mod conformal;
mod hoeffding_bentkus;

use retie_config::RiskProcedure;

/// A level and the way in which it is promised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    /// Procedure.
    pub procedure: RiskProcedure,
    /// Bound of the risk.
    pub level: f64,
    /// Probability of the promise, for procedures that have one.
    pub confidence: f64,
}

/// Tests thresholds one after the other, from the safest on.
#[derive(Clone, Debug)]
pub struct RiskTest {
    promise: Promise,
    /// Largest losses of each document so far.
    largest: Vec<f64>,
}

impl RiskTest {
    /// A test of thresholds on the same documents.
    #[must_use]
    pub fn new(promise: Promise) -> Self {
        Self { promise, largest: Vec::new() }
    }

    /// True if the next threshold, whose documents have the given losses, keeps the promise. After
    /// the first that does not, no later one does.
    pub fn accepts(&mut self, losses: &[f64]) -> bool {
        let Promise { procedure, level, confidence } = self.promise;
        match procedure {
            RiskProcedure::Conformal => {
                self.largest.resize(losses.len(), 0.0);
                self.largest.iter_mut().zip(losses).for_each(|(largest, loss)| *largest = largest.max(*loss));
                conformal::bound(&self.largest) <= level
            }
            RiskProcedure::Betting => betting::is_below(losses, level, 1.0 - confidence),
            RiskProcedure::LearnThenTest => hoeffding_bentkus::p_value(losses, level) <= 1.0 - confidence,
        }
    }
}

/// The lowest level at which a threshold with these losses would be accepted first.
#[must_use]
pub fn least_level(promise: Promise, losses: &[f64]) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let level = f64::midpoint(low, high);
        match RiskTest::new(Promise { level, ..promise }).accepts(losses) {
            true => high = level,
            false => low = level,
        }
    }
    high
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_model::mix;

    /// Uniform numbers from a seed.
    fn uniform(seed: u64) -> impl Iterator<Item = f64> {
        (0..).map(move |i| (mix(mix(seed) ^ i) >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// Losses of `documents` at ten thresholds: a document is hard or easy, its tokens are not
    /// independent, and a more eager threshold costs more, with noise that is not monotone.
    fn documents(seed: u64, documents: usize) -> Vec<Vec<f64>> {
        let document = |i: usize| {
            let mut random = uniform(mix(seed) ^ i as u64);
            let hard = random.next().unwrap_or(0.0).powi(3);
            let noise: Vec<f64> = random.take(10).collect();
            (0..10).map(|k| (hard * k as f64 * 0.04 * (0.7 + 0.6 * noise[k])).min(1.0)).collect()
        };
        (0..documents).map(document).collect()
    }

    fn at(documents: &[Vec<f64>], threshold: usize) -> Vec<f64> {
        documents.iter().map(|document| document[threshold]).collect()
    }

    fn chosen(promise: Promise, documents: &[Vec<f64>]) -> Option<usize> {
        let mut test = RiskTest::new(promise);
        (0..10).take_while(|k| test.accepts(&at(documents, *k))).last()
    }

    #[test]
    fn of_a_hundred_resplits_at_least_ninety_keep_the_level() {
        for (procedure, count) in
            [(RiskProcedure::Betting, 150), (RiskProcedure::LearnThenTest, 150), (RiskProcedure::Conformal, 150)]
        {
            let promise = Promise { procedure, level: 0.05, confidence: 0.9 };
            let (mut kept, mut risks, mut eager) = (0, 0.0, 0);
            for seed in 0..100 {
                let threshold = chosen(promise, &documents(seed, count)).expect("no exits have no loss");
                let risk = mean(&at(&documents(1000 + seed, 400), threshold));
                kept += usize::from(risk <= promise.level);
                risks += risk / 100.0;
                eager += usize::from(threshold > 0);
            }
            match procedure {
                // Only the expectation is promised; over 100 splits its standard error is 0.001.
                RiskProcedure::Conformal => assert!(risks <= 0.053, "{risks}"),
                _ => assert!(kept >= 90, "{procedure}: {kept} of 100"),
            }
            assert!(eager >= 95, "{procedure}: never exiting keeps every level");
        }
    }

    #[test]
    fn the_least_level_is_where_acceptance_begins() {
        let losses: Vec<f64> = uniform(3).take(60).map(|u| 0.2 * u).collect();
        for procedure in [RiskProcedure::Betting, RiskProcedure::LearnThenTest, RiskProcedure::Conformal] {
            let promise = |level| Promise { procedure, level, confidence: 0.9 };
            let least = least_level(promise(0.0), &losses);
            let accepts = |level| RiskTest::new(promise(level)).accepts(&losses);
            assert!(accepts(least + 1e-9) && !accepts(least - 1e-6), "{procedure} {least}");
            assert!(least > mean(&losses), "{procedure} {least}");
        }
    }
}
