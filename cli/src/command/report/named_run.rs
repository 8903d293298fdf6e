//! Folders of runs and their names in tables and legends.

use retie_report::Label;
use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Folder of a run, as the command line gives it: `DIR` or `NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRun {
    /// Name before the `=`, if given.
    name: Option<String>,
    pub folder: PathBuf,
}

impl From<&Path> for NamedRun {
    fn from(folder: &Path) -> Self {
        Self { name: None, folder: folder.to_owned() }
    }
}

impl FromStr for NamedRun {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.split_once('=') {
            // An existing folder may have `=` in its name.
            Some((name, folder)) if !Path::new(text).exists() => {
                Self { name: Some(name.into()), folder: folder.into() }
            }
            _ => Path::new(text).into(),
        })
    }
}

impl NamedRun {
    /// The name given, or the folder.
    pub fn id(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.folder.display().to_string())
    }

    /// The name given, or the last `num_parts` parts of the folder.
    fn short(&self, num_parts: usize) -> String {
        self.name.clone().unwrap_or_else(|| {
            let parts: Vec<_> = self.folder.components().collect();
            parts[parts.len().saturating_sub(num_parts)..].iter().collect::<PathBuf>().display().to_string()
        })
    }
}

/// Label of each run: its given name, or the shortest end of its folder that differs from the
/// others. The whole folder shows on hover.
pub fn labels(runs: &[NamedRun]) -> Vec<Label> {
    let label = |(index, run): (usize, &NamedRun)| {
        let others = || runs.iter().enumerate().filter(move |(other, _)| *other != index).map(|(_, other)| other);
        let is_unique = |num_parts: usize| others().all(|other| other.short(num_parts) != run.short(num_parts));
        let num_parts = run.folder.components().count();
        let text = run.short((1..num_parts).find(|n| is_unique(*n)).unwrap_or(num_parts));
        let folder = run.folder.display().to_string();
        Label { hover: (text != folder).then_some(folder), text }
    };
    runs.iter().enumerate().map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(runs: &[&str]) -> Vec<(String, Option<String>)> {
        let runs: Vec<NamedRun> = runs.iter().map(|text| text.parse().unwrap()).collect();
        labels(&runs).into_iter().map(|label| (label.text, label.hover)).collect()
    }

    #[test]
    fn a_long_path_is_shown_by_its_last_part() {
        assert_eq!(names(&["run"]), [("run".into(), None)]);
        assert_eq!(names(&["/a/long/path/run/"]), [("run".into(), Some("/a/long/path/run/".into()))]);
        assert_eq!(names(&["mine=/a/run"]), [("mine".into(), Some("/a/run".into()))]);
    }

    #[test]
    fn runs_of_one_name_are_told_apart_by_the_folder_above() {
        let texts = |runs: &[&str]| names(runs).into_iter().map(|(text, _)| text).collect::<Vec<_>>();
        assert_eq!(texts(&["s/a/run", "s/b/run", "c"]), ["a/run", "b/run", "c"]);
        assert_eq!(texts(&["s/run", "run=t/other"]), ["s/run", "run"]);
        assert_eq!(texts(&["s/run", "s/run"]), ["s/run", "s/run"], "one run twice has one name");
    }
}
