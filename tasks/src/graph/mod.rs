//! Knowledge graphs: facts `subject relation object`, and sets of entities.

mod query;

pub use query::{Query, QueryType, hard_answers};

use crate::{Random, TaskError};
use std::{collections::HashMap, path::Path, sync::Arc};

/// A fact, by indices of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fact {
    /// Its relation.
    pub relation: usize,
    /// Its subject.
    pub subject: usize,
    /// Its object.
    pub object: usize,
}

/// A set of entities, a bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntitySet {
    words: Vec<u64>,
}

impl EntitySet {
    /// No entity of `num_entities`.
    #[must_use]
    pub fn empty(num_entities: usize) -> Self {
        Self { words: vec![0; num_entities.div_ceil(64)] }
    }

    /// Adds an entity.
    pub fn insert(&mut self, entity: usize) {
        self.words[entity / 64] |= 1 << (entity % 64);
    }

    /// Whether it has an entity.
    #[must_use]
    pub fn contains(&self, entity: usize) -> bool {
        self.words[entity / 64] >> (entity % 64) & 1 == 1
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Its entities, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(64 * index + bit)
            })
        })
    }

    fn combine(mut self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word = with(*word, *other));
        self
    }
}

/// A set of facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// Names of entities.
    pub entities: Arc<[String]>,
    /// Names of relations.
    pub relations: Arc<[String]>,
    /// Distinct facts, by relation, subject and object.
    facts: Vec<Fact>,
}

impl Graph {
    /// A graph of facts, of which equal ones count once.
    #[must_use]
    pub fn new(entities: Arc<[String]>, relations: Arc<[String]>, mut facts: Vec<Fact>) -> Self {
        facts.sort_unstable();
        facts.dedup();
        Self { entities, relations, facts }
    }

    /// Reads a file with a fact a line: subject, relation and object, with tabs between. Space in
    /// names becomes `_`.
    ///
    /// # Errors
    /// The file cannot be read, has no fact, or a line that is none.
    pub fn read(path: &Path) -> Result<Self, TaskError> {
        let text = fs_err::read_to_string(path)?;
        let (mut entities, mut relations) = (Names::default(), Names::default());
        let mut facts = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let parts: Vec<&str> = line.split('\t').map(str::trim).collect();
            let [subject, relation, object] = parts[..] else {
                return Err(TaskError::NotAFact { path: path.to_owned(), line: index + 1 });
            };
            if [subject, relation, object].iter().any(|name| name.is_empty()) {
                return Err(TaskError::NotAFact { path: path.to_owned(), line: index + 1 });
            }
            let fact = Fact {
                relation: relations.index(relation),
                subject: entities.index(subject),
                object: entities.index(object),
            };
            facts.push(fact);
        }
        if facts.is_empty() {
            let found = format!("no fact in `{}`", path.display());
            return Err(TaskError::Graph { found, expected: "at least one".to_owned() });
        }
        Ok(Self::new(entities.names.into(), relations.names.into(), facts))
    }

    /// A graph of `num_facts` random facts, or of all that there can be.
    #[must_use]
    pub fn random(entities: Arc<[String]>, relations: Arc<[String]>, num_facts: usize, random: &mut Random) -> Self {
        let (num_entities, num_relations) = (entities.len(), relations.len());
        let most = num_entities * num_entities.saturating_sub(1) * num_relations;
        let mut facts: Vec<Fact> = Vec::with_capacity(num_facts);
        while facts.len() < num_facts.min(most) {
            let (relation, subject) = (random.below(num_relations), random.below(num_entities));
            // Nothing is related to itself.
            let object = (subject + 1 + random.below(num_entities - 1)) % num_entities;
            let fact = Fact { relation, subject, object };
            if !facts.contains(&fact) {
                facts.push(fact);
            }
        }
        Self::new(entities, relations, facts)
    }

    /// The facts, by relation, subject and object.
    #[must_use]
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// The graph with only some facts; entities and relations keep their indices.
    #[must_use]
    pub fn with_facts(&self, facts: Vec<Fact>) -> Self {
        Self::new(self.entities.clone(), self.relations.clone(), facts)
    }

    /// The graph with the facts of some relations only.
    ///
    /// # Errors
    /// The graph does not have all of them, and those that it does not have are named.
    pub fn of_relations(&self, names: &[&str]) -> Result<Self, TaskError> {
        let is_known = |name: &&&str| self.relations.iter().any(|relation| relation == **name);
        let unknown: Vec<String> = names.iter().filter(|name| !is_known(name)).map(|name| (*name).to_owned()).collect();
        if !unknown.is_empty() {
            return Err(TaskError::UnknownRelations { unknown, known: self.relations.to_vec() });
        }
        let kept = |fact: &Fact| {
            let relation = names.iter().position(|name| *name == self.relations[fact.relation])?;
            Some(Fact { relation, ..*fact })
        };
        let relations = names.iter().map(|name| (*name).to_owned()).collect();
        let facts = self.facts.iter().filter_map(kept).collect();
        Ok(Self::new(self.entities.clone(), relations, facts))
    }

    /// The facts of a relation.
    fn of_relation(&self, relation: usize) -> &[Fact] {
        let start = self.facts.partition_point(|fact| fact.relation < relation);
        let end = self.facts.partition_point(|fact| fact.relation <= relation);
        &self.facts[start..end]
    }

    /// Entities that are objects of `relation` with a subject in `subjects`.
    #[must_use]
    pub fn hop(&self, relation: usize, subjects: &EntitySet) -> EntitySet {
        let mut objects = EntitySet::empty(self.entities.len());
        let facts = self.of_relation(relation).iter().filter(|fact| subjects.contains(fact.subject));
        facts.for_each(|fact| objects.insert(fact.object));
        objects
    }
}

