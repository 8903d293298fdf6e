//! Fit of the linear probe: logistic regression of "the exit's most probable token is that of the
//! whole stack" on the hidden state over its root mean square, by Adam over all rows at once
//! (Kingma and Ba, <https://arxiv.org/abs/1412.6980>). Components are standardised for the fit.

use rayon::prelude::*;
use retie_config::ExitProbe;

const STEPS: i32 = 300;
const RATE: f64 = 0.02;
/// Factor of the weights' squared norm.
const RIDGE: f64 = 1e-2;

/// Fits a probe to rows `[n, width]` and their labels.
pub fn fit(rows: &[f32], labels: &[bool], width: usize) -> ExitProbe {
    let scaled: Vec<f64> = rows.chunks_exact(width).flat_map(over_rms).collect();
    let count = labels.len().max(1) as f64;
    let mut mean = vec![0.0; width];
    let mut spread = vec![0.0; width];
    for row in scaled.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / count);
    }
    for row in scaled.chunks_exact(width) {
        spread.iter_mut().zip(row.iter().zip(&mean)).for_each(|(sum, (x, mean))| *sum += (x - mean).powi(2) / count);
    }
    spread.iter_mut().for_each(|x| *x = x.sqrt().max(1e-6));
    let standard = |(i, x): (usize, &f64)| (x - mean[i % width]) / spread[i % width];
    let x: Vec<f64> = scaled.iter().enumerate().map(standard).collect();

    // The last parameter is the bias.
    let (mut parameters, mut first, mut second) = (vec![0.0; width + 1], vec![0.0; width + 1], vec![0.0; width + 1]);
    for step in 1..=STEPS {
        let grads = gradient(&x, labels, &parameters);
        for (i, grad) in grads.into_iter().enumerate() {
            first[i] = 0.9 * first[i] + 0.1 * grad;
            second[i] = 0.999 * second[i] + 0.001 * grad * grad;
            let (m, v) = (first[i] / (1.0 - 0.9f64.powi(step)), second[i] / (1.0 - 0.999f64.powi(step)));
            parameters[i] -= RATE * m / (v.sqrt() + 1e-8);
        }
    }
    let (weight, bias) = (&parameters[..width], parameters[width]);
    let shift: f64 = weight.iter().zip(mean.iter().zip(&spread)).map(|(w, (mean, spread))| w * mean / spread).sum();
    let weight = weight.iter().zip(&spread).map(|(w, spread)| (w / spread) as f32).collect();
    ExitProbe { weight, bias: (bias - shift) as f32 }
}

/// Gradient of the mean negative log-likelihood and the ridge.
fn gradient(x: &[f64], labels: &[bool], parameters: &[f64]) -> Vec<f64> {
    let width = parameters.len() - 1;
    let count = labels.len().max(1) as f64;
    let of_rows = |(rows, labels): (&[f64], &[bool])| {
        let mut sum = vec![0.0; width + 1];
        for (row, label) in rows.chunks_exact(width).zip(labels) {
            let dot: f64 = row.iter().zip(parameters).map(|(x, w)| x * w).sum::<f64>() + parameters[width];
            let error = 1.0 / (1.0 + (-dot).exp()) - f64::from(*label);
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += error * x / count);
            sum[width] += error / count;
        }
        sum
    };
    // Chunks of a fixed size: the sum does not depend on the number of threads.
    let parts: Vec<Vec<f64>> = x.par_chunks(256 * width).zip(labels.par_chunks(256)).map(of_rows).collect();
    let mut grads: Vec<f64> = parameters[..width].iter().map(|w| RIDGE * w).chain([0.0]).collect();
    parts.iter().for_each(|part| grads.iter_mut().zip(part).for_each(|(grad, part)| *grad += part));
    grads
}

fn over_rms(row: &[f32]) -> Vec<f64> {
    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
    let rms = (squares / row.len() as f64).sqrt().max(1e-12);
    row.iter().map(|x| f64::from(*x) / rms).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_model::mix;

    #[test]
    fn a_direction_that_decides_is_found_whatever_the_scale_of_a_row() {
        let width = 6;
        let number = |i: usize| (mix(i as u64) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        let scale = |row: usize| 1.0 + (row % 7) as f32;
        let rows: Vec<f32> = (0..600 * width).map(|i| number(i) * scale(i / width)).collect();
        // Decided by the second component, and a fifth of the labels turned round.
        let label = |(i, row): (usize, &[f32])| (row[1] > 0.0) != mix(i as u64 + 99).is_multiple_of(5);
        let labels: Vec<bool> = rows.chunks_exact(width).enumerate().map(label).collect();
        let ExitProbe { weight, bias } = fit(&rows, &labels, width);
        let others = weight.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, w)| w.abs()).fold(0.0, f32::max);
        assert!(weight[1] > 3.0 * others && bias.abs() < 0.5, "{weight:?} {bias}");
    }
}
