#!/usr/bin/env python3
"""Makes the golden file of the recursive path encoder with `torch` (CPU), from the equations in `lab/src/paths/mod.rs`.

    python make_pathformer.py          # writes beside itself; torch 2.15, safetensors 0.8

`pathformer.safetensors`: a tiny network under the names of its fields, matrices as [inputs, outputs], everything f64
rounded to f32, and for the queries below `golden.NAME.h` [D] and `golden.NAME.scores` [entities] (cosine / 0.05).
Transformer layers are those of `torch.nn.TransformerEncoderLayer` (post-norm, GELU), with the weights put in.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
ENTITIES, RELATIONS, D, INNER, HEADS, LAYERS, LONGEST = 5, 3, 16, 24, 4, 2, 3
generator = torch.Generator().manual_seed(92)


def draw(*shape, scale=1.0, shift=0.0):
    value = shift + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return value.float().double()


def layer(weights, name):
    """A layer of torch, whose weights are added under our names."""
    torch_layer = nn.TransformerEncoderLayer(D, HEADS, INNER, 0.0, "gelu", 1e-5, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        parts = {}
        for index, part in enumerate(["query", "key", "value"]):
            weight, bias = draw(D, D, scale=D**-0.5), draw(D, scale=0.2)
            torch_layer.self_attn.in_proj_weight[index * D : (index + 1) * D] = weight.T
            torch_layer.self_attn.in_proj_bias[index * D : (index + 1) * D] = bias
            parts |= {f"mha.{part}.weight": weight, f"mha.{part}.bias": bias}
        linears = {
            "mha.output": torch_layer.self_attn.out_proj,
            "pwff.linear_inner": torch_layer.linear1,
            "pwff.linear_outer": torch_layer.linear2,
        }
        for part, linear in linears.items():
            weight, bias = draw(linear.in_features, linear.out_features, scale=linear.in_features**-0.5), draw(linear.out_features, scale=0.2)
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias)
            parts |= {f"{part}.weight": weight, f"{part}.bias": bias}
        # burn's norm_1 is the one after attention, as torch's.
        for part, norm in [("norm_1", torch_layer.norm1), ("norm_2", torch_layer.norm2)]:
            gamma, beta = draw(D, scale=0.2, shift=1.0), draw(D, scale=0.2)
            norm.weight.copy_(gamma)
            norm.bias.copy_(beta)
            parts |= {f"{part}.gamma": gamma, f"{part}.beta": beta}
    weights |= {f"{name}.{part}": value for part, value in parts.items()}
    return torch_layer.eval(), weights


if __name__ == "__main__":
    w = {
        "entity.weight": draw(ENTITIES, D),
        "relation.weight": draw(RELATIONS, D),
        "sign.weight": draw(2, D),
        "position.weight": draw(LONGEST + 3, D, scale=0.5),
    }
    path_layers = []
    for index in range(LAYERS):
        made, w = layer(w, f"path.layers.{index}")
        path_layers.append(made)
    branch_layer, w = layer(w, "branch.layers.0")

    def path(source, *relations, negated=False):
        tokens = [source, *(w["relation.weight"][r] for r in relations)]
        tokens += [w["sign.weight"][0]] * negated + [w["sign.weight"][1]]
        x = (torch.stack(tokens) + w["position.weight"][: len(tokens)])[None]
        for made in path_layers:
            x = made(x)
        return x[0, -1]

    def branch(*parts):
        return branch_layer(torch.stack(parts)[None])[0].mean(0)

    e = w["entity.weight"]
    with torch.no_grad():
        queries = {
            "2p": [path(e[3], 1, 2)],
            "pni": [branch(path(e[0], 2, 0, negated=True), path(e[4], 1))],
            "ip": [path(branch(path(e[1], 0), path(e[2], 1)), 2)],
            "2u": [path(e[1], 0), path(e[3], 2)],
        }
    out = dict(w)
    for name, disjuncts in queries.items():
        scores = torch.stack([F.normalize(h, dim=0) @ F.normalize(e, dim=1).T / 0.05 for h in disjuncts])
        out |= {f"golden.{name}.h": disjuncts[0], f"golden.{name}.scores": scores.max(0).values}
    target = HERE / "pathformer.safetensors"
    save_file({name: value.float().contiguous() for name, value in out.items()}, target)
    target.chmod(0o644)
    print(target.name, target.stat().st_size, "bytes", len(out), "tensors")
