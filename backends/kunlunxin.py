"""Kunlunxin XPUs under XTCL or Paddle-Lite: facts of K100, K200, R200, R300 and P800, float16.

At batch 1 launches explain most of the time; tile rules are not public, so channel steps are a prior.
"""

from __future__ import annotations

from dataclasses import replace

from backends.base import Fact
from backends.model import Backend, Family, fitted
from backends.vocabulary import assumed_vector_prices

_TABLE = "fitted on the Paddle-Lite R200 table @3d329c95"
_PRESS = "press reports of Hot Chips 2020 and Baidu Tech Salon"

_R200_SHEET = Backend(
    name="kunlunxin:r200",
    family="kunlunxin",
    channel_step=16,
    epilogues=frozenset(
        {"BatchNormalization", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Add"}
    ),
    residual=True,
    element_bytes=Fact(value=2, source="FlagOpen/FlagPerf xtcl.py: XPUOutDtypeConfig float16", assumed=True),
    cores=Fact(value=6, source=f"{_PRESS}: 6 SDNN units"),
    core_macs_per_second=Fact(value=128e12 / 2 / 6, source=f"{_PRESS}: 128 TFLOP/s float16 over 6 units"),
    core_adds_per_second=Fact(
        value=128e9, source="assumed: one 256-byte vector operation a cycle a unit at 1 GHz", assumed=True
    ),
    tile_in=Fact(value=16, source="assumed: no public rule; per-16-element local quantisation exists", assumed=True),
    tile_out=Fact(value=16, source="assumed: no public rule; prior of 16 to 32", assumed=True),
    layout_block=Fact(
        value=16, source="assumed: as tile_out; XTCL's DenseNet and GhostNet say that Concat is dear", assumed=True
    ),
    launch_matrix=Fact(value=15e-6, source=f"{_TABLE}: 15 us a convolution-level kernel"),
    launch_vector=Fact(value=10e-6, source="assumed: two thirds of a matrix kernel's launch", assumed=True),
    launch_layout=Fact(value=10e-6, source="assumed: a layout change is a vector kernel", assumed=True),
    matrix_efficiency=Fact(value=0.28, source="FlagOpen/FlagPerf @1b5a0303: ViT-L at 27.9 % of peak, one run"),
    memory_efficiency=Fact(value=0.6, source=f"{_TABLE}: weights at 314 GB/s of 512"),
    bandwidth=Fact(value=512e9, source=f"{_PRESS}: 512 GB/s GDDR6"),
    fast_bandwidth=Fact(value=2e12, source="assumed: L3 at four times the GDDR6", assumed=True),
    fast_bytes=Fact(value=64 * 2**20, source=f"{_PRESS}: 64 MB of L3; Paddle-Lite keeps activations there"),
    vector=assumed_vector_prices("no public table for Kunlunxin's vector unit"),
    vector_other=Fact(value=2.0, source="assumed: a light vector operator or a copy", assumed=True),
)

_R200 = fitted(
    _R200_SHEET,
    f"{_TABLE}, XPU kernels: 7 of 13 networks; held out: Spearman .943, median error 13 %",
    {
        "launch_matrix": 1.246e-5,
        "launch_vector": 8.594e-6,
        "launch_layout": 1.008e-5,
        "run_seconds": 4.889e-5,
        "matrix_efficiency": 0.5523,
        "core_adds_per_second": 1.361e11,
        "serial": 0.3707,
        "memory_efficiency": 0.6289,
        "weight_bandwidth": 5.737e11,
    },
)

_K200 = replace(
    _R200_SHEET,
    name="kunlunxin:k200",
    cores=Fact(value=2, source=f"{_PRESS}: 2 units"),
    core_macs_per_second=Fact(value=64e12 / 2 / 2, source=f"{_PRESS}: 64 TFLOP/s int16 or float16 over 2 units"),
    launch_matrix=Fact(value=15e-6, source="assumed: as fitted on the R200", assumed=True),
    bandwidth=Fact(value=512e9, source=f"{_PRESS}: 512 GB/s HBM"),
    fast_bandwidth=Fact(value=1e12, source="assumed: on-chip memory at twice the HBM", assumed=True),
    fast_bytes=Fact(value=32 * 2**20, source=f"{_PRESS}: 16 MB a unit, 2 units"),
)

_P800 = replace(
    _R200_SHEET,
    name="kunlunxin:p800",
    cores=Fact(value=6, source="assumed: units not public, as the R200", assumed=True),
    core_macs_per_second=Fact(
        value=345e12 / 2 / 6,
        source="a community device file: 345 TFLOP/s float16; users measured 342 to 348 on large GEMM",
    ),
    matrix_efficiency=Fact(value=0.5, source="assumed: between the R200's 0.28 and large GEMM", assumed=True),
    launch_matrix=Fact(value=15e-6, source="assumed: as fitted on the R200; users report 17 us floors", assumed=True),
    bandwidth=Fact(value=2.7e12, source="a community device file: 2.7 TB/s", assumed=True),
    fast_bandwidth=Fact(value=5e12, source="assumed: on-chip memory at about twice the main memory", assumed=True),
    fast_bytes=Fact(value=64 * 2**20, source="assumed: not public, as the R200", assumed=True),
)

_K100 = replace(
    _K200,
    name="kunlunxin:k100",
    cores=Fact(value=1, source="assumed: half of a K200, one unit", assumed=True),
    core_macs_per_second=Fact(value=32e12 / 2, source="assumed: half of a K200: 32 TFLOP/s float16", assumed=True),
    bandwidth=Fact(value=256e9, source="assumed: half of a K200: 256 GB/s", assumed=True),
    fast_bandwidth=Fact(value=512e9, source="assumed: on-chip memory at twice the HBM", assumed=True),
    fast_bytes=Fact(value=16 * 2**20, source="assumed: 16 MB, one unit of a K200", assumed=True),
)

_R300 = replace(
    _R200,
    name="kunlunxin:r300",
    core_macs_per_second=Fact(
        value=128e12 / 2 / 6, source="press: the R200's chip, 128 TFLOP/s float16; 6 units as there"
    ),
)

FAMILY = Family(default="r200", variants={"k100": _K100, "k200": _K200, "r200": _R200, "r300": _R300, "p800": _P800})
