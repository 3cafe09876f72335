"""x86 CPUs under ONNX Runtime (MLAS): facts of AVX-512 and AVX2, float32.

The numbers were measured on one core of one machine; another machine scales them, and ranks survive scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from backends.base import Fact
from backends.calibration import store
from backends.model import Backend, Family
from backends.vocabulary import CHANNEL_CUTS, POOLS

_MLAS = "ONNX Runtime source, MLAS NCHWc convolution (intel/onnxruntime @cc8e901e)"
_MEASURED = "measured, ONNX Runtime 1.31.1, one thread of an AMD EPYC with AVX-512"
_MEASURED_AVX2 = "measured, ONNX Runtime 1.31, one thread of an AMD EPYC with AVX2 only"
_ADD_NS = 0.08
_ADD_NS_AVX2 = 0.155

_NANOSECONDS = {
    "Abs": 0.05, "Clip": 0.05, "Neg": 0.05, "Relu": 0.05, "Exp": 0.07, "Add": 0.08, "HardSigmoid": 0.08, "Mul": 0.10,
    "Div": 0.14, "Reciprocal": 0.14, "Softsign": 0.14, "Softmax": 0.16, "LeakyRelu": 0.17, "HardSwish": 0.18,
    "Floor": 0.19, "Tanh": 0.19, "Sigmoid": 0.22, "Sqrt": 0.26, "PRelu": 0.27, "Where": 0.29, "Erf": 0.29,
    "LayerNormalization": 0.31, "Transpose": 0.41, "Sin": 1.2, "Log": 1.4, "Elu": 1.4, "Pow": 3.1, "Softplus": 9.3,
}  # fmt: skip
_NANOSECONDS_AVX2 = {
    "Relu": 0.098, "Add": 0.155, "Mul": 0.203, "Tanh": 0.32, "HardSwish": 0.351, "Sigmoid": 0.354, "Exp": 0.405,
    "Softmax": 0.447, "Erf": 0.742, "Log": 1.973, "Elu": 2.173, "Softplus": 12.612,
}  # fmt: skip


def _prices(nanoseconds: Mapping[str, float], add: float, source: str) -> dict[str, Fact]:
    return {
        kind: Fact(value=round(ns / add, 3), source=f"{source}: {ns} ns per element on 64x1024, Add {add} ns")
        for kind, ns in nanoseconds.items()
    }


_VECTOR = _prices(_NANOSECONDS, _ADD_NS, _MEASURED)

_AVX512 = Backend(
    name="cpu:avx512",
    family="cpu",
    channel_step=16,
    epilogues=frozenset({"BatchNormalization", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "Add"}),
    residual=True,
    block_bound=CHANNEL_CUTS | POOLS,
    # ONNX Runtime's layout transformer knows Concat alone of the channel cuts.
    plain_only=CHANNEL_CUTS - {"Concat"},
    element_bytes=Fact(value=4, source="float32, as the file says"),
    cores=Fact(value=1, source="threads of ONNX Runtime; one is the stated default", assumed=True),
    core_macs_per_second=Fact(
        value=135e9,
        source=f"{_MEASURED}: 3x3 convolution of 64 to 64 channels on 28x28 in 241 us, filter sets included",
    ),
    core_adds_per_second=Fact(value=1e9 / _ADD_NS, source=f"{_MEASURED}: Add {_ADD_NS} ns per element on 64x1024"),
    tile_in=Fact(value=16, source=f"{_MLAS}: block of 16 on AVX-512; confirmed by the measured steps in channels in"),
    tile_out=Fact(value=16, source=f"{_MLAS}: block of 16 on AVX-512; confirmed by the measured steps in channels out"),
    matmul_tile_in=Fact(value=1, source="ONNX Runtime source, MLAS SGEMM: the depth of a product is not padded"),
    filter_set=Fact(value=64, source=f"{_MLAS}: filter sets of 4 blocks"),
    filter_set_channels=Fact(
        value=8, source=f"fitted on 12 widths, {_MEASURED}: 55 us a block of 16, about 28 us more a filter set of 64"
    ),
    direct_channels=Fact(value=16, source=f"{_MLAS}: fewer channels in than a block read the plain layout"),
    depthwise_macs_per_second=Fact(
        value=30e9, source=f"{_MEASURED}: depthwise 3x3 on 28x28, 3.7 us a block of 16 channels"
    ),
    alignment=Fact(value=4, source=f"{_MLAS}: channels in % 4 == 0 is required, else im2col and GEMM"),
    misaligned_conv=Fact(value=1.35, source=f"{_MEASURED}: 1.3 to 1.4 times the aligned neighbour"),
    misaligned_depthwise=Fact(value=3.0, source=f"{_MEASURED}: 3 to 3.5 times the aligned neighbour"),
    off_tile_group=Fact(
        value=1.35, source="assumed: groups that are not whole blocks run as im2col and GEMM", assumed=True
    ),
    stored_block=Fact(value=16, source=f"{_MLAS}: tensors of blocks of 16 channels"),
    layout_block=Fact(value=16, source=f"{_MLAS}: pools and Concat off the block reorder in and out"),
    launch_matrix=Fact(value=0.2e-6, source=f"{_MEASURED}: 0.16 to 0.23 us a node in chains of 50 and 450 nodes"),
    launch_vector=Fact(value=0.2e-6, source=f"{_MEASURED}: 0.16 to 0.23 us a node in chains of 50 and 450 nodes"),
    launch_layout=Fact(value=0.2e-6, source=f"{_MEASURED}: a reorder is a node like others"),
    matrix_efficiency=Fact(value=1.0, source="the matrix rate is measured, not a peak"),
    memory_efficiency=Fact(value=1.0, source="the bandwidths are effective ones"),
    bandwidth=Fact(value=20e9, source="assumed: one core's share of server memory", assumed=True),
    fast_bandwidth=Fact(value=160e9, source=f"{_MEASURED}: Relu .05 ns per element of 8 bytes moved"),
    fast_bytes=Fact(value=16e6, source="assumed: a core's share of the last-level cache", assumed=True),
    vector=_VECTOR,
    vector_other=Fact(value=2.0, source="assumed: between Mul and LeakyRelu of the measured table", assumed=True),
)

_AVX2 = replace(
    _AVX512,
    name="cpu:avx2",
    channel_step=8,
    core_macs_per_second=Fact(
        value=82.5e9, source=f"{_MEASURED_AVX2}: 3x3 convolution of 64 to 64 channels on 28x28 in 613 us, sets included"
    ),
    core_adds_per_second=Fact(value=1e9 / _ADD_NS_AVX2, source=f"{_MEASURED_AVX2}: Add {_ADD_NS_AVX2} ns per element"),
    tile_in=Fact(value=8, source=f"{_MLAS}: block of 8 on AVX2"),
    tile_out=Fact(value=8, source=f"{_MLAS}: block of 8 on AVX2"),
    filter_set=Fact(value=32, source=f"{_MLAS}: filter sets of 4 blocks"),
    filter_set_channels=Fact(
        value=24,
        source=f"fitted within 5 % on 12 widths, {_MEASURED_AVX2}: a set of 32 costs as much as three blocks more",
    ),
    direct_channels=Fact(value=8, source=f"{_MLAS}: fewer channels in than a block read the plain layout"),
    depthwise_macs_per_second=Fact(
        value=13e9, source=f"{_MEASURED_AVX2}: depthwise 3x3 on 28x28, 4.3 us a block of 8 channels"
    ),
    misaligned_conv=Fact(value=1.2, source=f"{_MEASURED_AVX2}: 1.04 to 1.5 times the aligned neighbour, mean of 6"),
    stored_block=Fact(value=8, source=f"{_MLAS}: tensors of blocks of 8 channels"),
    layout_block=Fact(value=8, source=f"{_MLAS}: pools and Concat off the block reorder in and out"),
    fast_bandwidth=Fact(value=82e9, source=f"{_MEASURED_AVX2}: Relu .098 ns per element of 8 bytes moved"),
    vector=_VECTOR | _prices(_NANOSECONDS_AVX2, _ADD_NS_AVX2, _MEASURED_AVX2),
)


def instructions(described: Path = Path("/proc/cpuinfo")) -> str:
    """The variant that fits this machine's vector instructions; where they cannot be read, the common one."""
    try:
        flags = described.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "avx2"
    return "avx512" if "avx512f" in flags else "avx2"


SHIPPED: Mapping[str, Backend] = {"avx512": _AVX512, "avx2": _AVX2}
HERE = "here"
"""Variant of the machine at hand, after `blochfold backends calibrate cpu`."""


def _family() -> Family:
    calibrated = store.read(SHIPPED, f"cpu:{HERE}")
    if calibrated is None:
        return Family(default=instructions(), variants=SHIPPED)
    return Family(default=HERE, variants={**SHIPPED, HERE: calibrated})


FAMILY = _family()
