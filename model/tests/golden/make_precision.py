#!/usr/bin/env python3
"""Makes `precision.safetensors`: a linear with LoRA under `torch.autocast` to bf16 on the CPU, value and gradients.

    python make_precision.py        # writes beside itself; torch 2.15

`y = x Wᵀ + (x Aᵀ) Bᵀ` with f32 tensors `x` [9, 40], `weight` [24, 40], `a` [3, 40], `b` [24, 3]; `y` in f32, and for the gradient `grad` [9, 24]
of it `grad.x`, `grad.weight`, `grad.a`, `grad.b`. `exact.y` and `exact.grad.*` are the same in f64, without rounding.
"""

import torch
import torch.nn.functional as F
from make_llama import write

NAMES = ("x", "weight", "a", "b")


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(31)
    shapes = {"x": (9, 40), "weight": (24, 40), "a": (3, 40), "b": (24, 3)}
    inputs = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    grad = torch.randn(9, 24, generator=generator)
    out = dict(inputs, grad=grad)

    leaves = [inputs[name].clone().requires_grad_() for name in NAMES]
    x, weight, a, b = leaves
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = F.linear(x, weight), F.linear(F.linear(x, a), b)
    assert first.dtype == torch.bfloat16
    y = first.float() + second.float()
    out["y"] = y
    out |= {f"grad.{name}": g for name, g in zip(NAMES, torch.autograd.grad(y, leaves, grad))}

    leaves = [inputs[name].double().requires_grad_() for name in NAMES]
    x, weight, a, b = leaves
    y = F.linear(x, weight) + F.linear(F.linear(x, a), b)
    out["exact.y"] = y.float()
    out |= {f"exact.grad.{name}": g.float() for name, g in zip(NAMES, torch.autograd.grad(y, leaves, grad.double()))}
    write("precision", out)


if __name__ == "__main__":
    main()
