"""A region of linear operators becomes the one operator, or product and shift, that computes the same.

Chains and sums of branches: Conv, MatMul, Gemm, BatchNormalization, constant arithmetic, zero Pad, AveragePool. Weights
are composed in float64 and stored as float32. Illegal: a padded operator behind a shift or a window (the border would
differ), a tensor in between that others see, a scale, shift or sum that a runtime fuses into a normalisation.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from passes.errors import RewriteFailed
from passes.forms import Convolution, Diagonal, Form, Matrix
from passes.graphs import Surroundings, fresh_name, fresh_node, is_standard, read, remove, written_out
from passes.nodeforms import Setting
from passes.records import Floats, Refusal, Step
from passes.regions import POOLS, Way, data_slots, form_of, hidden_reason, setting_of, ways
from passes.rewrites.base import key


class ComposeLinear:
    """One step a region: the longest that was not declined; the region's last node is the subject."""

    name = "compose_linear"
    exact = True
    trades = True

    def propose(self, graph: gs.Graph, declined: Container[str] = frozenset()) -> Iterator[Step | Refusal]:
        """Regions that do not touch, those that end last first."""
        around = read(graph)
        taken: set[str] = set()
        for node in reversed(list(around.nodes.values())):
            if node.name in taken or not data_slots(around, node) or len(node.outputs) != 1:
                continue
            refused: str | None = None
            for way in reversed(ways(around, node.outputs[0])):
                step = _step(self.name, way)
                if step is None or key(step) in declined or taken & set(step.nodes):
                    continue
                found = _examine(around, way)
                if isinstance(found, str):
                    refused = refused or found
                    continue
                taken.update(step.nodes)
                yield step
                break
            else:
                reason = refused or _near_miss(around, node)
                if reason is not None:
                    yield Refusal(subject=node.name, reason=reason)

    def apply(self, graph: gs.Graph, step: Step) -> None:
        """Put the new operator where the region ends, and take the region out."""
        around = read(graph)
        last = around.find(step.subject)
        named = [way for way in ways(around, last.outputs[0]) if way.root.name == step.arguments.get("root")]
        way = next((way for way in named if tuple(node.name for node in way.nodes()) == step.nodes), None)
        if way is None:
            raise RewriteFailed(f"expected a linear region of the nodes {', '.join(step.nodes)}; plan again")
        form = _examine(around, way)
        if isinstance(form, str):
            raise RewriteFailed(f"expected that the region of {last.name!r} can be composed: {form}; plan again")
        _replace(graph, way, form, setting_of(way))


def _step(name: str, way: Way) -> Step | None:
    """The step of a region that its result would shorten; None for what is short already."""
    nodes = way.nodes()
    if len(nodes) < 2 or len(nodes) <= _least(way) or len({node.name for node in nodes}) < len(nodes):
        return None
    names = tuple(node.name for node in nodes)
    kinds = ", ".join(dict.fromkeys(node.op for node in reversed(nodes)))
    note = f"{len(nodes)} linear operators ({kinds}) up to {names[0]!r} become one."
    return Step(rewrite=name, subject=names[0], nodes=names, arguments={"root": way.root.name}, note=note)


def _least(way: Way) -> int:
    """Operators that the result may need: a product and a shift where no operator takes both."""
    kinds = {node.op for node in way.nodes()}
    setting = setting_of(way)
    if "Conv" in kinds or "AveragePool" in kinds:
        return 1
    if "Gemm" in kinds or ("MatMul" in kinds and setting is not None and setting.rank == 2):
        return 1
    return 2


def _examine(around: Surroundings, way: Way) -> Form | str:
    fused = _fused_reason(way)
    if fused is not None:
        return fused
    form = form_of(around, way)
    if isinstance(form, str):
        return form
    for values in _arrays(form):
        with np.errstate(over="ignore"):
            if not np.isfinite(values.astype(np.float32)).all():
                return "composing the region gives infinite weights or NaN"
    return form


def _arrays(form: Form) -> tuple[Floats, Floats]:
    if isinstance(form, Diagonal):
        return form.scale, form.shift
    return (form.weight if isinstance(form, Matrix) else form.kernel), form.bias


