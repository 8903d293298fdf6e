"""Writes lowrank.safetensors: matrices and the squared error of their best approximation of every rank (Eckart-Young).

`{name}.matrix` is F32 [out, in]; `{name}.tail` is F32 [min(out, in) + 1], entry r = sum of the squared singular values
after the r-th, from numpy's SVD in float64. numpy 2, safetensors; run in this folder: python lowrank.py
"""

import numpy as np
from safetensors.numpy import save_file

rng = np.random.default_rng(20240501)
decay = lambda k: np.exp(-np.arange(k) / 4.0)
orthogonal = lambda m, k: np.linalg.qr(rng.standard_normal((m, k)))[0]
matrices = {
    "wide": rng.standard_normal((24, 40)),
    "tall": rng.standard_normal((40, 24)),
    "square": rng.standard_normal((32, 32)) * 0.02,
    "decaying": (orthogonal(48, 32) * decay(32)) @ orthogonal(32, 32).T,
    "rank_three": rng.standard_normal((20, 3)) @ rng.standard_normal((3, 28)),
}
tensors = {}
for name, matrix in matrices.items():
    matrix = matrix.astype(np.float32)
    energy = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    tail = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
    tensors[f"{name}.matrix"] = matrix
    tensors[f"{name}.tail"] = tail.astype(np.float32)
save_file(tensors, "lowrank.safetensors")
