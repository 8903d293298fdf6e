//! GGUF files beside those of llama.cpp's converter, and as the reader sees them.
//!
//! The models of `golden/` and what the converter makes of them are by `golden/make_gguf.py`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod tiny;

use retie_checkpoint::{Dtype, GgufFile, MetaValue, ModelSource, TensorSource};
use retie_config::{
    ARCHITECTURES, DepthExtra, Init, LoraConfig, ModelConfig, RecursionConfig, Relax, Sharing, TensorNames,
};
use retie_export::{
    ExportError, ExportModel, ExportOptions, ExportReport, Format, StoredType, Unrolled, check_weights, export,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};
use tiny::{Tiny, family, read, recursive};

fn write(model: ExportModel<'_>, dtype: StoredType, out: &Path) -> Result<ExportReport, ExportError> {
    let options = ExportOptions { dtype, provenance: None };
    export(model, Format::named("gguf-unrolled").unwrap(), &options, out, &mut |_| {})?.publish()
}

fn open(dir: &Path) -> ModelSource {
    let source = ModelSource::open(dir.join("model.gguf").to_str().unwrap()).unwrap();
    source.validate().unwrap();
    source
}

/// Type, dimensions (fastest first) and bytes of each tensor.
fn tensors(bytes: &[u8]) -> BTreeMap<String, (u64, Vec<u64>, Vec<u8>)> {
    let mut at = 8;
    let mut take = |len: usize| {
        at += len;
        &bytes[at - len..at]
    };
    let mut number = |len: usize| take(len).iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    let (num_tensors, num_pairs) = (number(8), number(8));
    for _ in 0..num_pairs {
        let len = number(8) as usize;
        take_all(&mut number, len);
        let kind = number(4);
        skip(&mut number, kind);
    }
    let mut table = Vec::new();
    for _ in 0..num_tensors {
        let len = number(8) as usize;
        let name: Vec<u8> = (0..len).map(|_| number(1) as u8).collect();
        let dimensions: Vec<u64> = (0..number(4)).map(|_| number(8)).collect();
        table.push((String::from_utf8(name).unwrap(), dimensions, number(4), number(8) as usize));
    }
    let data = at.next_multiple_of(32);
    let bytes_of = |kind: u64, values: u64| match kind {
        0 => values * 4,
        1 | 30 => values * 2,
        8 => values / 32 * 34,
        other => panic!("type {other}"),
    };
    let entry = |(name, dimensions, kind, offset): (String, Vec<u64>, u64, usize)| {
        let len = bytes_of(kind, dimensions.iter().product()) as usize;
        (name, (kind, dimensions, bytes[data + offset..][..len].to_vec()))
    };
    table.into_iter().map(entry).collect()
}

fn take_all(number: &mut impl FnMut(usize) -> u64, len: usize) {
    (0..len).for_each(|_| _ = number(1));
}

fn skip(number: &mut impl FnMut(usize) -> u64, kind: u64) {
    match kind {
        4..=6 => _ = number(4),
        7 => _ = number(1),
        8 => {
            let len = number(8) as usize;
            take_all(number, len);
        }
        9 => {
            let (kind, len) = (number(4), number(8));
            (0..len).for_each(|_| skip(number, kind));
        }
        other => panic!("value type {other}"),
    }
}

