//! `retie lab report`: one page of the results of generated tasks, of conformal intervals and of
//! induced trees.

use crate::{error::Status, output};
use anyhow::{Context, ensure};
use clap::Args;
use retie_report::{HeatMap, Label, Page, Table, TreeDrawing};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Write one page about generated tasks, intervals and trees: matrices, failures, coverage,
/// drawings
#[derive(Debug, Args)]
pub struct Report {
    /// Folders with files of `retie eval --json`, and of `retie lab conformal`, `retie lab paths`,
    /// `retie lab trees` and `retie probe trees` with `-o`
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
            "no file in {} has results of generated tasks, of intervals, of queries or of trees\nhint: `retie eval --json`, `retie lab conformal -o`, `retie lab paths -o` and `retie lab trees -o` write them",
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
            for source in value["trees"].as_array().into_iter().flatten() {
                page.tables.push(tree_table(name, source));
                page.trees.extend(tree_drawings(name, source));
            }
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
        let has = |key: &str| value[key].is_array() || value[key].is_object();
        if ["generated", "conformal", "paths", "trees"].into_iter().any(has) {
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

/// F1 of induced trees beside those of rules.
fn tree_table(name: &str, source: &Value) -> Table {
    let percent = |number: &Value| number.as_f64().map_or_else(|| "–".to_owned(), |n| format!("{:.1}", 100.0 * n));
    let mut rows = Vec::new();
    for (rule, figures) in source["rules"].as_object().into_iter().flatten() {
        let cells = [rule.replace('_', "-"), percent(&figures["f1"]), percent(&figures["recall"]), "–".to_owned()];
        rows.push(cells.iter().map(|cell| Label::from(cell.as_str())).collect());
    }
    for group in source["groups"].as_array().into_iter().flatten() {
        for (seed, figures) in group["seeds"].as_array().into_iter().flatten().enumerate() {
            let (chart, parser) = (&figures["chart"], &figures["parser"]);
            let name = format!("{}, seed {seed}", group["name"].as_str().unwrap_or_default());
            let cells = [name, percent(&chart["f1"]), percent(&chart["recall"]), percent(&parser["f1"])];
            rows.push(cells.iter().map(|cell| Label::from(cell.as_str())).collect());
        }
    }
    Table {
        title: format!("{name}: trees of {}", source["source"].as_str().unwrap_or_default()),
        header: ["trees", "F1", "recall", "F1 of the parser"].map(str::to_owned).to_vec(),
        rows,
        note: Some(format!(
            "Unlabelled F1 and recall in percent; a binary tree with all gold spans has {}.",
            percent(&source["rules"]["random"]["ceiling"])
        )),
    }
}

/// The trees of some sentences; spans of the gold tree are in colour.
fn tree_drawings(name: &str, source: &Value) -> Vec<TreeDrawing> {
    let numbers = |value: &Value| -> Vec<usize> {
        value.as_array().into_iter().flatten().filter_map(|n| n.as_u64().map(|n| n as usize)).collect()
    };
    let mut drawings = Vec::new();
    for drawn in source["drawn"].as_array().into_iter().flatten() {
        let tokens = drawn["tokens"].as_array().into_iter().flatten();
        let tokens: Vec<String> = tokens.map(|token| token.as_str().unwrap_or_default().to_owned()).collect();
        let gold = drawn["gold"].as_array().into_iter().flatten().map(numbers);
        let marked: Vec<_> = gold.filter_map(|span| Some((*span.first()?, *span.get(1)?))).collect();
        for tree in drawn["trees"].as_array().into_iter().flatten() {
            let nodes = tree["nodes"].as_array().into_iter().flatten();
            drawings.push(TreeDrawing {
                title: format!(
                    "{name}: {}, {}",
                    source["source"].as_str().unwrap_or_default(),
                    tree["name"].as_str().unwrap_or_default()
                ),
                tokens: tokens.clone(),
                nodes: nodes.filter_map(|node| numbers(node).try_into().ok()).collect(),
                marked: marked.clone(),
            });
        }
    }
    drawings
}
