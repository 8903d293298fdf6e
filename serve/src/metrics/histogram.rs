//! A histogram of Prometheus (<https://prometheus.io/docs/concepts/metric_types/#histogram>).

use std::fmt::Write;

/// Number of observations up to each bound, and their sum.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds of the buckets, ascending; a last bucket holds the rest.
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// A histogram without observations.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Adds an observation.
    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.counts[bucket] += 1;
        self.sum += value;
    }

    /// Appends the lines of the text format; `labels` are those of every line.
    pub fn render(&self, name: &str, labels: &str, text: &mut String) {
        let mut count = 0;
        let bounds = self.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, bucket) in bounds.zip(&self.counts) {
            count += bucket;
            _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        _ = writeln!(text, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {count}", self.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_include_their_bound() {
        let mut histogram = Histogram::new(&[0.5, 2.0]);
        [0.25, 0.5, 1.0, 8.0].into_iter().for_each(|value| histogram.observe(value));
        let mut text = String::new();
        histogram.render("t", "m=\"x\"", &mut text);
        let expected = "t_bucket{m=\"x\",le=\"0.5\"} 2\nt_bucket{m=\"x\",le=\"2\"} 3\nt_bucket{m=\"x\",le=\"+Inf\"} 4\n\
                        t_sum{m=\"x\"} 9.75\nt_count{m=\"x\"} 4\n";
        assert_eq!(text, expected);
    }
}
