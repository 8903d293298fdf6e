//! Why tensors do not fit a configuration, where their names give it away: another prefix, an
//! adapter that is not merged, a type that is not read.

use crate::layout::TensorProblem;
use retie_config::{TensorOwner, TensorRole};

/// Prefixes with what puts them there and the way out; the longest come first.
const PREFIXES: [(&str, &str); 9] = [
    (
        "base_model.model.",
        "PEFT wrote them: merge the adapter with `merge_and_unload()` and save the model that it gives",
    ),
    ("_orig_mod.", "`torch.compile` put it there: save the model that was compiled, `model._orig_mod`"),
    ("module.", "`DataParallel` put it there: save the model that was wrapped, `model.module`"),
    ("language_model.model.", TEXT_PART),
    ("model.language_model.", TEXT_PART),
    ("language_model.", TEXT_PART),
    ("text_model.", TEXT_PART),
    (
        "transformer.",
        "they are names of another family: `model_type` of `config.json` does not say what the weights are",
    ),
    ("", "they are those of the model without its head: load it with `AutoModelForCausalLM` and save it again"),
];
const TEXT_PART: &str =
    "the weights are those of a model of text and images: load it with `transformers` and save its text part alone";

/// Endings of the tensors of quantised checkpoints, with what they are.
const QUANTISED: [(&[&str], &str); 4] = [
    (&[".qweight", ".qzeros", ".g_idx"], "the weights are quantised by GPTQ or AWQ"),
    (&[".weight.absmax", ".quant_map", ".weight.SCB", ".SCB"], "the weights are quantised by bitsandbytes"),
    (
        &[".weight_scale", ".weight_packed", ".weight_scale_inv", ".input_scale"],
        "the weights are quantised (FP8 or compressed-tensors)",
    ),
    (&[".scales", ".biases"], "the weights are quantised, as MLX and GPTQ do"),
];

/// The prefix of the names of a Llama's decoder.
const OURS: &str = "model.";

/// What to tell beside the list of problems.
pub(crate) fn hint(problems: &[TensorProblem]) -> Option<String> {
    let unexpected = || {
        problems.iter().filter_map(|problem| match problem {
            TensorProblem::Unexpected { tensor, .. } => Some(tensor.as_str()),
            _ => None,
        })
    };
    if unexpected().any(|name| name.contains(".lora_A.") || name.contains(".base_layer.")) {
        return Some("an adapter is not merged: save the model that `merge_and_unload()` of PEFT gives".to_owned());
    }
    let any = |endings: &[&str]| unexpected().any(|name| endings.iter().any(|ending| name.ends_with(ending)));
    for (endings, cause) in QUANTISED {
        if any(endings) {
            return Some(format!("{cause}: use an unquantised checkpoint (F32, BF16 or F16), or a GGUF file"));
        }
    }
    if problems.iter().any(|problem| matches!(problem, TensorProblem::Dtype { .. })) {
        return Some("use an unquantised checkpoint (F32, BF16 or F16), or a GGUF file".to_owned());
    }
    let head = TensorOwner::Model.weight(TensorRole::Head);
    if let [TensorProblem::Missing { tensor, .. }] = problems
        && *tensor == head
    {
        let hint = "if the head is the matrix of the embeddings, set `tie_word_embeddings` of `config.json` to `true`; \
                    `transformers` fills a missing head with random numbers";
        return Some(hint.to_owned());
    }
    if any(&[".qkv_proj.weight", ".gate_up_proj.weight", ".W_pack.weight", ".c_attn.weight"]) {
        return Some(
            "linears are fused, as those of Phi-3 and others: `model_type` of `config.json` does not say what the weights are"
                .to_owned(),
        );
    }
    if problems.iter().all(|problem| matches!(problem, TensorProblem::Unexpected { .. })) {
        if unexpected().all(|name| name.starts_with("v_head.") || name.starts_with("score.")) {
            return Some(
                "they are a head for rewards or classes: load the model with `AutoModelForCausalLM` and save it again"
                    .to_owned(),
            );
        }
        if unexpected().all(|name| name.starts_with("model.layers.")) {
            return Some("`config.json` may have fewer layers (`num_hidden_layers`) than the weights".to_owned());
        }
    }
    let table = TensorOwner::Model.weight(TensorRole::Embedding);
    if let Some(TensorProblem::Shape { found, .. }) =
        problems.iter().find(|problem| matches!(problem, TensorProblem::Shape { tensor, .. } if *tensor == table))
        && let [rows, _] = found[..]
    {
        return Some(format!(
            "the table has {rows} tokens: where they were added or padded after `config.json` was written, set its \
             `vocab_size` to {rows}"
        ));
    }
    let (ours, theirs) = problems.iter().find_map(|problem| match problem {
        TensorProblem::Missing { tensor, .. } => {
            let rest = tensor.strip_prefix(OURS)?;
            let found =
                unexpected().find(|name| name.strip_suffix(rest).is_some_and(|p| p.is_empty() || p.ends_with('.')));
            found.map(|found| (OURS, found.strip_suffix(rest).unwrap_or_default()))
        }
        _ => None,
    })?;
    let (_, cause) = PREFIXES.iter().find(|(prefix, _)| theirs.starts_with(prefix))?;
    Some(match theirs {
        "" => format!("the names lack the prefix `{ours}`: {cause}"),
        _ => format!("the names begin with `{theirs}`, expected `{ours}`: {cause}"),
    })
}
