"""Huawei Ascend, compiled by ATC, whole graph sunk to the device: facts of the 310, 310B, 310P, 910A and 910B (A2).

ATC runs float16 whatever the file says (its default precision mode), so a number is 2 bytes.
"""

from __future__ import annotations

from dataclasses import replace

from backends.base import Fact
from backends.model import Backend, Family, fitted

_INI = "hicann/ge @ffdcbc9f platform_config"
_ATT = "hicann/ge autofuse per-pipe vector formulas (api_perf_register v1, 910B class), float16"
_LOGS = "fitted on raw kernel logs of a 30-core 910 (Huawei-Performance-Model/Ascend-910B @6066283e)"
_MSM = "Ascend/msmodeling @84fec853 tensor_cast/device.py"
_TABLE_310P3 = "fitted on every second network's published times (Ascend/ModelZoo-PyTorch; benchmarks/cost_chips)"
_CYCLES_PER_ADD = 0.0103

_CYCLES = {
    "Add": 0.0103, "Sub": 0.0103, "Mul": 0.011, "Relu": 0.0077, "Abs": 0.0077, "Exp": 0.031, "Sqrt": 0.031,
    "Div": 0.046, "Cast": 0.0147, "Where": 0.0118, "ReduceSum": 0.0547, "ReduceMean": 0.0547, "ReduceMax": 0.0547,
    "ReduceMin": 0.0547, "GlobalAveragePool": 0.0547, "Sign": 0.0855, "Sigmoid": 0.101, "Tanh": 0.198, "Gather": 0.187,
    "Erf": 0.70, "Pow": 0.66,
}  # fmt: skip
_DERIVED = {
    "AveragePool": (10, "about ten additions a window"), "BatchNormalization": (2, "a multiplication and an addition"),
    "Clip": (2, "a minimum and a maximum"), "Elu": (6, "an exponential and a selection"),
    "HardSigmoid": (3, "a scaled addition and a clip"), "HardSwish": (4, "HardSigmoid and a multiplication"),
    "InstanceNormalization": (15, "two reductions and a scale"), "LeakyRelu": (1.7, "a multiplication and a maximum"),
    "Log": (3, "as Exp"), "MaxPool": (10, "about ten maxima a window"), "PRelu": (2, "as LeakyRelu"),
    "Softmax": (17, "an exponential, two reductions and a division"), "Softplus": (7, "Exp, Add and Log"),
}  # fmt: skip
_VECTOR = {
    **{
        kind: Fact(value=round(cycles / _CYCLES_PER_ADD, 2), source=f"{_ATT}: {cycles} cycles per element")
        for kind, cycles in _CYCLES.items()
    },
    **{
        kind: Fact(value=float(price), source=f"assumed: {why}, at the rates of {_ATT}", assumed=True)
        for kind, (price, why) in _DERIVED.items()
    },
    "Gelu": Fact(value=55.0, source=f"{_LOGS}: GeLU at 0.21 TB/s"),
    "LayerNormalization": Fact(value=70.0, source=f"{_LOGS}: LayerNorm at 0.16 TB/s"),
}

