//! `retie lab report`: one page of the results of generated tasks and of conformal intervals.

use crate::{error::Status, output};
use anyhow::{Context, ensure};
use clap::Args;
use retie_report::{HeatMap, Label, Page, Table};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Write one page about generated tasks and intervals: matrices, failures, coverage
#[derive(Debug, Args)]
pub struct Report {
    /// Folders with files of `retie eval --json`, `retie lab conformal -o` and `retie lab paths -o`
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,
    /// The page
    #[arg(long, short, value_name = "FILE", default_value = "lab.html")]
    output: PathBuf,
}

/// Failures of a task that are shown.
const SHOWN_FAILURES: usize = 8;

/// A file of results.
struct Found {
    name: String,
    value: Value,
}

impl Report {
    pub fn run(self) -> anyhow::Result<Status> {
        output::check_file(&self.output)?;
        let mut found = Vec::new();
        for folder in &self.folders {
            found.extend(read(folder)?);
        }
        ensure!(
            !found.is_empty(),
            "no file in {} has results of generated tasks, of intervals or of queries\nhint: `retie eval --json`, `retie lab conformal -o` and `retie lab paths -o` write them",
            self.folders.iter().map(|folder| format!("`{}`", folder.display())).collect::<Vec<_>>().join(", ")
        );
        let mut page = Page { title: "Recursive tasks".to_owned(), ..Page::default() };
        page.summary.push(format!("Results of {} files.", found.len()));
        page.heat_maps.extend(hops(&found));
        for Found { name, value } in &found {
            for score in value["generated"].as_array().into_iter().flatten() {
                page.heat_maps.push(matrix(name, score));
                page.tables.extend(failures(name, score));
            }
            page.tables.extend(coverage(name, &value["conformal"]));
            page.tables.extend(queries(name, &value["paths"]));
        }
        fs_err::write(&self.output, page.to_html()?)?;
        output::wrote(&self.output);
        Ok(Status::Done)
    }
}

/// The files of a folder with results that the page shows, by name.
fn read(folder: &Path) -> anyhow::Result<Vec<Found>> {
    let mut paths = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let text = fs_err::read_to_string(&path)?;
        let value: Value = serde_json::from_str(&text).with_context(|| format!("`{}` is not JSON", path.display()))?;
        if value["generated"].is_array() || value["conformal"].is_object() || value["paths"].is_object() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Found { name, value });
        }
    }
    Ok(found)
}

/// A cell of a task's matrix.
struct Cell<'v> {
    group: &'v str,
    depth: u64,
    recursions: u64,
    examples: u64,
    right: u64,
}

fn cells(score: &Value) -> Vec<Cell<'_>> {
    let number = |cell: &Value, key: &str| cell[key].as_u64().unwrap_or(0);
    let mut all = Vec::new();
    for cell in score["cells"].as_array().into_iter().flatten() {
        all.push(Cell {
            group: cell["group"].as_str().unwrap_or_default(),
            depth: number(cell, "depth"),
            recursions: number(cell, "recursions"),
            examples: number(cell, "examples"),
            right: number(cell, "right"),
        });
    }
    all
}

/// Exact matches by group and depth, and by recursions.
fn matrix(name: &str, score: &Value) -> HeatMap {
    let cells = cells(score);
    let recursions: BTreeSet<u64> = cells.iter().map(|cell| cell.recursions).collect();
    let mut by_row: BTreeMap<(String, u64), BTreeMap<u64, (u64, u64)>> = BTreeMap::new();
    for cell in &cells {
        let row = by_row.entry((cell.group.replace('_', " "), cell.depth)).or_default();
        row.insert(cell.recursions, (cell.right, cell.examples));
    }
    let rows = by_row.into_iter().map(|((group, depth), row)| {
        let examples = row.values().map(|(_, examples)| *examples).max().unwrap_or(0);
        let share = |r: &u64| row.get(r).map(|(right, examples)| *right as f64 / (*examples).max(1) as f64);
        (format!("{group}, {depth} ({examples})"), recursions.iter().map(share).collect())
    });
    let shots =
        score["shots"].as_u64().map_or_else(String::new, |shots| format!("; {shots} solved examples in the prompt"));
    HeatMap {
        title: format!("{name}: {}", score["task"].as_str().unwrap_or_default()),
        axes: [score["depth_name"].as_str().unwrap_or("depth").to_owned(), "recursions".to_owned()],
        columns: recursions.iter().map(u64::to_string).collect(),
        rows: rows.collect(),
        note: Some(format!("Exact match; in brackets the number of problems{shots}.{}", explained(score))),
    }
}

/// What the shortcuts explain, in words.
fn explained(score: &Value) -> String {
    let all = score["explanations"].as_array().into_iter().flatten();
    let text = all.filter_map(|pair| {
        let (recursions, found) = (pair[0].as_u64()?, &pair[1]);
        let number = |key: &str| found[key].as_u64();
        let (cap, predicted, wrong) = (number("cap")?, number("predicted")?, number("wrong")?);
        Some(format!(" With {recursions} recursions the shortcut {cap} predicts {predicted} of {wrong} wrong answers."))
    });
    text.collect()
}

