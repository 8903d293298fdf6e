//! Loops of stored layers: `gguf` and `hf-nanbeige` are read back as the model, and what is no
//! plain loop of a Llama's layers is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod tiny;

use retie_checkpoint::{Dtype, ModelSource, TensorSource};
use retie_config::{
    ARCHITECTURES, DepthExtra, ExpertChoiceConfig, Init, KvSharing, LoraConfig, ModelConfig, RecursionConfig,
    RouterConfig, Sharing,
};
use retie_export::{ExportError, ExportModel, ExportOptions, ExportReport, Format, StoredType, check_weights, export};
use serde_json::{Value, json};
use std::path::Path;
use tiny::{Tiny, family, read, recursive};

/// A model of a family that a `nanbeige` can be.
fn plain(model_type: &str, more: Value) -> ModelConfig {
    let architecture = ARCHITECTURES.into_iter().find(|other| other.model_type == model_type).unwrap();
    let mut map = family(architecture).other;
    let sizes = json!({ "hidden_size": 32, "intermediate_size": 256, "head_dim": 8, "mlp_bias": false });
    for part in [sizes, json!({ "attention_bias": false, "use_sliding_window": false, "sliding_window": null }), more] {
        map.extend(part.as_object().unwrap().clone());
    }
    read(map)
}

fn cycle() -> RecursionConfig {
    RecursionConfig::new(2, Sharing::Cycle, Init::Average)
}

fn tiny(config: ModelConfig) -> Tiny {
    let mut model = Tiny::new(config, Dtype::F32);
    model.companions.clear();
    model
}

fn write(model: ExportModel<'_>, to: &str, dtype: StoredType, out: &Path) -> Result<ExportReport, ExportError> {
    let options = ExportOptions { dtype, provenance: None };
    export(model, Format::named(to).unwrap(), &options, out, &mut |_| {})?.publish()
}

fn open(to: &str, out: &Path) -> ModelSource {
    let path = if to == "gguf" { out.join("model.gguf") } else { out.to_owned() };
    let source = ModelSource::open(path.to_str().unwrap()).unwrap();
    source.validate().unwrap();
    source
}

#[test]
fn a_loop_is_read_back_as_the_model_each_layer_once() {
    let root = tempfile::tempdir().unwrap();
    for (model_type, to, more) in [
        ("llama", "gguf", json!({ "tie_word_embeddings": true })),
        ("llama", "hf-nanbeige", json!({ "tie_word_embeddings": false })),
        ("mistral", "gguf", json!({})),
        ("mistral", "hf-nanbeige", json!({})),
        ("qwen2", "gguf", json!({})),
    ] {
        let model = tiny(recursive(&plain(model_type, more), cycle()));
        let out = root.path().join(format!("{model_type}-{to}"));
        let report = write(model.model(), to, StoredType::F32, &out).unwrap();
        assert_eq!((report.tensors, report.bytes), (report.model_tensors, report.model_bytes), "{model_type} {to}");
        let back = open(to, &out);
        assert_eq!(back.config.share_map(), model.config.share_map(), "{model_type} {to}");
        assert_eq!(back.config.anatomy, model.config.anatomy, "{model_type} {to}");
        let check = check_weights(&model, back.tensors.as_ref(), StoredType::F32).unwrap();
        assert_eq!((check.tensors, check.outside.len()), (model.names().len(), 0), "{model_type} {to}");
        for name in model.names() {
            assert_eq!(back.tensors.read_f32(name).unwrap(), model.read_f32(name).unwrap(), "{model_type} {to} {name}");
        }
    }
}

#[test]
fn types_of_blocks_keep_every_weight_of_a_loop_within_their_rounding() {
    let root = tempfile::tempdir().unwrap();
    let model = tiny(recursive(&plain("llama", json!({})), cycle()));
    let other = tiny(recursive(&plain("llama", json!({ "tie_word_embeddings": true })), cycle()))
        .with_zeros("layers.1.mlp.down_proj");
    for dtype in StoredType::ALL {
        let out = root.path().join(dtype.name());
        write(model.model(), "gguf", *dtype, &out).unwrap();
        let file = open("gguf", &out);
        let check = check_weights(&model, file.tensors.as_ref(), *dtype).unwrap();
        assert_eq!(check.outside, Vec::<String>::new(), "{dtype}");
        let check = check_weights(&other, file.tensors.as_ref(), *dtype).unwrap();
        assert_eq!(check.outside, ["model.layers.1.mlp.down_proj.weight"], "{dtype}");
    }
}

#[test]
fn what_is_no_plain_loop_is_refused_with_every_reason() {
    let root = tempfile::tempdir().unwrap();
    let refused = |to: &str, config: ModelConfig| {
        write(tiny(config).model(), to, StoredType::Keep, &root.path().join("out")).unwrap_err().to_string()
    };
    let llama = || plain("llama", json!({}));
    for to in ["gguf", "hf-nanbeige"] {
        let everything = RecursionConfig {
            share_norms: false,
            lora: Some(LoraConfig::uniform(2)),
            extras: [DepthExtra::ResidualScale].into(),
            kv_sharing: KvSharing::Shared,
            ..RecursionConfig::new(2, Sharing::MiddleCycle, Init::Average)
        };
        let message = refused(to, recursive(&llama(), everything));
        assert_eq!(
            message,
            format!(
                "`{to}` cannot hold the model:\n  \
                 `sharing: middle_cycle`: a loop runs every stored layer in turn, without layers before or after\n  \
                 `share_norms: false`: depths have norms of their own\n  \
                 depths have LoRA of their own\n  \
                 depths have a `residual_scale` of their own\n  \
                 `kv_sharing: shared`: later recursions attend to the keys and values of the first\n\
                 hint: `--to hf` can, and `--to gguf-unrolled` or `hf-unrolled` at the full size"
            )
        );
        let routed =
            RecursionConfig { router: Some(RouterConfig::ExpertChoice(ExpertChoiceConfig::new(2))), ..cycle() };
        assert!(refused(to, recursive(&llama(), routed)).contains("routers choose the recursions"), "{to}");
        assert!(refused(to, llama()).contains("\n  it is not recursive\n"), "{to}");
        let message = refused(to, recursive(&plain("qwen3", json!({})), cycle()));
        assert!(message.contains("nanbeige`"), "{message}");
    }
    let biased = recursive(&plain("qwen2", json!({})), cycle());
    assert!(refused("hf-nanbeige", biased).contains("without biases; a `Qwen2ForCausalLM` has others"));
    let window = recursive(&plain("mistral", json!({ "sliding_window": 7 })), cycle());
    assert!(refused("gguf", window).contains("attention window"));
    assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 0, "nothing is left");
}
