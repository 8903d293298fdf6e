#!/usr/bin/env python3
"""Makes the golden file of HorNet's recursive gated convolution in two dimensions, with `torch` (CPU), from the equations
in `configs/src/steps/gnconv.rs`.

    python make_hornet.py          # writes beside itself; torch 2.15

`hornet.safetensors` has for each case a prefix (`a.`: order 3, a kernel of 3 × 3, two pictures of 5 × 6; `b.`: order 5, 7 × 7,
one picture of 4 × 9), under it the weights as `step.gnconv` names them, with `conv.weight` [S, kernel²], the pictures `x` and
what comes out `y`, [pictures × height × width, D], computed in f64; `y` has not been scaled by `gnconv.scale`.
"""

import torch
import torch.nn.functional as F
from make_llama import write

D = 16


def case(seed, order, kernel, pictures, height, width):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    widths = [D >> (order - 1 - k) for k in range(order)]
    s = sum(widths)
    weights = {}

    def affine(name, out, into):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = draw(out, into) / into**0.5, 0.3 * draw(out)

    affine("in_proj", 2 * D, D)
    weights["conv.weight"], weights["conv.bias"] = draw(s, kernel * kernel) / kernel * 3, draw(s)
    for k, (into, out) in enumerate(zip(widths, widths[1:])):
        affine(f"between.{k}", out, into)
    affine("out_proj", D, D)
    weights = {name: weight.float().double() for name, weight in weights.items()}
    x = draw(pictures, D, height, width).float().double()
    linear = lambda name, y: F.conv2d(y, weights[f"{name}.weight"][..., None, None], weights[f"{name}.bias"])  # noqa: E731
    p, q = torch.split(linear("in_proj", x), [widths[0], s], 1)
    filters = weights["conv.weight"].view(s, 1, kernel, kernel)
    q = F.conv2d(q, filters, weights["conv.bias"], padding=kernel // 2, groups=s) / 3
    for k, gate in enumerate(torch.split(q, widths, 1)):
        p = (p if k == 0 else linear(f"between.{k - 1}", p)) * gate
    rows = lambda y: y.permute(0, 2, 3, 1).reshape(-1, D)  # noqa: E731
    return weights | {"x": rows(x), "y": rows(linear("out_proj", p))}


if __name__ == "__main__":
    cases = {"a": case(81, 3, 3, 2, 5, 6), "b": case(82, 5, 7, 1, 4, 9)}
    write("hornet", {f"{name}.{key}": value.float() for name, found in cases.items() for key, value in found.items()})
