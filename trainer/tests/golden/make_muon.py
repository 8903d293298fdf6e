"""Steps of `torch.optim.Muon`: muon.safetensors.

    python make_muon.py          (torch 2.9 or later, safetensors)

For a wide, a tall and a square matrix: `NAME.param`, `NAME.grad.{0..3}`, and the matrix after each step,
`NAME.ADJUSTMENT.KIND.{0..3}`. ADJUSTMENT is `adjust_lr_fn`. torch iterates in bf16, KIND `bf16`; with KIND `f32` its
`torch.bfloat16` means f32, so that the arithmetic itself can be compared.

lr 0.02, momentum 0.95 with Nesterov, 5 iterations, weight decay 0.1. The third gradient is of rank 1.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

SHAPES = {"wide": (6, 20), "tall": (24, 5), "square": (8, 8)}


def steps(start, grads, adjustment):
    param = nn.Parameter(start.clone())
    optimizer = torch.optim.Muon([param], lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn=adjustment)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
        yield param.detach().clone()


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(7)
    bf16 = torch.bfloat16
    out = {}
    for name, shape in SHAPES.items():
        start = torch.randn(shape, generator=generator)
        grads = [scale * torch.randn(shape, generator=generator) for scale in (1.0, 0.05, 0.6, 3e-4)]
        grads[2] = grads[2][:, :1] @ grads[2][:1, :]
        out[f"{name}.param"] = start
        out |= {f"{name}.grad.{i}": grad for i, grad in enumerate(grads)}
        for adjustment in ("original", "match_rms_adamw"):
            for kind, dtype in (("bf16", bf16), ("f32", torch.float32)):
                torch.bfloat16 = dtype
                out |= {f"{name}.{adjustment}.{kind}.{i}": x for i, x in enumerate(steps(start, grads, adjustment))}
    torch.bfloat16 = bf16
    path = Path(__file__).parent / "muon.safetensors"
    save_file({name: x.contiguous() for name, x in out.items()}, path)
    path.chmod(0o644)
    for name in SHAPES:
        a, b = (out[f"{name}.original.{kind}.3"] for kind in ("bf16", "f32"))
        assert not torch.equal(a, b), "the iteration was in one precision"
        print(name, "largest difference of bf16", (a - b).abs().max().item())
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
