"""Cambricon MLU under MagicMind: facts of the MLU220, 270, 290, 370 (S4, X4 and X8 boards) and 590.

The MLU370 and 590 are priced in float16 (force_float16, what MagicMind's samples build); the others have no float
matrix unit and are priced in int16. All take 2 bytes a number.
"""

from __future__ import annotations

from dataclasses import replace

from backends.base import Fact
from backends.model import Backend, Family, fitted
from backends.vocabulary import assumed_vector_prices

_OPS = "Cambricon/mlu-ops @73adc65d executor.h and kernel.h"
_TABLE = "fitted on the Paddle-Lite MLU370-S4 table @3d329c95, its dispatch included"

_370_SHEET = Backend(
    name="mlu:370",
    family="mlu",
    channel_step=64,
    epilogues=frozenset({"BatchNormalization", "Relu", "Clip"}),
    residual=False,
    element_bytes=Fact(value=2, source="MagicMind precision_mode force_float16, of the samples' choices", assumed=True),
    cores=Fact(value=24, source="assumed: 24 cores on the S4 board", assumed=True),
    core_macs_per_second=Fact(value=1536e9, source=f"{_OPS}: 1536 float16 MAC a cycle, 1 GHz"),
    core_adds_per_second=Fact(value=64e9, source=f"{_OPS}: 64 float16 vector operations a cycle, 1 GHz"),
    tile_in=Fact(value=32, source="assumed: 64-byte rows of float16", assumed=True),
    tile_out=Fact(
        value=64, source=f"{_OPS}: LT_NUM 64 lanes; that channels out are padded to them is a reading", assumed=True
    ),
    launch_matrix=Fact(value=25e-6, source=f"{_TABLE}: 25 us a kernel"),
    launch_vector=Fact(value=10e-6, source="assumed: less than half of a matrix kernel's launch", assumed=True),
    launch_layout=Fact(value=10e-6, source="assumed: a layout change is a vector kernel", assumed=True),
    matrix_efficiency=Fact(
        value=0.45, source="mlu-ops acceptance standard: 0.6 on common shapes, 0.3 otherwise; the middle"
    ),
    memory_efficiency=Fact(value=0.6, source="mlu-ops acceptance standard: 0.6 of the input-output roofline"),
    bandwidth=Fact(value=307.2e9, source=f"{_OPS}: 307.2 GB/s on mtp_372"),
    fast_bandwidth=Fact(value=6 * 128e9, source=f"{_OPS}: 128 GB/s seen by one cluster, 6 clusters", assumed=True),
    fast_bytes=Fact(value=6 * 4 * 2**20, source=f"{_OPS}: 4 MB of SRAM a cluster, 6 clusters", assumed=True),
    vector=assumed_vector_prices("no public table for Cambricon's vector unit"),
    vector_other=Fact(value=2.0, source="assumed: a light vector operator or a copy", assumed=True),
)

_370 = fitted(
    _370_SHEET,
    f"{_TABLE}, run in float32: 3 of 5 networks; held out: median error 19 %",
    {
        "launch_matrix": 1.866e-5,
        "launch_vector": 9.33e-6,
        "launch_layout": 9.945e-6,
        "run_seconds": 2.475e-4,
        "matrix_efficiency": 0.6015,
        "core_adds_per_second": 6.441e10,
        "serial": 0.402,
        "memory_efficiency": 0.6411,
        "weight_bandwidth": 2.239e11,
    },
)

_370X4 = replace(
    _370,
    name="mlu:370x4",
    cores=Fact(value=32, source="assumed: 8 clusters of 4 cores on the X4 board", assumed=True),
    fast_bandwidth=Fact(value=8 * 128e9, source=f"{_OPS}: 128 GB/s seen by one cluster, 8 clusters", assumed=True),
    fast_bytes=Fact(value=8 * 4 * 2**20, source=f"{_OPS}: 4 MB of SRAM a cluster, 8 clusters", assumed=True),
)

_270 = replace(
    _370_SHEET,
    name="mlu:270",
    element_bytes=Fact(value=2, source=f"{_OPS}: no float matrix unit on mtp_270; int16 path"),
    cores=Fact(value=16, source="assumed: 16 cores", assumed=True),
    core_macs_per_second=Fact(value=2048e9, source=f"{_OPS}: 2048 int16 MAC a cycle, 1 GHz"),
    bandwidth=Fact(value=102.4e9, source=f"{_OPS}: 102.4 GB/s on mtp_270"),
    launch_matrix=Fact(value=25e-6, source="assumed: as fitted on the MLU370", assumed=True),
    fast_bandwidth=Fact(value=4 * 64e9, source="assumed: 4 clusters at half the rate of an MLU370's", assumed=True),
    fast_bytes=Fact(value=4 * 2 * 2**20, source=f"{_OPS}: 2 MB of SRAM a cluster, 4 clusters", assumed=True),
)

_370X8 = replace(
    _370X4,
    name="mlu:370x8",
    core_macs_per_second=Fact(value=96e12 / 2 / 32, source="press: 96 TFLOP/s float16 a board, over 32 cores assumed"),
    bandwidth=Fact(value=614.4e9, source="press: 614.4 GB/s a board, two chips"),
)

_220 = replace(
    _270,
    name="mlu:220",
    cores=Fact(value=4, source="assumed: 4 cores, one cluster", assumed=True),
    core_macs_per_second=Fact(value=1024e9, source=f"{_OPS}: 1024 int16 MAC a cycle on mtp_220, 1 GHz"),
    bandwidth=Fact(value=25.6e9, source=f"{_OPS}: 25.6 GB/s on mtp_220"),
    fast_bandwidth=Fact(value=64e9, source="assumed: one cluster at half the rate of an MLU370's", assumed=True),
    fast_bytes=Fact(value=2 * 2**20, source=f"{_OPS}: 2 MB of SRAM a cluster, 1 cluster"),
)

_290 = replace(
    _270,
    name="mlu:290",
    cores=Fact(value=64, source="press: 64 cores"),
    bandwidth=Fact(value=1024e9, source=f"{_OPS}: 1024 GB/s on mtp_290 (press: 1228)"),
    fast_bandwidth=Fact(value=2048e9, source="assumed: twice the main memory", assumed=True),
    fast_bytes=Fact(value=16 * 2 * 2**20, source="assumed: 2 MB of SRAM a cluster, 16 clusters", assumed=True),
)

_590 = replace(
    _370X4,
    name="mlu:590",
    core_macs_per_second=Fact(
        value=314e12 / 2 / 32,
        source="assumed: a community device file's 314 TFLOP/s float16 over 32 cores; the vendor's figure is redacted",
        assumed=True,
    ),
    bandwidth=Fact(
        value=2.7e12, source="assumed: a community device file's 2.7 TB/s; the vendor's is redacted", assumed=True
    ),
    fast_bandwidth=Fact(value=5e12, source="assumed: on-chip memory at about twice the main memory", assumed=True),
    fast_bytes=Fact(value=8 * 2 * 2**20, source=f"{_OPS}: 2 MB of SRAM a cluster on mtp_592; 8 clusters assumed"),
)

FAMILY = Family(
    default="370",
    variants={
        "220": _220,
        "270": _270,
        "290": _290,
        "370": _370,
        "370s4": replace(_370, name="mlu:370s4"),
        "370x4": _370X4,
        "370x8": _370X8,
        "590": _590,
    },
)