/// Exact matches of logical queries by hops and recursions, over all groups but edge cases.
fn hops(found: &[Found]) -> Vec<HeatMap> {
    let mut maps = Vec::new();
    for Found { name, value } in found {
        let mut sums: BTreeMap<u64, BTreeMap<u64, (u64, u64)>> = BTreeMap::new();
        let scores = value["generated"].as_array().into_iter().flatten();
        let queries = scores.filter(|score| score["task"].as_str().is_some_and(|task| task.starts_with("query")));
        for cell in queries.flat_map(cells).filter(|cell| !cell.group.contains("edge")) {
            let sum = sums.entry(cell.depth).or_default().entry(cell.recursions).or_default();
            *sum = (sum.0 + cell.right, sum.1 + cell.examples);
        }
        let recursions: BTreeSet<u64> = sums.values().flat_map(|row| row.keys().copied()).collect();
        let rows = sums.iter().map(|(hops, row)| {
            let share = |r: &u64| row.get(r).map(|(right, examples)| *right as f64 / (*examples).max(1) as f64);
            (hops.to_string(), recursions.iter().map(share).collect())
        });
        let rows: Vec<_> = rows.collect();
        if !rows.is_empty() {
            maps.push(HeatMap {
                title: format!("{name}: logical queries, hops and recursions"),
                axes: ["hops".to_owned(), "recursions".to_owned()],
                columns: recursions.iter().map(u64::to_string).collect(),
                rows,
                note: None,
            });
        }
    }
    maps
}

fn failures(name: &str, score: &Value) -> Option<Table> {
    let all = score["failures"].as_array()?;
    let text = |failure: &Value, key: &str| Label::from(failure[key].as_str().unwrap_or("–"));
    let row = |failure: &Value| {
        let recursions = failure["recursions"].as_u64().unwrap_or(0).to_string();
        let mut row = vec![text(failure, "input"), Label::from(recursions.as_str())];
        row.extend(["right", "answer", "shortcut"].map(|key| text(failure, key)));
        row
    };
    let rows: Vec<_> = all.iter().take(SHOWN_FAILURES).map(row).collect();
    (!rows.is_empty()).then(|| Table {
        title: format!("{name}: wrong answers of {}", score["task"].as_str().unwrap_or_default()),
        header: ["problem", "recursions", "right", "answer", "shortcut"].map(str::to_owned).to_vec(),
        rows,
        note: None,
    })
}

/// Filtered mean reciprocal ranks of logical queries, the mean over seeds and the seeds.
fn queries(name: &str, paths: &Value) -> Option<Table> {
    let types = paths["types"].as_array()?;
    let systems = |kind: &Value| kind["systems"].as_array().cloned().unwrap_or_default();
    let header = ["type", "queries"].map(str::to_owned).into_iter();
    let named = systems(types.first()?).into_iter().map(|system| system["system"].as_str().unwrap_or("–").to_owned());
    let cell = |system: &Value| {
        let seeds = system["seeds"].as_array().into_iter().flatten();
        let seeds: Vec<String> = seeds.filter_map(|seed| Some(format!("{:.3}", seed["mrr"].as_f64()?))).collect();
        let mean = system["mrr"].as_f64().map_or_else(|| "–".to_owned(), |mean| format!("{mean:.3}"));
        format!("{mean} ({})", seeds.join(", "))
    };
    let row = |kind: &Value| {
        let mut row = vec![kind["type"].as_str().unwrap_or("–").to_owned(), kind["queries"].to_string()];
        row.extend(systems(kind).iter().map(cell));
        row.iter().map(|cell| Label::from(cell.as_str())).collect()
    };
    Some(Table {
        title: format!("{name}: filtered mean reciprocal rank of logical queries"),
        header: header.chain(named).collect(),
        rows: types.iter().map(row).collect(),
        note: Some("Answers that need a held-out fact; in brackets the seeds.".to_owned()),
    })
}

fn coverage(name: &str, conformal: &Value) -> Option<Table> {
    let groups = conformal["groups"].as_array()?;
    let alpha = conformal["alpha"].as_f64()?;
    let number = |group: &Value, key: &str| group[key].as_f64().map_or_else(|| "–".to_owned(), |n| format!("{n:.4}"));
    let row = |group: &Value| {
        let outside = if group["calibrated"].as_bool() == Some(false) { " (outside)" } else { "" };
        let cells = [
            format!("{}{outside}", group["group"]),
            group["points"].to_string(),
            number(group, "coverage"),
            number(group, "radius"),
            group["calibration_points"].to_string(),
        ];
        cells.iter().map(|cell| Label::from(cell.as_str())).collect()
    };
    Some(Table {
        title: format!("{name}: coverage of {} % intervals", 100.0 * (1.0 - alpha)),
        header: ["group", "points", "coverage", "radius", "calibrated on"].map(str::to_owned).to_vec(),
        rows: groups.iter().map(row).collect(),
        note: Some("A group is outside where it has no calibration points of its own.".to_owned()),
    })
}
