"""One row an operator kind: between two layers, are the units coupled as ONNX Runtime says they are?

Every model reads x, makes hidden units with a first layer, passes them through the operator, and ends in a last
layer. The oracle of coupling judges every group that can be cut; the row says how many units that must be.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import oracle
from tests import corpus
from tests.corpus import Array

RNG = np.random.default_rng(3)


def weight(*shape: int) -> Array:
    return RNG.normal(0, 0.4, shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


def integers(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


BETWEEN: dict[str, tuple[str, dict[str, Array], int, int, int]] = {
    # Name: nodes from h [N, 8, 6, 6] to z, their constants, channels of z, opset, units that can be cut.
    **{
        op: (f"z = {op} (h)", {}, 8, 20, 8)
        for op in ("Relu", "Sigmoid", "Tanh", "Gelu", "HardSwish", "Softplus", "Erf", "Identity", "Elu", "Abs")
    },
    "BatchNormalization": (
        "z = BatchNormalization (h, a, b, c, d)",
        {"a": positive(8), "b": weight(8), "c": weight(8), "d": positive(8)},
        8,
        17,
        8,
    ),
    "InstanceNormalization": ("z = InstanceNormalization (h, a, b)", {"a": positive(8), "b": weight(8)}, 8, 17, 8),
    "GroupNormalization": (
        "z = GroupNormalization <num_groups = 4> (h, a, b)", {"a": positive(8), "b": weight(8)}, 8, 21, 4
    ),
    "LRN": ("z = LRN <size = 3> (h)", {}, 8, 17, 0),
    "Softmax": ("z = Softmax <axis = 1> (h)", {}, 8, 17, 0),
    "MaxPool": ("z = MaxPool <kernel_shape = [2,2]> (h)", {}, 8, 17, 8),
    "AveragePool": ("z = AveragePool <kernel_shape = [2,2]> (h)", {}, 8, 17, 8),
    "Conv": ("z = Conv (h, a)", {"a": weight(5, 8, 1, 1)}, 5, 17, 13),
    "Conv depthwise": ("z = Conv <group = 8> (h, a)", {"a": weight(8, 1, 3, 3)}, 8, 17, 8),
    "Conv grouped": ("z = Conv <group = 2> (h, a)", {"a": weight(6, 4, 1, 1)}, 6, 17, 2 + 4 + 3),
    "ConvTranspose": ("z = ConvTranspose <strides = [2,2]> (h, a)", {"a": weight(8, 5, 2, 2)}, 5, 17, 13),
    "ConvTranspose grouped": (
        "z = ConvTranspose <group = 2> (h, a)", {"a": weight(8, 3, 2, 2)}, 6, 17, 2 + 4 + 3
    ),
    "Add": ("z = Add (h, a)", {"a": weight(8, 1, 1)}, 8, 17, 8),
    "Mul": ("z = Mul (a, h)", {"a": weight(1, 8, 1, 1)}, 8, 17, 8),
    "PRelu": ("z = PRelu (h, a)", {"a": positive(8, 1, 1)}, 8, 17, 8),
    "Where": ("m = Greater (h, a)\n z = Where (m, h, a)", {"a": weight(8, 1, 1)}, 8, 17, 8),
    "Clip": ("z = Clip (h, a)", {"a": np.array(0.1, np.float32)}, 8, 17, 8),
    "Concat": ("r = Relu (h)\n z = Concat <axis = 1> (h, r)", {}, 16, 17, 8),
    "Split": ("p, q = Split <axis = 1> (h, a)\n z = Concat <axis = 1> (q, p)", {"a": integers(3, 5)}, 8, 17, 8),
    "Split equally": ("p, q = Split <axis = 1, num_outputs = 2> (h)\n z = Add (p, q)", {}, 4, 18, 4),
    "Slice": ("z = Slice (h, a, b, c)", {"a": integers(2), "b": integers(-1), "c": integers(1)}, 5, 17, 5),
    "Slice by steps": (
        "z = Slice (h, a, b, c, d)",
        {"a": integers(1), "b": integers(8), "c": integers(1), "d": integers(2)},
        4,
        17,
        4,
    ),
    "Gather": ("z = Gather <axis = 1> (h, a)", {"a": integers(3, 1)}, 2, 17, 0),
    "GatherElements": ("z = GatherElements <axis = 3> (h, a)", {"a": np.zeros((2, 8, 6, 1), np.int64)}, 8, 17, 8),
    "TopK": ("z, i = TopK <axis = 3> (h, a)", {"a": integers(2)}, 8, 17, 8),
    "Tile": ("z = Tile (h, a)", {"a": integers(1, 2, 1, 1)}, 16, 17, 8),
    "Pad positions": ("z = Pad (h, a)", {"a": integers(0, 0, 1, 1, 0, 0, 1, 1)}, 8, 17, 8),
    "Pad units": ("z = Pad (h, a)", {"a": integers(0, 2, 0, 0, 0, 1, 0, 0)}, 11, 17, 8),
    "Resize": ("z = Resize (h, , a)", {"a": np.array([1, 1, 2, 2], np.float32)}, 8, 17, 8),
    "DepthToSpace": ("z = DepthToSpace <blocksize = 2> (h)", {}, 2, 17, 2),
    "SpaceToDepth": ("z = SpaceToDepth <blocksize = 2> (h)", {}, 32, 17, 8),
    "ReduceMean positions": ("z = ReduceMean <axes = [2, 3]> (h)", {}, 8, 17, 8),
    "ReduceMax units": ("r = ReduceMax <axes = [1]> (h)\n z = Sub (h, r)", {}, 8, 17, 0),
    "Shuffle": (
        "r = Reshape (h, a)\n t = Transpose <perm = [0, 2, 1, 3, 4]> (r)\n z = Reshape (t, b)",
        {"a": integers(0, 2, 4, 6, 6), "b": integers(0, 8, 6, 6)},
        8,
        17,
        6,
    ),
    "Channels last": (
        "t = Transpose <perm = [0, 2, 3, 1]> (h)\n m = MatMul (t, a)\n z = Transpose <perm = [0, 3, 1, 2]> (m)",
        {"a": weight(8, 5)},
        5,
        17,
        13,
    ),
    "Einsum": ("z = Einsum <equation = \"nchw,dc->ndhw\"> (h, a)", {"a": weight(5, 8)}, 5, 17, 13),
    "DequantizeLinear": (
        "q = QuantizeLinear (h, a, b)\n z = DequantizeLinear (q, a, b)",
        {"a": np.array(0.05, np.float32), "b": np.array(0, np.int8)},
        8,
        17,
        8,
    ),
    "Expand": ("g = GlobalAveragePool (h)\n z = Expand (g, a)", {"a": integers(2, 8, 3, 3)}, 8, 17, 8),
}  # fmt: skip


def sandwich(nodes: str, constants: dict[str, Array], channels: int, opset: int) -> corpus.onnx.ModelProto:
    """A layer that writes h, the nodes, a layer that reads z."""
    return corpus.written(
        f"""g (float[2,3,6,6] x) => (float[2,4] y) {{
            h = Conv (x, w1, b1)
            {nodes}
            z3 = Reshape (z, flat)
            pooled = ReduceSum <keepdims = 0> (z3, last)
            y = MatMul (pooled, w2)
        }}""",
        {
            "w1": weight(8, 3, 1, 1),
            "b1": weight(8),
            "flat": integers(2, channels, -1),
            "last": integers(2),
            "w2": weight(channels, 4),
            **constants,
        },
        opset=opset,
        domains=("com.microsoft",) if "com.microsoft" in nodes else (),
    )


@pytest.mark.parametrize("name", BETWEEN)
def test_units_between_two_layers(name: str) -> None:
    nodes, constants, channels, opset, expected = BETWEEN[name]
    judge(sandwich(nodes, constants, channels, opset), expected)


RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op", RECURRENT)
def test_hidden_units_of_recurrent_layers(op: str, direction: str) -> None:
    hidden, gates, count = 6, RECURRENT[op], 2 if direction == "bidirectional" else 1
    model = corpus.written(
        f"""g (float[5,2,3] x) => (float[5,2,4] y) {{
            s = {op} <hidden_size = {hidden}, direction = "{direction}"> (x, w, r, b)
            t = Transpose <perm = [0, 2, 1, 3]> (s)
            f = Reshape (t, flat)
            y = MatMul (f, w2)
        }}""",
        {
            "w": weight(count, gates * hidden, 3),
            "r": weight(count, gates * hidden, hidden),
            "b": weight(count, 2 * gates * hidden),
            "flat": integers(0, 0, count * hidden),
            "w2": weight(count * hidden, 4),
        },
    )
    judge(model, hidden)


def test_bfloat16_constants_freeze_what_they_touch() -> None:
    model = corpus.written(
        """g (float[2,3] x) => (float[2,4] y) {
            h = MatMul (x, w1)
            c = Cast <to = 1> (bias)
            z = Add (h, c)
            y = MatMul (z, w2)
        }""",
        {"w1": weight(3, 8), "w2": weight(8, 4)},
    )
    model.graph.initializer.append(
        corpus.helper.make_tensor("bias", corpus.onnx.TensorProto.BFLOAT16, [8], np.ones(8, np.float32))
    )
    case = corpus.case(model, settled=False)
    assert {group.frozen for group in case.coupling.groups if group.units == 8} == {
        "the type of the constant 'bias' cannot be cut"
    }


def judge(model: corpus.onnx.ModelProto, expected: int) -> None:
    case = corpus.case(model, settled=False)
    free = tuple(group for group in case.coupling.groups if group.frozen is None)
    assert sum(group.units for group in free) == expected, [(g.name, g.units, g.frozen) for g in case.coupling.groups]
    feeds = oracle.feeds_for(case.model, 1)
    assert oracle.runs(case.model, feeds) is None
    for seed, groups in enumerate([*((group,) for group in free), free] if free else []):
        verdict = oracle.judge(case.model, case.coupling, groups, feeds, seed)
        assert verdict.passed, verdict