/// Names in the order of their first use.
#[derive(Default)]
struct Names {
    names: Vec<String>,
    indices: HashMap<String, usize>,
}

impl Names {
    fn index(&mut self, name: &str) -> usize {
        let name = name.split_whitespace().collect::<Vec<_>>().join("_");
        let next = self.names.len();
        let index = *self.indices.entry(name.clone()).or_insert(next);
        if index == next {
            self.names.push(name);
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_fact_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.tsv");
        let read = |text: &str| {
            fs_err::write(&path, text).unwrap();
            Graph::read(&path)
        };
        let graph = read("ann\tfriend of\tbob\n\nbob\tmother\teve x\nann\tfriend of\tbob\n").unwrap();
        assert_eq!(*graph.entities, ["ann", "bob", "eve_x"].map(str::to_owned));
        assert_eq!((graph.relations.join(" "), graph.facts().len()), ("friend_of mother".to_owned(), 2));
        let message = read("a\tb\tc\na b c\n").unwrap_err().to_string();
        assert!(
            message.starts_with("line 2 of `") && message.contains("expected subject, relation and object"),
            "{message}"
        );
        assert!(read("\n").unwrap_err().to_string().contains("no fact in"));
        let message = graph.of_relations(&["mother", "uncle", "aunt"]).unwrap_err().to_string();
        assert_eq!(message, "the graph has no relation `uncle`, `aunt`\nhint: its relations are friend_of, mother");
        let mothers = graph.of_relations(&["mother"]).unwrap();
        assert_eq!((mothers.relations.len(), mothers.facts()), (1, &[Fact { relation: 0, subject: 1, object: 2 }][..]));
    }

    #[test]
    fn sets_list_their_entities() {
        let mut set = EntitySet::empty(130);
        assert!(set.is_empty());
        [129, 0, 64, 63].iter().for_each(|entity| set.insert(*entity));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
        assert!(set.contains(64) && !set.contains(65));
    }
}
