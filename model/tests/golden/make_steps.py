#!/usr/bin/env python3
"""Makes golden files of steps, with `transformers` and `torch` (CPU), from the equations in `configs/src/steps`.

    python make_steps.py          # writes beside itself; transformers 5.24, torch 2.15

Six depths over four stored layers (`middle_cycle`, two recursions), own norms, no LoRA; every tensor of a mechanism has values
that are not those it starts with.

* `steps_a.safetensors`  `silu_dra`, `coefficients`, `hai`, `nll`; in the second recursion slices of every third token and `dense`.
* `steps_b.safetensors`  `dra` as in its package; in the second recursion slices of five tokens and Snake.
* `steps_c.safetensors`  `dra` as in the paper, in the second recursion as in the code of its model.
* `steps_e.safetensors`  `gnconv` beside attention, in the second recursion in its place.
* `steps_f.safetensors`  `grouped_softmax` after the second recursion, which `dense` begins.
* `steps_g.safetensors`  `rg` of four latents with keys in half of the channels, in the second recursion of two latents.
* `steps_h.safetensors`  `resolution` of two, beside `hai`, in the second recursion of three.
* `steps_d.safetensors`  `descriptor`: means of three tokens, in the second recursion every other centre of four behind sinks.

Keys as in the files of `make_llama.py`.
"""

import json
import types

import torch
import torch.nn.functional as F
from make_llama import golden, randomise, write
from make_relaxed import BASE, LAYERS, relaxed
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, apply_rotary_pos_emb

D = BASE["hidden_size"]
PASSES = {1: 0, 3: 1}  # depths that begin a recursion
ENDS = {2, 4}


def parameter(*shape):
    return nn.Parameter(torch.empty(shape))


def dra(form, a, b, c, d):
    def added(x):
        if form == "package":
            return b * torch.sin(a * x) ** 2 / a + c * torch.cos(a * x) + d * torch.tanh(b * x)
        wave = a * (torch.sin(x / b) ** 2 if form == "paper" else torch.sin(a * x) ** 2 / b)
        return wave + c * torch.cos(b * x) + d * torch.tanh(b * x)

    return added