/// A value of the converter's metadata as the reader gives it.
fn same_value(found: Option<&MetaValue>, expected: &Value) -> bool {
    match (found, expected) {
        (Some(MetaValue::Text(found)), Value::String(expected)) => found == expected,
        (Some(MetaValue::Unsigned(found)), Value::Number(expected)) => Some(*found) == expected.as_u64(),
        (Some(MetaValue::Float(found)), Value::Number(expected)) => {
            // The golden file has the f32 as an f64.
            expected.as_f64().is_some_and(|expected| *found as f32 == expected as f32)
        }
        _ => false,
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn keys_and_tensors_are_those_of_llama_cpps_converter() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden: Value = serde_json::from_slice(&fs_err::read(folder.join("gguf.json")).unwrap()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let golden = golden.as_object().unwrap();
    assert_eq!(golden.len(), 9);
    for (name, types) in golden {
        let source = ModelSource::open(folder.join(name).to_str().unwrap()).unwrap();
        source.validate().unwrap();
        let model = ExportModel {
            name,
            tensors: source.tensors.as_ref(),
            config: &source.config,
            companions: &source.companions,
        };
        for (kind, expected) in types.as_object().unwrap() {
            let what = format!("{name} {kind}");
            let out = root.path().join(&what);
            write(model, kind.parse().unwrap(), &out).unwrap();
            let file = GgufFile::open(&out.join("model.gguf")).unwrap();
            for (key, value) in expected["keys"].as_object().unwrap() {
                assert!(same_value(file.metadata().get(key), value), "{what} {key}: {:?}", file.metadata().get(key));
            }
            let found = tensors(&fs_err::read(out.join("model.gguf")).unwrap());
            let expected = expected["tensors"].as_object().unwrap();
            assert_eq!(
                found.keys().collect::<Vec<_>>(),
                expected.keys().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
                "{what}"
            );
            for (tensor, (kind, dimensions, bytes)) in &found {
                let [expected_kind, expected_dimensions, hash] = [0, 1, 2].map(|at| &expected[tensor][at]);
                assert_eq!((expected_kind, expected_dimensions), (&json!(kind), &json!(dimensions)), "{what} {tensor}");
                // The converter computes the factors with torch's f32 `pow`, rounded otherwise.
                if tensor != "rope_freqs.weight" {
                    assert_eq!(hash, &json!(sha256(bytes)), "{what} {tensor}");
                }
            }
        }
    }
}

#[test]
fn written_weights_are_the_exact_ones_rounded_and_a_changed_one_is_found() {
    let root = tempfile::tempdir().unwrap();
    for architecture in ["llama", "gemma3_text"] {
        let mut model = Tiny::new(recursive(&plain(architecture), recursion()), Dtype::BF16);
        model.companions.clear();
        let exact = Unrolled::new(model.model(), Some(Dtype::F32), "test").unwrap();
        for stored in StoredType::ALL {
            let out = root.path().join(format!("{architecture}-{stored}"));
            write(model.model(), *stored, &out).unwrap();
            let check = check_weights(&exact, open(&out).tensors.as_ref(), *stored).unwrap();
            assert_eq!((check.tensors, check.outside.len()), (exact.names().len(), 0), "{architecture} {stored}");
        }
    }
    // Q8_0 is not what F16 is rounded to, and another model's weights are not this one's.
    let model = Tiny::new(recursive(&plain("llama"), recursion()), Dtype::BF16);
    let exact = Unrolled::new(model.model(), Some(Dtype::F32), "test").unwrap();
    let check =
        |name: &str, stored| check_weights(&exact, open(&root.path().join(name)).tensors.as_ref(), stored).unwrap();
    assert!(check("llama-q8_0", StoredType::F16).outside.contains(&"model.embed_tokens.weight".to_owned()));
    let other =
        Tiny::new(recursive(&plain("llama"), recursion()), Dtype::BF16).with_zeros("depths.3.self_attn.q_proj.lora_B");
    let other = Unrolled::new(other.model(), Some(Dtype::F32), "test").unwrap();
    let file = open(&root.path().join("llama-q8_0"));
    let found = check_weights(&other, file.tensors.as_ref(), StoredType::Q8_0).unwrap();
    assert_eq!(found.outside, ["model.layers.3.self_attn.q_proj.weight"]);
}

/// A model of six depths that llama.cpp can hold: [`family`] without what only some models have.
fn plain(model_type: &str) -> ModelConfig {
    let architecture = ARCHITECTURES.into_iter().find(|other| other.model_type == model_type).unwrap();
    let mut map = family(architecture).other;
    map.extend([("hidden_size".to_owned(), json!(32)), ("intermediate_size".to_owned(), json!(64))]);
    map.insert("head_dim".into(), json!(8));
    for key in ["use_sliding_window", "no_rope_layer_interval", "sliding_window_pattern"] {
        map.remove(key);
    }
    if model_type == "mistral" {
        map.insert("sliding_window".into(), Value::Null);
    }
    if model_type == "qwen3" {
        map.insert("attention_bias".into(), json!(false));
    }
    if matches!(model_type, "gemma2" | "gemma3_text") {
        map.insert("query_pre_attn_scalar".into(), json!(8));
    }
    read(map)
}

fn recursion() -> RecursionConfig {
    RecursionConfig {
        share_norms: false,
        lora: Some(LoraConfig::uniform(3).with(Relax::Dora)),
        extras: [DepthExtra::ResidualScale].into(),
        ..RecursionConfig::new(2, Sharing::MiddleCycle, Init::Average)
    }
}

#[test]
fn every_family_with_a_writer_is_read_back_as_the_unrolled_model() {
    let root = tempfile::tempdir().unwrap();
    let mut written = 0;
    for architecture in ARCHITECTURES.into_iter().filter(|other| other.tensor_names == TensorNames::Llama) {
        let name = architecture.model_type;
        let plain = plain(name);
        let mut model = Tiny::new(recursive(&plain, recursion()), Dtype::F32);
        model.companions.clear();
        let out = root.path().join(name);
        let report = write(model.model(), StoredType::F32, &out).unwrap();
        assert_eq!(report.notes, ["the model has no tokenizer, so the file has none"], "{name}");
        let back = open(&out);
        assert_eq!((&back.config.anatomy, back.config.num_hidden_layers), (&plain.anatomy, 6), "{name}");
        let unrolled = Unrolled::new(model.model(), None, "test").unwrap();
        for tensor in unrolled.names() {
            let (found, expected) = (back.tensors.read_f32(tensor).unwrap(), unrolled.read_f32(tensor).unwrap());
            let is_norm = tensor.contains("norm");
            // A norm that is stored as `1 + w` is rounded at 1.
            let close = |(a, b): (&f32, &f32)| if is_norm { (a - b).abs() <= 1e-6 } else { a == b };
            assert!(found.iter().zip(&expected).all(close), "{name} {tensor}");
        }
        written += 1;
    }
    assert_eq!(written, 9);
}

#[test]
fn what_llama_cpp_cannot_state_is_refused_with_every_reason() {
    let root = tempfile::tempdir().unwrap();
    let refused = |config: ModelConfig| {
        let mut model = Tiny::new(config, Dtype::F32);
        model.companions.clear();
        write(model.model(), StoredType::Keep, &root.path().join("out")).unwrap_err().to_string()
    };
    let changed = |model_type: &str, changes: Value| {
        let mut map = plain(model_type).other;
        map.extend(changes.as_object().unwrap().clone());
        refused(read(map))
    };
    let message = changed("mistral", json!({ "sliding_window": 7 }));
    assert_eq!(
        message,
        "`gguf-unrolled` cannot hold the model:\n  \
         a `llama` has no key for its attention window or rotation of each depth\n\
         hint: `--to hf-unrolled` can; llama.cpp's own converter may read that folder"
    );
    let message = changed("qwen3", json!({ "attention_bias": true }));
    assert!(message.contains("\n  llama.cpp reads no bias of `self_attn.o_proj` in a `qwen3`\n"), "{message}");
    let message = changed("olmo2", json!({ "tie_word_embeddings": true }));
    assert!(message.contains("llama.cpp does not tie the embeddings of a `olmo2`"), "{message}");
    let message = changed("gemma2", json!({ "query_pre_attn_scalar": 5 }));
    assert!(message.contains("a `gemma2` has no key for its `query_pre_attn_scalar`"), "{message}");
    let message = changed("gemma2", json!({ "layer_types": vec!["full_attention"; 6] }));
    assert!(message.contains("attention window"), "{message}");
    let neox = ARCHITECTURES.into_iter().find(|other| other.tensor_names == TensorNames::GptNeox).unwrap();
    let message = refused(family(neox));
    assert!(message.contains("`gpt_neox` has no writer; those of `llama`, `qwen2`"), "{message}");
    let model = Tiny::new(plain("llama"), Dtype::F32);
    let message = write(model.model(), StoredType::Keep, &root.path().join("out")).unwrap_err().to_string();
    assert!(message.contains("`tokenizer.json` has no `model.vocab`"), "{message}");
    assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn matrices_whose_rows_are_not_whole_blocks_become_f16() {
    let root = tempfile::tempdir().unwrap();
    let mut map = plain("llama").other;
    map.insert("intermediate_size".into(), json!(48));
    let mut model = Tiny::new(read(map), Dtype::BF16);
    model.companions.clear();
    let out = root.path().join("out");
    let report = write(model.model(), StoredType::Q8_0, &out).unwrap();
    let note = "rows of 6 matrices are not whole blocks of q8_0: `blk.0.ffn_down.weight`, the first, is F16";
    assert_eq!(report.notes[1], note);
    let file = GgufFile::open(&out.join("model.gguf")).unwrap();
    let stored = |name: &str| file.stored_type(&format!("model.layers.0.{name}"));
    assert_eq!(stored("mlp.down_proj.weight"), Some("F16"));
    assert_eq!((stored("mlp.up_proj.weight"), stored("mlp.up_proj.bias")), (Some("Q8_0"), Some("F32")));
}