_310P3 = Backend(
    name="ascend:310p3",
    family="ascend",
    channel_step=16,
    epilogues=frozenset({"BatchNormalization", "Relu", "LeakyRelu", "PRelu", "Clip", "Add"}),
    residual=True,
    element_bytes=Fact(value=2, source="GE api/atc/atc_flags.cc: force_fp16 is the default precision mode"),
    cores=Fact(value=8, source=f"{_INI} Ascend310P3.ini: 8 cube cores"),
    core_macs_per_second=Fact(value=4096 * 1.06e9, source=f"{_INI} Ascend310P3.ini: 16x16x16 MAC a cycle at 1060 MHz"),
    core_adds_per_second=Fact(
        value=1.0e9 / _CYCLES_PER_ADD, source=f"{_INI} Ascend310P3.ini: vector at 1000 MHz; {_ATT}: Add"
    ),
    tile_rows=Fact(value=16, source=f"{_INI} DtypeMKN: float16 tile 16x16x16"),
    tile_in=Fact(
        value=16, source="hicann/asc-devkit: NC1HWC0 with C0 = 16; enable_small_channel (C0 = 4) is off by default"
    ),
    tile_out=Fact(value=16, source="hicann/asc-devkit: FRACTAL_Z pads channels out to 16"),
    stored_block=Fact(
        value=16, source="hicann/asc-devkit: NC1HWC0, FRACTAL_Z and FRACTAL_NZ pad channels in memory to 16"
    ),
    layout_block=Fact(value=16, source="hicann/asc-devkit: C0 = 16; a cut inside C0 forces TransData", assumed=True),
    launch_matrix=Fact(value=5e-6, source=f"assumed: lower end of 5 to 10 us; {_MSM} has 5 us a matmul", assumed=True),
    launch_vector=Fact(
        value=2e-6, source=f"assumed: lower end of 2 to 3 us; {_MSM} has 2 us a vector op", assumed=True
    ),
    launch_layout=Fact(value=5e-6, source=f"{_LOGS}: TransData 5.0 us on small tensors", assumed=True),
    matrix_efficiency=Fact(
        value=0.63, source="published VGG-16 at batch 16 (Ascend/ModelZoo-PyTorch @6a2804a358): 44 of 69.5 TFLOP/s"
    ),
    memory_efficiency=Fact(
        value=0.75,
        source="published AlexNet at batch 1 (Ascend/ModelZoo-PyTorch): 122 MB of weights in 0.79 ms, a lower bound",
    ),
    bandwidth=Fact(value=207e9, source=f"{_INI} Ascend310P3.ini: 8 cores x 17 B x 1.06 GHz and 7 x 9 B x 1 GHz"),
    fast_bandwidth=Fact(value=8 * 114 * 1.06e9, source=f"{_INI} Ascend310P3.ini: L2 at 114 B a cycle a core"),
    fast_bytes=Fact(value=16 * 2**20, source=f"{_INI} Ascend310P3.ini: 16 MB of L2"),
    row_block=Fact(value=16, source="hicann/asc-devkit: FRACTAL_NZ pads the last axes to 16"),
    unaligned_row=Fact(
        value=8.0, source=f"{_TABLE_310P3}: best of 1, 3 and 8 on the fitting part (a training run's 50-wide rows: 35)"
    ),
    vector=_VECTOR,
    vector_other=Fact(value=2.0, source="assumed: a light vector operator or a copy", assumed=True),
)

_310P3_SHEET = _310P3
_310P3 = fitted(
    _310P3_SHEET,
    f"{_TABLE_310P3}: 19 of 37 networks, 112 figures; held out: Spearman .981, median error 25 %",
    {
        "launch_matrix": 1.659e-6,
        "launch_vector": 1.596e-6,
        "launch_layout": 4.449e-6,
        "run_seconds": 1.66e-4,
        "matrix_efficiency": 0.6241,
        "core_adds_per_second": 1.429e11,
        "drain": 0.3921,
        "serial": 0.1025,
        "memory_efficiency": 0.8481,
        "fast_bandwidth": 4.683e11,
        "weight_bandwidth": 2.499e11,
    },
)

_310_SHEET = replace(
    _310P3_SHEET,
    name="ascend:310",
    cores=Fact(value=2, source=f"{_INI} Ascend310.ini: 2 cores"),
    core_macs_per_second=Fact(value=4096 * 0.68e9, source=f"{_INI} Ascend310.ini: 4096 MAC a cycle at 680 MHz"),
    core_adds_per_second=Fact(value=0.68e9 / _CYCLES_PER_ADD, source=f"{_INI} Ascend310.ini: 680 MHz; {_ATT}: Add"),
    launch_matrix=Fact(value=19e-6, source="fitted on the Paddle-Lite Ascend310 table @3d329c95, its stack included"),
    launch_vector=Fact(value=5e-6, source="assumed: a vector kernel under the same stack", assumed=True),
    matrix_efficiency=Fact(
        value=0.72, source="published VGG-16 at batch 16 (Ascend/ModelZoo-PyTorch @6a2804a358): 8.1 of 11.1 TFLOP/s"
    ),
    memory_efficiency=Fact(value=0.85, source="fitted on the Paddle-Lite Ascend310 table: weights at 44 GB/s"),
    bandwidth=Fact(value=51.2e9, source="assumed: LPDDR4X part of 51.2 GB/s", assumed=True),
    fast_bandwidth=Fact(value=2 * 128 * 0.68e9, source=f"{_INI} Ascend310.ini: L2 at 128 B a cycle a core"),
    fast_bytes=Fact(value=8 * 2**20, source=f"{_INI} Ascend310.ini: 8 MB of L2"),
)

_310 = fitted(
    _310_SHEET,
    f"{_TABLE_310P3}: 14 of 28 networks, 71 figures; held out: Spearman .979, median error 30 %",
    {
        "launch_matrix": 7.645e-6,
        "launch_vector": 3.933e-6,
        "launch_layout": 1.297e-5,
        "run_seconds": 2.335e-4,
        "matrix_efficiency": 0.9401,
        "core_adds_per_second": 3.814e10,
        "drain": 0.4341,
        "serial": 0.2798,
        "memory_efficiency": 0.7127,
        "fast_bandwidth": 7.762e10,
        "weight_bandwidth": 6.486e10,
    },
)

