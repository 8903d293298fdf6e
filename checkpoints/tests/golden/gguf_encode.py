"""Writes gguf_encode.safetensors: values, and their bytes in every GGUF type that is written.

pip install gguf safetensors numpy xllamacpp
python gguf_encode.py        (with gguf 0.19.0, xllamacpp 2026.10.11549, numpy 2.4)

F32, F16, BF16 and Q8_0 are by the Python package `gguf`, the others by ggml's `ggml_quantize_chunk`, which `xllamacpp` exports.
Blocks of very different sizes, one of zeros, one whose quotients are ties, and blocks of positive, negative and equal values.
"""

import ctypes
from pathlib import Path

import numpy as np
import xllamacpp
from gguf import GGMLQuantizationType, quant_shape_to_byte_shape
from gguf.quants import quantize
from safetensors.numpy import save_file

ggml = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so"))))
ggml.ggml_quantize_chunk.restype = ctypes.c_size_t


def by_ggml(values, kind):
    out = np.zeros(quant_shape_to_byte_shape(values.shape, kind), dtype=np.uint8)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (values, out)]
    sizes = [ctypes.c_int64(n) for n in (0, *values.shape)]
    written = ggml.ggml_quantize_chunk(ctypes.c_int(int(kind)), *pointers, *sizes, None)
    assert written == out.nbytes
    return out.reshape(-1)


rng = np.random.default_rng(20261129)
values = rng.normal(size=(72, 32)).astype(np.float32) * np.tile(np.logspace(-6, 3, 24, dtype=np.float32), 3)[:, None]
values[3] = 0
values[4] = np.arange(32, dtype=np.float32) - 16 + 0.5
values[4, 0] = 127
values[24:32] = rng.normal(size=(8, 32)) * 0.02
values[32:40] = np.abs(rng.normal(size=(8, 32))) * 0.02
values[40:48] = -np.abs(rng.normal(size=(8, 32))) * 0.02
values[48:56] = 0
values[56:60] = 0.5
values[60:64] = -0.25
values = values.reshape(-1, 256)
tensors = {"values": values.reshape(-1).copy()}
for name in ["F32", "F16", "BF16", "Q8_0"]:
    tensors[name] = np.ascontiguousarray(quantize(values, GGMLQuantizationType[name])).view(np.uint8).reshape(-1)
for name in ["Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]:
    tensors[name] = by_ggml(values, GGMLQuantizationType[name])
save_file(tensors, Path(__file__).with_suffix(".safetensors"))
