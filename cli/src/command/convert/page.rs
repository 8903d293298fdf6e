//! The page about a conversion: its tables, residual energy by depth and linear, and the candidates
//! of a search.

use retie_config::{ConvertConfig, document};
use retie_convert::{ConvertReport, ProjectionEnergy, SearchReport};
use retie_report::{Chart, Facts, Label, Page, ReferenceLine, Series, Table, number::grouped};
use std::path::Path;

/// Writes the page.
pub fn write(path: &Path, config: &ConvertConfig, report: &ConvertReport) -> anyhow::Result<()> {
    let mut charts = energies(report);
    charts.extend(report.search.as_ref().map(candidates));
    let mut summary = vec![format!("{} depths run {} stored layers.", report.num_depths, report.num_layers)];
    summary.extend(report.search.as_ref().map(|search| format!("Chosen: {}.", search.why)));
    summary.extend(report.notes.iter().cloned());
    let tables = [Some(parameters(report)), scores(report), report.search.as_ref().map(ranking)];
    let page = Page {
        title: match report.recursion {
            Some(_) => format!("{} made recursive", config.model),
            None => format!("{} with {} layers", config.model, report.num_layers),
        },
        summary,
        passages: Vec::new(),
        heat_maps: Vec::new(),
        trees: Vec::new(),
        tables: tables.into_iter().flatten().collect(),
        charts,
        facts: Facts {
            title: "Checks".to_owned(),
            entries: report.checks.iter().map(|check| (check.name.as_str().into(), check.detail.clone())).collect(),
        },
        files: vec![("configuration".into(), document::to_yaml(config)?), ("report".into(), report.to_string())],
    };
    Ok(fs_err::write(path, page.to_html()?)?)
}

fn header<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn row<const N: usize>(cells: [String; N]) -> Vec<Label> {
    cells.map(Label::from).to_vec()
}

fn parameters(report: &ConvertReport) -> Table {
    let (source, target) = (&report.source_parameters, &report.parameters);
    let counts = |name: &str, source: usize, target: usize| {
        row([name.to_owned(), grouped(source as u64), grouped(target as u64)])
    };
    Table {
        title: "Parameters".to_owned(),
        header: header(["", "source", "recursive"]),
        rows: vec![
            counts("embedding", source.embedding, target.embedding),
            counts("layers", source.layers, target.layers),
            counts("own norms and biases", source.depth_vectors, target.depth_vectors),
            counts(report.factors_title(), source.lora, target.lora),
            counts("extras", source.extras, target.extras),
            counts("total", source.total(), target.total()),
        ],
        note: None,
    }
}

fn scores(report: &ConvertReport) -> Option<Table> {
    let scores = report.scores.as_ref()?;
    let losses = |name: &str, nll: f64, kl: Option<f64>| {
        let kl = kl.map_or_else(|| "–".to_owned(), |kl| format!("{kl:.3}"));
        row([name.to_owned(), format!("{nll:.3}"), format!("{:.3}", nll - scores.source_nll), kl])
    };
    let average = report.calibration.as_ref().map(|calibration| calibration.average);
    let rows = [
        Some(losses("source", scores.source_nll, None)),
        average.map(|effect| losses(report.fit_names()[0], effect.nll, Some(effect.kl))),
        Some(losses("this model", scores.effect.nll, Some(scores.effect.kl))),
    ];
    Some(Table {
        title: "Before any training".to_owned(),
        header: header(["", "NLL", "ΔNLL", "KL to the source"]),
        rows: rows.into_iter().flatten().collect(),
        note: Some(format!("Nats per token on {} held-out tokens of {}.", grouped(scores.tokens as u64), scores.text)),
    })
}

/// Residual energy that sharing lost and that the LoRA leaves, by depth; attention and MLP apart.
fn energies(report: &ConvertReport) -> Vec<Chart> {
    let Some(lora) = &report.lora else { return Vec::new() };
    let metric = if report.calibration.is_some() { "in the metric of what is read" } else { "Frobenius" };
    let chart = |title: String, points: &dyn Fn(&ProjectionEnergy) -> Vec<(f64, f64)>, block: &str| Chart {
        title,
        x_label: "depth".to_owned(),
        y_label: format!("squared error, {metric}"),
        series: lora
            .projections
            .iter()
            .filter(|projection| projection.projection.starts_with(block))
            .map(|projection| Series { name: projection.projection.as_str().into(), points: points(projection) })
            .collect(),
        reference_lines: Vec::new(),
    };
    let lost = |p: &ProjectionEnergy| p.depths.iter().map(|d| (d.depth as f64, d.residual_energy)).collect();
    let left = |p: &ProjectionEnergy| {
        p.depths.iter().map(|d| (d.depth as f64, (d.residual_energy - d.kept_energy).max(0.0))).collect()
    };
    let mut charts = Vec::new();
    for (block, name) in [("self_attn.", "attention"), ("mlp.", "MLP")] {
        charts.push(chart(format!("Residual energy of the {name}, by depth"), &lost, block));
        let title = format!("Residual energy of the {name} after {}, by depth", report.factors_title());
        charts.push(chart(title, &left, block));
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
        match series.iter_mut().find(|series| series.name == *name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name: name.into(), points: vec![point] }),
        }
    }
    Chart {
        title: "NLL of every candidate".to_owned(),
        x_label: "place in the ranking".to_owned(),
        y_label: "nats per token".to_owned(),
        series,
        reference_lines: vec![ReferenceLine { name: "source".into(), y: search.source_nll }],
    }
}

fn ranking(search: &SearchReport) -> Table {
    let rows = search.candidates.iter().enumerate().map(|(i, candidate)| {
        let fitted = candidate.fitted_tokens.map_or_else(|| "–".to_owned(), |tokens| grouped(tokens as u64));
        let (parameters, kl, nll) =
            (grouped(candidate.parameters as u64), format!("{:.3}", candidate.kl), format!("{:.3}", candidate.nll));
        row([format!("{}. {}", i + 1, candidate.name()), parameters, fitted, kl, nll])
    });
    Table {
        title: format!("Candidates within {}", search.budget),
        header: header(["", "parameters", "fitted to", "KL to the source", "NLL"]),
        rows: rows.collect(),
        note: (!search.passed_over.is_empty()).then(|| format!("Passed over: {}.", search.passed_over.join("; "))),
    }
}
