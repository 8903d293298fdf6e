//! `retie report --pareto`: loss or accuracy of many models against what they cost, each model with
//! its early exits, and which of them no other beats.

use super::{Evaluations, evaluations::number};
use anyhow::{Context, bail, ensure};
use retie_report::{Chart, Label, Series, Table, number::short};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A cost: how it is called, and where it is in the files.
struct Axis {
    name: &'static str,
    unit: &'static str,
    /// True if more is better.
    rises: bool,
    value: fn(&Source<'_>) -> Option<f64>,
}

/// Evaluation of a model or of one of its exits, and the measurement of the model.
struct Source<'a> {
    evaluation: &'a Value,
    bench: Option<&'a Value>,
}

const AXES: [Axis; 4] = [
    Axis {
        name: "operations",
        unit: "operations a token",
        rises: false,
        value: |source| source.evaluation.pointer("/cost/operations_per_token")?.as_f64(),
    },
    Axis {
        name: "bytes",
        unit: "bytes of weights",
        rises: false,
        value: |source| source.evaluation.pointer("/cost/weight_bytes")?.as_f64(),
    },
    Axis {
        name: "KV bytes",
        unit: "bytes of keys and values a token",
        rises: false,
        value: |source| source.evaluation.pointer("/cost/cache_bytes_per_token")?.as_f64(),
    },
    Axis {
        name: "tokens/s",
        unit: "tokens decoded a second, measured",
        rises: true,
        value: |source| source.bench?.pointer("/generate/0/decode_tokens_per_second")?.as_f64(),
    },
];

/// A model at a recursion count, with its quality and costs.
struct Point {
    name: String,
    /// Index of its model.
    model: usize,
    quality: f64,
    /// In the order of [`AXES`].
    costs: [Option<f64>; AXES.len()],
}

/// What is compared.
pub struct Pareto {
    /// `token_nll`, or a task.
    metric: String,
    models: Vec<String>,
    points: Vec<Point>,
}

impl Pareto {
    /// Puts the evaluations together with files of `retie bench --json` by name. Quality is the
    /// loss on the text, or the accuracy of `task`.
    ///
    /// # Errors
    /// A file cannot be read; an evaluation lacks the quality or the costs; a measurement has no
    /// evaluation.
    pub fn new(evaluations: &Evaluations, benches: &[(String, PathBuf)], task: Option<&str>) -> anyhow::Result<Self> {
        let mut measured = Vec::with_capacity(benches.len());
        for (name, path) in benches {
            ensure!(
                evaluations.all().iter().any(|(other, _)| other == name),
                "`--bench {name}=…` has no `--eval {name}=…`, whose speed it would be"
            );
            let text = fs_err::read_to_string(path)?;
            let value: Value =
                serde_json::from_str(&text).with_context(|| format!("`{}` is not JSON", path.display()))?;
            measured.push((name, value));
        }
        let metric = task.unwrap_or("token_nll").to_owned();
        let mut points = Vec::new();
        for (model, (name, value)) in evaluations.all().iter().enumerate() {
            let bench = measured.iter().find(|(other, _)| *other == name).map(|(_, value)| value);
            ensure!(
                value.pointer("/cost/operations_per_token").is_some(),
                "the evaluation `{name}` states no costs\nhint: `retie eval --json FILE` of this version writes them"
            );
            let exits = value["exits"].as_array().into_iter().flatten();
            // Speed is that of the whole model.
            for exit in exits {
                let recursion = exit["recursion"].as_u64().unwrap_or(0);
                let source = Source { evaluation: exit, bench: None };
                points.extend(Point::new(format!("{name} at recursion {recursion}"), model, &source, task));
            }
            let Some(point) = Point::new(name.clone(), model, &Source { evaluation: value, bench }, task) else {
                bail!("the evaluation `{name}` has no `{metric}`\nhint: measure it with the others' tasks and text");
            };
            points.push(point);
        }
        let models = evaluations.all().iter().map(|(name, _)| name.clone()).collect();
        Ok(Self { metric, models, points })
    }

    fn is_loss(&self) -> bool {
        self.metric == "token_nll"
    }

