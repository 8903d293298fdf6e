//! A [`ConvertReport`] as aligned plain text.

use crate::{
    Alias, CalibrationReport, ConvertReport, ParameterCounts, ProjectionEnergy, Scores, SearchReport,
    calibrate::Effect, check::write_notes_and_checks, search::pattern_name,
};
use retie_report::number::grouped;
use std::fmt::{self, Display, Formatter};

impl Display for ConvertReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(selection) = &self.selection {
            writeln!(f, "{selection}")?;
        }
        match &self.recursion {
            None => writeln!(f, "{} layers, copied (one recursion)", self.num_layers)?,
            Some(_) if self.has_low_rank() => writeln!(f, "{} layers with low-rank linears", self.num_layers)?,
            Some(r) => writeln!(
                f,
                "{} depths from {} stored layers: {}, {} recursions, init {}",
                self.num_depths,
                self.num_layers,
                pattern_name(r),
                r.num_recursions,
                r.init
            )?,
        }
        parameters(f, self)?;
        aliases(f, &self.aliases)?;
        if let Some(lora) = &self.lora {
            let title = self.factors_title();
            let energy = if self.has_low_rank() { "energy" } else { "residual energy" };
            writeln!(f, "\n{title:<18} {:>7}  {energy} kept (lowest to highest depth)", "rank")?;
            for p in lora.projections.iter().filter(|p| p.rank > 0) {
                let percent = |kept: Option<f64>| {
                    kept.map_or_else(|| "no residual".to_owned(), |k| format!("{:.1} %", 100.0 * k))
                };
                let each = || p.depths.iter().filter_map(|d| d.kept);
                let range = match p.kept {
                    Some(_) => {
                        format!(
                            "  ({} to {})",
                            percent(each().min_by(f64::total_cmp)),
                            percent(each().max_by(f64::total_cmp))
                        )
                    }
                    None => String::new(),
                };
                writeln!(f, "{:<18} {:>7}  {}{range}", p.projection, ranks(p), percent(p.kept))?;
            }
        }
        match (&self.calibration, &self.scores) {
            (Some(calibration), _) => effect(f, calibration, self.fit_names())?,
            (None, Some(found)) => scores(f, found)?,
            (None, None) => {}
        }
        if !self.left_out.is_empty() {
            writeln!(f, "\nleft out, as the model does not need them: {}", self.left_out.join(", "))?;
        }
        write_notes_and_checks(f, &self.notes, &self.checks)
    }
}

/// One rank, or the least (of those that have any) and the most.
fn ranks(projection: &ProjectionEnergy) -> String {
    let each = projection.depths.iter().map(|depth| depth.rank.unwrap_or(projection.rank));
    match each.min() {
        Some(least) if least != projection.rank => format!("{least}–{}", projection.rank),
        _ => projection.rank.to_string(),
    }
}

fn parameters(f: &mut Formatter<'_>, report: &ConvertReport) -> fmt::Result {
    type Count = (&'static str, fn(&ParameterCounts) -> usize);
    let rows: [Count; 8] = [
        ("embedding", |c| c.embedding),
        ("layers", |c| c.layers),
        ("own norms and biases", |c| c.depth_vectors),
        (report.factors_title(), |c| c.lora),
        ("extras", |c| c.extras),
        ("routers", |c| c.routers),
        ("without embedding", |c| c.non_embedding()),
        ("total", |c| c.total()),
    ];
    writeln!(f, "\n{:<22} {:>16} {:>16} {:>7}", "parameters", "source", "recursive", "part")?;
    for (name, count) in rows {
        let (source, target) = (count(&report.source_parameters), count(&report.parameters));
        if source + target > 0 {
            row(f, name, source as u64, target as u64)?;
        }
    }
    row(f, "bytes", report.source_bytes, report.bytes)
}

fn row(f: &mut Formatter<'_>, name: &str, source: u64, target: u64) -> fmt::Result {
    let part = if source == 0 { "–".to_owned() } else { format!("{:.1} %", 100.0 * target as f64 / source as f64) };
    writeln!(f, "{name:<22} {:>16} {:>16} {part:>7}", grouped(source), grouped(target))
}

fn effect(f: &mut Formatter<'_>, report: &CalibrationReport, [plain, fitted]: [&str; 2]) -> fmt::Result {
    writeln!(
        f,
        "\nfitted to {} tokens of {}; scores on {} others, in nats per token",
        grouped(report.tokens as u64),
        report.text,
        grouped(report.heldout_tokens as u64)
    )?;
    score_rows(f, report.source_nll, &[(plain, report.average), (fitted, report.calibrated)])
}

fn scores(f: &mut Formatter<'_>, scores: &Scores) -> fmt::Result {
    let tokens = grouped(scores.tokens as u64);
    writeln!(f, "\nscores on {tokens} tokens of {}, in nats per token", scores.text)?;
    score_rows(f, scores.source_nll, &[("this model", scores.effect)])
}

fn score_rows(f: &mut Formatter<'_>, source_nll: f64, rows: &[(&str, Effect)]) -> fmt::Result {
    writeln!(f, "{:<22} {:>9} {:>9} {:>16}", "", "NLL", "ΔNLL", "KL to the source")?;
    writeln!(f, "{:<22} {source_nll:>9.3}", "source")?;
    for (name, effect) in rows {
        writeln!(f, "{name:<22} {:>9.3} {:>9.3} {:>16.3}", effect.nll, effect.nll - source_nll, effect.kl)?;
    }
    Ok(())
}

/// The ranking, from the least KL up, and why the first was taken.
impl Display for SearchReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} candidates within {} parameters ({}), scored on {} tokens; the source has NLL {:.3}",
            self.candidates.len(),
            grouped(self.allowed_parameters as u64),
            self.budget,
            grouped(self.heldout_tokens as u64),
            self.source_nll
        )?;
        let width = self.candidates.iter().map(|c| c.sharing.chars().count()).max().unwrap_or(0).max("sharing".len());
        writeln!(
            f,
            "\n{:>3} {:>8} {:>8}  {:<width$} {:>2}  {:<10} {:<9} {:>14} {:>12}",
            "", "KL", "NLL", "sharing", "R", "init", "LoRA", "parameters", "fitted to"
        )?;
        for (i, c) in self.candidates.iter().enumerate() {
            let fitted = c.fitted_tokens.map_or_else(|| "–".to_owned(), |tokens| grouped(tokens as u64));
            writeln!(
                f,
                "{:>3} {:>8.3} {:>8.3}  {:<width$} {:>2}  {:<10} {:<9} {:>14} {fitted:>12}",
                i + 1,
                c.kl,
                c.nll,
                c.sharing,
                c.recursions,
                c.init.name(),
                c.lora,
                grouped(c.parameters as u64)
            )?;
        }
        for reason in &self.passed_over {
            writeln!(f, "\npassed over: {reason}")?;
        }
        writeln!(f, "\nchosen: {}", self.why)
    }
}

fn aliases(f: &mut Formatter<'_>, aliases: &[Alias]) -> fmt::Result {
    writeln!(f, "\n{:>5} {:>6} {:>10}  source layers", "depth", "layer", "recursion")?;
    for alias in aliases {
        let recursion = alias.recursion.map_or_else(|| "unshared".to_owned(), |r| r.to_string());
        let sources = alias.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let place = alias.stands_for.map_or_else(String::new, |layer| format!(" (in the place of {layer})"));
        writeln!(f, "{:>5} {:>6} {recursion:>10}  {sources}{place}", alias.depth, alias.layer)?;
    }
    Ok(())
}