_910_SHEET = replace(
    _310P3_SHEET,
    name="ascend:910",
    cores=Fact(value=32, source=f"{_INI} Ascend910A.ini: 32 cores"),
    core_macs_per_second=Fact(value=4096 * 1.0e9, source=f"{_INI} Ascend910A.ini: 4096 MAC a cycle at 1000 MHz"),
    core_adds_per_second=Fact(value=1.0e9 / _CYCLES_PER_ADD, source=f"{_INI} Ascend910A.ini: 1000 MHz; {_ATT}: Add"),
    launch_matrix=Fact(value=8e-6, source=f"{_LOGS}: 8 us under every Conv2D"),
    launch_vector=Fact(value=1.5e-6, source=f"{_LOGS}: floor of Add, Mul and Sub"),
    deals_images=True,
    band_rows=Fact(
        value=14, source=f"{_LOGS}: best of 7 to 28 rows and whole images, cross-validated on the fitting part"
    ),
    blocks=Fact(value=32, source="assumed: as on the 30-core 910, where the logs show it", assumed=True),
    core_grain=Fact(value=2048, source=f"{_LOGS}: 2 cores on 3 KB, 6 on 12 KB, all from 60 KB on"),
    unaligned_row=Fact(value=50.0, source=f"{_LOGS}: Softmax of 50-wide rows at three batches"),
    launch_layout=Fact(value=5e-6, source=f"{_LOGS}: TransData 5.0 us on small tensors"),
    matrix_efficiency=Fact(value=0.4, source=f"{_LOGS}: Conv2D"),
    memory_efficiency=Fact(value=0.9, source=f"{_LOGS}: Add at 0.92 to 0.97 TB/s"),
    bandwidth=Fact(value=1024e9, source=f"{_INI} Ascend910A.ini: 32 cores x 32 B x 1 GHz"),
    fast_bandwidth=Fact(value=2.3e12, source=f"{_LOGS}: Add up to 2.3 TB/s in L2"),
    fast_bytes=Fact(value=32 * 2**20, source=f"{_INI} Ascend910A.ini: 32 MB of L2"),
    vector={
        **_VECTOR,
        "Gelu": Fact(value=33.0, source=f"{_LOGS}: three MatMuls with GeLU behind them"),
        "LayerNormalization": Fact(
            value=36.0, source=f"{_LOGS}: six LayerNorms, three in plain order, three in blocks"
        ),
    },
)

_910_RATES = {
    "launch_matrix": 7.064e-6,
    "launch_matmul": 3.722e-6,
    "launch_vector": 1.528e-6,
    "core_start": 9.125e-8,
    "matrix_efficiency": 0.8674,
    "matmul_efficiency": 0.4963,
    "drain": 1.94,
    "serial": 0.9712,
    "memory_serial": 0.5201,
    "fast_bandwidth": 1.954e12,
    "weight_bandwidth": 4.544e11,
    "core_adds_per_second": 8.08e10,
}
_910_KERNELS = f"{_LOGS}; every second layer held out, errors by class in benchmarks/cost_chips"
_910 = fitted(_910_SHEET, _910_KERNELS, _910_RATES)

_910_30 = replace(
    _910,
    name="ascend:910-30",
    cores=Fact(value=30, source=f"{_LOGS}: kernels run on 30 cores; the 910B of before 2023"),
    blocks=Fact(value=32, source=f"{_LOGS}: block_dim of 66 MatMuls is a product of divisors of their tiles, up to 32"),
    bandwidth=Fact(value=1.562e12, source=f"{_LOGS}: with memory_efficiency, 1.41 TB/s, L2 hits included"),
)

_310P1 = replace(
    _310P3,
    name="ascend:310p1",
    cores=Fact(value=10, source=f"{_INI} Ascend310P1.ini: 10 cube cores"),
    bandwidth=Fact(value=10 * 17 * 1.06e9 + 8 * 9e9, source=f"{_INI} Ascend310P1.ini: 10 x 17 B and 8 x 9 B a cycle"),
    fast_bandwidth=Fact(value=10 * 114 * 1.06e9, source=f"{_INI} Ascend310P1.ini: L2 at 114 B a cycle a core"),
)

