#!/usr/bin/env python3
"""Makes `routed_mlp.safetensors` and `routed_linear.safetensors`: small routed models (Mixture-of-Recursions, expert choice).

    python make_router.py           # writes beside itself; transformers 5.23, torch 2.15

The layers are those of `transformers`; the routing is written out here, row by row of the batch, as the paper has it: each recursion
scores the tokens that are under way, takes the `floor(capacity * S)` highest of each sequence, runs the block over them alone (causal
among them, rotary embedding at the original positions), and puts them back.

Weights under their checkpoint names; metadata `config` is the text of `config.json`. `golden.ids` [B, T]; top-k: `golden.logits`
[B, T, V], `golden.loss` [1] = mean next-token cross-entropy + 0.3 * sum over recursions of BCE + 0.02 * sum of z, and its
`golden.grad.<weight>`; per recursion r `golden.chosen.{r}` (row numbers in B * T, ascending), `golden.router_logits.{r}`,
`golden.bce.{r}`, `golden.z.{r}`. `golden.<gating>.logits`: the same with another gating. `golden.threshold.logits`,
`golden.threshold.chosen.{r}`: the thresholds of the configuration in place of top-k.
"""

import json

import torch
import torch.nn.functional as F
from make_llama import NORMS, PROJECTIONS, build, randomise, write
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

GATINGS = ("weighted", "additive", "delta", "straight_through")


