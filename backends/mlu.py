"""Cambricon MLU under MagicMind: facts of the MLU370 (S4 and X4 boards) and MLU270.

The MLU370 is priced in float16 (force_float16, what MagicMind's samples build); the MLU270 has no float matrix
unit and is priced in int16. Both take 2 bytes a number.
"""

from __future__ import annotations

from dataclasses import replace

from backends.base import Fact
from backends.model import Backend, Family
from backends.vocabulary import assumed_vector_prices

_OPS = "Cambricon/mlu-ops @73adc65d executor.h and kernel.h"
_TABLE = "fitted on the Paddle-Lite MLU370-S4 table @3d329c95, its dispatch included"

_370 = Backend(
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

_370X4 = replace(
    _370,
    name="mlu:370x4",
    cores=Fact(value=32, source="assumed: 8 clusters of 4 cores on the X4 board", assumed=True),
    fast_bandwidth=Fact(value=8 * 128e9, source=f"{_OPS}: 128 GB/s seen by one cluster, 8 clusters", assumed=True),
    fast_bytes=Fact(value=8 * 4 * 2**20, source=f"{_OPS}: 4 MB of SRAM a cluster, 8 clusters", assumed=True),
)

_270 = replace(
    _370,
    name="mlu:270",
    element_bytes=Fact(value=2, source=f"{_OPS}: no float matrix unit on mtp_270; int16 path"),
    cores=Fact(value=16, source="assumed: 16 cores", assumed=True),
    core_macs_per_second=Fact(value=2048e9, source=f"{_OPS}: 2048 int16 MAC a cycle, 1 GHz"),
    bandwidth=Fact(value=102.4e9, source=f"{_OPS}: 102.4 GB/s on mtp_270"),
    launch_matrix=Fact(value=25e-6, source="assumed: as fitted on the MLU370", assumed=True),
    fast_bandwidth=Fact(value=4 * 64e9, source="assumed: 4 clusters at half the rate of an MLU370's", assumed=True),
    fast_bytes=Fact(value=4 * 2 * 2**20, source=f"{_OPS}: 2 MB of SRAM a cluster, 4 clusters", assumed=True),
)

FAMILY = Family(default="370", variants={"370": _370, "370x4": _370X4, "270": _270})
