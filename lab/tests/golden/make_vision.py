#!/usr/bin/env python3
"""Makes `vision.safetensors` with `torch` (CPU, f64): what small instances of the networks of `lab/src/vision` compute, from the
equations of their papers.

    python make_vision.py          # writes beside itself; torch 2.15

Weights and inputs are in no file: both sides draw them by name (see `draw`). Sizes of the instances are in
`lab/tests/vision_values.rs`.

* `sret` [2, 5]                logits; slices of the second application of a block are every g-th pixel
* `hornet` [2, 5]              logits
* `rgt` [2, 3, 24, 20]         pictures of twice the size; windows of 2 × 4, padded and moved; one reduction
* `rgt.block` [512, 32]        a block with recursive attention; two reductions by one filter
* `absiu`, `mgfu`, `aspp`      modules of MSRNet, from pictures of three sizes, and of one
* `msrnet` [2, 1, 16, 12]      logits of pixels of a network with two levels
* `views.all`, `views.whole`, `views.odd`   FlashVGGT with all keys, with descriptors of 2 × 2 and one whole view, and with
                               descriptors of 3 × 3 and none; `views.wide` has blocks of 4 × 4
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

GAMMA, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(name, count):
    """Numbers from −1 to 1 of the stream of `retie_tasks::Random` of this purpose, seed 0 and index 0."""
    purpose = GAMMA
    for byte in name.encode():
        purpose = mix(purpose ^ byte)
    state = mix(mix((mix(purpose) + GAMMA) & MASK))
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53 * 2 - 1


def draw(name, *shape):
    """A weight: of variance 1 / fan-in, or near 1 for factors, or near 0 for biases."""
    value = uniform(name, int(np.prod(shape)))
    if len(shape) > 1:
        value *= (3 / np.prod(shape[1:])) ** 0.5
    elif name.endswith(("bias", "beta", "running_mean")):
        value *= 0.5
    else:
        value = 1 + 0.5 * value
    return torch.from_numpy(value.astype(np.float32).astype(np.float64)).view(*shape)


def picture(name, *shape):
    return torch.from_numpy(uniform(name, int(np.prod(shape))).astype(np.float32).astype(np.float64)).view(*shape)


def linear(name, x, out):
    return F.linear(x, draw(f"{name}.weight", out, x.shape[-1]), draw(f"{name}.bias", out))


def layer_norm(name, x, eps):
    d = x.shape[-1]
    return F.layer_norm(x, (d,), draw(f"{name}.weight", d), draw(f"{name}.bias", d), eps)


def conv(name, x, out, kernel, bias=True, groups=1, **how):
    weight = draw(f"{name}.weight", out, x.shape[1] // groups, kernel, kernel)
    return F.conv2d(x, weight, draw(f"{name}.bias", out) if bias else None, groups=groups, **how)


def depthwise(name, x, kernel, **how):
    c = x.shape[1]
    weight = draw(f"{name}.weight", c, kernel * kernel).view(c, 1, kernel, kernel)
    return F.conv2d(x, weight, draw(f"{name}.bias", c), groups=c, **how)


def batch_norm(name, x):
    c = x.shape[1]
    mean, var = draw(f"{name}.running_mean", c), draw(f"{name}.running_var", c)
    return F.batch_norm(x, mean, var, draw(f"{name}.gamma", c), draw(f"{name}.beta", c), False, 0.0, 1e-5)


def rows(x):
    return x.flatten(2).transpose(1, 2)


def maps(x, h, w):
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], h, w)


def attention(q, k, v, heads, extra=0.0):
    """[..., N, ·] each, heads side by side."""
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(-2, -3)  # noqa: E731
    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + extra
    return (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)


def sret():
    """u = α1 x + α2 GSA(LN x), y = α3 u + α4 FFN(LN u), then β1 y + β2 W2 GELU(W1 LN y)."""
    name, x = "sret", picture("sret.pictures", 2, 3, 32, 32)
    for i, width in enumerate([4, 8, 8]):
        x = conv(f"{name}.stem.{i}.conv", x, width, 3, stride=2, padding=1)
        x = F.relu(batch_norm(f"{name}.stem.{i}.norm", x))
    x = x + draw(f"{name}.positions", 1, 8, 4, 4)
    for s, (heads, blocks, groups) in enumerate([(2, 2, (4, 2)), (4, 1, (2, 1))]):
        h, w = x.shape[2:]
        y, d = rows(x), 4 * heads
        for b in range(blocks):
            for again in range(2):
                at, g = f"{name}.stages.{s}.blocks.{b}", groups[again]
                n = y.shape[1]
                order = torch.arange(n)
                if again:
                    order = torch.cat([torch.arange(first, n, g) for first in range(g)])
                qkv = linear(f"{at}.qkv", layer_norm(f"{at}.norm1", y, 1e-6), 3 * d)[:, order]
                q, k, v = qkv.unflatten(1, (g, n // g)).chunk(3, -1)
                a = attention(q, k, v, heads).flatten(1, 2)[:, torch.argsort(order)]
                alpha = draw(f"{at}.coefficients", 4)
                y = alpha[0] * y + alpha[1] * linear(f"{at}.proj", a, d)
                wide = F.gelu(linear(f"{at}.up", layer_norm(f"{at}.norm2", y, 1e-6), int(1.6 * d)))
                y = alpha[2] * y + alpha[3] * linear(f"{at}.down", wide, d)
                at = f"{name}.stages.{s}.projections.{2 * b + again}"
                beta = draw(f"{at}.scales", 2)
                wide = F.gelu(linear(f"{at}.up_proj", layer_norm(f"{at}.norm", y, 1e-6), 2 * d))
                y = beta[0] * y + beta[1] * linear(f"{at}.down_proj", wide, d)
        x = maps(y, h, w)
        if s == 0:
            x = conv(f"{name}.pools.0", x, 16, 3, stride=2, padding=1, groups=8)
    return linear(f"{name}.head", layer_norm(f"{name}.norm", x.mean((2, 3)), 1e-6), 5)


def hornet():
    """[p, q…] = φ_in(x); q ← DWConv(q) / 3; p ← W p ⊙ q, one after the other; y = φ_out(p)."""
    name = "hornet"
    x = conv(f"{name}.patches", picture("hornet.pictures", 2, 3, 12, 16), 8, 2, stride=2)
    h, w = x.shape[2:]
    x = maps(layer_norm(f"{name}.first_norm", rows(x), 1e-6), h, w)
    for s, (depth, order) in enumerate([(2, 2), (1, 3)]):
        h, w = x.shape[2:]
        y, d = rows(x), 8 << s
        widths = [d >> (order - 1 - k) for k in range(order)]
        for b in range(depth):
            at = f"{name}.stages.{s}.blocks.{b}"
            both = linear(f"{at}.gnconv.in_proj", layer_norm(f"{at}.norm1", y, 1e-6), 2 * d)
            p, q = both.split([widths[0], sum(widths)], -1)
            q = rows(depthwise(f"{at}.gnconv.conv", maps(q, h, w), 5, padding=2)) / 3
            for k, gate in enumerate(q.split(widths, -1)):
                p = (p if k == 0 else linear(f"{at}.gnconv.between.{k - 1}", p, widths[k])) * gate
            y = y + draw(f"{at}.gnconv.scale", d) * linear(f"{at}.gnconv.out_proj", p, d)
            wide = F.gelu(linear(f"{at}.up", layer_norm(f"{at}.norm2", y, 1e-6), 4 * d))
            y = y + draw(f"{at}.scale", d) * linear(f"{at}.down", wide, d)
        x = maps(y, h, w)
        if s == 0:
            x = maps(layer_norm(f"{name}.norms.0", y, 1e-6), h, w)
            x = conv(f"{name}.pools.0", x, 16, 2, stride=2)
    return linear(f"{name}.head", layer_norm(f"{name}.norm", x.mean((2, 3)), 1e-6), 5)


def position_bias(at, heads, h, w):
    """A network of the distance of two pixels; LN, ReLU, linear three times."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], 1)
    distance = (place[:, None] - place[None]).double()
    z = linear(f"{at}.first", distance, 2)
    for i, out in enumerate([2, 2, heads]):
        z = linear(f"{at}.layers.{i}", F.relu(layer_norm(f"{at}.norms.{i}", z, 1e-5)), out)
    return z.permute(2, 0, 1)


