#!/usr/bin/env python3
"""Makes `routed_softmax.safetensors` and `routed_sigmoid.safetensors`: small models whose tokens choose a depth (Mixture-of-Recursions,
token choice).

    python make_token_choice.py     # writes beside itself; transformers 5.23, torch 2.15

The layers are those of `transformers`, the routing is written out here, sequence by sequence: one router reads each token before the loop,
the token runs through recursions 0 to the depth with the largest score plus bias, over those that are still under way (causal among them,
rotary embedding at the original positions), and leaves, gated, onto the state that it entered the loop with.

Weights under their checkpoint names; metadata `config` is the text of `config.json`. `golden.ids` [B, T]; `golden.logits` [B, T, V],
`golden.depths` [B * T] (0 is one recursion), `golden.router_logits` [B * T, R]; `golden.balancing`, `golden.z`, `golden.decisiveness` [1];
`golden.loss` [1] = mean next-token cross-entropy + 0.3 * balancing + 0.02 * z + 0.05 * decisiveness, and its `golden.grad.<weight>`.
`golden.<gating>.<intermediate>.logits`: the same with other options.
"""

import json

import torch
import torch.nn.functional as F
from make_llama import randomise, write
from make_router import GATINGS, Routed, Router
from torch import nn


class TokenChoice(Routed):
    def __init__(self, base, recursions, middle, router):
        super().__init__(base, recursions, middle, router)
        one = Router(base["hidden_size"], {"linear": None, "mlp": 2 * base["hidden_size"]}[router["network"]])
        one.out_proj = nn.Linear(one.out_proj.in_features, recursions, bias=False)
        self.routers = nn.ModuleList([one])

    def enter(self, row):
        """What the loop begins with, the router's logits and scores, and the depth of every token; no ties."""
        entered = self.run(self.first, self.model.model.embed_tokens(row), torch.arange(len(row)))
        u = self.routers[0](entered, self.router["input"] == "normalized")
        score = {"softmax": lambda u: u.softmax(-1), "sigmoid": torch.sigmoid}[self.router["score"]]
        p = score(u) * self.router["alpha"]
        biased = (p + torch.tensor(self.router.get("biases", [0.0] * self.recursions))).detach()
        ranked = biased.sort(-1).values
        if (ranked[:, -1] - ranked[:, -2]).min() < 1e-3:
            return entered, u, p, None
        return entered, u, p, biased.argmax(-1)

    def forward(self, ids, gating, intermediate):
        batch, length = ids.shape
        everyone = torch.arange(length)
        rows, all_logits, all_depths = [], [], []

        def through(x, y, g):
            return {
                "weighted": x + g * y,
                "additive": x + y,
                "delta": (1 - g) * x + g * y,
                "straight_through": y + (g - g.detach()) * (y - x).detach(),
            }[gating]

        for b in range(batch):
            entered, u, p, depth = self.enter(ids[b])
            state = [entered[t] for t in range(length)]
            for r in range(self.recursions):
                active = (depth >= r).nonzero()[:, 0]
                if len(active) == 0:
                    break
                left = self.run(self.block, torch.stack([state[t] for t in active]), active)
                for t, y in zip(active.tolist(), left):
                    g = p[t, r]
                    if depth[t] == r:
                        state[t] = through(entered[t], y, g)
                    elif intermediate == "plain":
                        state[t] = y
                    else:
                        state[t] = g * y if gating == "weighted" else through(state[t], y, g)
            rows.append(self.run(self.last, torch.stack(state), everyone))
            all_logits.append(u)
            all_depths.append(depth)
        logits = self.model.lm_head(self.model.model.norm(torch.stack(rows)))
        return logits, torch.cat(all_logits), torch.stack(all_depths)


