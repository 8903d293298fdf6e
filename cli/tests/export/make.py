#!/usr/bin/env python3
"""Makes tiny recursive models of every family with the logits of `transformers`, and checks exports of them.

    python make.py                  # writes NAME/ and logits.safetensors beside itself; transformers 5.24, torch 2.15
    python make.py --check DIR…     # loads DIR/NAME, an `hf`, `hf-unrolled` or `peft` export of each model that is there, and
                                    # compares logits and tokens

Each model has four depths over three stored layers (`middle_cycle`, two recursions), LoRA or DoRA, own norms and biases at every
depth, and `residual_scale`. Its tensors are drawn at random, as bfloat16. The logits are those of the family's own class with four
layers, in f64: the linears are merged here with torch, the scales are hooks on what attention and the feed-forward network add.
`NAME.exit` are the logits after the first recursion: of the same class without the depth of the second.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

HERE = Path(__file__).parent
LAYERS = [0, 1, 1, 2]
# Of a token that leaves the loop after the first recursion; the layers after the loop still run.
EXIT_DEPTHS = [0, 1, 3]
SHARED = [depth for depth, layer in enumerate(LAYERS) if LAYERS.count(layer) > 1]
RANK, TOKENS, NEW = 2, 32, 16
BASE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None,
}
NEOX = {k: v for k, v in BASE.items() if k not in ("num_key_value_heads", "head_dim", "rms_norm_eps")} | {
    "model_type": "gpt_neox", "layer_norm_eps": 1e-5, "use_parallel_residual": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
GEMMA = {"query_pre_attn_scalar": 5, "sliding_window": 6}
FAMILIES = {
    "llama": BASE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": BASE | {"model_type": "mistral", "sliding_window": 7},
    "qwen2": BASE | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen3": BASE | {"model_type": "qwen3", "attention_bias": True, "tie_word_embeddings": True},
    "smollm3": BASE | {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "gemma": BASE | {"model_type": "gemma"},
    "gemma2": BASE | GEMMA | {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3": BASE | GEMMA | {
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
    },
    "gpt_neox": NEOX,
    "gpt_neox_sequential": NEOX | {"use_parallel_residual": False},
    "olmo2": BASE | {"model_type": "olmo2"},
}
MODULES = {"attention.dense.": "self_attn.o_proj.", "mlp.dense_h_to_4h.": "mlp.up_proj.", "mlp.dense_4h_to_h.": "mlp.down_proj.",
           "gpt_neox.embed_in.": "model.embed_tokens.", "gpt_neox.final_layer_norm.": "model.norm.", "gpt_neox.layers.": "model.layers.",
           "embed_out.": "lm_head."}


def ours(state, heads):
    """Tensors under the names of a Llama, q, k and v apart."""
    out = {}
    for name, tensor in state.items():
        for theirs, new in MODULES.items():
            name = name.replace(theirs, new)
        if "query_key_value" in name:
            parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
            for i, part in enumerate("qkv"):
                out[name.replace("attention.query_key_value", f"self_attn.{part}_proj")] = parts[:, i].reshape(-1, *tensor.shape[1:])
        else:
            out[name] = tensor
    return out


def theirs(state, like, heads):
    """Inverse of `ours`, under the names of `like`."""
    out = {}
    for name in like:
        new = name
        for module, ours_name in MODULES.items():
            new = new.replace(module, ours_name)
        if "query_key_value" in new:
            parts = [state[new.replace("attention.query_key_value", f"self_attn.{part}_proj")] for part in "qkv"]
            parts = [part.reshape(heads, 1, -1, *part.shape[1:]) for part in parts]
            out[name] = torch.cat(parts, 1).reshape(-1, *parts[0].shape[3:])
        else:
            out[name] = state[new]
    return out


def draw(name, shape, generator, one):
    around = one if "norm" in name else 1.0 if "scale" in name or "magnitude" in name else 0.0
    return (around + 0.4 * torch.randn(shape, generator=generator)).bfloat16()


def recursive(plain, dora, one, generator):
    """Tensors of the recursive model, and of the plain one that they stand for, in f64."""
    stored, merged = {}, {}
    for name, tensor in plain.items():
        if not name.startswith("model.layers."):
            stored[name] = draw(name, tensor.shape, generator, one)
            merged[name] = stored[name].double()
            continue
        depth, part = name.removeprefix("model.layers.").split(".", 1)
        depth = int(depth)
        if not part.endswith("proj.weight"):
            own = f"model.depths.{depth}.{part}"
            stored[own] = draw(own, tensor.shape, generator, one)
            merged[name] = stored[own].double()
            continue
        shared = f"model.layers.{LAYERS[depth]}.{part}"
        if shared not in stored:
            stored[shared] = draw(shared, tensor.shape, generator, one)
        weight = stored[shared].double()
        if depth in SHARED:
            own = f"model.depths.{depth}.{part.removesuffix('.weight')}"
            a = stored[f"{own}.lora_A.weight"] = draw("A", (RANK, tensor.shape[1]), generator, one)
            b = stored[f"{own}.lora_B.weight"] = draw("B", (tensor.shape[0], RANK), generator, one)
            weight = weight + b.double() @ a.double()
            if dora:
                m = stored[f"{own}.lora_magnitude_vector"] = draw("magnitude", tensor.shape[:1], generator, one).float()
                weight = weight * (m.double() / weight.norm(dim=1))[:, None]
        merged[name] = weight
    return stored, merged


def add_scales(model, stored, generator, size):
    """Hooks that scale what each part of a shared depth adds to the residual stream."""
    layers = model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers
    for depth in SHARED:
        layer = layers[depth]
        scales = [draw("scale", (size,), generator, 1.0) for _ in range(2)]
        for kind, scale in zip(["attention", "mlp"], scales):
            stored[f"model.depths.{depth}.extras.{kind}_scale"] = scale
        attention, mlp = (scale.double() for scale in scales)
        if hasattr(layer, "post_feedforward_layernorm"):
            ends = [layer.post_attention_layernorm, layer.post_feedforward_layernorm]
        else:
            ends = [layer.attention if hasattr(layer, "attention") else layer.self_attn, layer.mlp]
        for end, scale in zip(ends, [attention, mlp]):
            def hook(_, args, out, scale=scale):
                return (out[0] * scale, *out[1:]) if isinstance(out, tuple) else out * scale
            end.register_forward_hook(hook)


def make(name, config, seed):
    generator = torch.Generator().manual_seed(seed)
    model_type, heads = config["model_type"], config["num_attention_heads"]
    settings = AutoConfig.for_model(model_type, **{k: v for k, v in config.items() if k != "model_type"})
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").double().eval()
    state = {k: v for k, v in model.state_dict().items() if not (settings.tie_word_embeddings and k == "lm_head.weight")}
    dora = seed % 2 == 1
    one = 0.0 if "gemma" in model_type else 1.0
    stored, merged = recursive(ours(state, heads), dora, one, generator)
    missing = model.load_state_dict(theirs(merged, state, heads), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}, missing
    add_scales(model, stored, generator, config["hidden_size"])
    ids = torch.randint(config["vocab_size"], (1, TOKENS), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.float()
    keys = json.loads(settings.to_json_string(use_diff=False))
    at_exit = exit_logits(model, ids)
    lora = {"rank": RANK} | ({"relax": "dora"} if dora else {})
    recursion = {"num_recursions": 2, "sharing": "middle_cycle", "init": "average", "share_norms": False, "lora": lora,
                 "extras": ["residual_scale"]}
    keys |= {"model_type": f"recursive_{model_type}", "recursion": recursion, "architectures": [f"Recursive{type(model).__name__}"]}
    (HERE / name).mkdir(exist_ok=True)
    (HERE / name / "config.json").write_text(json.dumps(keys, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in stored.items()}, HERE / name / "model.safetensors", metadata={"format": "pt"})
    return {f"{name}.ids": ids, f"{name}.logits": logits, f"{name}.exit": at_exit}


def exit_logits(model, ids):
    """Logits of `model` without the depths of the second recursion; `model` stays so."""
    stack = model.gpt_neox if hasattr(model, "gpt_neox") else model.model
    stack.layers = torch.nn.ModuleList(stack.layers[depth] for depth in EXIT_DEPTHS)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[depth] for depth in EXIT_DEPTHS]
    model.config.num_hidden_layers = len(EXIT_DEPTHS)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


def load(path, base=None):
    """The model in `path`, of an adapter over its base, which is in `path` or `base`."""
    adapter = path if (path / "adapter_config.json").exists() else None
    path = path if adapter is None else base or path / "base"
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32, trust_remote_code=True)
    problems = {k: v for k, v in info.items() if v}
    assert not problems, f"{path}: {problems}"
    if adapter is None:
        return model.eval()
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).eval()


def check(folder):
    golden = load_file(HERE / "logits.safetensors")
    names = [name for name in FAMILIES if (folder / name).exists()]
    assert names, f"{folder} has no export"
    for name in names:
        model = load(folder / name)
        ids, logits = golden[f"{name}.ids"], golden[f"{name}.logits"]
        greedy = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        padded = torch.cat([torch.zeros_like(ids[:, :3]), ids[:, :-3]], 1)
        mask = (torch.arange(ids.shape[1]) >= 3).long()[None]
        with torch.no_grad():
            found = model(input_ids=ids).logits
            cached = model.generate(input_ids=ids, **greedy)
            plain = model.generate(input_ids=ids, use_cache=False, **greedy)
            beside = model(input_ids=padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(0)).logits[:, 3:]
            with tempfile.TemporaryDirectory() as saved:
                model.save_pretrained(saved)
                again = load(Path(saved), folder / name / "base")(input_ids=ids).logits
            differences = {"logits": found - logits, "left-padded": beside - logits[:, :-3], "saved": again - found}
            drafted = cached
            if hasattr(model.config, "stack"):
                drafted = model.generate(input_ids=ids, assistant_early_exit=len(EXIT_DEPTHS), **greedy)
                model.config.num_hidden_layers = len(EXIT_DEPTHS)
                differences["exit"] = model(input_ids=ids).logits - golden[f"{name}.exit"]
        largest = logits.abs().max()
        differences = {what: difference.abs().max().item() for what, difference in differences.items()}
        print(f"{name:<20} {type(model).__name__:<24} of {largest:.1f}: " + ", ".join(f"{k} {v:.1e}" for k, v in differences.items()))
        assert max(differences.values()) <= 1e-5 * largest, f"{name} differs"
        assert torch.equal(cached, plain), f"{name}: the cache changes greedy tokens"
        assert torch.equal(drafted, plain), f"{name}: drafts of an early exit change greedy tokens"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=Path, nargs="+", metavar="DIR")
    folders = parser.parse_args().check
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if folders:
        for folder in folders:
            check(folder)
    else:
        golden = {}
        for seed, (name, config) in enumerate(FAMILIES.items()):
            golden |= make(name, config, seed)
        save_file(golden, HERE / "logits.safetensors")


if __name__ == "__main__":
    main()
