#!/usr/bin/env python3
"""Makes the golden file of DynamicFormer with `torch` (CPU), from the equations in `lab/src/dynamicformer`.

    python make_dynamicformer.py       # writes beside itself; torch 2.15, safetensors 0.8

`dynamicformer.safetensors`: a tiny network under the names of its fields, matrices as [inputs, outputs], everything f64
rounded to f32. `golden.spaces` [B, 2] (genus, points) and `golden.exponents` [B, P] (padding -1) are five samples,
`golden.entries` [B, M, 4] their tensors, whose double factorials are written out here. For each FORM of the activation
`golden.FORM.prediction` [B], `golden.FORM.points` and `golden.FORM.entries` [B, D] (memory tokens), and
`golden.FORM.correlation` [1]; `golden.grad.NAME` are the gradients of `Σ |prediction - 1| + correlation` with the form of
the paper. Norms over a batch are those of these samples.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = Path(__file__).parent
LARGEST, E, W, D, INNER, HEADS, GROUPS = 6, 8, 12, 16, 24, 2, 4
SAMPLES = [(1, [2, 0]), (2, [4]), (1, [1, 1]), (0, [1, 0, 0, 0]), (2, [3, 2])]


def double_factorial(n):
    return 1 if n <= 0 else n * double_factorial(n - 2)


def tensor_of(genus, points):
    top = 3 * genus - 3 + points
    rows = []
    for i in range(top + 1):
        for j in range(top + 1):
            k = i + j - 1
            if 0 <= k <= top:
                b = double_factorial(2 * k + 1) / (double_factorial(2 * i + 1) * double_factorial(2 * j - 1))
                rows.append([i, j, k, math.log(1 + 100 * b)])
    return rows


def weights():
    generator = torch.Generator().manual_seed(91)
    w = {}

    def draw(name, *shape, scale=1.0, shift=0.0):
        value = shift + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        w[name] = value.float().double().requires_grad_()

    def linear(name, inputs, outputs, bias=True):
        draw(f"{name}.weight", inputs, outputs, scale=inputs**-0.5)
        if bias:
            draw(f"{name}.bias", outputs, scale=0.3)

    def dra(name):
        draw(f"{name}.scalars", 4, scale=0.3, shift=0.7)

    def norm(name, width, beta=False):
        draw(f"{name}.gamma", width, scale=0.2, shift=1.0)
        if beta:
            draw(f"{name}.beta", width, scale=0.2)

    linear("space_in", 2, W)
    dra("space_activation")
    norm("space_norm", W, beta=True)
    linear("space_out", W, E)
    draw("exponent.weight", LARGEST + 1, E)
    for name, inputs in [("point", E), ("entry", 4)]:
        linear(f"{name}.input", inputs, W)
        linear(f"{name}.modulation", E, W)
        dra(f"{name}.inner")
        linear(f"{name}.output", W, E)
        dra(f"{name}.outer")
        encoder = f"{name}_encoder"
        linear(f"{encoder}.project_in", E, D)
        draw(f"{encoder}.token", 1, D)
        for part in ["attention_norm", "mlp_norm", "norm"]:
            norm(f"{encoder}.{part}", D)
        for part in ["query", "key", "value", "output"]:
            linear(f"{encoder}.{part}", D, D, bias=False)
        linear(f"{encoder}.up", D, INNER, bias=False)
        dra(f"{encoder}.activation")
        linear(f"{encoder}.down", INNER, D, bias=False)
        linear(f"{encoder}.project_out", D, E)
        draw(f"{name}_pooling.average_size", 1, scale=1.0, shift=5.0)
    dra("activation")
    norm("norm", 13 * E, beta=True)
    linear("hidden", 13 * E, W)
    linear("output", W, 1)
    return w


def forward(w, form):
    def linear(name, x):
        return x @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def dra(name, x):
        a, b, c, d = w[f"{name}.scalars"]
        if form == "paper":
            return x + a * torch.sin(x / b) ** 2 + c * torch.cos(b * x) + d * torch.tanh(b * x)
        if form == "model":
            return x + a * torch.sin(a * x) ** 2 / b + c * torch.cos(b * x) + d * torch.tanh(b * x)
        return x + b * torch.sin(a * x) ** 2 / a + c * torch.cos(a * x) + d * torch.tanh(b * x)

    def batch_norm(name, x):
        return F.batch_norm(x, None, None, w[f"{name}.gamma"], w[f"{name}.beta"], training=True)

    def rms(name, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.gamma"]

    def encode(name, x):  # [n, E], one set
        x = torch.cat([w[f"{name}.token"], linear(f"{name}.project_in", x)])
        y = rms(f"{name}.attention_norm", x)
        heads = lambda z: z.view(len(x), HEADS, D // HEADS).transpose(0, 1)  # noqa: E731
        unit = lambda z: F.normalize(z.reshape(HEADS, len(x), GROUPS, -1), dim=-1).reshape(HEADS, len(x), -1)  # noqa: E731
        q, k, v = (heads(linear(f"{name}.{part}", y)) for part in ["query", "key", "value"])
        mixed = torch.softmax(10 * unit(q) @ unit(k).transpose(1, 2), -1) @ v
        x = x + linear(f"{name}.output", mixed.transpose(0, 1).reshape(len(x), D))
        x = x + linear(f"{name}.down", dra(f"{name}.activation", linear(f"{name}.up", rms(f"{name}.mlp_norm", x))))
        x = rms(f"{name}.norm", x)
        return linear(f"{name}.project_out", x[1:]), x[0]

    def pool(name, x):  # [n, E]
        mean = x.mean(0)
        parts = [x.sum(0), x.max(0).values, mean, ((x - mean).pow(2).mean(0) + 1e-5).sqrt()]
        scale = math.log(len(x) + 1) / torch.log(w[f"{name}.average_size"] + 1)
        every = torch.cat(parts)
        return torch.cat([every, every * scale, every / scale])

    def side(name, x, z):
        x = linear(f"{name}.input", x) + linear(f"{name}.modulation", z)
        x = dra(f"{name}.outer", linear(f"{name}.output", dra(f"{name}.inner", x)))
        y, memory = encode(f"{name}_encoder", x)
        return pool(f"{name}_pooling", x + y), memory

    spaces = torch.tensor([[g, len(d)] for g, d in SAMPLES], dtype=torch.float64)
    z = linear("space_out", batch_norm("space_norm", dra("space_activation", linear("space_in", spaces))))
    both, points, entries = [], [], []
    for (genus, exponents), of_space in zip(SAMPLES, z):
        x, point = side("point", w["exponent.weight"][torch.tensor(exponents)], of_space)
        e, entry = side("entry", torch.tensor(tensor_of(genus, len(exponents)), dtype=torch.float64), of_space)
        both.append(dra("activation", e + x))
        points.append(point)
        entries.append(entry)
    features = batch_norm("norm", torch.cat([torch.stack(both), z], 1))
    prediction = linear("output", torch.relu(linear("hidden", features))).squeeze(1)
    points, entries = torch.stack(points), torch.stack(entries)
    standard = lambda m: F.batch_norm(m, None, None, training=True)  # noqa: E731
    c = standard(points).T @ standard(entries) / len(SAMPLES)
    diagonal = torch.diagonal(c)
    off = c - torch.diag(diagonal)
    correlation = (1 - diagonal).pow(2).sum() + 0.5 * off.pow(2).sum()
    return prediction, points, entries, correlation


if __name__ == "__main__":
    w = weights()
    most = max(len(tensor_of(g, len(d))) for g, d in SAMPLES)
    padded = [rows + [[0.0] * 4] * (most - len(rows)) for rows in (tensor_of(g, len(d)) for g, d in SAMPLES)]
    out = {name: value.detach() for name, value in w.items()}
    out["golden.spaces"] = torch.tensor([[g, len(d)] for g, d in SAMPLES])
    out["golden.exponents"] = torch.tensor([d + [-1] * (4 - len(d)) for _, d in SAMPLES])
    out["golden.entries"] = torch.tensor(padded, dtype=torch.float64)
    for form in ["paper", "model", "package"]:
        prediction, points, entries, correlation = forward(w, form)
        values = {"prediction": prediction, "points": points, "entries": entries, "correlation": correlation.view(1)}
        out |= {f"golden.{form}.{key}": value.detach() for key, value in values.items()}
        if form == "paper":
            loss = (prediction - 1).abs().sum() + correlation
            grads = torch.autograd.grad(loss, list(w.values()))
            out |= {f"golden.grad.{name}": grad for name, grad in zip(w, grads)}
    out = {name: (value.float() if value.is_floating_point() else value).contiguous() for name, value in out.items()}
    path = HERE / "dynamicformer.safetensors"
    save_file(out, path)
    path.chmod(0o644)
    print(path.name, path.stat().st_size, "bytes", len(out), "tensors")
