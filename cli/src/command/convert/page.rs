//! The page about a conversion: its tables, residual energy by depth and linear, and the candidates of a search.

use crate::number::grouped;
use anyhow::ensure;
use retie_config::{ConvertConfig, document};
use retie_convert::{ConvertReport, ProjectionEnergy, SearchReport};
use retie_eval::{Chart, Level, Report, Series, Table, render_report};
use std::path::Path;

/// That the page can be written, before anything takes time.
pub fn check_place(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    ensure!(folder.is_none_or(Path::is_dir), "the folder of `{}` does not exist\nhint: make it first", path.display());
    ensure!(!path.is_dir(), "`{}` is a folder, expected the name of a file", path.display());
    Ok(())
}

/// Writes the page.
pub fn write(path: &Path, config: &ConvertConfig, report: &ConvertReport) -> anyhow::Result<()> {
    let mut charts = energies(report);
    charts.extend(report.search.as_ref().map(candidates));
    let mut summary = vec![format!("{} depths run {} stored layers.", report.num_depths, report.num_layers)];
    summary.extend(report.search.as_ref().map(|search| format!("Chosen: {}.", search.why)));
    summary.extend(report.notes.iter().cloned());
    let tables = [Some(parameters(report)), scores(report), report.search.as_ref().map(ranking)];
    let page = Report {
        title: format!("{} made recursive", config.model),
        summary,
        passages: Vec::new(),
        tables: tables.into_iter().flatten().collect(),
        charts,
        facts: report.checks.iter().map(|check| (check.name.clone(), check.detail.clone())).collect(),
        files: vec![
            ("configuration".to_owned(), document::to_yaml(config)?),
            ("report".to_owned(), report.to_string()),
        ],
    };
    Ok(fs_err::write(path, render_report(&page)?)?)
}

fn words<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn parameters(report: &ConvertReport) -> Table {
    let (source, target) = (&report.source_parameters, &report.parameters);
    let row = |name: &str, source: usize, target: usize| {
        vec![name.to_owned(), grouped(source as u64), grouped(target as u64)]
    };
    Table {
        title: "Parameters".to_owned(),
        header: words(["", "source", "recursive"]),
        rows: vec![
            row("embedding", source.embedding, target.embedding),
            row("layers", source.layers, target.layers),
            row("own norms and biases", source.depth_vectors, target.depth_vectors),
            row(report.relax().title(), source.lora, target.lora),
            row("extras", source.extras, target.extras),
            row("total", source.total(), target.total()),
        ],
        note: None,
    }
}

fn scores(report: &ConvertReport) -> Option<Table> {
    let scores = report.scores.as_ref()?;
    let row = |name: &str, nll: f64, kl: Option<f64>| {
        let kl = kl.map_or_else(|| "–".to_owned(), |kl| format!("{kl:.3}"));
        vec![name.to_owned(), format!("{nll:.3}"), format!("{:.3}", nll - scores.source_nll), kl]
    };
    let average = report.calibration.as_ref().map(|calibration| calibration.average);
    let rows = [
        Some(row("source", scores.source_nll, None)),
        average.map(|effect| row("average, same ranks", effect.nll, Some(effect.kl))),
        Some(row("this model", scores.effect.nll, Some(scores.effect.kl))),
    ];
    Some(Table {
        title: "Before any training".to_owned(),
        header: words(["", "NLL", "ΔNLL", "KL to the source"]),
        rows: rows.into_iter().flatten().collect(),
        note: Some(format!("Nats per token on {} held-out tokens of {}.", grouped(scores.tokens as u64), scores.text)),
    })
}

/// What sharing lost and what the LoRA leaves of it, by depth; attention and MLP apart.
fn energies(report: &ConvertReport) -> Vec<Chart> {
    let Some(lora) = &report.lora else { return Vec::new() };
    let metric = if report.calibration.is_some() { "in the metric of what is read" } else { "Frobenius" };
    let chart = |what: &str, of: &dyn Fn(&ProjectionEnergy) -> Vec<(f64, f64)>, block: &str, name: &str| Chart {
        title: format!("{what} of the {name}, by depth"),
        x_label: "depth".to_owned(),
        y_label: format!("squared error, {metric}"),
        series: lora
            .projections
            .iter()
            .filter(|projection| projection.projection.starts_with(block))
            .map(|projection| Series { name: projection.projection.clone(), points: of(projection) })
            .collect(),
        levels: Vec::new(),
    };
    let lost = |p: &ProjectionEnergy| p.depths.iter().map(|d| (d.depth as f64, d.residual_energy)).collect();
    let left = |p: &ProjectionEnergy| {
        p.depths.iter().map(|d| (d.depth as f64, (d.residual_energy - d.kept_energy).max(0.0))).collect()
    };
    let mut charts = Vec::new();
    for (block, name) in [("self_attn.", "attention"), ("mlp.", "MLP")] {
        charts.push(chart("Residual energy", &lost, block, name));
        charts.push(chart(&format!("What the {} leaves", report.relax().title()), &left, block, name));
    }
    charts
}

/// NLL of every candidate, in the order of the ranking.
fn candidates(search: &SearchReport) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for (i, candidate) in search.candidates.iter().enumerate() {
        let kind = candidate.lora.split(' ').next().unwrap_or_default(); // `rank` whatever the rank
        let name = format!("{}, LoRA: {kind}", candidate.init);
        let point = ((i + 1) as f64, candidate.nll);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, points: vec![point] }),
        }
    }
    Chart {
        title: "NLL of every candidate".to_owned(),
        x_label: "place in the ranking".to_owned(),
        y_label: "nats per token".to_owned(),
        series,
        levels: vec![Level { name: "source".to_owned(), y: search.source_nll }],
    }
}

fn ranking(search: &SearchReport) -> Table {
    let rows = search.candidates.iter().enumerate().map(|(i, candidate)| {
        let fitted = candidate.fitted_tokens.map_or_else(|| "–".to_owned(), |tokens| grouped(tokens as u64));
        let (parameters, kl, nll) =
            (grouped(candidate.parameters as u64), format!("{:.3}", candidate.kl), format!("{:.3}", candidate.nll));
        vec![format!("{}. {}", i + 1, candidate.name()), parameters, fitted, kl, nll]
    });
    Table {
        title: format!("Candidates within {}", search.budget),
        header: words(["", "parameters", "fitted to", "KL to the source", "NLL"]),
        rows: rows.collect(),
        note: (!search.passed_over.is_empty()).then(|| format!("Passed over: {}.", search.passed_over.join("; "))),
    }
}
