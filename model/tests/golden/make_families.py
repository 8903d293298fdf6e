#!/usr/bin/env python3
"""Makes a golden file for each family of decoders but Llama, with `transformers` and `torch` (CPU, eager attention).

    python make_families.py         # writes beside itself; transformers 5.24, torch 2.15

Each holds the weights under the names of the family's checkpoints, and what `make_llama.py` describes: `golden.ids`,
`golden.logits`, `golden.loss`, `golden.rounding`, `golden.grad.<weight>`. The gradients are under the names that retie gives the weights.
`config` is what transformers writes, with the keys that differ from a real checkpoint's file renamed (`old`).

Windows, soft caps and scales are chosen so small that leaving one out changes the logits far beyond rounding: the script checks it.
"""

import json

import torch
from make_llama import golden as expected
from make_llama import randomise, write
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS = 24

BASE = {
    "vocab_size": 48, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None,  # a padding row would get no gradient
}


def build(config):
    model_type = config["model_type"]
    config = AutoConfig.for_model(model_type, **{k: v for k, v in config.items() if k != "model_type"})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


def neox(weights, heads):
    """(name of a checkpoint, name in retie, rows of the fused matrix or None) of each weight."""
    parts = {"attention.dense": "self_attn.o_proj", "mlp.dense_h_to_4h": "mlp.up_proj", "mlp.dense_4h_to_h": "mlp.down_proj"}
    for name, p in weights.items():
        if name == "gpt_neox.embed_in.weight":
            yield name, name, "model.embed_tokens.weight", None
        elif name.startswith("gpt_neox.final_layer_norm"):
            yield name, name, name.replace("gpt_neox.final_layer_norm", "model.norm"), None
        elif name == "lm_head.weight":
            yield name, "embed_out.weight", name, None  # as every published checkpoint has it
        elif "query_key_value" in name:
            rows = torch.arange(p.shape[0]).reshape(heads, 3, -1)
            for i, part in enumerate("qkv"):
                new = name.replace("gpt_neox", "model").replace("attention.query_key_value", f"self_attn.{part}_proj")
                yield name, name, new, rows[:, i].flatten()
        else:
            new = name.replace("gpt_neox", "model")
            for old, part in parts.items():
                new = new.replace(old, part)
            yield name, name, new, None


def golden(name, seed, config, old=None, drop=(), changes=()):
    """`old`: keys of the stored text that replace those of transformers; `drop`: keys that it leaves out. `changes`: settings
    that have to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = build(config)
    randomise(model.named_parameters(), generator)
    if "gemma" in config["model_type"]:  # norms are 1 + w
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "norm" in key:
                    p.sub_(1)
    plain = dict(model.named_parameters())
    tensors = expected(model, plain, generator)
    ids, logits = tensors["golden.ids"], tensors["golden.logits"]
    for change in changes:
        other = build(config | change)
        other.load_state_dict(model.state_dict(), strict=False)
        difference = (other(input_ids=ids, use_cache=False).logits - logits).abs().max().item()
        assert difference > 1e-2, f"{name}: {change} changes the logits by {difference}"
    out = tensors
    if config["model_type"] == "gpt_neox":
        out = {k: v for k, v in tensors.items() if k in ("golden.ids", "golden.logits", "golden.loss", "golden.rounding")}
        for key, stored, new, rows in neox(plain, config["num_attention_heads"]):
            grad = tensors[f"golden.grad.{key}"]
            out[stored] = tensors[key]
            out[f"golden.grad.{new}"] = grad if rows is None else grad[rows]
    text = json.loads(model.config.to_json_string(use_diff=False))
    text = {k: v for k, v in text.items() if k not in drop} | (old or {})
    write(name, out, {"config": json.dumps(text)})


def main():
    torch.set_num_threads(1)
    window = {"sliding_window": TOKENS * 2}
    golden("mistral", 11, BASE | {"model_type": "mistral", "sliding_window": 7}, changes=[window])
    golden("qwen2", 12, BASE | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
           drop=["layer_types"], changes=[window])
    golden("qwen3", 13, BASE | {"model_type": "qwen3", "attention_bias": True, "tie_word_embeddings": True})
    golden("smollm3", 14, BASE | {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layer_interval": 2,
                                  "use_sliding_window": True, "sliding_window": 6},
           drop=["layer_types", "no_rope_layers"], changes=[window, {"no_rope_layer_interval": 3}])
    golden("gemma", 15, BASE | {"model_type": "gemma", "num_key_value_heads": 1}, old={"hidden_act": "gelu"})
    golden("gemma2", 16, BASE | {"model_type": "gemma2", "query_pre_attn_scalar": 5, "sliding_window": 6,
                                 "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
           changes=[window, {"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"query_pre_attn_scalar": 8}])
    local = {"rope_local_base_freq": 100.0, "rope_theta": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    parameters = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                  "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
    same = {"full_attention": parameters["full_attention"], "sliding_attention": parameters["full_attention"]}
    golden("gemma3", 17, BASE | {"model_type": "gemma3_text", "num_hidden_layers": 3, "query_pre_attn_scalar": 5, "sliding_window": 6,
                                 "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                                 "rope_parameters": parameters},
           old=local | {"sliding_window_pattern": 3}, drop=["rope_parameters", "layer_types"],
           changes=[window, {"rope_parameters": same}])
    plain = {k: v for k, v in BASE.items() if k not in ("num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_size")}
    neox_base = plain | {"model_type": "gpt_neox", "hidden_size": 32, "num_attention_heads": 4, "layer_norm_eps": 1e-5,
                         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}}
    published = {"rotary_pct": 0.25, "rotary_emb_base": 10000}
    golden("gpt_neox", 18, neox_base, old=published, drop=["rope_parameters"], changes=[{"use_parallel_residual": False}])
    golden("gpt_neox_sequential", 19, neox_base | {"use_parallel_residual": False, "num_hidden_layers": 1, "tie_word_embeddings": True})
    golden("olmo2", 20, BASE | {"model_type": "olmo2", "hidden_size": 32, "num_hidden_layers": 2} )


if __name__ == "__main__":
    main()
