"""A network drawn layer by layer: sizes come in, an ONNX model of opset 20 with a symbolic batch "N" goes out.

Normalisations are folded into the convolutions before them, as every runtime does. Weights are named and sized but
hold no data unless they are asked for, so that a large network is a small value; cost models need no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
Attributes = Mapping[str, int | list[int]]
_NONE: Attributes = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the drawing: its name and its sizes after the batch."""

    name: str
    shape: tuple[int, ...]

    @property
    def c(self) -> int:
        """Channels: the first size after the batch of a map, the last of a sequence."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]


class Sketch:
    """Draws one network.

    Args:
        name: Of the graph.
        shape: Of the input after the batch.
        filled: Whether weights hold random numbers (seeded by the name) or nothing.
    """

    def __init__(self, name: str, shape: tuple[int, ...] = (3, 224, 224), *, filled: bool = False) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._known: dict[bytes, str] = {}
        self._random = np.random.default_rng(sum(name.encode())) if filled else None
        self.x = Tensor("x", shape)

    def model(self, *outputs: Tensor) -> onnx.ModelProto:
        """The drawn model with these outputs."""

        def value(tensor: Tensor) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, ["N", *tensor.shape])

        graph = helper.make_graph(
            self._nodes, self._name, [value(self.x)], [value(out) for out in outputs], self._weights
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def op(
        self, kind: str, inputs: Sequence[Tensor | str], shape: tuple[int, ...], attributes: Attributes = _NONE
    ) -> Tensor:
        """Any operator with one output of a stated shape."""
        out = Tensor(f"t{len(self._nodes)}", shape)
        names = [item if isinstance(item, str) else item.name for item in inputs]
        self._nodes.append(helper.make_node(kind, names, [out.name], name=f"{kind}_{len(self._nodes)}"))
        self._nodes[-1].attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return out

    def weight(self, *shape: int) -> str:
        """A weight without data, or with random numbers of a sane scale."""
        name = f"w{len(self._weights)}"
        if self._random is None:
            self._weights.append(TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape))
        else:
            scale = (2 / max(1, int(np.prod(shape[1:])))) ** 0.5 if len(shape) > 1 else 0.01
            values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
            self._weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(self, values: Sequence[int] | float) -> str:
        """A small constant that shapes or scales something, stored once."""
        array = np.array(values, np.float32 if isinstance(values, float) else np.int64)
        key = array.dtype.char.encode() + array.tobytes() + bytes(array.ndim)
        if key not in self._known:
            self._known[key] = f"k{len(self._known)}"
            self._weights.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def conv(
        self,
        x: Tensor,
        n: int,
        k: int | tuple[int, int] = 3,
        s: int = 1,
        *,
        g: int = 1,
        d: int = 1,
        p: int | tuple[int, int] | None = None,
        act: str = "relu",
    ) -> Tensor:
        """Convolution with bias and activation; padded to keep the size at stride 1 unless `p` is given."""
        kh, kw = (k, k) if isinstance(k, int) else k
        if p is None:
            p = (d * (kh - 1) // 2, d * (kw - 1) // 2)
        ph, pw = (p, p) if isinstance(p, int) else p
        c, h, w = x.shape
        shape = (n, (h + 2 * ph - d * (kh - 1) - 1) // s + 1, (w + 2 * pw - d * (kw - 1) - 1) // s + 1)
        out = self.op(
            "Conv",
            (x, self.weight(n, c // g, kh, kw), self.weight(n)),
            shape,
            {
                "kernel_shape": [kh, kw],
                "strides": [s, s],
                "pads": [ph, pw, ph, pw],
                "group": g,
                "dilations": [d, d],
            },
        )
        return self.act(out, act)

    def dw(self, x: Tensor, k: int = 3, s: int = 1, act: str = "relu") -> Tensor:
        """Depthwise convolution."""
        return self.conv(x, x.c, k, s, g=x.c, act=act)

    def act(self, x: Tensor, kind: str) -> Tensor:
        """An activation by name; "" is none."""
        if kind == "relu6":
            return self.op("Clip", (x, self.constant(0.0), self.constant(6.0)), x.shape)
        if kind == "swish":
            return self.mul(x, self.op("Sigmoid", (x,), x.shape))
        named = {
            "relu": "Relu",
            "hswish": "HardSwish",
            "hsigmoid": "HardSigmoid",
            "sigmoid": "Sigmoid",
            "gelu": "Gelu",
            "leaky": "LeakyRelu",
            "tanh": "Tanh",
        }
        return self.op(named[kind], (x,), x.shape) if kind else x

    def maxpool(self, x: Tensor, k: int = 3, s: int = 2, p: int = 1, *, up: bool = False) -> Tensor:
        """Max pooling; sizes that do not divide are rounded up when asked."""
        return self._pool("MaxPool", x, k, s, p, up=up)

    def avgpool(self, x: Tensor, k: int = 2, s: int = 2, p: int = 0) -> Tensor:
        """Average pooling."""
        return self._pool("AveragePool", x, k, s, p)

    def _pool(self, kind: str, x: Tensor, k: int, s: int, p: int, *, up: bool = False) -> Tensor:
        c, h, w = x.shape
        more = s - 1 if up else 0
        shape = (c, (h + 2 * p - k + more) // s + 1, (w + 2 * p - k + more) // s + 1)
        attributes: Attributes = {"kernel_shape": [k, k], "strides": [s, s], "pads": [p] * 4, "ceil_mode": int(up)}
        return self.op(kind, (x,), shape, attributes)

    def gap(self, x: Tensor) -> Tensor:
        """Mean over all positions, kept as a map of one position."""
        return self.op("GlobalAveragePool", (x,), (x.c, 1, 1))

    def flat(self, x: Tensor) -> Tensor:
        """A map as a vector."""
        return self.op("Flatten", (x,), (int(np.prod(x.shape)),))

    def fc(self, x: Tensor, n: int, act: str = "") -> Tensor:
        """Fully connected layer on a vector (Gemm) or on every place of a sequence (MatMul and Add)."""
        width = x.shape[-1]
        if len(x.shape) == 1:
            out = self.op("Gemm", (x, self.weight(n, width), self.weight(n)), (n,), {"transB": 1})
        else:
            shape = (*x.shape[:-1], n)
            out = self.op("Add", (self.op("MatMul", (x, self.weight(width, n)), shape), self.weight(n)), shape)
        return self.act(out, act)

    def classifier(self, x: Tensor, n: int = 1000) -> Tensor:
        """Mean over positions and one layer."""
        return self.fc(self.flat(self.gap(x)), n)

    def add(self, a: Tensor, b: Tensor, act: str = "") -> Tensor:
        """Sum and activation."""
        return self.act(self.op("Add", (a, b), a.shape), act)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """Product of maps, or of a map with one number a channel."""
        return self.op("Mul", (a, b), a.shape)

    def cat(self, *parts: Tensor) -> Tensor:
        """Concatenation over channels."""
        return self.op("Concat", parts, (sum(part.c for part in parts), *parts[0].shape[1:]), {"axis": 1})

    def take(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Some of the channels."""
        bounds = (self.constant([start]), self.constant([stop]), self.constant([1]))
        return self.op("Slice", (x, *bounds), (stop - start, *x.shape[1:]))

    def up(self, x: Tensor, factor: int = 2) -> Tensor:
        """Nearest enlargement."""
        scales = f"scales{factor}"
        if all(tensor.name != scales for tensor in self._weights):
            self._weights.append(numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), scales))
        return self.op("Resize", (x, "", scales), (x.c, x.shape[1] * factor, x.shape[2] * factor))

    def se(self, x: Tensor, n: int, gate: str = "sigmoid", act: str = "relu") -> Tensor:
        """Squeeze and excite with `n` channels between."""
        return self.mul(x, self.conv(self.conv(self.gap(x), n, 1, act=act), x.c, 1, act=gate))

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """Other sizes after the batch."""
        return self.op("Reshape", (x, self.constant([0, *shape])), shape)

    def transpose(self, x: Tensor, *order: int) -> Tensor:
        """Axes after the batch in another order, counted from 1."""
        return self.op("Transpose", (x,), tuple(x.shape[axis - 1] for axis in order), {"perm": [0, *order]})

    def sequence(self, x: Tensor) -> Tensor:
        """A map as a sequence of its positions."""
        c, h, w = x.shape
        return self.transpose(self.reshape(x, c, h * w), 2, 1)

    def norm(self, x: Tensor) -> Tensor:
        """Layer normalisation over the last axis."""
        return self.op(
            "LayerNormalization", (x, self.weight(x.shape[-1]), self.weight(x.shape[-1])), x.shape, {"axis": -1}
        )

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Product of two activations."""
        return self.op("MatMul", (a, b), (*a.shape[:-1], b.shape[-1]))

    def attention(self, x: Tensor, heads: int) -> Tensor:
        """Self-attention over a sequence, the projections included; the query scaled, biases on all."""
        places, width = x.shape[-2:]
        apart = x.shape[:-2]
        lead = tuple(range(1, len(apart) + 1))
        a, b, c = (len(apart) + offset for offset in (1, 2, 3))

        def heads_of(order: tuple[int, ...]) -> Tensor:
            return self.transpose(self.reshape(self.fc(x, width), *apart, places, heads, width // heads), *order)

        q, k, v = heads_of((*lead, b, a, c)), heads_of((*lead, b, c, a)), heads_of((*lead, b, a, c))
        scores = self.matmul(self.op("Mul", (q, self.constant(0.125)), q.shape), k)
        mixed = self.matmul(self.op("Softmax", (scores,), scores.shape, {"axis": -1}), v)
        return self.fc(self.reshape(self.transpose(mixed, *lead, b, a, c), *apart, places, width), width)

    def block(self, x: Tensor, heads: int, ratio: int = 4) -> Tensor:
        """A transformer block that normalises first."""
        x = self.add(x, self.attention(self.norm(x), heads))
        return self.add(x, self.fc(self.fc(self.norm(x), ratio * x.c, "gelu"), x.c))
