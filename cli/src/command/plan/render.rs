//! Plain text of a plan.

use super::{Report, row::Row};
use retie_report::number::{bytes, duration, grouped, rate};
use std::fmt::{self, Display, Formatter};

const HEAD: [&str; 10] =
    ["plan", "R", "LoRA", "parameters", "KV a token", "memory", "micro-batch", "step", "tokens/s", "tokens"];

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let budget = duration(self.budget_seconds);
        let many = if self.gpus > 1 { "processes" } else { "process" };
        writeln!(f, "{}: {} {many} with {} each, {budget}", self.input, self.gpus, bytes(self.memory_bytes))?;
        let flops = self.rate.operations_per_second.show(|flops| format!("{} TFLOP/s", rate(flops / 1e12)));
        writeln!(f, "rate of a device: {flops}, {}", self.rate.from)?;
        writeln!(f, "m measured here, c computed, p prior: of earlier measurements, or computed from them\n")?;
        let cells: Vec<[String; 10]> = self.rows.iter().map(cells).collect();
        let width = |column: usize| {
            let texts = cells.iter().map(|row| row[column].as_str()).chain([HEAD[column]]);
            texts.map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let line = |row: [&str; 10]| {
            let cell = |(text, width): (&str, &usize)| format!("{text:>width$}");
            let first = format!("{:<width$}", row[0], width = widths[0]);
            let rest: Vec<String> = row[1..].iter().copied().zip(&widths[1..]).map(cell).collect();
            format!("{first}  {}", rest.join("  ")).trim_end().to_owned()
        };
        writeln!(f, "{}", line(HEAD))?;
        for row in &cells {
            writeln!(f, "{}", line(row.each_ref().map(String::as_str)))?;
        }
        details(f, &self.rows[self.recommended])?;
        writeln!(f, "\nrecommended: {}, because {}", name(&self.rows[self.recommended]), self.reason)
    }
}

/// `21.4B`, `4.3M`.
fn count(number: f64) -> String {
    match number {
        n if n >= 1e9 => format!("{}B", rate(n / 1e9)),
        n if n >= 1e6 => format!("{}M", rate(n / 1e6)),
        n => grouped(n as u64),
    }
}

fn name(row: &Row) -> String {
    let Row { plan, recursions, lora_rank, how, .. } = row;
    let lora = if *lora_rank > 0 { format!(", LoRA of rank {lora_rank}") } else { String::new() };
    format!("{plan}, {recursions} recursions{lora} ({how})")
}

fn cells(row: &Row) -> [String; 10] {
    let over = if row.fits { "" } else { ", too much" };
    [
        row.plan.clone(),
        row.recursions.to_string(),
        row.lora_rank.to_string(),
        row.parameters.show(|count| grouped(count as u64)),
        row.kv_bytes_per_token.show(|count| bytes(count as u64)),
        row.memory_bytes.show(|count| format!("{}{over}", bytes(count as u64))),
        format!("{} × {}", row.sequences, row.sequence_length),
        row.step_seconds.show(|seconds| format!("{seconds:.3} s")),
        row.tokens_per_second.show(rate),
        row.tokens.show(count),
    ]
}

/// Memory by part and step by part of the recommended plan.
fn details(f: &mut Formatter<'_>, row: &Row) -> fmt::Result {
    let parts = &row.parts;
    let mark = row.memory_bytes.basis.mark();
    writeln!(f, "\nmemory of one process of {}:", name(row))?;
    for (name, part) in [
        ("weights", parts.weights),
        ("gradients", parts.gradients),
        ("of micro-batches before", parts.accumulated),
        ("optimizer", parts.optimizer),
        ("teacher", parts.teacher),
        ("merged LoRA", parts.merged),
        ("activations", parts.activations()),
        ("logits", parts.logits),
        ("program", parts.program),
    ] {
        writeln!(f, "  {name:<24}{:>12} {mark}", bytes(part as u64))?;
    }
    let operations = row.operations_per_step.show(|operations| format!("{operations:.2e}"));
    let sum = row.communication_seconds.show(|seconds| format!("{seconds:.3} s"));
    writeln!(f, "operations of a step and process: {operations}; sum of gradients between processes: {sum}")?;
    if let (Some(tokens), Some(seconds)) = (row.run_tokens, row.run_seconds) {
        writeln!(f, "its {} tokens take {}", grouped(tokens), seconds.show(duration))?;
    }
    Ok(())
}
