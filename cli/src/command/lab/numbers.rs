//! `retie lab numbers`: sequences that are defined by recursion, exactly, a JSON object a line.

use crate::error::Status;
use clap::Subcommand;
use retie_tasks::numbers::{PsiNumbers, bitwise};
use serde_json::{Value, json};
use std::io::{BufWriter, Write};

/// Write numbers that are defined by recursion, a JSON object a line
#[derive(Debug, Subcommand)]
pub enum Numbers {
    /// Intersection numbers of ψ-classes on moduli spaces of curves, by the DVV recursion
    Psi {
        /// Largest genus
        #[arg(long, value_name = "G", default_value_t = 8)]
        genus: usize,
        /// Most marked points
        #[arg(long, value_name = "N", default_value_t = 5)]
        points: usize,
    },
    /// r(0) = 0, r(n) = n + (n AND r(n - 1))
    Bitwise {
        /// Last n
        #[arg(long, value_name = "N", default_value_t = 200)]
        last: u32,
    },
}

impl Numbers {
    pub fn run(self) -> anyhow::Result<Status> {
        let mut out = BufWriter::new(std::io::stdout().lock());
        let mut write = |value: Value| writeln!(out, "{value}");
        match self {
            Self::Psi { genus, points } => {
                let mut numbers = PsiNumbers::new();
                let spaces = (0..=genus).flat_map(|g| (1..=points).map(move |n| (g, n)));
                for (g, n) in spaces.filter(|(g, n)| 2 * g + n > 2) {
                    for sample in numbers.all(g, n)? {
                        let value = sample.value;
                        write(json!({
                            "genus": g, "points": n, "exponents": sample.exponents, "value": value.to_string(),
                            "log": value.to_f64().ln(),
                        }))?;
                    }
                }
            }
            Self::Bitwise { last } => {
                for (n, value) in bitwise(last).into_iter().enumerate() {
                    write(json!({ "n": n, "value": value }))?;
                }
            }
        }
        out.flush()?;
        Ok(Status::Done)
    }
}
