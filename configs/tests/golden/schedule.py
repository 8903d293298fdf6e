"""Learning rates of transformers' schedulers, for `src/schedule.rs`.

    python schedule.py > schedule.json          (transformers 5.23, torch 2.15)
"""
import json

import torch
from transformers.optimization import get_scheduler


def rates(name, num_steps, warmup, peak, kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps, scheduler_specific_kwargs=kwargs)
    out = []
    for step in range(num_steps + 1):
        out.append((step, scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return out


cases = []
for num_steps, warmup, peak, ratio in [(50, 5, 5e-4, 0.1), (37, 0, 1e-3, 0.0), (20, 20, 2e-4, 0.5)]:
    lr = rates("cosine_with_min_lr", num_steps, warmup, peak, {"min_lr_rate": ratio})
    schedule = {"cosine": {"warmup_steps": warmup, "min_lr_ratio": ratio}}
    cases.append({"schedule": schedule, "num_steps": num_steps, "peak_lr": peak, "lr": lr})
for num_steps, warmup, decay, peak, ratio in [(60, 6, 12, 3e-3, 0.0), (40, 0, 40, 1e-3, 0.2), (30, 0, 20, 1e-3, 0.1)]:  # with a least rate transformers warms up from it, not from 0
    kwargs = {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": ratio}
    lr = rates("warmup_stable_decay", num_steps, warmup, peak, kwargs)
    schedule = {"warmup_stable_decay": {"warmup_steps": warmup, "decay_steps": decay, "min_lr_ratio": ratio}}
    cases.append({"schedule": schedule, "num_steps": num_steps, "peak_lr": peak, "lr": lr})
for num_steps, warmup, peak in [(40, 4, 2e-4), (25, 0, 1e-3)]:
    lr = rates("linear", num_steps, warmup, peak, None)
    cases.append({"schedule": {"linear": {"warmup_steps": warmup}}, "num_steps": num_steps, "peak_lr": peak, "lr": lr})
for num_steps, warmup, decay, peak, ratio in [(59, 6, 20, 2e-4, 0.0), (30, 0, 30, 1e-3, 0.25)]:
    kwargs = {"num_decay_steps": decay, "decay_type": "1-sqrt", "min_lr_ratio": ratio}
    lr = rates("warmup_stable_decay", num_steps, warmup, peak, kwargs)
    schedule = {"warmup_stable_decay": {"warmup_steps": warmup, "decay_steps": decay, "decay_type": "1-sqrt", "min_lr_ratio": ratio}}
    cases.append({"schedule": schedule, "num_steps": num_steps, "peak_lr": peak, "lr": lr})
print("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]")
