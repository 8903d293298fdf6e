//! What we read of foreign files, for `scripts/compare-readers`, which compares it with what other
//! programs read: a line of JSON for each file.
//!
//! ```text
//! retie-fuzz-dump safetensors|gguf|config|parquet FILE...
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a script")]

use retie_checkpoint::{GgufFile, SafetensorsFile, TensorSource};
use retie_config::{ModelConfig, Rope, RopeScaling};
use retie_data::{DataError, documents, parquet_rows};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{env, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let read: fn(&Path) -> Result<Value, String> = match arguments.next().as_deref() {
        Some("safetensors") => |path| tensors(&SafetensorsFile::open(path).map_err(|e| e.to_string())?),
        Some("gguf") => |path| tensors(&GgufFile::open(path).map_err(|e| e.to_string())?),
        Some("parquet") => rows,
        Some("config") => |path| Ok(resolved(&ModelConfig::load(path).map_err(|e| e.to_string())?)),
        _ => {
            eprintln!("usage: retie-fuzz-dump safetensors|gguf|config|parquet FILE...");
            return ExitCode::from(2);
        }
    };
    for path in arguments {
        let found =
            read(Path::new(&path)).map_or_else(|error| json!({ "error": error }), |value| json!({ "ok": value }));
        println!("{found}");
    }
    ExitCode::SUCCESS
}

/// The texts of the column `text`, and the number of rows of all columns.
fn rows(path: &Path) -> Result<Value, String> {
    let texts = documents(path, "text").and_then(|documents| documents.map(|row| Ok(row?.text)).collect());
    let texts: Vec<String> = texts.map_err(|e: DataError| e.to_string())?;
    let rows = parquet_rows(path).map_err(|e| e.to_string())?;
    Ok(json!({ "texts": texts, "rows": rows.len() }))
}

/// Shape and digest of the values, in f32, of every tensor that is read.
fn tensors(source: &dyn TensorSource) -> Result<Value, String> {
    let mut found = Map::new();
    for name in source.names() {
        let shape = source.info(name).map(|info| info.shape.clone());
        let values = match source.read_f32(name) {
            Ok(values) => {
                let mut hasher = Sha256::new();
                values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
                hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
            }
            Err(error) => json!({ "error": error.to_string() }),
        };
        found.insert(name.to_owned(), json!({ "shape": shape, "values": values }));
    }
    Ok(found.into())
}

/// The fields of `configs/tests/golden/make_configs.py`.
fn resolved(config: &ModelConfig) -> Value {
    let anatomy = &config.anatomy;
    let rope = |rope: &Rope| {
        let (kind, scaling) = match rope.scaling {
            RopeScaling::Default => ("default", vec![]),
            RopeScaling::Linear { factor } => ("linear", vec![factor]),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                ("llama3", vec![factor, low_freq_factor, high_freq_factor, original_max_position_embeddings])
            }
        };
        json!({ "theta": rope.theta, "type": kind, "scaling": scaling })
    };
    json!({
        "norm_eps": anatomy.norm_eps,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": anatomy.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": config.eos_token_ids,
        "ropes": anatomy.ropes.iter().map(rope).collect::<Vec<_>>(),
        "rotary_dim": anatomy.ropes.first().map(|rope| rope.rotary_dim),
        "windows": anatomy.depths.iter().map(|depth| depth.window).collect::<Vec<_>>(),
        "rotates": anatomy.depths.iter().map(|depth| depth.rope.is_some()).collect::<Vec<_>>(),
        "attn_logit_softcapping": anatomy.attn_logit_softcapping,
        "final_logit_softcapping": anatomy.final_logit_softcapping,
        "query_pre_attn_scalar": anatomy.query_pre_attn_scalar,
        "qkv_bias": anatomy.qkv_bias,
        "output_bias": anatomy.output_bias,
        "mlp_bias": anatomy.mlp_bias,
    })
}
