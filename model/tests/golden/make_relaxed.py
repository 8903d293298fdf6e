#!/usr/bin/env python3
"""Makes golden files of what a depth may have beside LoRA, with `transformers` and `torch` (CPU).

    python make_relaxed.py          # writes beside itself; transformers 5.24, torch 2.15

* `extras.safetensors`   six depths over two stored layers between unshared ends (`middle_cycle`, two recursions), LoRA, and every
                         extra with values that are not those it starts with: `loop_norm` and `loop_embedding` where a pass
                         begins, `residual_scale` at all depths of the loop.

Keys as in the files of `make_llama.py`.
"""

import json

import torch
from make_llama import NORMS, PROJECTIONS, LoraLinear, build, golden, randomise, write
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

BASE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 48,
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}
LAYERS = [0, 1, 2, 1, 2, 3]  # middle_cycle
RANK = 2


def relaxed(linear):
    """A model over stored layers with own norms, `linear(shared)` in the place of each shared linear, and all its weights by name."""
    model = build(BASE)
    stored = [LlamaDecoderLayer(model.config, i).float() for i in range(max(LAYERS) + 1)]
    weights = {"model.embed_tokens.weight": model.model.embed_tokens.weight, "model.norm.weight": model.model.norm.weight}
    for i, layer in enumerate(stored):
        weights |= {f"model.layers.{i}.{p}.weight": layer.get_submodule(p).weight for p in PROJECTIONS}
    for d, depth in enumerate(model.model.layers):
        for norm in NORMS:
            weights[f"model.depths.{d}.{norm}.weight"] = depth.get_submodule(norm).weight
        for p in PROJECTIONS:
            module, own = stored[LAYERS[d]].get_submodule(p), {}
            if LAYERS.count(LAYERS[d]) > 1:
                module, own = linear(module)
            parent, leaf = p.split(".")
            setattr(depth.get_submodule(parent), leaf, module)
            weights |= {f"model.depths.{d}.{p}.{name}": weight for name, weight in own.items()}
    return model, weights


def lora(shared):
    module = LoraLinear(shared, RANK)
    return module, {"lora_A.weight": module.lora_A, "lora_B.weight": module.lora_B}


def add_extras(depth, model, begins, later):
    """Hooks that compute the extras of a depth, and their parameters."""
    size, own = BASE["hidden_size"], {}
    norm = LlamaRMSNorm(size, eps=BASE["rms_norm_eps"]) if later else None
    embedding = nn.Parameter(torch.empty(size)) if begins else None
    scales = [nn.Parameter(torch.empty(size)) for _ in range(2)]

    def enter(_, args, kwargs):
        x, *rest = args
        if norm is not None:
            x = x + norm(x)
        if embedding is not None:
            x = x + embedding
        return (x, *rest), kwargs

    layer = model.model.layers[depth]
    layer.register_forward_pre_hook(enter, with_kwargs=True)
    layer.self_attn.register_forward_hook(lambda _, args, out: (out[0] * scales[0], *out[1:]))
    layer.mlp.register_forward_hook(lambda _, args, out: out * scales[1])
    if norm is not None:
        own["extras.loop_norm"] = norm.weight
    if embedding is not None:
        own["extras.loop_embedding"] = embedding
    own |= {"extras.attention_scale": scales[0], "extras.mlp_scale": scales[1]}
    return {f"model.depths.{depth}.{name}": weight for name, weight in own.items()}


def config(**recursion):
    recursion = {"num_recursions": 2, "sharing": "middle_cycle", "init": "average", "share_norms": False} | recursion
    return {"config": json.dumps(BASE | {"model_type": "recursive_llama", "recursion": recursion}, indent=2)}


def extras(seed):
    generator = torch.Generator().manual_seed(seed)
    model, weights = relaxed(lora)
    added = {}
    for depth in range(1, 5):
        added |= add_extras(depth, model, begins=depth in (1, 3), later=depth == 3)
    randomise(weights.items(), generator)
    with torch.no_grad():
        for name, vector in added.items():
            around = 1.0 if "scale" in name else 0.0
            vector.copy_(around + 0.3 * torch.randn(vector.shape, generator=generator))
    kinds = ["loop_embedding", "loop_norm", "residual_scale"]
    write("extras", golden(model, weights | added, generator), config(lora={"rank": RANK}, extras=kinds))


if __name__ == "__main__":
    extras(51)
