//! `metrics.jsonl`: one row a step, appended and flushed.

use super::{Logger, StepRow};
use crate::TrainError;
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// The open file.
#[derive(Debug)]
pub struct Jsonl {
    path: PathBuf,
    file: fs_err::File,
}

impl Jsonl {
    /// Opens the file of a run of which `step` steps are done, and gives their rows: those of later
    /// steps, which a killed process left behind, go.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(run_dir: &Path, step: u64) -> Result<(Self, Vec<StepRow>), TrainError> {
        let path = run_dir.join("metrics.jsonl");
        let mut rows = Vec::new();
        if path.exists() {
            let mut text = String::new();
            for (row, line) in read_lines(&path)?.into_iter().filter(|(row, _)| row.step <= step) {
                text += &line;
                text.push('\n');
                rows.push(row);
            }
            super::replace(&path, text.as_bytes())?;
        }
        let file = fs_err::OpenOptions::new().create(true).append(true).open(&path)?;
        Ok((Self { path, file }, rows))
    }
}

impl Logger for Jsonl {
    fn step(&mut self, row: &StepRow) -> Result<(), TrainError> {
        let mut line =
            serde_json::to_string(row).map_err(|source| TrainError::BadRunFile { path: self.path.clone(), source })?;
        line.push('\n');
        Ok(self.file.write_all(line.as_bytes())?)
    }
}

/// The rows of a run's `metrics.jsonl`, oldest first.
///
/// # Errors
/// When the file cannot be read.
pub fn read_metrics(run_dir: &Path) -> Result<Vec<StepRow>, TrainError> {
    Ok(read_lines(&run_dir.join("metrics.jsonl"))?.into_iter().map(|(row, _)| row).collect())
}

/// Rows with their text. A last line that was cut off by a crash is left out.
fn read_lines(path: &Path) -> Result<Vec<(StepRow, String)>, TrainError> {
    let text = fs_err::read_to_string(path)?;
    let lines: Vec<&str> = text.lines().collect();
    let mut rows = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        match read_row(line) {
            Ok(row) => rows.push((row, (*line).to_owned())),
            Err(_) if index + 1 == lines.len() => {}
            Err(source) => return Err(TrainError::BadRunFile { path: path.to_owned(), source }),
        }
    }
    Ok(rows)
}

/// A row, also one of a version that had no `terms` but `forward_kl` beside `cross_entropy`.
fn read_row(line: &str) -> Result<StepRow, serde_json::Error> {
    let mut row: serde_json::Value = serde_json::from_str(line)?;
    if let Some(row) = row.as_object_mut()
        && !row.contains_key("terms")
    {
        let columns = [("cross_entropy", "cross_entropy"), ("forward_kl", "distill")];
        let terms = columns.into_iter().filter_map(|(column, term)| Some((term.to_owned(), row.get(column)?.clone())));
        let terms = terms.collect::<serde_json::Map<_, _>>();
        row.insert("terms".to_owned(), terms.into());
    }
    serde_json::from_value(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_terms_are_read() {
        let old = r#"{"step":2,"loss":3.5,"cross_entropy":4.25,"forward_kl":1.125,"lr":0.001,"grad_norm":1.5,"tokens":64,"seconds":0.5,"tokens_per_second":128.0}"#;
        let row = read_row(old).unwrap();
        assert_eq!((row.step, row.cross_entropy), (2, Some(4.25)));
        assert_eq!(Vec::from_iter(row.terms), [("cross_entropy".into(), 4.25), ("distill".into(), 1.125)]);
    }

    #[test]
    fn rows_with_the_earlier_names_of_recursion_counts_are_read() {
        let statistics = r#"{"mean_depth":1.5,"taken":[1.0,0.5],"dead_positions":[0.0,0.0],"position_entropy":[1.0,1.0],"depth_choice":{"load":[0.5,0.5],"selection_entropy":0.7,"max_vio":0.0}}"#;
        let old = format!(
            r#"{{"step":2,"loss":3.5,"cross_entropy":4.25,"terms":{{}},"routing":{statistics},"heldout_routing":{{"inference":{statistics},"same_depth":0.75}},"lr":0.001,"grad_norm":1.5,"tokens":64,"seconds":0.5,"tokens_per_second":128.0}}"#
        );
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("metrics.jsonl"), format!("{old}\n")).unwrap();
        // As a resumed run reads its log, and as a report does.
        let (_, rows) = Jsonl::open(dir.path(), 2).unwrap();
        assert_eq!(rows, read_metrics(dir.path()).unwrap());
        let (routing, heldout) = (rows[0].routing.as_ref().unwrap(), rows[0].heldout_routing.as_ref().unwrap());
        assert_eq!((routing.mean_recursions, heldout.same_recursions), (1.5, Some(0.75)));
        assert!(routing.token_choice.is_some());
    }
}
