"""Small models that a calibration measures: one operator each, or a chain of tiny ones.

Nothing comes in; `Trial`s go out, always the same ones in the same order. Widths on and off the blocks, large and
small maps, one image and several stand side by side, so that each term of the cost model is the largest of some trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]

VECTOR_ELEMENTS = 1 << 16
LINKS = 48
"""Nodes of a chain: enough that a run is mostly their launches."""
UNARY = (
    *("Relu", "Abs", "Neg", "Exp", "Sigmoid", "Tanh", "Sqrt", "Erf", "LeakyRelu", "HardSwish", "HardSigmoid", "Clip"),
    *("Log", "Elu", "Softplus", "Softmax", "Gelu", "Transpose", "LayerNormalization", "ReduceMean", "Slice"),
)
BINARY = ("Add", "Mul", "Div", "Pow", "Sub", "Concat")
POOLED = ("MaxPool", "AveragePool", "GlobalAveragePool")
CHAINED = {"Reshape and Sigmoid": "Sigmoid", "Slice and Concat": "Concat", "Softmax and LayerNormalization": "Softmax"}
"""More chains, and what is counted in them."""
OFF_BLOCKS = ("MaxPool", "AveragePool")
_WINDOW: Mapping[str, Sequence[int]] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trial:
    """A small model.

    Attributes:
        name: Unique.
        kind: "conv", "depthwise", "matmul", "vector" (one price rests on it), "pool" (the same, on blocks),
            "plain pool", "size", "chain", "stack": a small network, whose whole run is held against its kernels,
            "sizes": shape arithmetic on a size left open, "mixed": tiny nodes of many kinds, "dealt" or "streamed": run
            on one thread and on two, for what dealing work out takes, and for how much faster two read weights.
        model: What is measured stands last; a size left open is run as one.
        watched: Its operator type; in a chain, of all nodes.
    """

    name: str
    kind: str
    model: onnx.ModelProto
    watched: str


def trials() -> Iterator[Trial]:
    """Every trial of a calibration."""
    yield from _convolutions()
    yield from _depthwise()
    yield from _products()
    for kind in (*BINARY, *UNARY):
        yield Trial(name=kind, kind="vector", model=_vector(kind, VECTOR_ELEMENTS), watched=kind)
    for kind in POOLED:
        yield Trial(name=kind, kind="pool", model=_pool(kind, 64, 32), watched=kind)
        for c, side in ((62, 32), (111, 16)) if kind in OFF_BLOCKS else ():
            yield Trial(name=f"plain {kind} {c}", kind="plain pool", model=_pool(kind, c, side), watched=kind)
    for power in (13, 14, 15, 17, 18, 19, 20, 21, 22):
        kind = ("Add", "Relu", "Mul")[power % 3]
        yield Trial(name=f"{kind} of 2^{power}", kind="size", model=_vector(kind, 1 << power), watched=kind)
    yield Trial(name="chain of Sigmoid", kind="chain", model=_chain("Sigmoid", LINKS), watched="Sigmoid")
    yield Trial(name="chain of Conv", kind="chain", model=_chain("Conv", LINKS), watched="Conv")
    yield Trial(name="chain of MatMul", kind="chain", model=_chain("MatMul", LINKS), watched="MatMul")
    for kind, watched in CHAINED.items():
        yield Trial(name=f"chain of {kind}", kind="chain", model=_chain(kind, LINKS), watched=watched)
    yield from _stacks()
    yield Trial(name="sizes asked for", kind="sizes", model=_sizes(LINKS // 2), watched="Expand")
    yield Trial(name="a bit of everything", kind="mixed", model=_everything(LINKS // 8), watched="Add")
    yield Trial(name="dealt out", kind="dealt", model=_chain("Conv", LINKS, side=10, channels=32), watched="Conv")
    yield Trial(name="dealt out now and then", kind="dealt", model=_now_and_then(LINKS // 4), watched="MatMul")
    yield Trial(name="streamed", kind="streamed", model=_matmul((1, 2048), (2048, 4096)), watched="MatMul")
    yield Trial(name="one Sigmoid", kind="chain", model=_chain("Sigmoid", 1), watched="Sigmoid")


STACKS: Mapping[str, tuple[int, int, int, tuple[tuple[int, int, bool], ...]]] = {
    "on blocks": (48, 40, 1, ((48, 3, False),) * 6),
    "on blocks, batch 4": (96, 20, 4, ((96, 3, False),) * 4),
    "off blocks": (45, 36, 1, ((45, 3, False),) * 6),
    "off blocks, batch 4": (91, 18, 4, ((91, 3, False),) * 4),
    "inverted on blocks": (24, 40, 1, ((144, 1, False), (144, 3, True), (24, 1, False)) * 4),
    "inverted on blocks, batch 4": (32, 20, 4, ((192, 1, False), (192, 3, True), (32, 1, False)) * 4),
    "inverted off blocks": (23, 40, 1, ((139, 1, False), (139, 3, True), (23, 1, False)) * 4),
    "inverted off blocks, batch 4": (31, 20, 4, ((185, 1, False), (185, 3, True), (31, 1, False)) * 4),
}
"""Channels in, side, images, and layers: channels out, taps along a side, whether depthwise."""


def _stacks() -> Iterator[Trial]:
    for name, (c, side, images, layers) in STACKS.items():
        nodes, weights, width = [], dict[str, Shape](), c
        for i, (n, k, depthwise) in enumerate(layers):
            weights |= {f"w{i}": (n, 1 if depthwise else width, k, k), f"b{i}": (n,)}
            names = ["x" if i == 0 else f"h{i - 1}", f"w{i}", f"b{i}"]
            out = "y" if i == len(layers) - 1 else f"h{i}"
            group = n if depthwise else 1
            nodes.append(helper.make_node("Conv", names, [out], f"layer{i}", pads=[k // 2] * 4, group=group))
            width = n
        model = _model(nodes, {"x": (images, c, side, side)}, {"y": (images, width, side, side)}, weights)
        yield Trial(name=f"stack {name}", kind="stack", model=model, watched="Conv")


def _convolutions() -> Iterator[Trial]:
    # Channels in and out, side, taps, stride, groups, images.
    for c, n, side, k, s, g, b in (
        (64, 64, 28, 3, 1, 1, 1), (32, 32, 56, 3, 1, 1, 1), (128, 128, 14, 3, 1, 1, 1), (256, 256, 7, 3, 1, 1, 1),
        (16, 32, 48, 3, 1, 1, 1), (64, 24, 28, 3, 1, 1, 1), (64, 40, 28, 3, 1, 1, 1), (48, 64, 28, 3, 1, 1, 1),
        (8, 16, 80, 3, 1, 1, 1), (24, 24, 64, 3, 1, 1, 1), (96, 96, 12, 3, 1, 1, 1), (512, 512, 5, 3, 1, 1, 1),
        (32, 64, 32, 3, 2, 1, 1), (64, 128, 16, 3, 2, 1, 1), (192, 192, 8, 3, 1, 1, 1), (40, 56, 20, 3, 1, 1, 1),
        (40, 40, 32, 5, 1, 1, 1), (64, 64, 16, 3, 1, 1, 4), (128, 96, 4, 3, 1, 1, 8), (96, 96, 24, 3, 1, 1, 1),
        (3, 32, 112, 3, 1, 1, 1), (3, 16, 64, 3, 1, 1, 1), (3, 64, 128, 3, 2, 1, 1), (3, 64, 112, 7, 2, 1, 1),
        (3, 24, 96, 3, 1, 1, 1), (1, 16, 96, 5, 1, 1, 1),
        (16, 96, 56, 1, 1, 1, 1), (96, 24, 28, 1, 1, 1, 1), (256, 64, 28, 1, 1, 1, 1), (64, 256, 28, 1, 1, 1, 1),
        (512, 512, 7, 1, 1, 1, 1), (128, 512, 14, 1, 1, 1, 1), (24, 144, 28, 1, 1, 1, 1), (160, 960, 7, 1, 1, 1, 1),
        (16, 8, 64, 1, 1, 1, 1), (960, 160, 7, 1, 1, 1, 1), (64, 128, 28, 1, 2, 1, 1), (320, 1280, 7, 1, 1, 1, 1),
        (40, 240, 14, 1, 1, 1, 4),
        (72, 72, 28, 3, 1, 3, 1), (240, 240, 14, 3, 1, 10, 1), (240, 240, 14, 1, 1, 3, 1),
        (62, 64, 28, 3, 1, 1, 1), (30, 30, 56, 3, 1, 1, 1), (74, 74, 16, 3, 1, 1, 1), (106, 106, 8, 3, 1, 1, 1),
        (18, 18, 64, 3, 1, 1, 1), (159, 159, 8, 3, 1, 1, 1), (37, 64, 16, 3, 1, 1, 4), (53, 53, 32, 3, 2, 1, 1),
        (83, 24, 28, 1, 1, 1, 1), (139, 40, 14, 1, 1, 1, 1), (398, 80, 7, 1, 1, 1, 1), (199, 40, 14, 1, 1, 1, 4),
        (60, 240, 16, 1, 1, 3, 1), (240, 60, 16, 1, 1, 3, 1), (60, 60, 28, 3, 1, 15, 1),
        (384, 384, 4, 3, 1, 1, 8), (288, 288, 8, 3, 1, 1, 4), (640, 320, 5, 3, 1, 1, 1), (416, 416, 6, 3, 1, 1, 2),
        (199, 199, 9, 3, 1, 1, 4), (301, 299, 5, 3, 1, 1, 4), (357, 61, 15, 1, 1, 1, 8), (61, 357, 15, 1, 1, 1, 8),
        (51, 101, 36, 1, 2, 1, 2), (87, 175, 18, 3, 2, 1, 1), (45, 91, 28, 3, 2, 1, 4), (24, 96, 64, 1, 1, 1, 8),
        (131, 19, 50, 1, 1, 1, 4), (261, 43, 30, 1, 1, 1, 2), (71, 31, 40, 1, 1, 1, 1), (576, 576, 5, 3, 1, 1, 4),
    ):  # fmt: skip
        name = f"conv {c} to {n}, {side}, {k}x{k}, stride {s}, {g} groups, batch {b}"
        yield Trial(name=name, kind="conv", model=_conv(c, n, side, k, s, g, b), watched="Conv")


def _depthwise() -> Iterator[Trial]:
    for c, side, k, s, b in (
        (64, 28, 3, 1, 1), (32, 56, 3, 1, 1), (144, 28, 3, 1, 1), (192, 14, 3, 1, 1), (576, 14, 3, 1, 1),
        (960, 7, 3, 1, 1), (96, 56, 3, 2, 1), (120, 28, 5, 1, 1), (16, 112, 3, 1, 1), (672, 14, 5, 2, 1),
        (256, 20, 3, 1, 1), (240, 8, 3, 1, 8), (256, 28, 3, 2, 1),
        (62, 28, 3, 1, 1), (83, 56, 3, 1, 1), (139, 14, 3, 1, 1), (278, 7, 3, 1, 1), (119, 28, 3, 2, 1),
        (55, 32, 3, 1, 4), (398, 4, 3, 1, 1), (110, 14, 5, 1, 1),
        (71, 60, 3, 2, 1), (101, 32, 3, 2, 1), (211, 15, 3, 2, 2), (90, 28, 5, 2, 1), (115, 30, 3, 1, 8),
    ):  # fmt: skip
        name = f"depthwise {c}, {side}, {k}x{k}, stride {s}, batch {b}"
        yield Trial(name=name, kind="depthwise", model=_conv(c, c, side, k, s, c, b), watched="Conv")


def _products() -> Iterator[Trial]:
    for m, k, n in (
        (64, 256, 256), (1, 512, 1000), (1, 2048, 1000), (197, 192, 768), (128, 768, 768), (64, 64, 64),
        (1, 4096, 1024), (49, 384, 1152), (256, 512, 128), (16, 1024, 1024), (65, 128, 512), (8, 320, 100),
        (512, 128, 424), (64, 300, 128), (3, 768, 768), (1, 300, 300),
    ):  # fmt: skip
        yield Trial(name=f"matmul {m}x{k}x{n}", kind="matmul", model=_matmul((m, k), (k, n)), watched="MatMul")
    for h, m, k, n in ((4, 64, 32, 64), (12, 197, 64, 197), (8, 144, 144, 32), (32, 50, 50, 16), (6, 128, 32, 128)):
        name = f"matmul {h} of {m}x{k}x{n}, no weights"
        model = _matmul((1, h, m, k), (1, h, k, n), constant=False)
        yield Trial(name=name, kind="matmul", model=model, watched="MatMul")


def _conv(c: int, n: int, side: int, k: int, stride: int, groups: int, images: int) -> onnx.ModelProto:
    weights = {"w": (n, c // groups, k, k), "b": (n,)}
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], "conv", pads=[k // 2] * 4, strides=[stride] * 2, group=groups
    )
    out = (side - 1) // stride + 1
    return _model([node], {"x": (images, c, side, side)}, {"y": (images, n, out, out)}, weights)


def _matmul(a: Shape, b: Shape, *, constant: bool = True) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")
    inputs, weights = ({"x": a}, {"w": b}) if constant else ({"x": a, "w": b}, {})
    return _model([node], inputs, {"y": (*a[:-1], b[-1])}, weights)


def _pool(kind: str, c: int, side: int) -> onnx.ModelProto:
    # Only behind a convolution does the runtime put a pool on blocks.
    conv = helper.make_node("Conv", ["x", "w", "b"], ["h"], "conv")
    pool = helper.make_node(kind, ["h"], ["y"], "pool")
    if not kind.startswith("Global"):
        pool.attribute.extend(helper.make_attribute(key, value) for key, value in _WINDOW.items())
    out = 1 if kind.startswith("Global") else side // 2
    shapes = {"x": (1, 8, side, side)}, {"y": (1, c, out, out)}
    return _model([conv, pool], *shapes, {"w": (c, 8, 1, 1), "b": (c,)})


def _vector(kind: str, elements: int) -> onnx.ModelProto:
    side = 32
    c = max(1, elements // (side * side))
    shape: Shape = (1, c, side, side)
    out = shape
    weights: dict[str, Shape] = {}
    node = helper.make_node(kind, ["x", "z"] if kind in BINARY else ["x"], ["y"], "op")
    inputs: dict[str, Shape] = dict.fromkeys(node.input, shape)
    if kind == "Transpose":
        node.attribute.append(helper.make_attribute("perm", [0, 2, 3, 1]))
        out = (1, side, side, c)
    elif kind == "LayerNormalization":
        inputs, out = {"x": (1, elements // 128, 128)}, (1, elements // 128, 128)
        node.input.extend(["w", "b"])
        weights = {"w": (128,), "b": (128,)}
    elif kind == "Concat":
        node.attribute.append(helper.make_attribute("axis", 1))
        out = (1, 2 * c, side, side)
    elif kind == "ReduceMean":
        node.attribute.append(helper.make_attribute("keepdims", 0))
        node.input.append("axes")
        inputs, out = {"x": (1, elements // 128, 128)}, (1, 128)
    elif kind == "Slice":
        node.input.extend(["starts", "ends", "axes"])
        out = (1, c // 2, side, side)
    # What a network reads has just been written; what the caller feeds has not.
    before = [helper.make_node("Abs", [f"{name}0"], [name], f"before {name}") for name in inputs]
    inputs = {f"{name}0": found for name, found in inputs.items()}
    numbers = {"ReduceMean": {"axes": [1]}, "Slice": {"starts": [0], "ends": [c // 2], "axes": [1]}}
    return _model([*before, node], inputs, {"y": out}, weights, numbers.get(kind, {}))


def _chain(kind: str, links: int, *, side: int = 2, channels: int = 8) -> onnx.ModelProto:
    shape: Shape = {"Conv": (1, channels, side, side), "MatMul": (4, 16)}.get(kind, (1, 16))
    if kind in CHAINED:
        return _chain_of_pairs(kind, links)
    stored: dict[str, dict[str, Shape]] = {"Conv": {"w": (channels, channels, 1, 1)}, "MatMul": {"w": (16, 16)}}
    weights = stored.get(kind, {})
    names = ["x", *(f"h{i}" for i in range(links - 1)), "y"]
    nodes = [helper.make_node(kind, [names[i], *weights], [names[i + 1]], f"link{i}") for i in range(links)]
    return _model(nodes, {"x": shape}, {"y": shape}, weights)


def _sizes(links: int) -> onnx.ModelProto:
    """Each link asks for a size of what the last one wrote."""
    nodes = []
    for i in range(links):
        before, after = ("x" if i == 0 else f"h{i - 1}"), ("y" if i == links - 1 else f"h{i}")
        nodes += [
            helper.make_node("Shape", [before], [f"shape{i}"], f"shape{i}"),
            helper.make_node("Gather", [f"shape{i}", "first"], [f"size{i}"], f"gather{i}"),
            helper.make_node("Unsqueeze", [f"size{i}", "axes"], [f"row{i}"], f"unsqueeze{i}"),
            helper.make_node("Concat", [f"row{i}", "width"], [f"wanted{i}"], f"concat{i}", axis=0),
            helper.make_node("Expand", [before, f"wanted{i}"], [after], f"link{i}"),
        ]
    numbers = {"axes": [0], "width": [16]}
    return _open(_model(nodes, {"x": (1, 16)}, {"y": (1, 16)}, {}, numbers))


def _everything(blocks: int) -> onnx.ModelProto:
    """Blocks of tiny nodes, no two neighbours of one kind."""
    nodes = []
    for i in range(blocks):
        before, after = ("x" if i == 0 else f"y{i - 1}"), ("y" if i == blocks - 1 else f"y{i}")
        for kind, inputs, output, attributes in (
            ("LayerNormalization", [before, "scale", "shift"], "normed", {}),
            ("MatMul", [f"normed{i}", "w"], "product", {}),
            ("Reshape", [f"product{i}", "heads"], "parted", {}),
            ("Transpose", [f"parted{i}"], "turned", {"perm": [1, 0, 2]}),
            ("Softmax", [f"turned{i}"], "shares", {}),
            ("Unsqueeze", [f"shares{i}", "axes"], "deeper", {}),
            ("Mul", [f"deeper{i}", f"deeper{i}"], "squares", {}),
            ("Slice", [f"squares{i}", "starts", "ends", "last"], "left", {}),
            ("Tanh", [f"left{i}"], "bent", {}),
            ("Concat", [f"bent{i}", f"left{i}"], "joined", {"axis": 3}),
            ("Squeeze", [f"joined{i}", "axes"], "flat", {}),
            ("Erf", [f"flat{i}"], "erred", {}),
            ("Gather", [f"erred{i}", "order"], "picked", {"axis": 0}),
            ("Sigmoid", [f"picked{i}"], "gate", {}),
            ("Reshape", [f"gate{i}", "rows"], "back", {}),
            ("Add", [f"back{i}", before], "", {}),
        ):
            name = f"{output}{i}" if output else after
            nodes.append(helper.make_node(kind, inputs, [name], f"{kind} {name}", **attributes))
    numbers = {"heads": [4, 2, 8], "rows": [4, 16], "axes": [0], "starts": [0], "ends": [4], "last": [3]}
    weights: dict[str, Shape] = {"scale": (16,), "shift": (16,), "w": (16, 16)}
    return _model(nodes, {"x": (4, 16)}, {"y": (4, 16)}, weights, numbers | {"order": [1, 0]})


def _now_and_then(links: int) -> onnx.ModelProto:
    """Products that two threads share, and between them what one of them does alone."""
    nodes = []
    for i in range(links):
        before, after = ("x" if i == 0 else f"h{i - 1}"), ("y" if i == links - 1 else f"h{i}")
        names = [f"m{i}", *(f"m{i}.{j}" for j in range(3)), after]
        nodes.append(helper.make_node("MatMul", [before, "w"], names[:1], f"link{i}"))
        nodes += [
            helper.make_node("Gather", [names[j], "order"], [names[j + 1]], f"gather{i}.{j}", axis=0) for j in range(4)
        ]
    numbers = {"order": list(range(127, -1, -1))}
    return _model(nodes, {"x": (128, 64)}, {"y": (128, 64)}, {"w": (64, 64)}, numbers)


def _open(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its first size left open, and a constant to ask for it."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return model


def _chain_of_pairs(kind: str, links: int) -> onnx.ModelProto:
    names = ["x", *(f"h{i}" for i in range(links - 1)), "y"]
    nodes = []
    for i in range(links):
        before, after, first = names[i], names[i + 1], i % 2 == 0
        if kind == "Reshape and Sigmoid" and first:
            node = helper.make_node("Reshape", [before, "along" if i % 4 else "across"], [after], f"link{i}")
        elif kind == "Reshape and Sigmoid":
            node = helper.make_node("Sigmoid", [before], [after], f"link{i}")
        elif kind == "Slice and Concat":
            inputs = [before, "starts", "ends", "axes"] if first else [before, before]
            node = helper.make_node("Slice" if first else "Concat", inputs, [after], f"link{i}")
            node.attribute.extend([] if first else [helper.make_attribute("axis", 1)])
        elif first:
            node = helper.make_node("Softmax", [before], [after], f"link{i}")
        else:
            node = helper.make_node("LayerNormalization", [before, "w", "b"], [after], f"link{i}")
        nodes.append(node)
    cut = {"starts": [0], "ends": [8], "axes": [1]}
    numbers = {"Reshape and Sigmoid": {"across": [16, 1], "along": [1, 16]}, "Slice and Concat": cut}.get(kind, {})
    weights: dict[str, Shape] = {} if numbers else {"w": (16,), "b": (16,)}
    return _model(nodes, {"x": (1, 16)}, {"y": (1, 16)}, weights, numbers)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, Shape],
    numbers: Mapping[str, Sequence[int]] | None = None,
) -> onnx.ModelProto:
    def values(shapes: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    rng = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05), name)
        for name, shape in weights.items()
    ]
    stored += [numpy_helper.from_array(np.array(found, np.int64), name) for name, found in (numbers or {}).items()]
    graph = helper.make_graph(list(nodes), "trial", values(inputs), values(outputs), stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
