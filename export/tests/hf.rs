//! The recursive folder for `transformers`: tensors, keys and Python files.
//!
//! That the Python code computes the model is checked by `cli/tests/export/make.py --check-hf`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod tiny;

use retie_checkpoint::{Dtype, ModelSource, TensorSource, widen};
use retie_config::{
    ARCHITECTURES, DepthExtra, ExpertChoiceConfig, Gating, Init, KvSharing, LoraConfig, RecursionConfig, Relax,
    RouterConfig, RouterNetwork, Sharing,
};
use retie_export::{ExportError, ExportOptions, ExportReport, Format, StoredType, export};
use serde_json::{Value, json};
use std::path::Path;
use tiny::{Tiny, family, read, recursive};

fn recursion() -> RecursionConfig {
    RecursionConfig {
        share_norms: false,
        lora: Some(LoraConfig::uniform(3).with(Relax::Dora)),
        extras: DepthExtra::ALL.into(),
        kv_sharing: KvSharing::Shared,
        ..RecursionConfig::new(2, Sharing::MiddleCycle, Init::Average)
    }
}

fn write(model: &Tiny, dtype: StoredType, out: &Path) -> Result<ExportReport, ExportError> {
    let options = ExportOptions { dtype, provenance: None };
    export(model.model(), Format::named("hf").unwrap(), &options, out, &mut |_| {})?.publish()
}