def make(name, seed, base, recursions, middle, router):
    generator = torch.Generator().manual_seed(seed)
    model = TokenChoice(base, recursions, middle, router)
    weights = model.weights()
    randomise(weights.items(), generator)
    vocab = base["vocab_size"]

    def row(shallow):
        """Twelve tokens of which none, if `shallow`, goes through the last recursion."""
        ids = []
        for token in torch.randint(vocab, (1000,), generator=generator).tolist():
            depth = model.enter(torch.tensor(ids + [token]))[3]
            if depth is not None and not (shallow and depth[-1] == recursions - 1):
                ids.append(token)
            if len(ids) == 12:
                break
        return torch.tensor(ids)

    # Where rows are counted without those that have no token left, the third gets what is the second's.
    with torch.no_grad():
        ids = torch.stack([row(False), row(True), row(False)])
    logits, u, depths = model(ids, router["gating"], router["intermediate"])
    assert (depths[1] < recursions - 1).all() and (depths[2] == recursions - 1).any()
    counts = torch.bincount(depths.flatten(), minlength=recursions)
    reached = (depths == recursions - 1).sum(1)
    print(f"{name}: depths {counts.tolist()}, in the last recursion by row {reached.tolist()}")
    assert counts.min() > 2, "every depth is chosen"
    q = {"softmax": lambda u: u.softmax(-1), "sigmoid": torch.sigmoid}[router["score"]](u)
    share = F.one_hot(depths.flatten(), recursions).float().mean(0)
    balancing = ((router["alpha"] * q).mean(0) * recursions * share).sum()
    z = torch.logsumexp(u, -1).square().mean()
    if router["score"] == "softmax":
        decisiveness = recursions / (recursions - 1) * (1 - q.square().sum(-1)).mean()
    else:
        decisiveness = (1 - (2 * q - 1) ** 2).mean()
    ce = F.cross_entropy(logits[:, :-1].reshape(-1, vocab), ids[:, 1:].reshape(-1))
    loss = ce + 0.3 * balancing + 0.02 * z + 0.05 * decisiveness
    grads = torch.autograd.grad(loss, list(weights.values()))
    out = dict(weights) | {"golden.ids": ids, "golden.logits": logits, "golden.loss": loss.reshape(1)}
    out |= {"golden.depths": depths.flatten(), "golden.router_logits": u}
    out |= {"golden.balancing": balancing.reshape(1), "golden.z": z.reshape(1)}
    out |= {"golden.decisiveness": decisiveness.reshape(1)}
    out |= {f"golden.grad.{k}": g for k, g in zip(weights, grads)}
    with torch.no_grad():
        for gating in GATINGS:
            for intermediate in ("plain", "gated"):
                if (gating, intermediate) != ("additive", "gated"):
                    out[f"golden.{gating}.{intermediate}.logits"] = model(ids, gating, intermediate)[0]
    config = base | {
        "model_type": "recursive_llama", "architectures": ["RecursiveLlamaForCausalLM"],
        "recursion": {"num_recursions": recursions, "sharing": "middle_cycle" if middle else "cycle", "init": "average",
                      "share_norms": True, "router": {"token_choice": router}},
    }
    write(name, out, {"config": json.dumps(config, indent=2)})
    print(f"  loss {loss.item():.4f}, smallest gradient norm {min(g.norm().item() for g in grads):.1e}")


def main():
    torch.set_num_threads(1)
    base = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 40,
        "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False,
    }
    router = {"network": "linear", "input": "raw", "score": "softmax", "alpha": 1.0, "gating": "weighted",
              "intermediate": "plain", "kv": "recursion_wise"}
    make("routed_softmax", SEEDS[0], base | {"num_hidden_layers": 8}, 3, True, router)
    router = {"network": "mlp", "input": "normalized", "score": "sigmoid", "alpha": 0.7, "gating": "straight_through",
              "intermediate": "gated", "kv": "recursion_wise", "biases": [-0.03125, 0.0625]}
    make("routed_sigmoid", SEEDS[1], base | {"num_hidden_layers": 4}, 2, False, router)


# With which every depth is chosen.
SEEDS = (22, 22)

if __name__ == "__main__":
    main()
