//! `retie lab conformal`: intervals around predictions, calibrated on a sliding window over groups,
//! and their coverage.

use crate::{args::JsonArgs, error::Status, output};
use anyhow::{Context, ensure};
use clap::Args;
use retie_report::Table;
use retie_tasks::conformal::{GroupRadius, SlidingWindow};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Put intervals around predictions that hold a given part of the values, and count how many they
/// hold
#[derive(Debug, Args)]
pub struct Conformal {
    /// A JSON object a line: `group` (an integer), `value`, `prediction`, and `calibration`, true
    /// for points to calibrate on
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// Part of the values that may be outside
    #[arg(long, value_name = "ALPHA", default_value_t = 0.1)]
    alpha: f64,
    /// Calibrate a group on those whose number is at most this far away, and on further ones where
    /// they have too few points
    #[arg(long, value_name = "W", default_value_t = 0)]
    window: u64,
    /// Write the numbers here too, as JSON, for `retie lab report`
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Deserialize)]
struct Point {
    group: i64,
    value: f64,
    prediction: f64,
    calibration: bool,
}

impl Point {
    fn score(&self) -> f64 {
        (self.value - self.prediction).abs()
    }
}

/// Coverage of a group.
#[derive(Debug, Serialize)]
struct Coverage {
    group: i64,
    /// True for a group that has calibration points.
    calibrated: bool,
    points: usize,
    inside: usize,
    coverage: f64,
    #[serde(flatten)]
    radius: Radius,
}

#[derive(Debug, Serialize)]
struct Radius {
    radius: f64,
    window: u64,
    calibration_points: usize,
}

impl From<GroupRadius> for Radius {
    fn from(GroupRadius { radius, width, points }: GroupRadius) -> Self {
        Self { radius, window: width, calibration_points: points }
    }
}

impl Conformal {
    pub fn run(self) -> anyhow::Result<Status> {
        if let Some(path) = &self.output {
            output::check_file(path)?;
        }
        let points = read(&self.file)?;
        let (calibration, test): (Vec<&Point>, Vec<&Point>) = points.iter().partition(|point| point.calibration);
        ensure!(
            !test.is_empty(),
            "`{}` has no point to test, expected some without `calibration`",
            self.file.display()
        );
        let window =
            SlidingWindow::new(calibration.iter().map(|p| (p.group, p.score())).collect(), self.alpha, self.window)?;
        let mut groups: BTreeMap<i64, Vec<&Point>> = BTreeMap::new();
        test.iter().for_each(|point| groups.entry(point.group).or_default().push(point));
        let mut rows = Vec::with_capacity(groups.len());
        for (group, points) in groups {
            let radius = window.at(group)?;
            let inside = points.iter().filter(|point| point.score() <= radius.radius).count();
            rows.push(Coverage {
                group,
                calibrated: calibration.iter().any(|point| point.group == group),
                points: points.len(),
                inside,
                coverage: inside as f64 / points.len() as f64,
                radius: radius.into(),
            });
        }
        let result = json!({
            "conformal": { "file": self.file.display().to_string(), "alpha": self.alpha, "window": self.window, "groups": rows }
        });
        if let Some(path) = &self.output {
            fs_err::write(path, serde_json::to_string_pretty(&result)? + "\n")?;
            output::wrote(path);
        }
        if self.json.json {
            output::json(&result)?;
        } else {
            output::data(table(&rows, self.alpha).to_text())?;
        }
        Ok(Status::Done)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<Point>> {
    let text = fs_err::read_to_string(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let point = |(index, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| {
            format!(
                "line {} of `{}` is no point, expected group, value, prediction and calibration",
                index + 1,
                path.display()
            )
        })
    };
    lines.map(point).collect()
}

fn table(rows: &[Coverage], alpha: f64) -> Table {
    let header = ["group", "points", "coverage", "radius", "calibrated on", "window"].map(str::to_owned).to_vec();
    let row = |row: &Coverage| {
        let Radius { radius, window, calibration_points } = &row.radius;
        let group = if row.calibrated { row.group.to_string() } else { format!("{} (outside)", row.group) };
        let cells = [
            group,
            row.points.to_string(),
            format!("{:.4}", row.coverage),
            format!("{radius:.4}"),
            calibration_points.to_string(),
            window.to_string(),
        ];
        cells.iter().map(|cell| cell.as_str().into()).collect()
    };
    let title = format!("Coverage of {} % intervals", 100.0 * (1.0 - alpha));
    Table { title, header, rows: rows.iter().map(row).collect(), note: None }
}
