#!/usr/bin/env python3
"""Makes `routed_kv.safetensors`: a small routed model whose later recursions read the first one's keys and values.

    python make_kv.py           # writes beside itself; transformers 5.23, torch 2.15

Weights, rotary embedding, norms and routers are those of `make_router.py`; attention is written out here, as scores over all tokens of
a sequence. In recursion 0 every token makes keys and values. `shared`: the tokens of a later recursion make queries alone and attend
to those. `hybrid`: they make keys and values too, which stand in their places in a copy of the first recursion's, for that recursion.

Metadata `config` has kv `shared`. `golden.ids` [B, T]; for each strategy `golden.<kv>.logits` [B, T, V] with top-k,
`golden.<kv>.loss` [1], the mean next-token cross-entropy, its `golden.<kv>.grad.<weight>` (none for a weight that is not used), and
`golden.<kv>.threshold.logits` with the thresholds of the configuration.
"""

import json

import torch
import torch.nn.functional as F
from make_llama import randomise, write
from make_router import Routed
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class KvRouted(Routed):
    def layer(self, layer, x, positions, given):
        """A layer over the tokens `x [n, D]` of a sequence at `positions`; `given(k, v)` says what they attend to."""
        heads, kv_heads, size = (self.config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        h = layer.input_layernorm(x)
        cos, sin = self.model.model.rotary_emb(x[None], positions[None])
        attn = layer.self_attn
        q = attn.q_proj(h).view(1, -1, heads, size).transpose(1, 2)
        k = attn.k_proj(h).view(1, -1, kv_heads, size).transpose(1, 2)
        v = attn.v_proj(h).view(1, -1, kv_heads, size).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = given(k[0], v[0])  # [K, S, H]
        scores = torch.einsum("nqh,nkh->nqk", q[0], k.repeat_interleave(heads // kv_heads, 0)) / size**0.5
        later = torch.arange(k.shape[1])[None] > positions[:, None]
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        mixed = torch.einsum("nqk,nkh->qnh", weights, v.repeat_interleave(heads // kv_heads, 0)).reshape(len(x), -1)
        x = x + attn.o_proj(mixed)
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def forward(self, ids, choose, kv):
        score = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[self.router["score"]]
        out = []
        for ids in ids:
            x, length = self.model.model.embed_tokens(ids), len(ids)
            everyone = torch.arange(length)
            for layer in self.first:
                x = self.layer(layer, x, everyone, lambda k, v: (k, v))
            alive, first = everyone, []
            for r, router in enumerate(self.routers):
                u = router(x[alive], self.router["input"] == "normalized")
                p = score(u) * self.router["alpha"]
                keep = choose(r, u[:, 0].detach(), p[:, 0].detach(), length)
                alive, g = alive[keep], p[keep]
                y = x[alive]
                for i, layer in enumerate(self.block):
                    def given(k, v):
                        if r == 0:
                            first.append((k, v))
                            return k, v
                        if kv == "shared":
                            return first[i]
                        return tuple(a.index_copy(1, alive, b) for a, b in zip(first[i], (k, v)))
                    y = self.layer(layer, y, alive, given)
                x = x.index_copy(0, alive, x[alive] + g * y)
            for layer in self.last:
                x = self.layer(layer, x, everyone, lambda k, v: (k, v))
            out.append(x)
        return self.model.lm_head(self.model.model.norm(torch.stack(out)))


def main():
    torch.set_num_threads(1)
    base = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 40,
        "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "num_hidden_layers": 8,
    }
    router = {"network": "linear", "input": "normalized", "score": "sigmoid", "alpha": 0.7, "gating": "weighted",
              "capacities": [1.0, 0.7, 0.3], "kv": "shared", "thresholds": [None, -0.1, 0.2]}
    generator = torch.Generator().manual_seed(21)
    model = KvRouted(base, 3, True, router)
    weights = model.weights()
    randomise(weights.items(), generator)
    vocab = base["vocab_size"]
    ids = torch.stack([torch.randperm(vocab, generator=generator)[:18] for _ in range(3)])

    def top(r, u, p, length):
        return torch.topk(p, max(1, int(router["capacities"][r] * length))).indices.sort().values

    def above(r, u, p, length):
        threshold = router["thresholds"][r]
        if threshold is None:
            return torch.arange(len(u))
        assert (u - threshold).abs().min() > 1e-3, f"recursion {r}: a logit lies on the threshold"
        return (u > threshold).nonzero()[:, 0]

    out = dict(weights) | {"golden.ids": ids}
    for kv in ("shared", "hybrid"):
        logits = model(ids, top, kv)
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, vocab), ids[:, 1:].reshape(-1))
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        out |= {f"golden.{kv}.logits": logits, f"golden.{kv}.loss": loss.reshape(1)}
        out |= {f"golden.{kv}.grad.{k}": g for k, g in zip(weights, grads) if g is not None}
        with torch.no_grad():
            out[f"golden.{kv}.threshold.logits"] = model(ids, above, kv)
        print(f"{kv}: loss {loss.item():.4f}, smallest gradient norm {min(g.norm().item() for g in grads if g is not None):.1e}")
    difference = (out["golden.shared.logits"] - out["golden.hybrid.logits"]).abs().max().item()
    assert difference > 0.1, f"the strategies differ by {difference} only"
    config = base | {
        "model_type": "recursive_llama", "architectures": ["RecursiveLlamaForCausalLM"],
        "recursion": {"num_recursions": 3, "sharing": "middle_cycle", "init": "average", "share_norms": True,
                      "router": {"expert_choice": router}},
    }
    write("routed_kv", out, {"config": json.dumps(config, indent=2)})


if __name__ == "__main__":
    main()
