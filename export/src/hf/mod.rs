//! `hf`: the recursive model for `transformers`, each tensor once: the folder with two Python files
//! and `auto_map`, to be loaded with `trust_remote_code=True`.
//!
//! `modeling_retie.py` is one model for every family: it reads the object `stack` of
//! `config.json`, which [`stack`] makes from the anatomy, and knows no family by name. Tensors keep
//! their names, so that what `save_pretrained` writes is a folder that retie reads.

mod stack;

use crate::{
    ExportError, StoredType,
    cast::Cast,
    export::write_json,
    folder::write_folder,
    format::{ExportModel, Format, Progress},
    obstacles,
    report::Contents,
};
use retie_config::{Gating, LoraBase, ModelConfig};
use serde_json::{Map, Value, json};
use stack::stack;
use std::path::Path;

/// Python files of the folder; `MODEL_TYPE` in the first is the `model_type` of the model.
const CONFIGURATION: (&str, &str) = ("configuration_retie.py", include_str!("configuration_retie.py"));
const MODELING: (&str, &str) = ("modeling_retie.py", include_str!("modeling_retie.py"));

/// Settings of a tokenizer.
const SETTINGS: &str = "tokenizer_config.json";

pub(crate) static FORMAT: Format = Format {
    name: "hf",
    about: "the recursive model for transformers (trust_remote_code), with its code, each tensor once",
    is_unrolled: false,
    types: StoredType::OF_FOLDERS,
    write,
    model: Path::to_path_buf,
    has_adapter: false,
};

fn write(
    model: ExportModel<'_>,
    dtype: StoredType,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Contents, ExportError> {
    let config = model.config;
    refuse(config)?;
    let mut keys = config.to_json();
    let [configuration, modeling] = [CONFIGURATION.0, MODELING.0].map(|file| file.trim_end_matches(".py"));
    keys.insert(
        "auto_map".into(),
        json!({
            "AutoConfig": format!("{configuration}.RetieConfig"),
            "AutoModel": format!("{modeling}.RetieModel"),
            "AutoModelForCausalLM": format!("{modeling}.RetieForCausalLM"),
        }),
    );
    keys.insert("architectures".into(), json!(["RetieForCausalLM"]));
    keys.insert("tie_word_embeddings".into(), json!(config.anatomy.tie_word_embeddings));
    keys.insert("stack".into(), Value::Object(stack(config)));
    state_defaults(&mut keys, config);
    let model_type = keys["model_type"].as_str().unwrap_or_default().to_owned();
    let contents = write_folder(model, keys, &Cast::new(model, dtype.dtype()), dtype, dir, progress)?;
    fs_err::write(dir.join(CONFIGURATION.0), CONFIGURATION.1.replace("MODEL_TYPE", &model_type))?;
    fs_err::write(dir.join(MODELING.0), MODELING.1)?;
    write_tokenizer_class(model, dir)?;
    let routed = config.recursion.as_ref().is_some_and(|recursion| recursion.router.is_some());
    let depth = "in transformers every token goes through all recursions: the code does not ask the routers";
    Ok(Contents { notes: routed.then(|| depth.to_owned()).into_iter().collect(), ..contents })
}

/// States what an absent key means in the family's own class and does not in that of the folder.
fn state_defaults(keys: &mut Map<String, Value>, config: &ModelConfig) {
    let end = match config.eos_token_ids.as_slice() {
        [only] => json!(only),
        several => json!(several),
    };
    let context = json!(config.max_position_embeddings);
    let bos = config.bos_token_id.map(|id| ("bos_token_id", json!(id)));
    let end = (!config.eos_token_ids.is_empty()).then_some(("eos_token_id", end));
    for (key, value) in [Some(("max_position_embeddings", context)), bos, end].into_iter().flatten() {
        keys.entry(key).or_insert(value);
    }
}

/// Names the class of a tokenizer without settings: `AutoTokenizer` would look for that of the
/// `model_type`, which only the code of the folder knows (transformers 4.57).
fn write_tokenizer_class(model: ExportModel<'_>, dir: &Path) -> Result<(), ExportError> {
    let has = |file: &str| model.companions.iter().any(|(name, _)| name == file);
    match has("tokenizer.json") && !has(SETTINGS) {
        true => write_json(&dir.join(SETTINGS), &json!({ "tokenizer_class": "PreTrainedTokenizerFast" })),
        false => Ok(()),
    }
}

/// Refuses a model that is not recursive, factors in place of matrices, and routers whose gates
/// change what a token becomes at full depth.
fn refuse(config: &ModelConfig) -> Result<(), ExportError> {
    let cannot = |reason: String, hint: &str| {
        Err(ExportError::CannotHold { format: FORMAT.name, reasons: vec![reason], hint: hint.to_owned() })
    };
    let Some(recursion) = &config.recursion else {
        return cannot("it is not recursive".to_owned(), "`--to hf-unrolled` writes a plain model");
    };
    if recursion.lora.as_ref().is_some_and(|lora| lora.base == LoraBase::None) {
        let reason = "its linears are pairs of factors, not matrices (`recursion.lora.base: none`)".to_owned();
        return cannot(reason, "`--to hf-unrolled` writes a plain model, with the products of the factors");
    }
    if let Some(reason) = obstacles::of_steps(config) {
        return cannot(reason, "the Python code of the folder does not compute them; `retie serve` does");
    }
    match recursion.router.as_ref().map(|router| router.gating()) {
        None | Some(Gating::StraightThrough) => Ok(()),
        Some(gating) => {
            let reason = format!("its routers gate the output of a recursion (`gating: {gating}`)");
            cannot(reason, "only routers with `--gating straight_through` are the plain recursion at full depth")
        }
    }
}