fn keys(dir: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn every_family_keeps_its_tensors_once_and_under_their_names() {
    let root = tempfile::tempdir().unwrap();
    for architecture in ARCHITECTURES {
        let model = Tiny::new(recursive(&family(architecture), recursion()), Dtype::BF16);
        let dir = root.path().join(architecture.model_type);
        let report = write(&model, StoredType::Keep, &dir).unwrap();
        assert_eq!((report.tensors, report.bytes), (report.model_tensors, report.model_bytes));
        let back = ModelSource::open(dir.to_str().unwrap()).unwrap();
        back.validate().unwrap();
        assert_eq!((&back.config.anatomy, &back.config.recursion), (&model.config.anatomy, &model.config.recursion));
        for name in model.names() {
            assert_eq!(back.tensors.bytes(name).unwrap(), model.bytes(name).unwrap(), "{name}");
        }
        let text = fs_err::read_to_string(dir.join("configuration_retie.py")).unwrap();
        assert!(text.contains(&format!("model_type = \"recursive_{}\"", architecture.model_type)), "{text}");
        assert!(dir.join("modeling_retie.py").is_file() && dir.join("tokenizer.json").is_file());
        // The tiny model has a tokenizer without settings.
        let settings = fs_err::read_to_string(dir.join("tokenizer_config.json")).unwrap();
        assert!(settings.contains("\"tokenizer_class\": \"PreTrainedTokenizerFast\""), "{settings}");
    }
}

/// The class of the folder has no defaults of a family: those of Llama are BOS 1 and EOS 2.
#[test]
fn tokens_and_context_are_stated_where_the_source_leaves_them_to_its_class() {
    let root = tempfile::tempdir().unwrap();
    let llama = ARCHITECTURES.into_iter().find(|a| a.model_type == "llama").unwrap();
    let mut map = family(llama).to_json();
    ["max_position_embeddings", "eos_token_id"].iter().for_each(|key| _ = map.remove(*key));
    let model = Tiny::new(recursive(&read(map), recursion()), Dtype::F32);
    write(&model, StoredType::Keep, root.path()).unwrap();
    let keys = keys(root.path());
    let stated = ["bos_token_id", "eos_token_id", "max_position_embeddings"].map(|key| keys[key].as_u64());
    assert_eq!(stated, [Some(1), Some(2), Some(2048)]);
}

#[test]
fn the_stack_is_spelled_out_for_every_depth() {
    let root = tempfile::tempdir().unwrap();
    let smollm3 = ARCHITECTURES.into_iter().find(|a| a.model_type == "smollm3").unwrap();
    let model = Tiny::new(recursive(&family(smollm3), recursion()), Dtype::F32);
    write(&model, StoredType::F16, root.path()).unwrap();
    let keys = keys(root.path());
    assert_eq!((&keys["torch_dtype"], &keys["architectures"]), (&json!("float16"), &json!(["RetieForCausalLM"])));
    let stack = &keys["stack"];
    let expected = json!({ "layer": 1, "rope": null, "window": null, "keys_of": 1 });
    let depth = &stack["depths"][3];
    assert!(expected.as_object().unwrap().iter().all(|(key, value)| depth[key] == *value), "{depth}");
    assert_eq!(depth["ranks"]["mlp.up_proj"], 3);
    assert_eq!(depth["extras"], json!(["loop_embedding", "loop_norm", "attention_scale", "mlp_scale"]));
    assert_eq!(stack["depths"][1]["extras"], json!(["loop_embedding", "attention_scale", "mlp_scale"]));
    let first = &stack["depths"][0];
    assert_eq!((&first["keys_of"], &first["ranks"], &first["rope"]), (&Value::Null, &json!({}), &json!(0)));
    assert_eq!(stack["linears"]["self_attn.k_proj"], json!([12, 16]));
    assert_eq!(stack["ropes"], json!([{ "theta": 2e6, "rotary_dim": 6, "scaling": { "type": "default" } }]));
    // Magnitudes keep f32, whatever the matrices become.
    let back = ModelSource::open(root.path().to_str().unwrap()).unwrap();
    let name = "model.depths.1.mlp.up_proj.lora_magnitude_vector";
    assert_eq!(back.tensors.info(name).unwrap().dtype, Dtype::F32);
    let name = "model.layers.1.mlp.up_proj.weight";
    let (found, exact) = (back.tensors.bytes(name).unwrap(), model.read_f32(name).unwrap());
    let off = widen(&found, Dtype::F16).iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // Half a unit in the last place of values below 1/2.
    assert!(off > 0.0 && off <= 2f32.powi(-13), "{off}");
}

#[test]
fn routers_are_kept_and_other_gates_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let routed = |gating| {
        let network = RouterNetwork::Mlp;
        let router = ExpertChoiceConfig { network, gating, alpha: 1.0, ..ExpertChoiceConfig::new(2) };
        let recursion = RecursionConfig { router: Some(RouterConfig::ExpertChoice(router)), ..recursion() };
        Tiny::new(recursive(&family(ARCHITECTURES[0]), recursion), Dtype::F32)
    };
    let dir = root.path().join("straight");
    let report = write(&routed(Gating::StraightThrough), StoredType::Keep, &dir).unwrap();
    let note = "in transformers every token goes through all recursions: the code does not ask the routers";
    assert_eq!(report.notes, [note]);
    let router = json!({ "up_proj": [32, 16], "out_proj": [1, 32] });
    assert_eq!(keys(&dir)["stack"]["routers"], json!([router, router]));
    let message = write(&routed(Gating::Weighted), StoredType::Keep, &root.path().join("out")).unwrap_err().to_string();
    assert_eq!(
        message,
        "`hf` cannot hold the model:\n  its routers gate the output of a recursion (`gating: weighted`)\n\
         hint: only routers with `--gating straight_through` are the plain recursion at full depth"
    );
}

#[test]
fn factors_in_place_of_matrices_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let ranks = [("mlp.up_proj".to_owned(), vec![3; 6])].into();
    let lora = LoraConfig::table(ranks).map(LoraConfig::without_base);
    let low_rank = RecursionConfig { lora, ..RecursionConfig::new(1, Sharing::Cycle, Init::Calibrated) };
    let model = Tiny::new(recursive(&family(ARCHITECTURES[0]), low_rank), Dtype::F32);
    let error = write(&model, StoredType::Keep, &root.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("pairs of factors") && error.contains("hint: `--to hf-unrolled`"), "{error}");
}