    /// Whether `a` is at least as good as `b` and costs no more, one of them strictly.
    fn beats(&self, axis: usize, a: &Point, b: &Point) -> bool {
        let sign = |rises: bool| if rises { -1.0 } else { 1.0 };
        let (Some(x), Some(y)) = (a.costs[axis], b.costs[axis]) else { return false };
        let cost = sign(AXES[axis].rises) * (x - y);
        let quality = sign(!self.is_loss()) * (a.quality - b.quality);
        cost <= 0.0 && quality <= 0.0 && (cost < 0.0 || quality < 0.0)
    }

    /// Points with a value on an axis that no other beats, the cheapest first.
    fn front(&self, axis: usize) -> Vec<&Point> {
        let is_best = |point: &&Point| {
            point.costs[axis].is_some() && !self.points.iter().any(|other| self.beats(axis, other, point))
        };
        let mut front: Vec<&Point> = self.points.iter().filter(is_best).collect();
        front.sort_by(|a, b| a.costs[axis].partial_cmp(&b.costs[axis]).unwrap_or(std::cmp::Ordering::Equal));
        if AXES[axis].rises {
            front.reverse();
        }
        front
    }

    /// Axes on which at least two points lie.
    fn axes(&self) -> impl Iterator<Item = usize> + '_ {
        (0..AXES.len()).filter(|axis| self.points.iter().filter(|point| point.costs[*axis].is_some()).count() > 1)
    }

    /// A sentence for each cost: who is best from where on.
    pub fn sentences(&self) -> Vec<String> {
        let sentence = |axis: usize| {
            let Axis { name, unit, rises, .. } = &AXES[axis];
            let front = self.front(axis);
            let from = |point: &&Point| {
                let cost = short(point.costs[axis].unwrap_or(f64::NAN));
                format!("`{}` ({cost}; {})", point.name, short(point.quality))
            };
            let places: Vec<String> = front.iter().map(from).collect();
            let direction = if *rises { "the fastest" } else { "the cheapest" };
            let beaten = self.points.iter().filter(|point| point.costs[axis].is_some()).count() - front.len();
            format!(
                "By {name} ({unit}), from {direction} on, nothing is better than {} (beaten: {beaten}).",
                places.join(", ")
            )
        };
        self.axes().map(sentence).collect()
    }

    /// A picture for each cost: every model a curve over its exits, and the front.
    pub fn charts(&self) -> Vec<Chart> {
        let quality = if self.is_loss() { "nats per token" } else { "accuracy" };
        let chart = |axis: usize| {
            let at = |point: &Point| Some((point.costs[axis]?, point.quality));
            let mut series: Vec<Series> = Vec::new();
            for (model, name) in self.models.iter().enumerate() {
                let own = self.points.iter().filter(|point| point.model == model);
                series.push(Series { name: Label::from(name.as_str()), points: sorted(own.filter_map(at).collect()) });
            }
            series.retain(|series| !series.points.is_empty());
            let front = sorted(self.front(axis).into_iter().filter_map(at).collect());
            series.push(Series { name: Label::from("not beaten"), points: front });
            Chart {
                title: format!("{quality} by {}", AXES[axis].name),
                x_label: AXES[axis].unit.to_owned(),
                y_label: quality.to_owned(),
                series,
                reference_lines: Vec::new(),
            }
        };
        self.axes().map(chart).collect()
    }

    /// Every point with its costs; one that is beaten on no axis has a star there.
    pub fn table(&self) -> Table {
        let axes: Vec<usize> = self.axes().collect();
        let mut header = vec!["model".to_owned(), self.metric.clone()];
        header.extend(axes.iter().map(|axis| AXES[*axis].name.to_owned()));
        let row = |point: &Point| {
            let mut row = vec![Label::from(point.name.as_str()), Label::from(format!("{:.4}", point.quality))];
            row.extend(axes.iter().map(|axis| {
                let star = if self.front(*axis).iter().any(|best| best.name == point.name) { " *" } else { "" };
                Label::from(point.costs[*axis].map_or_else(|| "–".to_owned(), |cost| short(cost) + star))
            }));
            row
        };
        Table {
            title: "Quality and costs".to_owned(),
            header,
            rows: self.points.iter().map(row).collect(),
            note: Some(
                "* nothing is better and cheaper. Operations and bytes are computed, tokens/s measured.".to_owned(),
            ),
        }
    }

    /// The points, and for each cost the names of those that nothing beats.
    pub fn to_json(&self) -> Value {
        let costs = |point: &Point| {
            AXES.iter().zip(point.costs).map(|(axis, cost)| (axis.name.to_owned(), json!(cost))).collect::<Value>()
        };
        let point =
            |point: &Point| json!({ "name": point.name, (self.metric.as_str()): point.quality, "costs": costs(point) });
        let front = |axis| {
            let names: Vec<&str> = self.front(axis).iter().map(|point| point.name.as_str()).collect();
            (AXES[axis].name.to_owned(), json!(names))
        };
        json!({
            "metric": self.metric,
            "points": self.points.iter().map(point).collect::<Vec<_>>(),
            "front": self.axes().map(front).collect::<Value>(),
        })
    }
}

