//! `metrics.csv` (<https://www.rfc-editor.org/rfc/rfc4180>): a line of names, then a line a step; a
//! cell is empty where a row has no such number. Names are [`columns`]'s, in the order in which
//! they are first met: a row with a new one widens the whole file.

use super::{FileLogger, Logger, StepRow, columns, replace};
use crate::TrainError;
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Name of the first column.
const STEP: &str = "step";

/// The open file.
#[derive(Debug)]
pub struct Csv {
    path: PathBuf,
    /// Names, without that of the step.
    columns: Vec<String>,
    file: fs_err::File,
}

impl FileLogger for Csv {
    fn open(run_dir: &Path, step: u64, rows: &[StepRow]) -> Result<Self, TrainError> {
        let path = run_dir.join("metrics.csv");
        if !path.exists() {
            replace(&path, format!("{STEP}\n").as_bytes())?;
            let mut csv = Self { columns: Vec::new(), file: append(&path)?, path };
            rows.iter().try_for_each(|row| csv.step(row))?;
            return Ok(csv);
        }
        let text = fs_err::read_to_string(&path)?;
        let (header, lines) = text.split_once('\n').unwrap_or((&text, ""));
        let mut names = header.split(',').map(str::to_owned);
        if names.next().as_deref() != Some(STEP) {
            return Err(TrainError::NotALog { path, expected: "`step,…`" });
        }
        let columns: Vec<String> = names.collect();
        let whole = |line: &&str| {
            let of_step = line.split(',').next().and_then(|cell| cell.parse::<u64>().ok());
            line.ends_with('\n') && line.split(',').count() == columns.len() + 1 && of_step.is_some_and(|s| s <= step)
        };
        let kept: String = lines.split_inclusive('\n').filter(whole).collect();
        replace(&path, format!("{header}\n{kept}").as_bytes())?;
        Ok(Self { columns, file: append(&path)?, path })
    }
}

impl Csv {
    /// Adds columns, empty in the lines that are there.
    fn widen(&mut self, names: Vec<String>) -> Result<(), TrainError> {
        let text = fs_err::read_to_string(&self.path)?;
        let more = [names.iter().fold(String::new(), |header, name| header + "," + name), ",".repeat(names.len())];
        let lines = text.lines().enumerate().map(|(index, line)| format!("{line}{}\n", more[index.min(1)]));
        replace(&self.path, lines.collect::<String>().as_bytes())?;
        self.columns.extend(names);
        self.file = append(&self.path)?;
        Ok(())
    }
}

impl Logger for Csv {
    fn step(&mut self, row: &StepRow) -> Result<(), TrainError> {
        let found = columns(row).map_err(|source| TrainError::BadRunFile { path: self.path.clone(), source })?;
        let new = found.iter().filter(|(name, _)| !self.columns.contains(name)).map(|(name, _)| name.clone());
        let new: Vec<String> = new.collect();
        if !new.is_empty() {
            self.widen(new)?;
        }
        let cell =
            |name: &String| found.iter().find(|(other, _)| other == name).map_or_else(String::new, |c| spell(c.1));
        let cells = self.columns.iter().fold(row.step.to_string(), |line, name| line + "," + &cell(name));
        Ok(self.file.write_all(format!("{cells}\n").as_bytes())?)
    }
}

fn append(path: &Path) -> Result<fs_err::File, TrainError> {
    Ok(fs_err::OpenOptions::new().append(true).open(path)?)
}

/// The shortest text that reads back as the number.
fn spell(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::row;

    fn read(dir: &Path) -> String {
        fs_err::read_to_string(dir.join("metrics.csv")).unwrap()
    }

    #[test]
    fn a_file_has_every_column_and_widens() {
        let dir = tempfile::tempdir().unwrap();
        let mut csv = Csv::open(dir.path(), 0, &[]).unwrap();
        (1..=3).for_each(|step| csv.step(&row(step)).unwrap());
        let text = read(dir.path());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "step,loss,cross_entropy,terms.distill,lr,grad_norm,tokens,loss_spikes,seconds,tokens_per_second,\
             telemetry.hidden_norm.1,telemetry.hidden_norm.2,telemetry.cosine.1,telemetry.grad_norm.lora,\
             heldout_cross_entropy,heldout_exits.1"
        );
        assert_eq!(lines[1], "1,3.375,4.25,1.125,1e-10,1.5,64,0,0.5,128,,,,,,");
        assert_eq!(lines[2], "2,3.25,4.25,1.125,1e-10,1.5,128,0,0.5,128,10.5,12.25,0.75,0.5,,");
        assert_eq!(lines[3], "3,3.125,4.25,1.125,1e-10,1.5,192,0,0.5,128,,,,,2.5,2.75");
    }

    #[test]
    fn a_file_that_goes_on_is_that_of_an_unbroken_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = Csv::open(dir.path(), 0, &[]).unwrap();
        (1..=7).for_each(|step| whole.step(&row(step)).unwrap());
        let expected = read(dir.path());
        for done in 0..=7 {
            // Killed in the middle of a line.
            let text = format!("{expected}8,2.5,4.2");
            fs_err::write(dir.path().join("metrics.csv"), text).unwrap();
            let mut csv = Csv::open(dir.path(), done, &[]).unwrap();
            assert_eq!(read(dir.path()).lines().count() as u64, done + 1);
            (done + 1..=7).for_each(|step| csv.step(&row(step)).unwrap());
            assert_eq!(read(dir.path()), expected);
            // Asked for only now.
            fs_err::remove_file(dir.path().join("metrics.csv")).unwrap();
            let rows: Vec<StepRow> = (1..=done).map(row).collect();
            let mut csv = Csv::open(dir.path(), done, &rows).unwrap();
            (done + 1..=7).for_each(|step| csv.step(&row(step)).unwrap());
            assert_eq!(read(dir.path()), expected);
        }
    }

    #[test]
    fn another_file_of_that_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("metrics.csv"), "a,b\n1,2\n").unwrap();
        let message = Csv::open(dir.path(), 1, &[]).unwrap_err().to_string();
        assert!(
            message.contains("metrics.csv` is not a log of this program, expected it to begin with `step,…`"),
            "{message}"
        );
    }
}
