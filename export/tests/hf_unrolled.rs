//! Plain folders of recursive models: what the reader makes of them, tensor by tensor.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod tiny;

use retie_checkpoint::{Dtype, ModelSource, TensorSource, widen};
use retie_config::{
    ARCHITECTURES, Depth, DepthExtra, Init, KvSharing, LoraConfig, ModelConfig, NormKind, Projection, RecursionConfig,
    Relax, Residual, Sharing, TensorOwner, TensorPart, TensorRole,
};
use retie_export::{ExportError, ExportOptions, ExportReport, Format, StoredType, export};
use serde_json::json;
use std::path::Path;
use tiny::{DEPTHS, Tiny, family, recursive};

fn recursion() -> RecursionConfig {
    RecursionConfig {
        share_norms: false,
        lora: Some(LoraConfig::uniform(3).with(Relax::Dora)),
        extras: [DepthExtra::ResidualScale].into(),
        ..RecursionConfig::new(2, Sharing::MiddleCycle, Init::Average)
    }
}

fn write(model: &Tiny, dtype: StoredType, out: &Path) -> Result<ExportReport, ExportError> {
    let options = ExportOptions { dtype, provenance: None };
    export(model.model(), Format::named("hf-unrolled").unwrap(), &options, out, &mut |_| {})?.publish()
}

fn open(dir: &Path) -> ModelSource {
    let source = ModelSource::open(dir.to_str().unwrap()).unwrap();
    source.validate().unwrap();
    source
}

/// The weight of a linear at a depth, by the formulas of the model.
fn expected_linear(model: &Tiny, depth: Depth, projection: Projection) -> Vec<f64> {
    let read = |name: &str| -> Option<Vec<f64>> {
        model.info(name)?;
        Some(model.read_f32(name).unwrap().into_iter().map(f64::from).collect())
    };
    let layer = TensorOwner::Layer(model.config.share_map().depths()[depth.0].layer);
    let own = |role| TensorOwner::Depth(depth).weight(role);
    let [out, inp] = model.config.projection_shape(projection);
    let stored = read(&layer.weight(TensorRole::Projection(projection)));
    let mut weight = stored.unwrap_or_else(|| vec![0.0; out * inp]); // without a matrix factors are all of it
    if let Some(a) = read(&own(TensorRole::LoraA(projection))) {
        let b = read(&own(TensorRole::LoraB(projection))).unwrap();
        let rank = a.len() / inp;
        for (at, w) in weight.iter_mut().enumerate() {
            *w += (0..rank).map(|k| b[at / inp * rank + k] * a[k * inp + at % inp]).sum::<f64>();
        }
    }
    if let Some(magnitudes) = read(&own(TensorRole::Magnitude(projection))) {
        for (row, m) in weight.chunks_mut(inp).zip(magnitudes) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x *= m / length);
        }
    }
    weight
}

/// Vector of a depth, which may be shared.
fn stored_vector(model: &Tiny, depth: Depth, role: TensorRole, part: TensorPart) -> Vec<f64> {
    let step = model.config.share_map().depths()[depth.0];
    let of_depth = TensorOwner::Depth(depth).tensor_name(role, part);
    let name =
        if model.info(&of_depth).is_some() { of_depth } else { TensorOwner::Layer(step.layer).tensor_name(role, part) };
    model.read_f32(&name).unwrap().into_iter().map(f64::from).collect()
}

/// Residual scales of a depth: ones where it has none.
fn scales(model: &Tiny, depth: Depth) -> [Vec<f64>; 2] {
    ["attention_scale", "mlp_scale"].map(|name| {
        let name = format!("model.depths.{depth}.extras.{name}");
        match model.info(&name) {
            Some(_) => model.read_f32(&name).unwrap().into_iter().map(f64::from).collect(),
            None => vec![1.0; model.config.hidden_size],
        }
    })
}

/// f32 has 24 bits: what is computed in another order in f64 may be rounded to the neighbour.
fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() <= 1e-7 * expected.abs().max(1e-2), "{what}: {found} {expected}");
    }
}

