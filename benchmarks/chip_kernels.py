"""Kernel times of an Ascend 910 as workloads: rows of the raw log come in, priceable kernels with seconds go out.

The log's layouts are undone: NC1HWC0 maps and FRACTAL_NZ matrices become the products that they hold. Rows of
training alone (gradients, optimizers) and of types that no inference graph has are left out.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends import Kernel, Matrix, Window, Workload

BYTES = {"FLOAT": 2, "FLOAT16": 4, "INT16": 4, "UINT8": 1}
"""The log's labels are shifted by one: FLOAT means float16, FLOAT16 float32, INT16 int32."""
BLOCK = 16
VECTOR = {
    "Add": "Add", "Sub": "Sub", "Mul": "Mul", "RealDiv": "Div", "Cast": "Cast", "Neg": "Neg", "Sqrt": "Sqrt",
    "Maximum": "Max", "Minimum": "Min", "Select": "Where", "Greater": "Greater", "LessEqual": "LessOrEqual",
    "Equal": "Equal", "LogicalAnd": "And", "LogicalOr": "Or", "LogicalNot": "Not", "Pow": "Pow",
    "Reciprocal": "Reciprocal", "GeLU": "Gelu", "LayerNorm": "LayerNormalization", "Softmax": "Softmax",
    "LogSoftmax": "LogSoftmax", "ReduceSum": "ReduceSum", "ReduceMean": "ReduceMean", "Gather": "Gather",
    "Tile": "Tile", "StridedSlice": "Slice", "Slice": "Slice", "Transpose": "Transpose",
    "ConfusionTransposeD": "Transpose", "TransData": "Transpose", "Concat": "Concat",
}  # fmt: skip
CLASSES = {
    "FusionOp_Conv2D_BNTrainingReduce": "fused Conv2D", "MatMul": "MatMul",
    "FusionOp_MatMul_AddN": "MatMul + Add", "FusionOp_MatMul_GeLU": "MatMul + Gelu", "BatchMatMul": "BatchMatMul",
    "TransData": "TransData", "Transpose": "Transpose", "ConfusionTransposeD": "Transpose", "Gather": "Gather",
    "LayerNorm": "LayerNorm", "Softmax": "Softmax", "LogSoftmax": "Softmax", "ReduceSum": "reduction",
    "ReduceMean": "reduction", "Tile": "Tile", "StridedSlice": "Slice", "Slice": "Slice", "Cast": "Cast",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row of the log.

    Attributes:
        kind: Class of the report.
        key: What is the same for all batches of one layer; a key is fitted on or held out as a whole.
        kernel: What ran.
        element_bytes: Of its largest tensor.
        seconds: Median.
    """

    kind: str
    key: str
    kernel: Kernel
    element_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Tensor:
    layout: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read(path: Path) -> tuple[Measured, ...]:
    """Every row that an inference graph could hold, in the file's order."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(_measured(csv.DictReader(file)))


def _measured(rows: Iterator[dict[str, str]]) -> Iterator[Measured]:
    for row in rows:
        inputs, outputs = _tensors(row["inputs"]), _tensors(row["outputs"])
        found = _kernel(row["op_type"], inputs, outputs) if inputs and outputs else None
        if found is not None:
            kernel, key = found
            largest = max((*inputs, *outputs), key=lambda tensor: tensor.elements)
            yield Measured(
                kind=CLASSES.get(row["op_type"], "elementwise"),
                key=f"{row['op_type']} {key}",
                kernel=kernel,
                element_bytes=BYTES.get(largest.dtype, 4),
                seconds=float(row["median_us"]) * 1e-6,
            )


def _tensors(text: str) -> tuple[_Tensor, ...]:
    parts = (part.split(":") for part in text.split("|") if part.count(":") == 2)
    return tuple(_Tensor(p[0], p[1], tuple(int(size) for size in p[2].split("x") if size)) for p in parts)


def _kernel(kind: str, inputs: tuple[_Tensor, ...], outputs: tuple[_Tensor, ...]) -> tuple[Kernel, str] | None:
    if kind == "FusionOp_Conv2D_BNTrainingReduce":
        return _convolution(inputs, outputs[0])
    if kind in ("MatMul", "FusionOp_MatMul_AddN", "FusionOp_MatMul_GeLU", "BatchMatMul"):
        return _product(kind, inputs, outputs[0])
    if kind in VECTOR:
        return _vector(VECTOR[kind], inputs, outputs[0])
    return None


def _convolution(inputs: tuple[_Tensor, ...], y: _Tensor) -> tuple[Kernel, str]:
    x, w = inputs[:2]
    batch, c1, h, wide, c0 = x.shape
    _, n1, ho, wo, _ = y.shape
    taps, n = w.shape[0] // c1, n1 * BLOCK
    side = math.isqrt(taps)
    window = Window(taps=(side, side), reads=(h, wide), writes=(ho, wo))
    m = batch * ho * wo
    matrix = Matrix(count=1, m=m, channels=c1 * c0, taps=taps, n=n, kind="conv", images=batch, window=window)
    head = _work("Conv", (x,), y, matrix=matrix, channels=(c1 * c0, n), weights=w.elements)
    # Training takes the mean and the variance of every channel on the way out: two reductions.
    reduction = _work("ReduceSum", (y,), y, matrix=None, channels=(n, n))
    return Kernel(head=head, epilogue=(reduction, reduction)), f"{c1 * c0}x{h}x{wide} to {n}x{ho}, {taps} taps"


def _product(kind: str, inputs: tuple[_Tensor, ...], y: _Tensor) -> tuple[Kernel, str] | None:
    if len(y.shape) < 4:
        return None
    *batches, n1, m1, _, _ = y.shape
    count, n, m = math.prod(batches), n1 * BLOCK, m1 * BLOCK
    k = inputs[0].elements // (count * m)
    constant = kind != "BatchMatMul"
    matrix = Matrix(count=count, m=m, channels=k, taps=1, n=n, kind="matmul", constant_weights=constant)
    weights = k * n if constant else 0
    head = _work("MatMul", inputs[:1] if constant else inputs[:2], y, matrix=matrix, channels=(k, n), weights=weights)
    epilogue: tuple[Workload, ...] = ()
    if kind == "FusionOp_MatMul_AddN":
        epilogue = (_work("Add", (y, *inputs[2:]), y, matrix=None, channels=(n, n)),)
    elif kind == "FusionOp_MatMul_GeLU":
        epilogue = (_work("Gelu", (y,), y, matrix=None, channels=(n, n)),)
    return Kernel(head=head, epilogue=epilogue), f"{k} to {n}" if constant else f"{m}x{k}x{n}"


def _vector(kind: str, inputs: tuple[_Tensor, ...], y: _Tensor) -> tuple[Kernel, str]:
    # In FRACTAL_NZ rows are whole; in plain order the last axis may be cut.
    last = BLOCK if y.layout == "FRACTAL_NZ" else (y.shape[-1] if y.shape else 1)
    head = _work(kind, inputs, y, matrix=None, channels=(BLOCK, BLOCK), last_axis=last)
    feature = "x".join(map(str, y.shape[1:])) or "scalar"
    return Kernel(head=head), f"{y.layout} {feature}"


def _work(
    kind: str,
    inputs: tuple[_Tensor, ...],
    y: _Tensor,
    *,
    matrix: Matrix | None,
    channels: tuple[int, int],
    weights: int = 0,
    last_axis: int = BLOCK,
) -> Workload:
    read = sum(tensor.elements for tensor in inputs)
    return Workload(
        name="kernel",
        op_type=kind,
        matrix=matrix,
        elements=y.elements,
        channels_in=channels[0],
        channels_out=channels[1],
        last_axis=last_axis,
        activation_bytes_in=sum(tensor.elements * BYTES.get(tensor.dtype, 4) for tensor in inputs),
        activation_bytes_out=y.elements * BYTES.get(y.dtype, 4),
        weight_bytes=2 * weights,
        activation_elements_in=read,
        weight_elements=weights,
        inputs=tuple(f"x{index}" for index in range(len(inputs))),
        outputs=("y",),
    )