def _fused_reason(way: Way) -> str | None:
    """Why a first scale or shift, or a last sum, should stay: runtimes run it and a normalisation as one kernel."""
    skips = len(way.branches) > 1 and any(branch.node is None for branch in way.branches)
    if way.node is not None and skips and _is_normalised(way.node.outputs[0]):
        return "it adds its input for a normalisation, and runtimes run both as one kernel"
    if not way.root.inputs or not any(node.op in ("Mul", "Div", "Add") for node in way.first_nodes()):
        return None
    what = written_out(way.root)
    return None if what is None else f"its first node ends {what} written out, which runtimes run as one kernel"


def _is_normalised(tensor: gs.Tensor) -> bool:
    """Whether a LayerNormalization reads the tensor, or one written out begins: the tensor less its mean."""
    if any(is_standard(node, "LayerNormalization") and node.inputs[0] is tensor for node in tensor.outputs):
        return True
    means = {node.outputs[0].name for node in tensor.outputs if is_standard(node, "ReduceMean")}
    return any(is_standard(node, "Sub") and node.inputs[1].name in means for node in tensor.outputs)


def _near_miss(around: Surroundings, node: gs.Node) -> str | None:
    """Why two linear operators in a row are not one region."""
    slots = data_slots(around, node)
    if len(slots) != 1 or node.op not in ("Conv", "MatMul", "Gemm", *POOLS):
        return None
    source = node.inputs[slots[0]]
    before = source.inputs[0] if source.inputs else None
    if before is None or len(data_slots(around, before)) != 1 or before.op == "Identity":
        return None
    reason = hidden_reason(around, source)
    return None if reason is None else f"the output of {before.op} {before.name!r} before it {reason}"


def _replace(graph: gs.Graph, way: Way, form: Form, setting: Setting | None) -> None:
    nodes = way.nodes()
    last = nodes[0]
    name, target, root = last.name, last.outputs[0], way.root
    position = next(index for index, node in enumerate(graph.nodes) if node is last)
    position -= sum(1 for node in nodes if any(node is other for other in graph.nodes[:position]))
    for node in nodes:
        remove(graph, node)
    made = _built(graph, name, form, root, target, setting)
    for offset, node in enumerate(made):
        graph.nodes.insert(position + offset, node)


def _built(
    graph: gs.Graph, name: str, form: Form, root: gs.Tensor, target: gs.Tensor, setting: Setting | None
) -> list[gs.Node]:
    def constant(part: str, values: Floats) -> gs.Constant:
        return gs.Constant(fresh_name(graph, f"{name}.{part}"), np.ascontiguousarray(values, dtype=np.float32))

    if isinstance(form, Convolution):
        attributes = {
            "dilations": list(form.dilations),
            "group": form.groups,
            "kernel_shape": list(form.sizes),
            "pads": [*form.begins, *form.ends],
            "strides": list(form.strides),
        }
        inputs = [root, constant("weight", form.kernel), *([constant("bias", form.bias)] if form.bias.any() else [])]
        return [gs.Node(op="Conv", name=name, attrs=attributes, inputs=inputs, outputs=[target])]
    if isinstance(form, Matrix) and setting is not None and setting.rank == 2 and form.bias.any():
        inputs = [root, constant("weight", form.weight), constant("bias", form.bias)]
        return [gs.Node(op="Gemm", name=name, inputs=inputs, outputs=[target])]
    shape: tuple[int, ...] = ()
    if isinstance(form, Matrix):
        first, factor, shift = "MatMul", form.weight, form.bias
    else:
        spatial = setting is not None and setting.spatial and setting.rank is not None
        shape = (-1, *(1 for _ in range((setting.rank or 2) - 2))) if spatial and setting is not None else (-1,)
        first, factor, shift = "Mul", form.scale, form.shift
        factor, shift = (values.reshape(shape if values.size > 1 else ()) for values in (factor, shift))
    if not shift.any():
        return [gs.Node(op=first, name=name, inputs=[root, constant("weight", factor)], outputs=[target])]
    if first == "Mul" and (factor == 1).all():
        return [gs.Node(op="Add", name=name, inputs=[root, constant("bias", shift)], outputs=[target])]
    between = gs.Variable(fresh_name(graph, f"{name}.product"), dtype=target.dtype, shape=target.shape)
    product = gs.Node(
        op=first,
        name=fresh_node(graph, f"{name}.product"),
        inputs=[root, constant("weight", factor)],
        outputs=[between],
    )
    return [product, gs.Node(op="Add", name=name, inputs=[between, constant("bias", shift)], outputs=[target])]


REWRITE = ComposeLinear()
