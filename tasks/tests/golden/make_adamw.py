"""Prints what the test of tasks/src/regression/adamw.rs expects of torch.optim.AdamW (2.15)."""

import torch

parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
optimizer = torch.optim.AdamW([parameter], lr=0.1)
for gradient in ([0.5, -3.0], [0.1, 1.0]):
    parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
print(parameter.tolist())
