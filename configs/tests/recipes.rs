//! Every file under `recipes/` is a configuration that this build accepts.
#![allow(clippy::unwrap_used)]

use retie_config::{
    ConvertConfig, UptrainConfig,
    document::{self, StageKeys},
};
use std::path::{Path, PathBuf};

fn recipes(prefix: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let entries = fs_err::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(prefix)).collect()
}

#[test]
fn every_recipe_parses_and_is_possible() {
    let (convert, uptrain) = (recipes("convert-"), recipes("uptrain-"));
    for path in &convert {
        document::load::<ConvertConfig>(path, &[]).unwrap_or_else(|e| panic!("{e}"));
    }
    // The trainer decides the keys that a stage may have; here any keys above the list may occur in
    // it.
    let keys = StageKeys { replaced: &["losses", "schedule"], merged: &["optimizer", "train"] };
    for path in &uptrain {
        document::load_staged::<UptrainConfig>(path, &[], keys).unwrap_or_else(|e| panic!("{e}"));
    }
    assert!(!convert.is_empty() && !uptrain.is_empty());
    assert_eq!(recipes("").len(), convert.len() + uptrain.len(), "a recipe of another kind needs a line here");
}

#[test]
fn the_smollm2_recipes_fit_each_other() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let convert: ConvertConfig = document::load(&folder.join("convert-smollm2-r2.yaml"), &[]).unwrap();
    let uptrain: UptrainConfig = document::load(&folder.join("uptrain-smollm2-r2.yaml"), &[]).unwrap();
    assert_eq!(Path::new(&uptrain.student.model), convert.output);
    assert_eq!(uptrain.teacher.unwrap().model, Some(convert.model));
}
