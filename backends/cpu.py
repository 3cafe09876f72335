"""x86 CPUs under ONNX Runtime (MLAS): facts of AVX-512 and AVX2, float32; what they count is in `backends.mlas`.

The numbers were measured on one core of one machine; another machine scales them, and ranks survive scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from backends.base import Fact
from backends.calibration import store
from backends.model import Backend, Family
from backends.vocabulary import POOLS

_MLAS = "ONNX Runtime source, MLAS NCHWc convolution (intel/onnxruntime @cc8e901e)"
_MEASURED = "measured, ONNX Runtime 1.31.1, one thread of an AMD EPYC with AVX-512"
_AVX2_ALSO = "assumed: as on a core with AVX2 only, which was measured"
_MEASURED_AVX2 = (
    "measured by blochfold backends calibrate cpu, ONNX Runtime 1.31.1, one thread of an AMD EPYC with AVX2 only"
)
_TWO_CALIBRATIONS = f"{_MEASURED_AVX2}, in two runs beside other work, their geometric mean"
_QUIET = f"{_MEASURED_AVX2}, the median of three runs with nothing beside them"
_ADD_NS = 0.08
_ADD_NS_AVX2 = 0.1226

_NANOSECONDS = {
    "Abs": 0.05, "Clip": 0.05, "Neg": 0.05, "Relu": 0.05, "Exp": 0.07, "Add": 0.08, "HardSigmoid": 0.08, "Mul": 0.10,
    "Div": 0.14, "Reciprocal": 0.14, "Softsign": 0.14, "Softmax": 0.16, "LeakyRelu": 0.17, "HardSwish": 0.18,
    "Floor": 0.19, "Tanh": 0.19, "Sigmoid": 0.22, "Sqrt": 0.26, "PRelu": 0.27, "Where": 0.29, "Erf": 0.29,
    "LayerNormalization": 0.31, "Transpose": 0.41, "Sin": 1.2, "Log": 1.4, "Elu": 1.4, "Pow": 3.1, "Softplus": 9.3,
}  # fmt: skip
_NANOSECONDS_AVX2 = {
    "Abs": 0.084, "AveragePool": 0.085, "Clip": 0.084, "Concat": 0.089, "Div": 0.215, "Elu": 2.098, "Erf": 0.709,
    "Exp": 0.358, "Gelu": 0.923, "GlobalAveragePool": 0.105, "HardSigmoid": 0.129, "HardSwish": 0.366,
    "LayerNormalization": 0.709, "LeakyRelu": 0.145, "Log": 1.899, "MaxPool": 0.069, "Mul": 0.123, "Neg": 0.084,
    "Pow": 5.708, "ReduceMean": 1.28, "Relu": 0.084, "Sigmoid": 0.297, "Slice": 0.075, "Softmax": 0.755,
    "Softplus": 12.385, "Sqrt": 0.358, "Sub": 0.139, "Tanh": 0.282, "Transpose": 0.725,
}  # fmt: skip


def _prices(nanoseconds: Mapping[str, float], add: float, source: str) -> dict[str, Fact]:
    return {
        kind: Fact(value=round(ns / add, 3), source=f"{source}: {ns} ns per element on 64x1024, Add {add} ns")
        for kind, ns in nanoseconds.items()
    }


_VECTOR = _prices(_NANOSECONDS, _ADD_NS, _MEASURED)

_KERNELS = "ONNX Runtime source, MLAS kernels for x86 (intel/onnxruntime @cc8e901e)"
_LATENCY = "two multipliers, each with four products in flight"
_AVX512 = Backend(
    name="cpu:avx512",
    family="cpu",
    channel_step=16,
    epilogues=frozenset({"BatchNormalization", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "Add"}),
    # Products of three axes and more stay MatMul, and nothing is fused behind those.
    product_epilogues=frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid"}),
    bare=frozenset({"MatMul", "Einsum", "LSTM", "GRU", "RNN"}),
    written_as=True,
    residual=True,
    block_bound=frozenset({"Concat"}) | POOLS,
    keeps_blocks=frozenset({"Concat", "Add", "Sum", "Mul", "Relu", "Sigmoid", "Tanh", "BatchNormalization"})
    | POOLS
    | {"Resize", "Upsample", "Identity", "Dropout"},
    element_bytes=Fact(value=4, source="float32, as the file says"),
    cores=Fact(value=1, source="threads of ONNX Runtime; one is the stated default", assumed=True),
    core_macs_per_second=Fact(
        value=140e9,
        source=f"{_MEASURED}: 3x3 convolution of 64 to 64 channels on 28x28 in 241 us, and 18 more widths within 13 %",
    ),
    core_adds_per_second=Fact(value=1e9 / _ADD_NS, source=f"{_MEASURED}: Add {_ADD_NS} ns per element on 64x1024"),
    tile_in=Fact(value=16, source=f"{_MLAS}: block of 16 on AVX-512; confirmed by the measured steps in channels in"),
    tile_out=Fact(value=16, source=f"{_MLAS}: block of 16 on AVX-512; confirmed by the measured steps in channels out"),
    columns=Fact(value=6, source=f"{_KERNELS}: six output columns a pass on AVX-512"),
    filter_set=Fact(value=64, source=f"{_MLAS}: filter sets of 4 blocks"),
    in_flight=Fact(
        value=8, source=f"{_LATENCY}; confirmed by 96, 135, 190 and 245 us for 1 to 4 blocks out, {_MEASURED}"
    ),
    product_rows=Fact(value=12, source=f"{_KERNELS}: SGEMM of 12 rows a pass on AVX-512"),
    product_columns=Fact(value=32, source=f"{_KERNELS}: SGEMM of two vectors a pass"),
    direct_channels=Fact(value=16, source=f"{_MLAS}: fewer channels in than a block read the plain layout"),
    depthwise_macs_per_second=Fact(
        value=57e9, source=f"{_MEASURED}: depthwise 3x3 on 28x28, 3.5 us a block of 16 channels"
    ),
    alignment=Fact(value=4, source=f"{_MLAS}: channels in % 4 == 0 is required, else im2col and GEMM"),
    product_start=Fact(value=1.1e-07, source=_AVX2_ALSO, assumed=True),
    row_start=Fact(value=3e-09, source=_AVX2_ALSO, assumed=True),
    pack=Fact(value=1.43, source=_AVX2_ALSO, assumed=True),
    strided_copy=Fact(value=2.01, source=_AVX2_ALSO, assumed=True),
    streams=Fact(value=1.57, source=_AVX2_ALSO, assumed=True),
    fork=Fact(value=2.85e-6, source=_AVX2_ALSO, assumed=True),
    launch_helper=Fact(value=0.2e-6, source=f"{_AVX2_ALSO}: as dear as any node", assumed=True),
    core_bytes=Fact(value=1 << 20, source="AMD Zen 4: 1 MiB of L2 cache a core", assumed=True),
    kept_bytes=Fact(value=8e6, source="assumed: half of a core's share of the last-level cache", assumed=True),
    near_bandwidth=Fact(value=9.7e10, source=_AVX2_ALSO, assumed=True),
    walk_bandwidth=Fact(value=4.98e10, source=_AVX2_ALSO, assumed=True),
    copy=Fact(value=0.7, source=f"{_MEASURED}: 62 and 63 channels in cost 1.3 times 64"),
    reorder=Fact(value=1.3, source=_AVX2_ALSO, assumed=True),
    plain_max_pool=Fact(value=5.5, source=_AVX2_ALSO, assumed=True),
    plain_average_pool=Fact(value=48, source=_AVX2_ALSO, assumed=True),
    drain=Fact(value=1.6, source=_AVX2_ALSO, assumed=True),
    serial=Fact(value=1, source=_AVX2_ALSO, assumed=True),
    launch_matrix=Fact(value=0.2e-6, source=f"{_MEASURED}: 0.16 to 0.23 us a node in chains of 50 and 450 nodes"),
    launch_vector=Fact(value=0.2e-6, source=f"{_MEASURED}: 0.16 to 0.23 us a node in chains of 50 and 450 nodes"),
    launch_shape=Fact(value=0.2e-6, source=f"{_AVX2_ALSO}: as dear as any node", assumed=True),
    launch_move=Fact(value=0.4e-6, source=f"{_AVX2_ALSO}: twice any node", assumed=True),
    launch_rows=Fact(value=0.32e-6, source=f"{_AVX2_ALSO}: 1.6 times any node", assumed=True),
    launch_layout=Fact(value=0.2e-6, source=f"{_MEASURED}: a reorder is a node like others"),
    matrix_efficiency=Fact(value=1.0, source="the matrix rate is measured, not a peak"),
    memory_efficiency=Fact(value=1.0, source="the bandwidths are effective ones"),
    bandwidth=Fact(value=20e9, source="assumed: one core's share of server memory", assumed=True),
    weight_bandwidth=Fact(value=2.5e10, source=_AVX2_ALSO, assumed=True),
    fast_bandwidth=Fact(value=160e9, source=f"{_MEASURED}: Relu .05 ns per element of 8 bytes moved"),
    fast_bytes=Fact(value=16e6, source="assumed: a core's share of the last-level cache", assumed=True),
    vector=_VECTOR,
    vector_other=Fact(value=2.0, source="assumed: between Mul and LeakyRelu of the measured table", assumed=True),
)

_AVX2 = replace(
    _AVX512,
    name="cpu:avx2",
    channel_step=8,
    core_macs_per_second=Fact(value=5.778e10, source=_MEASURED_AVX2),
    matmul_efficiency=Fact(value=0.891, source=f"{_MEASURED_AVX2}: of the rate of convolutions"),
    core_adds_per_second=Fact(value=1e9 / _ADD_NS_AVX2, source=f"{_MEASURED_AVX2}: Add {_ADD_NS_AVX2} ns per element"),
    tile_in=Fact(value=8, source=f"{_MLAS}: block of 8 on AVX2"),
    tile_out=Fact(value=8, source=f"{_MLAS}: block of 8 on AVX2"),
    columns=Fact(value=3, source=f"{_KERNELS}: three output columns a pass on AVX2"),
    filter_set=Fact(value=32, source=f"{_MLAS}: filter sets of 4 blocks"),
    in_flight=Fact(value=8, source=_LATENCY),
    product_rows=Fact(value=6, source=f"{_KERNELS}: SGEMM of 6 rows a pass on AVX2"),
    product_columns=Fact(value=16, source=f"{_KERNELS}: SGEMM of two vectors a pass"),
    core_bytes=Fact(value=1 << 19, source="AMD Zen 2 and 3: 512 KiB of L2 cache a core; lscpu says the same"),
    direct_channels=Fact(value=8, source=f"{_MLAS}: fewer channels in than a block read the plain layout"),
    product_start=Fact(value=1.075e-07, source=_MEASURED_AVX2),
    row_start=Fact(value=3.011e-09, source=_MEASURED_AVX2),
    copy=Fact(value=1.159, source=_MEASURED_AVX2),
    pack=Fact(value=1.43, source=_TWO_CALIBRATIONS),
    strided_copy=Fact(value=2.01, source=_TWO_CALIBRATIONS),
    reorder=Fact(value=1.327, source=_MEASURED_AVX2),
    plain_max_pool=Fact(value=5.528, source=_MEASURED_AVX2),
    plain_average_pool=Fact(value=47.55, source=_MEASURED_AVX2),
    launch_matrix=Fact(value=7.935e-07, source=_QUIET),
    launch_matmul=Fact(value=4.854e-07, source=_QUIET),
    launch_vector=Fact(value=4.315e-07, source=_QUIET),
    launch_shape=Fact(value=4.573e-07, source=_QUIET),
    launch_helper=Fact(value=4.1e-07, source=_QUIET),
    launch_move=Fact(value=8.71e-07, source=_QUIET),
    launch_rows=Fact(value=6.975e-07, source=_QUIET),
    launch_layout=Fact(value=2.217e-06, source=_MEASURED_AVX2),
    fork=Fact(value=2.85e-06, source=_QUIET),
    streams=Fact(value=1.57, source=f"{_QUIET}: what two threads gain on weights that no cache holds"),
    serial=Fact(value=1, source=_MEASURED_AVX2),
    drain=Fact(value=1.595, source=_MEASURED_AVX2),
    run_seconds=Fact(value=6.426e-06, source=_MEASURED_AVX2),
    bandwidth=Fact(value=2.467e10, source=_MEASURED_AVX2),
    weight_bandwidth=Fact(value=2.472e10, source=_MEASURED_AVX2),
    fast_bandwidth=Fact(value=1.859e11, source=_MEASURED_AVX2),
    fast_bytes=Fact(value=8.389e06, source=_MEASURED_AVX2),
    near_bandwidth=Fact(value=9.7e10, source=_TWO_CALIBRATIONS),
    walk_bandwidth=Fact(value=4.98e10, source=_TWO_CALIBRATIONS),
    depthwise_macs_per_second=Fact(value=1.418e11, source=_MEASURED_AVX2),
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