def local_attention(at, x, h, w, heads, window, moved):
    d = x.shape[-1]
    qkv = linear(f"{at}.qkv", x, 3 * d)
    side = max(window)
    padded = F.pad(maps(qkv, h, w), (0, -w % side, 0, -h % side))
    big_h, big_w = padded.shape[2:]
    halves = []
    for kind in range(2):
        a, b = window if kind == 0 else window[::-1]
        by = (a // 2, b // 2) if moved else (0, 0)
        parts = torch.cat([p[:, kind * d // 2 : (kind + 1) * d // 2] for p in padded.chunk(3, 1)], 1)
        parts = torch.roll(parts, (-by[0], -by[1]), (2, 3))

        def cut(z):
            z = z.unflatten(2, (big_h // a, a)).unflatten(4, (big_w // b, b))
            return z.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)  # picture, down, across, pixel, channel

        scores = position_bias(f"{at}.biases.{kind}", heads // 2, a, b)
        if moved:
            # Pixels that wrap around are apart from the others of their window.
            zone_y = (torch.arange(big_h) >= big_h - a).long() + (torch.arange(big_h) >= big_h - by[0]).long()
            zone_x = (torch.arange(big_w) >= big_w - b).long() + (torch.arange(big_w) >= big_w - by[1]).long()
            zone = cut((3 * zone_y[:, None] + zone_x[None])[None, None].double())[..., 0]
            scores = scores - 100.0 * (zone[..., None] != zone[..., None, :]).double()[..., None, :, :]
        q, k, v = cut(parts).chunk(3, -1)
        out = attention(q, k, v, heads // 2, scores).unflatten(3, (a, b))
        out = out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        halves.append(torch.roll(out, by, (2, 3))[:, :, :h, :w])
    beside = depthwise(f"{at}.around", maps(qkv[..., 2 * d :], h, w), 3, padding=1)
    return linear(f"{at}.proj", rows(torch.cat(halves, 1) + beside), d)


def recursive_attention(at, x, h, w, heads, reductions):
    d = x.shape[-1]
    z = maps(x, h, w)
    for _ in range(reductions):
        z = depthwise(f"{at}.reduction", z, 4, stride=4)
    small = z.shape[2:]
    z = linear(f"{at}.narrow", rows(depthwise(f"{at}.around", z, 3, padding=1)), d // 2)
    z = F.gelu(layer_norm(f"{at}.norm", z, 1e-5))
    v = linear(f"{at}.v_proj", z, d)
    v = v + rows(depthwise(f"{at}.positions", maps(v, *small), 3, padding=1))
    q, k = linear(f"{at}.q_proj", x, d // 2), linear(f"{at}.k_proj", z, d // 2)
    return linear(f"{at}.o_proj", attention(q, k, v, heads), d)


def rgt_block(at, x, h, w, attend):
    d = x.shape[-1]
    y = x + attend(layer_norm(f"{at}.norm1", x, 1e-5))
    one, two = F.gelu(linear(f"{at}.up", layer_norm(f"{at}.norm2", y, 1e-5), 2 * d)).chunk(2, -1)
    gate = depthwise(f"{at}.gate", maps(layer_norm(f"{at}.gate_norm", two, 1e-5), h, w), 3, padding=1)
    y = y + linear(f"{at}.down", one * rows(gate), d)
    return y + draw(f"{at}.integration", d) * x


def rgt():
    name, d, heads = "rgt", 64, 4
    mean = torch.tensor([0.4488, 0.4371, 0.4040], dtype=torch.float64).view(1, 3, 1, 1)
    first = conv(f"{name}.first", picture("rgt.pictures", 2, 3, 12, 10) - mean, d, 3, padding=1)
    h, w = first.shape[2:]
    x = layer_norm(f"{name}.first_norm", rows(first), 1e-5)
    for g, depth in enumerate([3, 2]):
        y = x
        for b in range(depth):
            at = f"{name}.groups.{g}.blocks.{b}"
            if b % 2:
                where = f"{at}.attention.Recursive"
                y = rgt_block(at, y, h, w, lambda z: recursive_attention(where, z, h, w, heads, 1))
            else:
                moved = (b % 4 == 2) if g % 2 == 0 else (b % 4 == 0)
                where = f"{at}.attention.Local"
                y = rgt_block(at, y, h, w, lambda z: local_attention(where, z, h, w, heads, (2, 4), moved))
        x = x + rows(conv(f"{name}.groups.{g}.conv", maps(y, h, w), d, 3, padding=1))
    x = conv(f"{name}.after", maps(layer_norm(f"{name}.norm", x, 1e-5), h, w), d, 3, padding=1) + first
    x = F.leaky_relu(conv(f"{name}.before_shuffle", x, 64, 3, padding=1), 0.01)
    x = F.pixel_shuffle(conv(f"{name}.shuffled.0", x, 256, 3, padding=1), 2)
    return conv(f"{name}.last", x, 3, 3, padding=1) + mean


def rgt_recursive():
    at, x = "rgt.block", picture("rgt.rows", 1, 512, 32)
    block = rgt_block(at, x, 32, 16, lambda z: recursive_attention(f"{at}.attention.Recursive", z, 32, 16, 2, 2))
    return block[0]


def conv_norm_relu(at, x, out, kernel, relu=True, **how):
    x = batch_norm(f"{at}.norm", conv(f"{at}.conv", x, out, kernel, bias=False, **how))
    return F.relu(x) if relu else x


def absiu(at, large, main, small, groups):
    c, size = main.shape[1], main.shape[2:]
    pool = lambda x: F.adaptive_max_pool2d(x, size) + F.adaptive_avg_pool2d(x, size)  # noqa: E731
    large = pool(conv_norm_relu(f"{at}.large_before", large, c, 3, padding=1))
    small = pool(conv_norm_relu(f"{at}.small_before", small, c, 3, padding=1))
    sizes = [conv_norm_relu(f"{at}.sizes.{i}", x, c, 3, padding=1) for i, x in enumerate([large, main, small])]
    lms = torch.cat(sizes, 1)
    scores, merged = (conv_norm_relu(f"{at}.{n}", lms, 3 * c, 1) for n in ["scores", "merged"])
    out = []
    for g in range(groups):
        own = [slice(size * c + g * c // groups, size * c + (g + 1) * c // groups) for size in range(3)]
        a = conv_norm_relu(f"{at}.narrow", torch.cat([scores[:, s] for s in own], 1), c // groups, 1)
        a = conv_norm_relu(f"{at}.around", a, c // groups, 3, padding=1)
        a = conv(f"{at}.out", a, 3, 1).softmax(1)
        out.append(sum(a[:, i : i + 1] * merged[:, s] for i, s in enumerate(own)))
    return torch.cat(out, 1)


def mgfu(at, x, groups):
    c = x.shape[1] // 2
    outs, gates, fork = [], [], None
    for g, part in enumerate(conv_norm_relu(f"{at}.expand", x, groups * c, 1).chunk(groups, 1)):
        last = g + 1 == groups
        y = part if fork is None else torch.cat([part, fork], 1)
        y = conv_norm_relu(f"{at}.groups.{g}", y, (2 if last else 3) * c, 3, padding=1)
        outs.append(y[:, :c])
        gates.append(y[:, -c:])
        fork = y[:, c : 2 * c]
    gate = torch.cat(gates, 1).mean((2, 3), keepdim=True)
    gate = conv(f"{at}.gate_out", F.relu(conv(f"{at}.gate_in", gate, c, 1)), groups * c, 1).softmax(1)
    return F.relu(x + conv_norm_relu(f"{at}.join", torch.cat(outs, 1) * gate, 2 * c, 3, False, padding=1))


def aspp(at, x, out):
    y, mean = conv_norm_relu(f"{at}.split", x, 2 * out, 1).chunk(2, 1)
    mean = conv_norm_relu(f"{at}.mean", mean.mean((2, 3), keepdim=True), out, 1)
    parts = [mean.expand_as(y), y]
    for i in range(3):
        parts.append(conv_norm_relu(f"{at}.dilated.{i}", parts[-1], out, 3, padding=3, dilation=3))
    y = conv_norm_relu(f"{at}.fuse", torch.cat(parts, 1), out, 1)
    return conv_norm_relu(f"{at}.around", y, out, 3, padding=1)


def bilinear(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def msrnet():
    name, x = "msrnet", picture("msrnet.pictures", 2, 3, 16, 12)
    levels = []
    for factor in (2.0, 1.0, 1.5):
        y, found = bilinear(x, [int(16 * factor), int(12 * factor)]), []
        for i, width in enumerate([6, 10]):
            y = F.adaptive_avg_pool2d(y, [y.shape[2] // 2, y.shape[3] // 2])
            y = conv_norm_relu(f"{name}.encoder.{i}", y, width, 3, padding=1)
            found.append(y)
        levels.append(found)
    coarser = []
    for level in (1, 0):
        if level == 1:
            sizes = [aspp(f"{name}.coarsest", found[1], 8) for found in levels]
        else:
            sizes = [conv_norm_relu(f"{name}.finer.0", found[0], 8, 3, padding=1) for found in levels]
        fused = absiu(f"{name}.fusions.{level}", *sizes, 2)
        fused = fused + sum(bilinear(y, fused.shape[2:]) for y in coarser)
        coarser.append(mgfu(f"{name}.units.{level}", fused, 3))
    y = conv_norm_relu(f"{name}.before", bilinear(coarser[-1], (16, 12)), 4, 3, padding=1)
    return conv(f"{name}.out", y, 1, 1)


def rotated(x, positions):
    """Half the channels of a head by the row of a patch, half by its column: pairs i, i + n/2 of each half."""
    halves = []
    for axis, half in enumerate(x.chunk(2, -1)):
        n = half.shape[-1]
        angle = positions[:, axis, None].double() * 100.0 ** (-torch.arange(0, n, 2).double() / n)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = half.chunk(2, -1)
        halves.append(torch.cat([a * cos - b * sin, b * cos + a * sin], -1))
    return torch.cat(halves, -1)


def views(h, w, ratio, whole):
    """Two scenes of three views of h × w patches; `ratio` 0 for all keys."""
    name, scenes, number, d, heads, specials = "views", 2, 3, 16, 2, 2
    x = conv(f"{name}.patches", picture(f"views.pictures.{h}", scenes * number, 3, 2 * h, 2 * w), d, 2, stride=2)
    patches = rows(x)
    tokens = draw(f"{name}.specials", 2 * specials, d)
    first = torch.arange(scenes * number) % number == 0
    special = torch.where(first[:, None, None], tokens[:specials], tokens[specials:])
    x = torch.cat([special, patches], 1).view(scenes, number, -1, d)
    y, z = torch.meshgrid(torch.arange(h) + 1, torch.arange(w) + 1, indexing="ij")
    grid = torch.stack([y, z], -1)
    view_places = torch.cat([torch.zeros(specials, 2, dtype=torch.long), grid.flatten(0, 1)])

    def block(at, x, make_keys, places, key_places):
        """[S, N, d], and what keys and values are made of."""
        normed = layer_norm(f"{at}.norm1", x, 1e-5)
        hidden = make_keys(normed)

        def split(part, y, positions):
            y = linear(f"{at}.{part}_proj", y, d).unflatten(-1, (heads, -1))
            return rotated(layer_norm(f"{at}.{part}_norm", y, 1e-5), positions).flatten(-2)

        q, k = split("q", normed, places), split("k", hidden, key_places)
        v = linear(f"{at}.v_proj", hidden, d)
        x = x + draw(f"{at}.scale1", d) * linear(f"{at}.o_proj", attention(q, k, v, heads), d)
        wide = F.gelu(linear(f"{at}.up", layer_norm(f"{at}.norm2", x, 1e-5), 4 * d))
        return x + draw(f"{at}.scale2", d) * linear(f"{at}.down", wide, d)

    def descriptors(y):
        y = y.unflatten(1, (number, -1))
        images = y[:, :, specials:].flatten(0, 1).transpose(1, 2).unflatten(2, (h, w))
        small = F.interpolate(images, (h // ratio, w // ratio), mode="bilinear", align_corners=False)
        small = small.flatten(2).transpose(1, 2).unflatten(0, (scenes, number))
        per_view = torch.cat([y[:, :, :specials], small], 2).flatten(1, 2)
        return torch.cat([y[:, i, specials:] for i in whole] + [per_view], 1)

    places = view_places.repeat(number, 1)
    key_places = places
    if ratio:
        corner = torch.cat([view_places[:specials], grid[::ratio, ::ratio].flatten(0, 1)])
        key_places = torch.cat([view_places[specials:]] * len(whole) + [corner.repeat(number, 1)])
    for b in range(2):
        flat = block(f"{name}.within.{b}", x.flatten(0, 1), lambda y: y, view_places, view_places)
        across = flat.view(scenes, -1, d)
        x = block(f"{name}.across.{b}", across, descriptors if ratio else lambda y: y, places, key_places)
        x = x.view(scenes, number, -1, d)
    patches = layer_norm(f"{name}.norm", x[:, :, specials:].flatten(0, 1), 1e-5)
    return maps(linear(f"{name}.head", patches, 3), h, w)


def modules():
    sizes = [picture(f"absiu.{n}", 2, 8, *s) for n, s in [("large", (12, 8)), ("main", (6, 4)), ("small", (9, 6))]]
    return {
        "absiu": absiu("absiu", *sizes, 2),
        "mgfu": mgfu("mgfu", picture("mgfu.maps", 2, 8, 5, 6), 3),
        "aspp": aspp("aspp", picture("aspp.maps", 2, 10, 7, 6), 4),
    }


if __name__ == "__main__":
    found = {
        "sret": sret(),
        "hornet": hornet(),
        "rgt": rgt(),
        "rgt.block": rgt_recursive(),
        **modules(),
        "msrnet": msrnet(),
        "views.all": views(6, 6, 0, []),
        "views.whole": views(6, 6, 2, [0]),
        "views.odd": views(6, 6, 3, []),
        "views.wide": views(8, 4, 4, [0, 2]),
    }
    path = Path(__file__).parent / "vision.safetensors"
    save_file({name: value.float().contiguous() for name, value in found.items()}, path)
    path.chmod(0o644)
    for name, value in found.items():
        print(name, list(value.shape), f"{value.abs().max():.3g} {value.std():.3g}")
