//! A knowledge graph in a folder: facts to train on, and those that are held out.

use crate::LabError;
use retie_tasks::graph::{Fact, Graph};
use std::{collections::HashMap, path::Path};

/// Graphs with the same entities and relations, each with more facts than the one before.
#[derive(Clone, Debug)]
pub struct Split {
    /// The facts of `train.txt`.
    pub train: Graph,
    /// With those of `valid.txt`.
    pub valid: Graph,
    /// With those of `test.txt`.
    pub test: Graph,
}

impl Split {
    /// Reads `train.txt`, `valid.txt` and `test.txt` of a folder, a fact a line
    /// ([`Graph::read`]).
    ///
    /// # Errors
    /// A file is missing, cannot be read or has a line that is no fact; an entity or a relation of
    /// the held-out facts that the others do not have.
    pub fn read(folder: &Path) -> Result<Self, LabError> {
        let files = ["train.txt", "valid.txt", "test.txt"];
        let missing: Vec<&str> = files.into_iter().filter(|file| !folder.join(file).is_file()).collect();
        if !missing.is_empty() {
            return Err(LabError::NoSplit { folder: folder.to_owned(), missing: missing.join(", ") });
        }
        let train = Graph::read(&folder.join("train.txt"))?;
        let valid = extended(&train, &folder.join("valid.txt"))?;
        let test = extended(&valid, &folder.join("test.txt"))?;
        Ok(Self { train, valid, test })
    }
}

/// `graph` with the facts of a file.
fn extended(graph: &Graph, path: &Path) -> Result<Graph, LabError> {
    let more = Graph::read(path)?;
    let entities = translation(&graph.entities, &more.entities);
    let relations = translation(&graph.relations, &more.relations);
    let unknown = |names: &[String], known: &[Option<usize>]| -> Vec<String> {
        names.iter().zip(known).filter(|(_, known)| known.is_none()).map(|(name, _)| name.clone()).collect()
    };
    let names = [unknown(&more.entities, &entities), unknown(&more.relations, &relations)].concat();
    if !names.is_empty() {
        return Err(LabError::NotTrained { path: path.to_owned(), names });
    }
    let fact = |fact: &Fact| {
        Some(Fact {
            relation: relations[fact.relation]?,
            subject: entities[fact.subject]?,
            object: entities[fact.object]?,
        })
    };
    let facts = more.facts().iter().filter_map(fact).chain(graph.facts().iter().copied()).collect();
    Ok(graph.with_facts(facts))
}

/// The index in `known` of each of `names`.
fn translation(known: &[String], names: &[String]) -> Vec<Option<usize>> {
    let known: HashMap<&str, usize> = known.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
    names.iter().map(|name| known.get(name.as_str()).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_facts_have_the_indices_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs_err::write(folder.path().join(file), text).unwrap();
        let message = || Split::read(folder.path()).unwrap_err().to_string();
        assert!(message().contains("has no train.txt, valid.txt, test.txt"), "{}", message());
        write("train.txt", "a\tr\tb\nb\ts\tc\n");
        write("valid.txt", "c\tr\ta\n");
        assert!(message().contains("has no test.txt"), "{}", message());
        write("test.txt", "d\tq\ta\nc\tr\tb\n");
        assert!(message().contains("test.txt` has `d`, `q`"), "{}", message());
        write("test.txt", "c\tr\tb\nc\tr\ta\n");
        let split = Split::read(folder.path()).unwrap();
        let counts = [&split.train, &split.valid, &split.test].map(|graph| graph.facts().len());
        assert_eq!(counts, [2, 3, 4]);
        assert!(split.valid.facts().contains(&Fact { relation: 0, subject: 2, object: 0 }));
        assert!(split.test.facts().contains(&Fact { relation: 0, subject: 2, object: 1 }));
    }
}