class Router(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.up_proj = nn.Linear(hidden, width, bias=False) if width else None
        self.out_proj = nn.Linear(width or hidden, 1, bias=False)

    def forward(self, x, normalized):
        if normalized:
            x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        if self.up_proj is not None:
            x = F.gelu(self.up_proj(x))
        return self.out_proj(x)


class Routed(nn.Module):
    def __init__(self, base, recursions, middle, router):
        super().__init__()
        self.model = build(base)
        self.config, self.recursions, self.router = base, recursions, router
        ends = 1 if middle else 0
        block = (base["num_hidden_layers"] - 2 * ends) // recursions
        self.stored = nn.ModuleList(LlamaDecoderLayer(self.model.config, i).float() for i in range(block + 2 * ends))
        self.first = self.stored[:ends]
        self.block = self.stored[ends:ends + block]
        self.last = self.stored[ends + block:]
        width = {"linear": None, "mlp": 2 * base["hidden_size"]}[router["network"]]
        self.routers = nn.ModuleList(Router(base["hidden_size"], width) for _ in range(recursions))

    def weights(self):
        inner = self.model.model
        weights = {"model.embed_tokens.weight": inner.embed_tokens.weight, "model.norm.weight": inner.norm.weight}
        for i, layer in enumerate(self.stored):
            weights |= {f"model.layers.{i}.{p}.weight": layer.get_submodule(p).weight for p in PROJECTIONS + NORMS}
        for r, router in enumerate(self.routers):
            weights |= {f"model.routers.{r}.{name}": p for name, p in router.named_parameters()}
        return weights

    def run(self, layers, x, positions):
        """Layers over one sequence `[n, D]` whose tokens are at `positions`, causal."""
        angles = self.model.model.rotary_emb(x[None], positions[None])
        mask = torch.full((len(x), len(x)), float("-inf")).triu(1)[None, None]
        x = x[None]
        for layer in layers:
            x = layer(x, attention_mask=mask, position_ids=positions[None], position_embeddings=angles)
            x = x[0] if isinstance(x, tuple) else x
        return x[0]

    def forward(self, ids, choose, gating):
        score = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[self.router["score"]]
        batch, length = ids.shape
        rows = [self.model.model.embed_tokens(row) for row in ids]
        everyone = torch.arange(length)
        rows = [self.run(self.first, x, everyone) for x in rows]
        alive = [everyone] * batch
        decisions = []
        for r, router in enumerate(self.routers):
            logits, targets, chosen = [], [], []
            for b in range(batch):
                u = router(rows[b][alive[b]], self.router["input"] == "normalized")
                p = score(u) * self.router["alpha"]
                keep = choose(r, u[:, 0].detach(), p[:, 0].detach(), length)
                picked = alive[b][keep]
                logits.append(u)
                targets.append(torch.isin(alive[b], picked).float()[:, None])
                chosen.append(picked + b * length)
                if len(keep):
                    x, g = rows[b][picked], p[keep]
                    y = self.run(self.block, x, picked)
                    new = {
                        "weighted": x + g * y,
                        "additive": x + y,
                        "delta": (1 - g) * x + g * y,
                        "straight_through": y + (g - g.detach()) * (y - x).detach(),
                    }[gating]
                    rows[b] = rows[b].index_copy(0, picked, new)
                alive[b] = picked
            u, t = torch.cat(logits), torch.cat(targets)
            decisions.append({"logits": u, "chosen": torch.cat(chosen), "targets": t})
        rows = [self.run(self.last, x, everyone) for x in rows]
        return self.model.lm_head(self.model.model.norm(torch.stack(rows))), decisions


def make(name, seed, base, recursions, middle, router):
    generator = torch.Generator().manual_seed(seed)
    model = Routed(base, recursions, middle, router)
    weights = model.weights()
    randomise(weights.items(), generator)
    vocab = base["vocab_size"]
    # Without repetition: in `cycle` the first router reads embeddings, and equal ones are ties.
    ids = torch.stack([torch.randperm(vocab, generator=generator)[:18] for _ in range(3)])

    def top(r, u, p, length):
        k = max(1, int(router["capacities"][r] * length))
        assert len(set(p.tolist())) == len(p), "a tie"
        return torch.topk(p, k).indices.sort().values

    def above(r, u, p, length):
        threshold = router["thresholds"][r]
        if threshold is None:
            return torch.arange(len(u))
        assert (u - threshold).abs().min() > 1e-3, f"recursion {r}: a logit lies on the threshold"
        return (u > threshold).nonzero()[:, 0]

    logits, decisions = model(ids, top, router["gating"])
    ce = F.cross_entropy(logits[:, :-1].reshape(-1, vocab), ids[:, 1:].reshape(-1))
    bce = [F.binary_cross_entropy_with_logits(d["logits"], d["targets"]) for d in decisions]
    z = [torch.logsumexp(d["logits"], -1).square().mean() for d in decisions]
    loss = ce + 0.3 * sum(bce) + 0.02 * sum(z)
    grads = torch.autograd.grad(loss, list(weights.values()))
    out = dict(weights) | {"golden.ids": ids, "golden.logits": logits, "golden.loss": loss.reshape(1)}
    out |= {f"golden.grad.{k}": g for k, g in zip(weights, grads)}
    for r, d in enumerate(decisions):
        out |= {f"golden.chosen.{r}": d["chosen"], f"golden.router_logits.{r}": d["logits"]}
        out |= {f"golden.bce.{r}": bce[r].reshape(1), f"golden.z.{r}": z[r].reshape(1)}
    with torch.no_grad():
        for gating in GATINGS:
            if gating != router["gating"]:
                out[f"golden.{gating}.logits"] = model(ids, top, gating)[0]
        causal, decisions = model(ids, above, router["gating"])
        out["golden.threshold.logits"] = causal
        for r, d in enumerate(decisions):
            out[f"golden.threshold.chosen.{r}"] = d["chosen"]
        print(f"{name}: loss {loss.item():.4f}, chosen by threshold {[len(d['chosen']) for d in decisions]} of {ids.numel()}, "
              f"smallest gradient norm {min(g.norm().item() for g in grads):.1e}")
    config = base | {
        "model_type": "recursive_llama", "architectures": ["RecursiveLlamaForCausalLM"],
        "recursion": {"num_recursions": recursions, "sharing": "middle_cycle" if middle else "cycle", "init": "average",
                      "share_norms": True, "router": {"expert_choice": router}},
    }
    write(name, out, {"config": json.dumps(config, indent=2)})


def main():
    torch.set_num_threads(1)
    base = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 40,
        "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False,
    }
    router = {"network": "mlp", "input": "raw", "score": "sigmoid", "alpha": 0.1, "gating": "weighted",
              "capacities": [1.0, 0.7, 0.3], "kv": "recursion_wise", "thresholds": [None, -0.1, 0.2]}
    make("routed_mlp", 11, base | {"num_hidden_layers": 8}, 3, True, router)
    router = {"network": "linear", "input": "normalized", "score": "tanh", "alpha": 1.5, "gating": "delta",
              "capacities": [0.8, 0.4], "kv": "recursion_wise", "thresholds": [-0.6, 0.3]}
    make("routed_linear", 12, base | {"num_hidden_layers": 4}, 2, False, router)


if __name__ == "__main__":
    main()
