//! Trains recursive networks on generated pictures and prints a table for each, beside baselines:
//!
//! ```text
//! cargo run --release -p retie-lab --example vision -- [sret|rgt|msrnet|hornet|flash_vggt|all]
//!     [--steps N] [--seed S]
//! ```

#![expect(clippy::print_stdout, reason = "the tables are what the program is for")]

use retie_lab::vision::tasks::{Table, Task, Training};
use std::error::Error;

#[global_allocator]
static ALLOCATOR: retie_model::kernels::Allocator = retie_model::kernels::Allocator;

/// What was asked for.
struct Options {
    tasks: Vec<Task>,
    /// In place of the number that each task has.
    steps: Option<usize>,
    seed: u64,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self { tasks: Task::ALL.to_vec(), steps: None, seed: 0 };
        while let Some(argument) = arguments.next() {
            let mut number = || arguments.next().ok_or_else(|| format!("`{argument}` has no number behind it"));
            match argument.as_str() {
                "--steps" => options.steps = Some(number()?.parse()?),
                "--seed" => options.seed = number()?.parse()?,
                "all" => options.tasks = Task::ALL.to_vec(),
                name => {
                    let names = Task::ALL.map(Task::name).join(", ");
                    let task = Task::ALL.into_iter().find(|task| task.name() == name);
                    options.tasks = vec![task.ok_or_else(|| format!("no task `{name}`, expected {names} or all"))?];
                }
            }
        }
        Ok(options)
    }
}

fn print(task: Task, training: Training, table: &Table) {
    println!("\n{}, {} steps, seed {}\n", task.name(), training.steps, training.seed);
    println!("| system | {} | parameters | loss, first and last tenth | seconds |", table.measure);
    println!("|---|---|---|---|---|");
    for row in &table.rows {
        let trained = row.trained.as_ref().map_or_else(
            || "– | – | –".to_owned(),
            |trained| {
                let part = trained.losses.len().div_ceil(10);
                let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
                let (first, last) = (&trained.losses[..part], &trained.losses[trained.losses.len() - part..]);
                format!("{} | {:.3}, {:.3} | {:.0}", trained.parameters, mean(first), mean(last), trained.seconds)
            },
        );
        println!("| {} | {:.2} | {trained} |", row.system, row.figure);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    retie_model::kernels::keep_freed_memory();
    let options = Options::read(std::env::args().skip(1))?;
    for task in options.tasks {
        let training = Training { steps: options.steps.unwrap_or(task.steps()), seed: options.seed, is_alone: false };
        print(task, training, &task.run(training)?);
    }
    Ok(())
}
