//! Data sets of tasks: the file on the hub that a task's patterns stand for.

use anyhow::bail;
use retie_checkpoint::{CheckpointError, HubId};
use retie_eval::Task;
use std::path::PathBuf;

/// Data file of `task`, from the hub or from its cache.
///
/// # Errors
/// No pattern of the task leads to a file, or the cache cannot be used.
pub fn from_hub(task: &Task) -> anyhow::Result<PathBuf> {
    let hub = crate::model::hub();
    let mut last = None;
    for files in task.hub.files {
        let spec = match files.revision {
            "main" => task.hub.repo.to_owned(),
            revision => format!("{}@{revision}", task.hub.repo),
        };
        let Some(id) = HubId::parse(&spec) else { bail!("`{spec}` is not a hub id") };
        for name in names(files.pattern) {
            match hub.dataset_file(&id, &name) {
                Ok(path) => return Ok(path),
                Err(error @ CheckpointError::Hub { .. }) => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
    }
    let message = format!(
        "the data set of task `{0}` cannot be had\nhint: `--data DIR` takes a folder with `{0}.parquet` or `{0}.jsonl`",
        task.name
    );
    match last {
        Some(error) => Err(anyhow::Error::from(error).context(message)),
        None => bail!(message),
    }
}

/// Names that the hub gives to a split in one file, for a pattern with at most one `*`: in `-*` it
/// is the number of the file, in `/*` the whole name (under `refs/convert/parquet`), and elsewhere
/// it may be empty.
fn names(pattern: &str) -> Vec<String> {
    let Some((start, end)) = pattern.split_once('*') else { return vec![pattern.to_owned()] };
    let middles: &[&str] = match start.chars().last() {
        Some('-') => &["00000-of-00001"],
        Some('/') => &["0000"],
        _ => &["", "-00000-of-00001"],
    };
    middles.iter().map(|middle| format!("{start}{middle}{end}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_the_names_that_the_hub_gives() {
        assert_eq!(names("data/a.jsonl"), ["data/a.jsonl"]);
        assert_eq!(names("data/test-*.parquet"), ["data/test-00000-of-00001.parquet"]);
        assert_eq!(names("default/test/*.parquet"), ["default/test/0000.parquet"]);
        assert_eq!(names("validation*.parquet"), ["validation.parquet", "validation-00000-of-00001.parquet"]);
    }

    #[test]
    fn every_pattern_of_every_task_has_at_most_one_star_and_its_repository_is_a_hub_id() {
        for task in retie_eval::TASKS {
            assert!(HubId::parse(task.hub.repo).is_some(), "{}", task.hub.repo);
            for files in task.hub.files {
                assert!(names(files.pattern).iter().all(|name| !name.contains('*')), "{}", files.pattern);
            }
        }
    }
}