impl Point {
    fn new(name: String, model: usize, source: &Source<'_>, task: Option<&str>) -> Option<Self> {
        let results = &source.evaluation["results"];
        let quality = match task {
            None => number(&results["perplexity"], "token_nll")?,
            Some(task) => number(&results[task], "acc")?,
        };
        Some(Self { name, model, quality, costs: AXES.map(|axis| (axis.value)(source)) })
    }
}

fn sorted(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(nll: f64, operations: f64, bytes: f64) -> Value {
        json!({
            "results": { "perplexity": { "token_nll": nll } },
            "cost": { "operations_per_token": operations, "weight_bytes": bytes, "cache_bytes_per_token": 8.0 },
        })
    }

    fn pareto() -> Pareto {
        let mut looped = evaluation(3.5, 100.0, 50.0);
        looped["exits"] = json!([{ "recursion": 1, "results": { "perplexity": { "token_nll": 4.0 } },
            "cost": { "operations_per_token": 60.0, "weight_bytes": 50.0, "cache_bytes_per_token": 4.0 } }]);
        let all =
            [("base", evaluation(3.0, 100.0, 100.0)), ("looped", looped), ("worse", evaluation(3.6, 110.0, 60.0))];
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = all
            .iter()
            .map(|(name, value)| {
                let path = folder.path().join(name);
                fs_err::write(&path, value.to_string()).unwrap();
                ((*name).to_owned(), path)
            })
            .collect();
        let bench = folder.path().join("bench");
        fs_err::write(&bench, json!({ "generate": [{ "decode_tokens_per_second": 7.0 }] }).to_string()).unwrap();
        let evaluations = Evaluations::read(&files).unwrap();
        let missing = Pareto::new(&evaluations, &[("other".to_owned(), bench.clone())], None).err().unwrap();
        assert!(missing.to_string().contains("`--bench other=…` has no `--eval other=…`"));
        assert!(Pareto::new(&evaluations, &[], Some("piqa")).err().unwrap().to_string().contains("has no `piqa`"));
        Pareto::new(&evaluations, &[("base".to_owned(), bench)], None).unwrap()
    }

    #[test]
    fn a_point_is_on_the_front_if_nothing_is_better_and_cheaper() {
        let pareto = pareto();
        let names = |axis| pareto.front(axis).iter().map(|point| point.name.clone()).collect::<Vec<_>>();
        // `looped` costs the operations of `base` and is worse.
        assert_eq!(names(0), ["looped at recursion 1", "base"]);
        assert_eq!(names(1), ["looped", "base"]);
        assert_eq!(names(2), ["looped at recursion 1", "base"]);
        assert_eq!(names(3), ["base"]);
        // One measured speed is no comparison.
        assert_eq!(pareto.axes().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(
            pareto.sentences()[0],
            "By operations (operations a token), from the cheapest on, nothing is better than \
             `looped at recursion 1` (60; 4), `base` (100; 3) (beaten: 2)."
        );
        let table = pareto.table();
        assert_eq!(table.header, ["model", "token_nll", "operations", "bytes", "KV bytes"]);
        assert_eq!(table.rows[2], ["looped", "3.5000", "100", "50 *", "8"]);
        let charts = pareto.charts();
        assert_eq!((charts.len(), charts[0].series.len()), (3, 4));
        assert_eq!(charts[0].series[1].points, [(60.0, 4.0), (100.0, 3.5)]);
        assert_eq!(pareto.to_json()["front"]["bytes"], json!(["looped", "base"]));
    }
}
