//! Every target on its corpus and on a few thousand mutations of it. `scripts/fuzz` has the long
//! run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

use retie_fuzz::{Harness, Mutator, TARGETS, Target, dictionary};
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Instant,
};

/// Mutations of each target, unless `RETIE_FUZZ_RUNS` says how many; `RETIE_FUZZ_TARGET` chooses
/// one.
const MUTATIONS: usize = 1500;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs_err::read_dir(folder("corpus").join(target)).unwrap().map(|entry| entry.unwrap());
    let mut inputs: Vec<_> =
        entries.map(|e| (e.file_name().to_string_lossy().into_owned(), fs_err::read(e.path()).unwrap())).collect();
    inputs.sort();
    inputs
}

/// Runs `input`; where the target does not hold, what was wrong, and the input in a file.
fn check(harness: &mut Harness, name: &str, input: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| harness.run(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        let file = std::env::temp_dir().join(format!("retie-fuzz-{name}"));
        fs_err::write(&file, input).unwrap();
        format!("{name}: {text}\n  the input is in {}: {:?}", file.display(), String::from_utf8_lossy(input))
    })
}

fn hold(target: &'static Target, mutations: usize) -> Result<(), String> {
    let corpus = corpus(target.name);
    assert!(!corpus.is_empty(), "`{}` has no corpus", target.name);
    let mut harness = Harness::new(target).unwrap();
    for (file, input) in &corpus {
        check(&mut harness, target.name, input).map_err(|error| format!("corpus/{}/{file}: {error}", target.name))?;
    }
    let words = fs_err::read_to_string(folder("dictionaries").join(format!("{}.dict", target.name))).unwrap();
    let inputs = corpus.into_iter().map(|(_, input)| input).filter(|input| input.len() <= 4096).collect();
    let mut mutator = Mutator::new(inputs, dictionary(&words), 20);
    (0..mutations).try_for_each(|_| check(&mut harness, target.name, &mutator.next_input()))
}

#[test]
fn every_target_holds_on_its_corpus_and_on_mutations_of_it() {
    let mutations = std::env::var("RETIE_FUZZ_RUNS").map_or(MUTATIONS, |runs| runs.parse().unwrap());
    let only = std::env::var("RETIE_FUZZ_TARGET").ok();
    let chosen = TARGETS.iter().filter(|target| only.as_ref().is_none_or(|only| target.name == only));
    let mut failed = Vec::new();
    for target in chosen {
        let start = Instant::now();
        failed.extend(hold(target, mutations).err());
        println!("{:18} {mutations} mutations in {:.1} s", target.name, start.elapsed().as_secs_f64());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_corpus_and_every_dictionary_has_a_target() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let found = |name: &str| -> BTreeSet<String> {
        let entries = fs_err::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(found("corpus"), names);
    assert_eq!(found("dictionaries"), names);
}
