//! Weights: a safetensors file, the index of a folder of them, and a GGUF file.

use super::Target;
use crate::Workdir;
use retie_checkpoint::{GgufFile, SafetensorsFile, SafetensorsFolder, TensorSource};
use serde_json::json;

pub const SAFETENSORS: Target = Target { name: "safetensors", files: &["model.safetensors"], run: safetensors };

pub const SAFETENSORS_INDEX: Target = Target {
    name: "safetensors_index",
    files: &["model.safetensors.index.json", "a.safetensors", "b.safetensors"],
    run: safetensors_index,
};

pub const GGUF: Target = Target { name: "gguf", files: &["model.gguf"], run: gguf };

fn safetensors(input: &[u8], dir: &Workdir) {
    let path = dir.write("model.safetensors", input);
    let Ok(file) = SafetensorsFile::open(&path) else { return };
    read_all(&file);
    for name in file.others().keys() {
        assert!(file.bytes(name).is_err(), "`{name}` is no float");
    }
}

/// A safetensors file with one F32 tensor of two elements.
fn shard(name: &str) -> Vec<u8> {
    let header = json!({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat()
}

fn safetensors_index(input: &[u8], dir: &Workdir) {
    for name in ["a", "b"] {
        dir.write(&format!("{name}.safetensors"), &shard(name));
    }
    dir.write("model.safetensors.index.json", input);
    let Ok(folder) = SafetensorsFolder::open(dir.path()) else { return };
    assert!(folder.files().all(|file| file.parent() == Some(dir.path())), "a shard outside of the folder");
    read_all(&folder);
}

fn gguf(input: &[u8], dir: &Workdir) {
    let path = dir.write("model.gguf", input);
    let Ok(file) = GgufFile::open(&path) else { return };
    _ = file.companions();
    _ = file.remarks();
    read_all(&file);
}

/// Reads every tensor: it has as many elements as its shape says, or is refused.
fn read_all(source: &dyn TensorSource) {
    for name in source.names() {
        let Some(info) = source.info(name) else { panic!("`{name}` is listed and has no type") };
        if let Ok(bytes) = source.bytes(name) {
            assert_eq!(bytes.len(), info.num_bytes(), "`{name}`");
        }
        if let Ok(values) = source.read_f32(name) {
            assert_eq!(values.len(), info.num_elements(), "`{name}`");
        }
    }
}