/// Checks every tensor of an F32 export of `model`.
fn check(model: &Tiny, plain: &ModelConfig, dir: &Path) {
    let report = write(model, StoredType::F32, dir).unwrap();
    let written = open(dir);
    let what = model.config.architecture.model_type;
    assert_eq!((&written.config.anatomy, written.config.num_hidden_layers), (&plain.anatomy, DEPTHS), "{what}");
    assert_eq!(written.config.recursion, None);
    assert_eq!(report.bytes, plain.tensors().iter().map(|spec| spec.num_elements() as u64 * 4).sum::<u64>());
    let behind = matches!(plain.anatomy.residual, Residual::Sandwich | Residual::PostNorm);
    for spec in plain.tensors() {
        let (name, found) = (spec.name(), written.tensors.read_f32(&spec.name()).unwrap());
        let TensorOwner::Layer(layer) = spec.owner else {
            assert_eq!(found, model.read_f32(&name).unwrap(), "{what} {name}");
            continue;
        };
        let depth = Depth(layer.0);
        let [attention, mlp] = scales(model, depth);
        let is_end = |ends: [&str; 2]| ends.iter().position(|end| name.contains(end));
        let scale = match behind {
            true => is_end(["post_attention_layernorm", "post_feedforward_layernorm"]),
            false => is_end(["self_attn.o_proj", "mlp.down_proj"]),
        };
        let scale = scale.map(|at| [attention, mlp][at].clone());
        let expected: Vec<f64> = match (spec.role, spec.part) {
            (TensorRole::Projection(projection), TensorPart::Weight) => {
                let weight = expected_linear(model, depth, projection);
                let inp = spec.shape[1];
                weight.iter().enumerate().map(|(at, w)| w * scale.as_ref().map_or(1.0, |s| s[at / inp])).collect()
            }
            _ => {
                let is_norm = matches!(spec.role, TensorRole::Norm(_)) && spec.part == TensorPart::Weight;
                let one = if is_norm && plain.anatomy.norm == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
                let stored = stored_vector(model, depth, spec.role, spec.part);
                stored
                    .iter()
                    .enumerate()
                    .map(|(at, w)| (w + one) * scale.as_ref().map_or(1.0, |s| s[at]) - one)
                    .collect()
            }
        };
        assert_close(&format!("{what} {name}"), &found, &expected);
    }
}

#[test]
fn every_family_is_unrolled_with_dora_own_norms_and_residual_scales() {
    let root = tempfile::tempdir().unwrap();
    for architecture in ARCHITECTURES {
        let plain = family(architecture);
        let model = Tiny::new(recursive(&plain, recursion()), Dtype::F32);
        check(&model, &plain, &root.path().join(architecture.model_type));
    }
}

/// The gates of a selection are residual scales with another start.
#[test]
fn a_selection_is_unrolled_with_its_gates() {
    let root = tempfile::tempdir().unwrap();
    for architecture in ARCHITECTURES {
        let plain = family(architecture);
        let selection = RecursionConfig {
            prelude: Some(1),
            coda: Some(1),
            extras: [DepthExtra::ResidualScale].into(),
            ..RecursionConfig::new(2, Sharing::Cycle, Init::Select)
        };
        let model = Tiny::new(recursive(&plain, selection), Dtype::F32);
        check(&model, &plain, &root.path().join(architecture.model_type));
    }
}

#[test]
fn factors_in_place_of_matrices_are_multiplied() {
    let root = tempfile::tempdir().unwrap();
    for architecture in ARCHITECTURES {
        let plain = family(architecture);
        let ranks = plain.projection_shapes().into_iter().map(|(projection, _)| {
            // One matrix is left.
            let rank = |depth| if (projection, depth) == (Projection::Up, 2) { 0 } else { 3 };
            (projection.name().to_owned(), (0..DEPTHS).map(rank).collect())
        });
        let lora = LoraConfig::table(ranks.collect()).map(LoraConfig::without_base);
        let low_rank = RecursionConfig { lora, ..RecursionConfig::new(1, Sharing::Cycle, Init::Calibrated) };
        let model = Tiny::new(recursive(&plain, low_rank), Dtype::F32);
        check(&model, &plain, &root.path().join(architecture.model_type));
    }
}

#[test]
fn shared_norms_are_placed_at_every_depth() {
    let root = tempfile::tempdir().unwrap();
    for architecture in ARCHITECTURES {
        let plain = family(architecture);
        let shared = RecursionConfig { share_norms: true, lora: Some(LoraConfig::uniform(2)), ..recursion() };
        let model = Tiny::new(recursive(&plain, shared), Dtype::F32);
        check(&model, &plain, &root.path().join(architecture.model_type));
    }
}

/// Without LoRA and extras nothing is computed: bytes are copied, in the type that they have.
#[test]
fn what_is_only_shared_is_copied_byte_for_byte() {
    let root = tempfile::tempdir().unwrap();
    let shared = RecursionConfig::new(3, Sharing::Sequence, Init::Lower);
    let model = Tiny::new(recursive(&family(ARCHITECTURES[0]), shared), Dtype::BF16);
    let report = write(&model, StoredType::Keep, root.path()).unwrap();
    // Six layers of 16 tensors over two stored ones; embeddings and the final norm.
    assert_eq!((report.tensors, report.model_tensors, report.merged, report.scaled), (98, 34, 0, 0));
    let written = open(root.path());
    for depth in 0..DEPTHS {
        for part in ["self_attn.q_proj.weight", "mlp.down_proj.bias", "input_layernorm.weight"] {
            let [ours, theirs] = [depth, depth / 3].map(|layer| format!("model.layers.{layer}.{part}"));
            assert_eq!(written.tensors.bytes(&ours).unwrap(), model.bytes(&theirs).unwrap(), "{ours}");
        }
    }
    assert_eq!(written.companions, model.companions);
}

