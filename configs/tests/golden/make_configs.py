"""What the configuration classes of transformers make of a `config.json`, for `src/arch/tests.rs`: for each family
some files with keys that are left out, null, old, new or stated twice. The first file of a family has only sizes; of
the others stands what differs from it.

    python make_configs.py > configs.json          (transformers 5.24)
"""
import dataclasses
import json

from transformers import CONFIG_MAPPING, logging

logging.set_verbosity_error()
LAYERS, HEADS, HIDDEN = 6, 4, 64
BASE = {
    "vocab_size": 100, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": 2,
}
LINEAR, TYPED = {"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE = [
    {"rope_theta": 5e5}, {"rope_scaling": LINEAR}, {"rope_scaling": TYPED, "rope_theta": 5e5}, {"rope_scaling": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}}, {"rope_parameters": {"rope_theta": 3e5}},
    {"rope_parameters": {**TYPED, "rope_theta": 3e5}, "rope_theta": 7e5}, {"rope_parameters": TYPED, "rope_theta": 7e5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}, "rope_scaling": LINEAR},
    {"rope_parameters": {"rope_theta": 3e5}, "rope_scaling": {**TYPED, "rope_theta": 9e5}, "rope_theta": 7e5},
    {"rope_parameters": {"rope_theta": 3e5}, "rope_scaling": {}}, {"rope_scaling": {**TYPED, "type": "default"}},
    {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}, "rope_theta": 5e5},
    {"rope_scaling": LLAMA3, "max_position_embeddings": 512},
]
NESTED = [
    {"rope_parameters": {"full_attention": {"rope_theta": 3e6}, "sliding_attention": {"rope_type": "default"}}},
    {"rope_parameters": {"full_attention": {**TYPED}, "sliding_attention": {"rope_theta": 2e4, **TYPED}}, "rope_theta": 5e5},
    {"rope_parameters": {"full_attention": {"rope_theta": 3e6}, "sliding_attention": None}, "rope_scaling": TYPED},
    {"rope_scaling": LINEAR}, {"rope_scaling": TYPED, "rope_local_base_freq": 2e4}, {"rope_theta": 5e5},
]
FULL, SLIDING = "full_attention", "sliding_attention"
COMMON = [
    {}, {"rms_norm_eps": 1e-3, "layer_norm_eps": 1e-4}, {"head_dim": 32}, {"num_key_value_heads": 4},
    {"max_position_embeddings": 77}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False},
    {"bos_token_id": None, "eos_token_id": [4, 5]}, {"bos_token_id": 7, "eos_token_id": 8},
]
ATTENTION_BIAS = [{"attention_bias": True}, {"attention_bias": False}]
TYPES = [{"layer_types": [SLIDING, FULL] * 3, "sliding_window": 9}, {"layer_types": [FULL] * LAYERS}]
WINDOWS = [{"sliding_window": 7}, *TYPES]
USED = [
    {"use_sliding_window": True}, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, {"sliding_window": 8, "max_window_layers": 2},
    {"use_sliding_window": True, "sliding_window": None},
    {"use_sliding_window": True, "sliding_window": 8, "layer_types": [SLIDING, FULL] * 3},
]
CAPS = [{"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"final_logit_softcapping": 20.0}]
SCALE = [{"query_pre_attn_scalar": 144}]
FAMILIES = {
    "llama": [*ROPE, *ATTENTION_BIAS, {"mlp_bias": True}, {"num_key_value_heads": None}, {"head_dim": None}],
    "mistral": [*ROPE, {"sliding_window": 7}, {"sliding_window": None}, {"head_dim": None}],
    "qwen2": [*ROPE, *USED],
    "qwen3": [*ROPE, *USED, *ATTENTION_BIAS],
    "smollm3": [
        *ROPE, *ATTENTION_BIAS, *TYPES, {"no_rope_layer_interval": 2}, {"no_rope_layers": [0, 1, 1, 0, 1, 1]},
        {"use_sliding_window": True, "sliding_window": 8}, {"use_sliding_window": True}, {"sliding_window": 8},
    ],
    "gemma": [*ROPE, *ATTENTION_BIAS, {"hidden_act": "gelu"}],
    "gemma2": [*ROPE, *ATTENTION_BIAS, *WINDOWS, *CAPS, *SCALE, {"attn_logit_softcapping": 40.0}],
    "gemma3_text": [*NESTED, *ATTENTION_BIAS, *WINDOWS, *CAPS, *SCALE, {"sliding_window_pattern": 2}],
    "gpt_neox": [
        *[patch for patch in ROPE if "rope_theta" not in patch], {"rotary_pct": 0.5}, {"rotary_emb_base": 5e5},
        {"rotary_pct": 0.5, "rope_scaling": LINEAR}, {"use_parallel_residual": False}, *ATTENTION_BIAS,
        {"rope_parameters": {"rope_theta": 3e5, "partial_rotary_factor": 1.0}},
    ],
    "olmo2": [*ROPE, *ATTENTION_BIAS],
}


def rope(parameters):
    kind = parameters["rope_type"]
    scaling = [parameters[key] for key in ("factor", "low_freq_factor", "high_freq_factor") if kind == "llama3"]
    if kind == "llama3":
        scaling.append(parameters["original_max_position_embeddings"])
    if kind == "linear":
        scaling = [parameters["factor"]]
    return {"theta": parameters["rope_theta"], "type": kind, "scaling": scaling}


def read(name, file):
    config = CONFIG_MAPPING[name].from_dict({"model_type": name, **file})
    get = lambda key, default=None: getattr(config, key, default)
    window = get("sliding_window")
    types = [SLIDING if window else FULL] * LAYERS if name == "mistral" else get("layer_types", [FULL] * LAYERS)
    if SLIDING in types and window is None:
        raise ValueError("`create_sliding_window_causal_mask` of the model refuses it")
    two = name == "gemma3_text"
    ropes = [config.rope_parameters[kind] for kind in (FULL, SLIDING)] if two else [config.rope_parameters]
    head_dim = (None if name == "gpt_neox" else get("head_dim")) or HIDDEN // HEADS
    eos = config.eos_token_id
    return {
        "norm_eps": get("layer_norm_eps") if name == "gpt_neox" else get("rms_norm_eps"),
        "num_key_value_heads": HEADS if name == "gpt_neox" else get("num_key_value_heads"),
        "head_dim": head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        # A default that the vocabulary does not have names no token here.
        "bos_token_id": config.bos_token_id if (config.bos_token_id or 0) < 100 else None,
        "eos_token_ids": [] if eos is None else [id for id in (eos if isinstance(eos, list) else [eos]) if id < 100],
        "ropes": [rope(parameters) for parameters in ropes],
        "rotary_dim": int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)),
        "windows": [window if kind == SLIDING else None for kind in types],
        "rotates": [bool(flag) for flag in get("no_rope_layers", [1] * LAYERS)],
        "attn_logit_softcapping": None if two else get("attn_logit_softcapping"),
        "final_logit_softcapping": get("final_logit_softcapping"),
        "query_pre_attn_scalar": get("query_pre_attn_scalar", head_dim),
        "qkv_bias": True if name == "qwen2" else get("attention_bias", False),
        "output_bias": False if name == "qwen2" else get("attention_bias", False),
        "mlp_bias": True if name == "gpt_neox" else get("mlp_bias", False),
    }


# Keys that null is tried for, in the classes that have them.
NULLABLE = [
    "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation", "max_position_embeddings", "rms_norm_eps",
    "layer_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window",
    "max_window_layers", "query_pre_attn_scalar", "no_rope_layers", "no_rope_layer_interval", "use_parallel_residual",
    "use_bidirectional_attention", "layer_types",
]
cases = []
for name, patches in FAMILIES.items():
    plain = None
    fields = {field.name for field in dataclasses.fields(CONFIG_MAPPING[name])}
    for patch in COMMON + patches + [{key: None} for key in NULLABLE if key in fields]:
        if name == "gpt_neox" and "head_dim" in patch:
            continue  # Attention ignores it and the rotation does not: the model cannot run.
        base = {key: value for key, value in BASE.items() if name != "gpt_neox" or key != "num_key_value_heads"}
        try:
            # Read anew: the classes change what they are given.
            expected = read(name, json.loads(json.dumps({**base, **patch})))
        except Exception as error:
            expected = {"error": type(error).__name__}
        plain = plain or expected
        if expected is not plain:
            expected = {key: value for key, value in expected.items() if plain.get(key, ...) != value}
        cases.append({"model_type": name, "patch": patch, "expected": expected})
print("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]")
