"""Networks that a cost model of the cpu is judged on: drawn families at many widths, published ones, real files.

Nothing comes in; `Case`s go out. Real files come as they are and cut to odd widths, by the index alone: their
answers no longer matter here, their times do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from benchmarks.common import DATA
from models.published import NETWORKS, build
from models.sketch import Sketch, Tensor
from passes import candidates
from passes.coupling import couple
from passes.graph_io import to_graph, to_model
from passes.interface import inputs_of
from passes.records import Array
from passes.rewrites.shrink_group import REWRITE, assigned_fold
from passes.shapes import input_shapes

SHARES = (0.87, 0.66, 0.44)
"""Of the units of every group that stay in a cut file, rounded to an odd number."""
REAL = (
    *("mnist-cnn", "resnet20-cifar10", "resnet56-cifar10", "resnet18-cifar10", "vit-cifar10"),
    *("mobilenetv2-imagenet", "squeezenet-imagenet", "magika-v3_3", "capp-gpt"),
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Case:
    """One network of one width at one batch.

    Attributes:
        family: Cases of one family and batch are plans of one network, and make pairs.
        name: Of the case.
        model: With random weights.
        batch: Of a run.
    """

    family: str
    name: str
    model: onnx.ModelProto
    batch: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs."""
        return dict(input_shapes(self.model, self.batch))

    @property
    def feeds(self) -> Mapping[str, Array]:
        """Ones; whole numbers, which may be indices, are zero."""
        shapes = self.shapes
        kinds = {slot.name: slot.dtype for slot in inputs_of(self.model) if slot.dtype is not None}
        return {
            name: np.full(shape, float(np.issubdtype(kinds[name], np.floating)), kinds[name])
            for name, shape in shapes.items()
        }


def plain(n: Sketch, width: float) -> Tensor:
    """A VGG-like network of four stages."""
    x = n.x
    for stage in (32, 64, 128, 192):
        x = n.maxpool(n.conv(n.conv(x, int(stage * width)), int(stage * width)), 2, 2, 0)
    return n.classifier(x, 100)


def residual(n: Sketch, width: float) -> Tensor:
    """Basic blocks whose inner widths alone are cut."""
    x = n.conv(n.x, 32, 3, 2)
    for stage, out in enumerate((32, 64, 128)):
        for block in range(2):
            s = 2 if stage and not block else 1
            y = n.conv(n.conv(x, int(out * width), 3, s), out, act="")
            x = n.add(y, x if x.c == out else n.conv(x, out, 1, s, act=""), "relu")
    return n.classifier(x, 100)


def inverted(n: Sketch, width: float) -> Tensor:
    """Inverted residuals whose expansions are cut."""
    x = n.conv(n.x, 16, 3, 2)
    for out, s in ((24, 2), (24, 1), (40, 2), (40, 1), (80, 2), (80, 1), (80, 1)):
        mid = int(6 * x.c * width)
        y = n.conv(n.dw(n.conv(x, mid, 1, act="relu6"), 3, s, "relu6"), out, 1, act="")
        x = n.add(y, x) if s == 1 and x.c == out else y
    return n.classifier(n.conv(x, 320, 1), 100)


def transformer(n: Sketch, width: float) -> Tensor:
    """Four transformer blocks on patches whose hidden layers are cut."""
    x = n.sequence(n.conv(n.x, 128, 8, 8, p=0, act=""))
    for _ in range(4):
        x = n.add(x, n.attention(n.norm(x), 4))
        x = n.add(x, n.fc(n.fc(n.norm(x), int(512 * width), "gelu"), 128))
    return n.fc(n.reshape(n.op("ReduceMean", (x, n.constant([1])), (128,), {"keepdims": 0}), 128), 100)


WIDTHS = (1.0, 0.83, 0.75, 0.58, 0.5)
FAMILIES = {"plain": plain, "residual": residual, "inverted": inverted, "transformer": transformer}
WHOLE = ("SqueezeNet1.1", "MobileNetV1", "MobileNetV2", "GhostNet-1.0x", "ShuffleNetV1", "ResNet-18", "RegNetX-1.6GF")


def drawn() -> Iterator[Case]:
    """At least sixty networks: four families at five widths, two sizes and two batches, and published ones."""
    for (family, draw), width, side, batch in itertools.product(FAMILIES.items(), WIDTHS, (64, 96), (1, 8)):
        if batch == 8 and side == 96:
            continue
        sketch = Sketch(f"{family}{width}", (3, side, side), filled=True)
        model = sketch.model(draw(sketch, width))
        yield Case(
            family=f"{family} {side} b{batch}", name=f"{family} x{width} {side} b{batch}", model=model, batch=batch
        )
    for name, side in itertools.product(WHOLE, (128, 160)):
        if name in NETWORKS:
            yield Case(family=name, name=f"{name} {side}", model=build(name, side, filled=True), batch=1)


def files() -> Iterator[Case]:
    """The real files of the data folder, at two batches, as they are and cut; nothing without the folder."""
    for name, batch in itertools.product(REAL, (1, 8)):
        path = DATA / "models" / f"{name}.onnx"
        if path.is_file():
            yield from real(name, onnx.load(path), batch)


def real(name: str, model: onnx.ModelProto, batch: int) -> Iterator[Case]:
    """A file as it is and cut, at one batch; nothing where the file fixes another batch."""
    if batch > 1 and any(shape and shape[0] != batch for shape in input_shapes(model, batch).values()):
        return
    family = f"{name} b{batch}"
    yield Case(family=family, name=f"{name} b{batch}", model=model, batch=batch)
    for share in SHARES:
        smaller = cut(model, share)
        if smaller is not None:
            yield Case(family=family, name=f"{name} x{share} b{batch}", model=smaller, batch=batch)


def cut(model: onnx.ModelProto, share: float) -> onnx.ModelProto | None:
    """The model with the first units of every group that can be cut, an odd number of them; None when none can be."""
    graph = to_graph(model)
    coupling = couple(graph, model, 1)
    found, _ = candidates.gather(graph, coupling)
    keep = {one.group.name: range(min(one.group.units, int(one.group.units * share) | 1)) for one in found}
    if not keep:
        return None
    REWRITE.apply(graph, coupling, coupling.keep(keep), assigned_fold({}))
    return to_model(graph, model)