#[test]
fn config_json_is_that_of_the_family_with_a_kind_for_every_depth() {
    let root = tempfile::tempdir().unwrap();
    let gemma = ARCHITECTURES.into_iter().find(|a| a.model_type == "gemma3_text").unwrap();
    let model = Tiny::new(recursive(&family(gemma), recursion()), Dtype::BF16);
    write(&model, StoredType::F16, root.path()).unwrap();
    let text = fs_err::read_to_string(root.path().join("config.json")).unwrap();
    let keys: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&keys["model_type"], &keys["architectures"]), (&json!("gemma3_text"), &json!(["Gemma3ForCausalLM"])));
    let (sliding, full) = ("sliding_attention", "full_attention");
    assert_eq!(keys["layer_types"], json!([sliding, sliding, full, sliding, sliding, full]));
    assert_eq!((&keys["num_hidden_layers"], &keys["tie_word_embeddings"]), (&json!(6), &json!(true)));
    assert_eq!((&keys["torch_dtype"], &keys["a_key_of_someone_else"]), (&json!("float16"), &json!("kept")));
    assert_eq!(keys.get("recursion"), None);
}

/// A merged bf16 weight is the f64 sum rounded once.
#[test]
fn a_merged_weight_is_rounded_once_to_the_type_of_the_shared_one() {
    let root = tempfile::tempdir().unwrap();
    let lora = RecursionConfig { lora: Some(LoraConfig::uniform(4)), extras: [].into(), ..recursion() };
    let model = Tiny::new(recursive(&family(ARCHITECTURES[0]), lora), Dtype::BF16);
    let report = write(&model, StoredType::Keep, root.path()).unwrap();
    assert_eq!(report.merged, 4 * 7);
    let written = open(root.path());
    let name = "model.layers.3.mlp.up_proj.weight";
    assert_eq!(written.tensors.info(name).unwrap().dtype, Dtype::BF16);
    let found = widen(&written.tensors.bytes(name).unwrap(), Dtype::BF16);
    for (found, exact) in found.iter().zip(expected_linear(&model, Depth(3), Projection::Up)) {
        let [above, below] = [1i32, -1].map(|step| {
            let bits = (found.to_bits() >> 16).wrapping_add_signed(step) << 16;
            (f64::from(f32::from_bits(bits)) - exact).abs()
        });
        let own = (f64::from(*found) - exact).abs();
        assert!(own <= above && own <= below, "{found} is not the nearest to {exact}");
    }
}

#[test]
fn a_plain_model_is_copied() {
    let root = tempfile::tempdir().unwrap();
    for architecture in ARCHITECTURES {
        let model = Tiny::new(family(architecture), Dtype::F16);
        let dir = root.path().join(architecture.model_type);
        let report = write(&model, StoredType::Keep, &dir).unwrap();
        assert_eq!((report.bytes, report.merged), (report.model_bytes, 0));
        let written = open(&dir);
        for spec in model.config.tensors() {
            assert_eq!(written.tensors.bytes(&spec.name()).unwrap(), model.bytes(&spec.name()).unwrap());
        }
    }
}

#[test]
fn a_model_that_no_plain_one_computes_is_refused_with_every_reason() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let refused = |recursion: RecursionConfig| {
        let model = Tiny::new(recursive(&family(ARCHITECTURES[0]), recursion), Dtype::F32);
        write(&model, StoredType::Keep, &out).unwrap_err().to_string()
    };
    let extras = RecursionConfig { extras: DepthExtra::ALL.into(), kv_sharing: KvSharing::Shared, ..recursion() };
    let message = refused(extras.clone());
    assert_eq!(
        message,
        "`hf-unrolled` cannot hold the model:\n  \
         `kv_sharing: shared`: later recursions attend to the keys and values of the first\n  \
         `model.depths.1.extras.loop_embedding` is not 0, and `LlamaForCausalLM` computes nothing between its layers\n  \
         `model.depths.3.extras.loop_norm` is not 0, and `LlamaForCausalLM` computes nothing between its layers\n\
         hint: `--to hf` can, with routers at full depth"
    );
    // Untrained vectors do nothing, and hybrid KV sharing differs with routers only.
    let untrained = RecursionConfig { kv_sharing: KvSharing::Hybrid, ..extras };
    let model = Tiny::new(recursive(&family(ARCHITECTURES[0]), untrained), Dtype::F32);
    write(&model.with_zeros("extras.loop_"), StoredType::Keep, &out).unwrap();
    let message = refused(recursion());
    assert!(message.contains("already holds `config.json`, `model.safetensors`"), "{message}");
    assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn an_export_that_is_not_published_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let model = Tiny::new(recursive(&family(ARCHITECTURES[0]), recursion()), Dtype::F32);
    let out = root.path().join("a/out");
    let mut seen = Vec::new();
    let written = export(
        model.model(),
        Format::named("hf-unrolled").unwrap(),
        &ExportOptions::default(),
        &out,
        &mut |progress| seen.push(progress.done),
    )
    .unwrap();
    assert_eq!(open(&written.model_path()).config.num_hidden_layers, DEPTHS);
    assert_eq!(seen, (1..=written.report().tensors).collect::<Vec<_>>());
    assert!(!out.exists());
    drop(written);
    assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 0);
    let message = Format::named("onnx").unwrap_err().to_string();
    assert!(message.starts_with("unknown format `onnx`, expected one of hf, hf-nanbeige, hf-unrolled"), "{message}");
}
