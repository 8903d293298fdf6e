"""Values and gradients of the head's losses, in f64 by torch's own functions: losses.safetensors.

Run with torch and safetensors installed: `python make_losses.py`, in this folder.

Logits of 7 tokens over 50 ids: `student.hidden` and `exit.hidden` [7, 16] times `head` [50, 16]; `teacher.hidden` [7, 24] times
`teacher.head` [50, 24]. For a divergence NAME at temperature T, the last readout has
0.3 (CE + 0.01 Z^2) + 0.7 T^2 D(teacher), label smoothing 0.1; the early exit has the same plus 0.4 T^2 D(last, detached).
`NAME.tT.last` and `NAME.tT.exit` hold nll, CE, Z^2, D(teacher), D(last), unweighted means over tokens;
`NAME.tT.grad.{student,exit,head}` the gradients of the sum of both. Inputs are f32, the rest is f64 rounded to f32.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

TEMPERATURES = (1.0, 2.0)


def kl(p, q):
    """KL(p || q) of log-probabilities, mean over tokens."""
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def mix(p, q, of_p):
    return (of_p * p.exp() + (1 - of_p) * q.exp()).log()


DIVERGENCES = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: 0.25 * kl(p, mix(p, q, 0.25)) + 0.75 * kl(q, mix(p, q, 0.25)),
    "tvd": lambda p, q: 0.5 * F.l1_loss(q.exp(), p.exp(), reduction="sum") / len(p),
    "skew_kl": lambda p, q: kl(p, mix(p, q, 0.1)),
}


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(5)
    inputs = {
        "student.hidden": torch.randn(7, 16, generator=generator),
        "exit.hidden": torch.randn(7, 16, generator=generator),
        "head": 0.5 * torch.randn(50, 16, generator=generator),
        "teacher.hidden": torch.randn(7, 24, generator=generator),
        "teacher.head": 0.5 * torch.randn(50, 24, generator=generator),
    }
    targets = torch.randint(50, (7,), generator=generator)
    leaves = ["student.hidden", "exit.hidden", "head"]
    wide = {name: x.double().requires_grad_(name in leaves) for name, x in inputs.items()}
    teacher = wide["teacher.hidden"] @ wide["teacher.head"].T
    last = wide["student.hidden"] @ wide["head"].T
    early = wide["exit.hidden"] @ wide["head"].T
    out = inputs | {"targets": targets}
    for name, divergence in DIVERGENCES.items():
        for t in TEMPERATURES:
            def soft(logits):
                return F.log_softmax(logits / t, -1)

            total = 0
            for where, logits in (("last", last), ("exit", early)):
                values = [
                    F.cross_entropy(logits, targets),
                    F.cross_entropy(logits, targets, label_smoothing=0.1),
                    logits.logsumexp(-1).square().mean(),
                    divergence(soft(teacher), soft(logits)),
                    divergence(soft(last.detach()), soft(logits)) if where == "exit" else torch.zeros(()),
                ]
                _, ce, square, of_teacher, of_last = values
                total = total + 0.3 * (ce + 0.01 * square) + t * t * (0.7 * of_teacher + 0.4 * of_last)
                out[f"{name}.t{t:.0f}.{where}"] = torch.stack([v.double() for v in values])
            grads = torch.autograd.grad(total, [wide[leaf] for leaf in leaves], retain_graph=True)
            out |= {f"{name}.t{t:.0f}.grad.{leaf.split('.')[0]}": grad for leaf, grad in zip(leaves, grads)}
    save_file({k: (v if v.dtype == torch.int64 else v.detach().float()).contiguous() for k, v in out.items()}, "losses.safetensors")


if __name__ == "__main__":
    main()
