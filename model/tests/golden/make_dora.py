#!/usr/bin/env python3
"""Makes `dora.safetensors`: a recursive Llama whose shared linears are peft's DoRA linears (CPU, eager attention).

    python make_dora.py             # writes beside itself; peft 0.21, transformers 5.24, torch 2.15

Four depths over two stored layers (`cycle`, two recursions), own norms and biases, DoRA of rank 3 with scaling 1 at each depth. Names and
values are those of `make_llama.py`.

Magnitudes are drawn up to 20 % off the norms of their rows, so that a row's gradient through the norm, which peft leaves out, would be seen:
the script checks that.
"""

import json

import torch
from make_llama import NORMS, PROJECTIONS, build, golden, randomise, write
from peft.tuners.lora import LoraConfig
from peft.tuners.lora import layer as lora_layer
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

RECURSIONS, RANK = 2, 3
BASE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 48,
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
}


def dora(shared):
    """peft's linear around one that has the weight of `shared` and a bias of its own."""
    own = nn.Linear(shared.in_features, shared.out_features)
    own.weight = shared.weight
    config = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, use_dora=True, init_lora_weights=False)
    linear = lora_layer.Linear(own, "default", config, r=RANK, lora_alpha=RANK)
    assert linear.scaling["default"] == 1.0 and linear.use_dora["default"]
    for p in linear.parameters():
        p.requires_grad_(True)
    return linear


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(12)
    model = build(BASE)
    block = BASE["num_hidden_layers"] // RECURSIONS
    stored = [LlamaDecoderLayer(model.config, i).float() for i in range(block)]
    weights = {"model.embed_tokens.weight": model.model.embed_tokens.weight, "model.norm.weight": model.model.norm.weight}
    magnitudes, linears = {}, []
    for i, layer in enumerate(stored):
        weights |= {f"model.layers.{i}.{p}.weight": layer.get_submodule(p).weight for p in PROJECTIONS}
    for d, depth in enumerate(model.model.layers):
        for norm in NORMS:
            weights[f"model.depths.{d}.{norm}.weight"] = depth.get_submodule(norm).weight
        for p in PROJECTIONS:
            linear = dora(stored[d % block].get_submodule(p))
            parent, leaf = p.split(".")
            setattr(depth.get_submodule(parent), leaf, linear)
            at = f"model.depths.{d}.{p}"
            weights[f"{at}.bias"] = linear.base_layer.bias
            weights[f"{at}.lora_A.weight"] = linear.lora_A["default"].weight
            weights[f"{at}.lora_B.weight"] = linear.lora_B["default"].weight
            magnitudes[f"{at}.lora_magnitude_vector"] = linear.lora_magnitude_vector["default"].weight
            linears.append(linear)
    randomise(weights.items(), generator)
    with torch.no_grad():
        for linear, m in zip(linears, magnitudes.values()):
            row = linear.get_base_layer().weight + linear.lora_B["default"].weight @ linear.lora_A["default"].weight
            m.copy_(row.norm(dim=1) * (0.8 + 0.4 * torch.rand(m.shape, generator=generator)))
    # As peft names them in a file: without the `weight` of the module that holds them.
    weights |= magnitudes
    assert len(list(model.parameters())) == len(weights), "a parameter was left out, or is there twice"
    tensors = golden(model, weights, generator)

    # A gradient that went through the norms would be another one.
    def through(linear, x):
        v = linear.get_base_layer().weight + linear.lora_B["default"].weight @ linear.lora_A["default"].weight
        m = linear.lora_magnitude_vector["default"].weight
        return x @ (v * (m / v.norm(dim=1))[:, None]).T + linear.get_base_layer().bias

    x = torch.randn(5, linears[0].in_features, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(through(linears[0], x), linears[0](x))
    target = linears[0].get_base_layer().weight
    grads = [torch.autograd.grad(f(x).square().sum(), target)[0] for f in (linears[0], lambda x: through(linears[0], x))]
    assert (grads[0] - grads[1]).abs().max() > 0.1 * grads[0].abs().max()

    config = BASE | {
        "model_type": "recursive_llama", "architectures": ["RecursiveLlamaForCausalLM"],
        "recursion": {"num_recursions": RECURSIONS, "sharing": "cycle", "init": "average", "share_norms": False,
                      "lora": {"rank": RANK, "relax": "dora"}},
    }
    write("dora", tensors, {"config": json.dumps(config, indent=2)})


if __name__ == "__main__":
    main()
