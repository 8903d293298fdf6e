//! Numbers by what is done with them, and what networks predict of them.

use retie_tasks::{
    Random,
    numbers::PsiSample,
    regression::{Row, bitwise_rows, psi_rows},
};
use serde::Serialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::Path,
};

/// Numbers, by their places in a list.
pub struct Parts {
    pub fitted: Vec<usize>,
    /// Known and not fitted, each with whether it is to calibrate on.
    pub within: Vec<(usize, bool)>,
    pub beyond: Vec<usize>,
}

/// The numbers that networks are fitted to.
pub struct Numbers {
    pub rows: Vec<Row>,
    /// Intersection numbers, of which the rows are features.
    pub samples: Vec<PsiSample>,
}

impl Numbers {
    pub fn bitwise(values: &[u64]) -> Self {
        Self { rows: bitwise_rows(values), samples: Vec::new() }
    }

    pub fn psi(samples: Vec<PsiSample>) -> Self {
        Self { rows: psi_rows(&samples), samples }
    }

    /// Rows of places.
    pub fn rows(&self, places: &[usize]) -> Vec<Row> {
        places.iter().map(|place| self.rows[*place].clone()).collect()
    }

    /// A third of the intersection numbers of genus up to `known` to fit, a third to calibrate on.
    pub fn divide(&self, known: usize, seed: u64) -> Parts {
        let mut random = Random::new(seed, "psi parts", 0);
        let mut parts = Parts { fitted: Vec::new(), within: Vec::new(), beyond: Vec::new() };
        for (place, sample) in self.samples.iter().enumerate() {
            match random.below(3) {
                _ if sample.genus > known => parts.beyond.push(place),
                0 => parts.fitted.push(place),
                part => parts.within.push((place, part == 1)),
            }
        }
        parts
    }

    /// How well the numbers are predicted.
    pub fn figures(&self, parts: &Parts, predictions: &[f64], seed: u64) -> SeedFigures {
        let r_squared = |places: &[usize]| r_squared(places.iter().map(|p| (self.rows[*p].target, predictions[*p])));
        let within: Vec<usize> = parts.within.iter().map(|(place, _)| *place).collect();
        let mut genera: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for place in within.iter().chain(&parts.beyond) {
            if let Some(sample) = self.samples.get(*place) {
                genera.entry(sample.genus).or_default().push(*place);
            }
        }
        SeedFigures {
            seed,
            fitted: r_squared(&parts.fitted),
            within: (!within.is_empty()).then(|| r_squared(&within)),
            beyond: r_squared(&parts.beyond),
            genera: genera.into_iter().map(|(genus, places)| (genus, r_squared(&places))).collect(),
        }
    }

    /// Writes what is predicted of the intersection numbers that were not fitted.
    pub fn write(&self, parts: &Parts, predictions: &[f64], path: &Path) -> anyhow::Result<()> {
        let mut out = BufWriter::new(fs_err::File::create(path)?);
        for (place, calibration) in parts.within.iter().copied().chain(parts.beyond.iter().map(|place| (*place, false)))
        {
            let (genus, value) = (self.samples[place].genus, self.rows[place].target);
            let prediction = predictions[place];
            let point = json!({ "group": genus, "value": value, "prediction": prediction, "calibration": calibration });
            writeln!(out, "{point}")?;
        }
        Ok(out.flush()?)
    }
}

/// R² of one network.
#[derive(Debug, Serialize)]
pub struct SeedFigures {
    pub seed: u64,
    pub fitted: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<f64>,
    pub beyond: f64,
    /// Of the intersection numbers of each genus that were not fitted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub genera: BTreeMap<usize, f64>,
}

/// Coefficient of determination of pairs of a number and its prediction.
fn r_squared(pairs: impl ExactSizeIterator<Item = (f64, f64)> + Clone) -> f64 {
    let mean = pairs.clone().map(|(value, _)| value).sum::<f64>() / pairs.len() as f64;
    let left: f64 = pairs.clone().map(|(value, prediction)| (value - prediction).powi(2)).sum();
    1.0 - left / pairs.map(|(value, _)| (value - mean).powi(2)).sum::<f64>()
}