_310B1_SHEET = replace(
    _310_SHEET,
    name="ascend:310b1",
    cores=Fact(value=1, source=f"{_INI} Ascend310B1.ini: 1 cube core"),
    core_macs_per_second=Fact(value=4096 * 1.224e9, source=f"{_INI} Ascend310B1.ini: 4096 MAC a cycle at 1224 MHz"),
    core_adds_per_second=Fact(value=1.224e9 / _CYCLES_PER_ADD, source=f"{_INI} Ascend310B1.ini: 1224 MHz; {_ATT}: Add"),
    fast_bandwidth=Fact(value=256 * 1.224e9, source=f"{_INI} Ascend310B1.ini: L2 at 256 B a cycle"),
    fast_bytes=Fact(value=4 * 2**20, source=f"{_INI} Ascend310B1.ini: 4 MB of L2"),
)
_310B1 = fitted(
    _310B1_SHEET,
    f"{_TABLE_310P3}: 3 of 5 networks, 18 figures; held out: Spearman .986, median error 19 %",
    {
        "launch_matrix": 3.293e-6,
        "run_seconds": 7.939e-5,
        "matrix_efficiency": 0.9724,
        "core_adds_per_second": 1.786e11,
        "serial": 0.1527,
        "memory_efficiency": 0.9487,
        "fast_bandwidth": 3.356e11,
        "weight_bandwidth": 4.34e10,
    },
)

_910B1 = replace(
    _310P3_SHEET,
    name="ascend:910b1",
    # Vector cores stand apart on A2: only what FixPipe does on the way out is fused.
    epilogues=frozenset({"BatchNormalization", "Relu", "LeakyRelu", "PRelu"}),
    residual=False,
    cores=Fact(value=24, source=f"{_INI} Ascend910B1.ini: 24 cube cores"),
    core_macs_per_second=Fact(value=376e12 / 2 / 24, source=f"{_MSM} A2_376T_64G: 376 TFLOP/s float16 over 24 cores"),
    core_adds_per_second=Fact(
        value=2 * 1.85e9 / _CYCLES_PER_ADD,
        source=f"{_INI} Ascend910B1.ini: 2 vector cores a cube core, 1850 MHz; {_ATT}: Add",
    ),
    launch_matrix=Fact(value=5e-6, source=f"{_MSM}: 5 us a matmul"),
    launch_vector=Fact(value=2e-6, source=f"{_MSM}: 2 us a vector op"),
    matrix_efficiency=Fact(value=0.7, source=f"{_MSM}: compute_efficiency 0.7"),
    memory_efficiency=Fact(value=0.6, source=f"{_MSM}: memory_efficiency 0.6"),
    bandwidth=Fact(value=1.6e12, source=f"{_MSM} A2_376T_64G: 1.6 TB/s"),
    fast_bandwidth=Fact(value=24 * 110 * 1.85e9, source=f"{_INI} Ascend910B1.ini: L2 at 110 B a cycle a core"),
    fast_bytes=Fact(value=192 * 2**20, source=f"{_INI} Ascend910B1.ini: 192 MB of L2"),
)
_910B3 = replace(
    _910B1,
    name="ascend:910b3",
    cores=Fact(value=20, source="hicann/catlass @0dfcf9df AscendC910B3: 20 cube cores"),
    core_macs_per_second=Fact(value=313e12 / 2 / 20, source=f"{_MSM} A2_313T_64G: 313 TFLOP/s float16 over 20 cores"),
    fast_bandwidth=Fact(
        value=20 * 110 * 1.85e9, source=f"{_INI} Ascend910B1.ini: L2 at 110 B a cycle a core; 20 cores"
    ),
)
_910B4 = replace(
    _910B3,
    name="ascend:910b4",
    cores=Fact(value=20, source="assumed: 20 cube cores, as the 910B3", assumed=True),
    core_macs_per_second=Fact(
        value=280e12 / 2 / 20, source=f"{_MSM} A2_280T_32G_PCIE: 280 TFLOP/s float16 over 20 cores"
    ),
    bandwidth=Fact(value=0.8e12, source=f"{_MSM} A2_280T_32G_PCIE: 0.8 TB/s"),
    fast_bytes=Fact(value=168 * 2**20, source="hicann/ops-nn quant_batch_matmul_v4_pergroup_tiling.cpp: 168 MB of L2"),
)

FAMILY = Family(
    default="310p3",
    variants={
        "310": _310,
        "310b1": _310B1,
        "310p1": _310P1,
        "310p3": _310P3,
        "910": _910,
        "910-30": _910_30,
        "910a": replace(_910, name="ascend:910a"),
        "910b": replace(_910B3, name="ascend:910b"),
        "910b1": _910B1,
        "910b2": replace(_910B1, name="ascend:910b2"),
        "910b3": _910B3,
        "910b4": _910B4,
    },
)