class Step(nn.Module):
    """Mechanisms of one depth, by the names in the checkpoint."""

    def __init__(self, row, depth):
        super().__init__()
        self.row, self.names = row, {}
        kinds = {t if isinstance(t, str) else next(iter(t)): t for t in row.get("transition", [])}
        if "coefficients" in kinds:
            self.names["coefficients"] = parameter(4)
        if "hai" in kinds:
            self.names["hai"] = parameter(D)
        if "nll" in kinds and depth in ENDS:
            width = int(kinds["nll"]["nll"]["ratio"] * D)
            shapes = {"norm.weight": (D,), "norm.bias": (D,), "up_proj.weight": (width, D), "up_proj.bias": (width,),
                      "down_proj.weight": (D, width), "down_proj.bias": (D,), "scales": (2,)}
            self.names |= {f"nll.{name}": parameter(*shape) for name, shape in shapes.items()}
        if "dense" in kinds and PASSES.get(depth, 0) > 0:
            self.names["dense"] = parameter(PASSES[depth] + 1)
        branch = (row.get("branch") or {}).get("gnconv")
        if branch is not None:
            self.widths = [D >> (branch["order"] - 1 - k) for k in range(branch["order"])]
            s, kernel = sum(self.widths), branch["kernel"]
            shapes = {"in_proj": (2 * D, D), "conv": (s, kernel), "out_proj": (D, D)}
            shapes |= {f"between.{k}": (b, a) for k, (a, b) in enumerate(zip(self.widths, self.widths[1:]))}
            for name, shape in shapes.items():
                self.names |= {f"gnconv.{name}.weight": parameter(*shape), f"gnconv.{name}.bias": parameter(shape[0])}
            self.names["gnconv.scale"] = parameter(D)
        attention = row.get("attention")
        if isinstance(attention, dict) and "rg" in attention:
            width = BASE["num_key_value_heads"] * BASE["head_dim"]
            for name in ("keys", "values"):
                self.names[f"rg.{name}.weight"] = parameter(width, attention["rg"]["stride"])
                self.names[f"rg.{name}.bias"] = parameter(width)
        fuse = (row.get("exit") or {}).get("fuse")
        if fuse is not None and depth in ENDS and depth > min(ENDS):
            groups = fuse["grouped_softmax"]["groups"]
            self.names |= {"fuse.weight": parameter(2, D), "fuse.bias": parameter(2, groups), "fuse.scale": parameter(D)}
        activation = row.get("activation")
        if activation is not None:
            scalars = "a" if activation == "snake" else "abcd"
            self.names |= {f"activation.{name}": parameter(1) for name in scalars}
        self.all = nn.ParameterList(self.names.values())

    def __getitem__(self, name):
        return self.names.get(name)

    def gnconv(self, x):
        """HorNet's recursive gated convolution, causal and in one dimension."""
        affine = lambda name, y: F.linear(y, self[f"gnconv.{name}.weight"], self[f"gnconv.{name}.bias"])  # noqa: E731
        p, q = torch.split(affine("in_proj", x), [self.widths[0], sum(self.widths)], -1)
        filters = self["gnconv.conv.weight"]
        padded = F.pad(q.transpose(1, 2), (filters.shape[1] - 1, 0))
        q = F.conv1d(padded, filters[:, None], self["gnconv.conv.bias"], groups=filters.shape[0]).transpose(1, 2) / 3
        for k, gate in enumerate(torch.split(q, self.widths, -1)):
            p = (p if k == 0 else affine(f"between.{k - 1}", p)) * gate
        return affine("out_proj", p) * self["gnconv.scale"]

    def activation(self, x):
        kind, scalars = self.row["activation"], [self[f"activation.{name}"] for name in "abcd"]
        if kind == "silu_dra":
            return F.silu(x) + dra("paper", *scalars)(x)
        if kind == "snake":
            return x + torch.sin(scalars[0] * x) ** 2 / scalars[0]
        return x + dra(kind["dra"]["form"], *scalars)(x)

    def mask(self, mask, tokens):
        attention = self.row.get("attention")
        sliced = attention.get("sliced") if isinstance(attention, dict) else None
        if sliced is None:
            return mask
        position = torch.arange(tokens)
        if sliced.get("order") == "chunk":
            slices = position // (sliced["length"] // sliced["groups"])
        else:
            slices = position % sliced["groups"]
        visible = (slices[:, None] == slices[None, :]) & (position[:, None] >= position[None, :])
        return torch.where(visible, 0.0, float("-inf")).to(mask)[None, None]

    def fuse(self, states):
        """Mean of the states after the recursions, with a softmax over them for each token and group of channels."""
        if self["fuse.scale"] is None:
            return states[-1]
        groups = self["fuse.bias"].shape[1]
        grouped = lambda y: y.unflatten(-1, (groups, D // groups))  # noqa: E731
        rms = lambda y: torch.sqrt((y * y).mean(-1, keepdim=True) + BASE["rms_norm_eps"])  # noqa: E731
        scores = [grouped(y / rms(y) * w).sum(-1) + b for y, w, b in zip(states, self["fuse.weight"], self["fuse.bias"])]
        shares = torch.stack(scores).softmax(0)
        fused = (shares[..., None] * torch.stack([grouped(y) for y in states])).sum(0).flatten(-2)
        return states[-1] + self["fuse.scale"] * (fused - states[-1])

    def leave(self, x, y):
        if self["hai"] is not None:
            y = y + self["hai"] * x
        if self["nll.scales"] is not None:
            weights = [self[f"nll.{name}"] for name in ("norm.weight", "norm.bias")]
            z = F.layer_norm(y, (D,), *weights, eps=BASE["rms_norm_eps"])
            z = F.gelu(F.linear(z, self["nll.up_proj.weight"], self["nll.up_proj.bias"]))
            z = F.linear(z, self["nll.down_proj.weight"], self["nll.down_proj.bias"])
            beta = self["nll.scales"]
            y = beta[0] * y + beta[1] * z
        return y


def described(attention, config, x, position_embeddings):
    """Attention to the own chunk and to descriptors of earlier ones, with all keys in one row and an explicit mask."""
    chunk, ratio, sinks = config["chunk"], config["ratio"], config.get("sinks", 0)
    batch, tokens, _ = x.shape
    heads = lambda y: y.view(batch, tokens, -1, BASE["head_dim"]).transpose(1, 2)  # noqa: E731
    q, k, v = (heads(p(x)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    middle = (ratio - 1) // 2
    pooled = {"mean": range(ratio), "centre": range(middle, ratio // 2 + 1)}[config.get("pool", "centre")]
    blocks = [f for f in range(0, tokens // chunk * chunk, ratio)
              if f % chunk // ratio % config.get("stride", 1) == 0 and f >= sinks]
    mean = lambda y: torch.stack([torch.stack([y[:, :, f + j] for j in pooled]).mean(0) for f in blocks], 2)  # noqa: E731
    position = torch.tensor([*range(tokens), *(f + middle for f in blocks)])
    k, v = torch.cat([k, mean(k)], 2), torch.cat([v, mean(v)], 2)
    cos, sin = position_embeddings
    q, _ = apply_rotary_pos_emb(q, q, cos, sin)
    k, _ = apply_rotary_pos_emb(k, k, cos[:, position], sin[:, position])
    i, j = torch.arange(tokens)[:, None], position[None]
    is_block = torch.arange(len(position))[None] >= tokens
    own = (i // chunk == j // chunk) & (j <= i)
    earlier = (j // chunk < i // chunk) & (is_block | (j < sinks))
    mask = torch.where(torch.where(is_block, earlier, own | earlier), 0.0, float("-inf")).to(x)
    k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], 1) for y in (k, v))
    weights = (q @ k.transpose(2, 3) * BASE["head_dim"] ** -0.5 + mask).softmax(-1)
    return attention.o_proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


def generalised(attention, config, step, x, position_embeddings):
    """Attention to the last two chunks and to latents of what is before them, which one strided depthwise convolution makes
    of keys and values, applied to its own result; all keys stand in one row, with an explicit mask."""
    stride, chunk, width = config["stride"], config["latents"], BASE["head_dim"]
    batch, tokens, _ = x.shape
    heads = lambda y: y.view(batch, tokens, -1, width).transpose(1, 2)  # noqa: E731
    q, k, v = (heads(p(x)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))

    def levels(y, name):
        z, found = y.transpose(2, 3).flatten(1, 2), []
        while z.shape[-1] >= stride:
            z = F.conv1d(z, step[f"rg.{name}.weight"][:, None], step[f"rg.{name}.bias"], stride=stride, groups=z.shape[1])
            found.append(z.unflatten(1, (-1, width)).transpose(2, 3))
        return found

    keys, values = levels(k, "keys"), levels(v, "values")
    latents = [(t, j) for t, z in enumerate(keys, 1) for j in range(z.shape[2])]
    kept = width * config.get("key_ratio", 1.0) / 2
    slow = torch.tensor([1.0 if pair >= width // 2 - kept else 0.0 for pair in range(width // 2)] * 2, dtype=x.dtype)
    k, v = torch.cat([k, *(z * slow for z in keys)], 2), torch.cat([v, *values], 2)
    position = torch.tensor([*range(tokens), *(j * stride**t + (stride**t - 1) // 2 for t, j in latents)])
    cos, sin = position_embeddings
    q, _ = apply_rotary_pos_emb(q, q, cos, sin)
    k, _ = apply_rotary_pos_emb(k, k, cos[:, position], sin[:, position])
    mask = torch.full((tokens, len(position)), float("-inf"), dtype=x.dtype)
    for i in range(tokens):
        before = max(i // chunk - 1, 0) * chunk
        mask[i, before : i + 1] = 0
        top = next(t for t in range(1, 40) if before // stride**t <= chunk)
        covered = 0
        for level in range(top, 0, -1):
            while covered + stride**level <= before:
                mask[i, tokens + latents.index((level, covered // stride**level))] = 0
                covered += stride**level
        assert covered == before
    k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], 1) for y in (k, v))
    weights = (q @ k.transpose(2, 3) * width**-0.5 + mask).softmax(-1)
    return attention.o_proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


def forward(layer, depth, entered):
    """The forward of a decoder layer with its step; `entered` has what entered the recursions so far."""

    def run(self, hidden_states, attention_mask=None, position_embeddings=None, **_):
        step, x = self.step, hidden_states
        factor = step.row.get("resolution", 1)
        if depth in PASSES:
            entered[PASSES[depth]] = x
            if step["dense"] is not None:
                x = x + sum(a * entered[q] for q, a in enumerate(step["dense"]))
        if factor > 1:
            if depth in PASSES:
                count = x.shape[1] // factor
                pooled = x[:, : count * factor].unflatten(1, (count, factor)).mean(2)
                entered["coarse"] = (x, pooled)
                x = pooled
            position_embeddings = [angles[:, factor - 1 :: factor][:, : x.shape[1]] for angles in position_embeddings]
        alpha = step["coefficients"] if step["coefficients"] is not None else torch.ones(4, dtype=x.dtype)
        tokens = x.shape[1]
        causal = torch.full((tokens, tokens), float("-inf"), dtype=x.dtype).triu(1)[None, None]
        read, attention = self.input_layernorm(x), step.row.get("attention")
        descriptor = attention.get("descriptor") if isinstance(attention, dict) else None
        if descriptor is not None:
            attended = described(self.self_attn, descriptor, read, position_embeddings)
        elif isinstance(attention, dict) and "rg" in attention:
            attended = generalised(self.self_attn, attention["rg"], step, read, position_embeddings)
        else:
            mask = step.mask(causal, tokens)
            attended, _ = self.self_attn(hidden_states=read, position_embeddings=position_embeddings, attention_mask=mask)
        if step.row.get("attention") == "none":
            attended = 0
        if step.row.get("branch") is not None:
            attended = attended + step.gnconv(read)
        u = alpha[0] * x + alpha[1] * attended
        read, mlp = self.post_attention_layernorm(u), self.mlp
        act = step.activation if step.row.get("activation") is not None else F.silu
        y = alpha[2] * u + alpha[3] * mlp.down_proj(act(mlp.gate_proj(read)) * mlp.up_proj(read))
        y = step.leave(x, y)
        if factor > 1 and depth in ENDS:
            fine, pooled = entered["coarse"]
            change = torch.cat([torch.zeros_like(y[:, :1]), y - pooled], 1)
            y = fine + change[:, (torch.arange(fine.shape[1]) + 1) // factor]
        return step.fuse([entered[1], y]) if depth == max(ENDS) else y

    assert isinstance(layer, LlamaDecoderLayer)
    layer.forward = types.MethodType(run, layer)


def steps(name, seed, rows):
    generator = torch.Generator().manual_seed(seed)
    model, weights = relaxed(lambda shared: (shared, {}))
    assert isinstance(model.model, LlamaModel)
    randomise(weights.items(), generator)
    entered, added = {}, {}
    for depth, layer in enumerate(model.model.layers):
        in_loop = LAYERS.count(LAYERS[depth]) > 1
        recursion = 0 if depth < 3 else 1
        layer.step = Step(rows[recursion] if in_loop else {}, depth)
        forward(layer, depth, entered)
        added |= {f"model.depths.{depth}.step.{name}": weight for name, weight in layer.step.names.items()}
    with torch.no_grad():
        for path, weight in added.items():
            noise = torch.randn(weight.shape, generator=generator)
            around = 1.0 if path.endswith(("norm.weight", "scales", "coefficients", ".b", ".a", "gnconv.scale")) else 0.0
            weight.copy_(noise / weight.shape[1] ** 0.5 if weight.dim() == 2 else around + 0.2 * noise)
    recursion = {"num_recursions": 2, "sharing": "middle_cycle", "init": "average", "share_norms": False, "steps": rows}
    config = {"config": json.dumps(BASE | {"model_type": "recursive_llama", "recursion": recursion}, indent=2)}
    write(name, golden(model, weights | added, generator), config)


if __name__ == "__main__":
    common = {"activation": "silu_dra", "transition": ["coefficients", "hai", {"nll": {"ratio": 0.5}}]}
    second = common | {"attention": {"sliced": {"groups": 3}}, "transition": ["dense", *common["transition"]]}
    steps("steps_a", 71, [common, second])
    package = {"activation": {"dra": {"form": "package"}}}
    snake = {"activation": "snake", "attention": {"sliced": {"groups": 2, "order": "chunk", "length": 10}}}
    steps("steps_b", 72, [package, snake])
    mean = {"attention": {"descriptor": {"chunk": 6, "ratio": 3, "pool": "mean"}}}
    centre = {"attention": {"descriptor": {"chunk": 8, "ratio": 4, "stride": 2, "sinks": 4}}}
    steps("steps_d", 74, [mean, centre])
    beside, instead = ({"branch": {"gnconv": {"order": n, "kernel": k}}} for n, k in ((3, 5), (2, 3)))
    steps("steps_e", 75, [beside, instead | {"attention": "none"}])
    half, whole = {"stride": 2, "latents": 4, "key_ratio": 0.5}, {"stride": 2, "latents": 2}
    steps("steps_g", 77, [{"attention": {"rg": half}}, {"attention": {"rg": whole}}])
    steps("steps_h", 78, [{"resolution": 2, "transition": ["hai"]}, {"resolution": 3}])
    steps("steps_f", 76, [{}, {"exit": {"fuse": {"grouped_softmax": {"groups": 4}}}, "transition": ["dense"]}])
    steps("steps_c", 73, [{"activation": {"dra": {"form": "paper"}}}, {"activation": {"dra": {"form": "model"}}}])
