//! `config.json` of every family, and the YAML of runs and conversions.

use super::Target;
use crate::Workdir;
use retie_config::{ConvertConfig, ModelConfig, UptrainConfig, document};
use std::path::Path;

pub const CONFIG: Target = Target { name: "config", files: &["config.json"], run: config };

pub const YAML: Target = Target { name: "yaml", files: &[], run: |input, _| yaml(input) };

fn config(input: &[u8], dir: &Workdir) {
    let path = dir.write("config.json", input);
    let Ok(config) = ModelConfig::load(&path) else { return };
    _ = config.remarks();
    if config.validate().is_err() {
        return;
    }
    let tensors = config.tensors();
    assert!(!tensors.is_empty());
    assert!(config.share_map().depths().len() >= config.share_map().num_layers());
    _ = config.cost(16, config.expected_shares().as_deref()).operations();
    // What is written of it is read as the same.
    let written = ModelConfig::from_json(config.to_json(), &path);
    match written {
        Ok(written) => assert_eq!(written.tensors(), tensors),
        Err(error) => panic!("what was written is refused: {error}"),
    }
}

fn yaml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let path = Path::new("run.yaml");
    if let Ok(run) = document::parse::<UptrainConfig>(text, path, &[]) {
        let Ok(written) = document::to_yaml(&run) else { panic!("it cannot be written") };
        match document::parse::<UptrainConfig>(&written, path, &[]) {
            Ok(read) => assert_eq!(read, run),
            Err(error) => panic!("what was written is refused: {error}\n{written}"),
        }
    }
    if let Ok(conversion) = document::parse::<ConvertConfig>(text, path, &[]) {
        _ = conversion.validate();
    }
}
