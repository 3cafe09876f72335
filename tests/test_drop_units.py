"""Dead units go through whatever they are coupled with; units that only look dead stay, with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from rewriting import Array, apply_all, assert_same_function, build, norm, proposals

from models.tiny import TINY
from passes import model_io
from passes.axes import kept
from passes.coupling import couple
from passes.errors import RewriteFailed
from passes.graph_io import to_graph, to_model
from passes.records import Step
from passes.rewrites.drop_units import REWRITE


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def block(
    first: Array, second: Array, body: str = "r = Relu (t)", extra: dict[str, Array] | None = None
) -> onnx.ModelProto:
    text = f"""g (float[2,3,8,8] x) => (float[2,4,8,8] y) {{
        t = Conv <pads = [1,1,1,1]> (x, u, c)
        {body}
        y = Conv <pads = [1,1,1,1]> (r, w)
    }}"""
    return build(text, {"u": first, "w": second, "c": np.arange(6, dtype=np.float32), **(extra or {})})


def sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {
        node.name: list(next(t.dims for t in model.graph.initializer if t.name == node.input[1]))
        for node in model.graph.node
        if node.op_type == "Conv"
    }


def test_units_that_nobody_reads_go_with_their_producers() -> None:
    second = weight(4, 6, 3, 3, seed=1)
    second[:, [1, 4]] = 0
    model = block(weight(6, 3, 3, 3), second)
    steps, _ = proposals(REWRITE, model)
    assert [(step.note, step.arguments) for step in steps] == [
        ("2 units of 1 group go: 2 dead, 0 merged.", {"cuts": {"n_t": [0, 2, 3, 5]}, "merges": {}})
    ]
    smaller, count = apply_all(REWRITE, model)
    assert (count, sizes(smaller)) == (1, {"n_t": [4, 3, 3, 3], "n_y": [4, 4, 3, 3]})
    assert_same_function(model, smaller)


@pytest.mark.parametrize(
    ("body", "extra", "gone"),
    [
        ("r = Relu (t)", {}, 1),
        ("r = Sigmoid (t)", {}, 0),
        ("a = Relu (t)\n r = Add (a, k)", {"k": np.full((6, 1, 1), 0.5, np.float32)}, 0),
        ("a = BatchNormalization (t, s, b, m, v)\n r = Relu (a)", norm(6), 0),
        ("a = Conv <group = 6> (t, d)\n r = Tanh (a)", {"d": weight(6, 1, 1, 1)}, 1),
        ("a = Conv <group = 6> (t, d, e)\n r = Tanh (a)", {"d": weight(6, 1, 1, 1), "e": weight(6)}, 0),
    ],
)
def test_units_that_are_always_zero_go_where_zero_arrives(body: str, extra: dict[str, Array], gone: int) -> None:
    first = weight(6, 3, 3, 3)
    # The bias of unit 0 is zero, that of unit 3 is not.
    first[[0, 3]] = 0
    model = block(first, weight(4, 6, 3, 3, seed=1), body, extra)
    smaller, _ = apply_all(REWRITE, model)
    assert_same_function(model, smaller)
    assert sizes(smaller)["n_y"][1] == 6 - gone


def test_a_zero_unit_without_biases_goes() -> None:
    first = weight(6, 3, 3, 3)
    first[[0, 3]] = 0
    text = """g (float[2,3,8,8] x) => (float[2,4,8,8] y) {
        t = Conv <pads = [1,1,1,1]> (x, u)
        r = Relu (t)
        d = Conv <group = 6> (r, d1)
        y = Conv <pads = [1,1,1,1]> (d, w)
    }"""
    model = build(text, {"u": first, "w": weight(4, 6, 3, 3, seed=1), "d1": weight(6, 1, 1, 1, seed=2)})
    smaller, count = apply_all(REWRITE, model)
    assert (count, sizes(smaller)) == (1, {"n_t": [4, 3, 3, 3], "n_d": [4, 1, 1, 1], "n_y": [4, 4, 3, 3]})
    assert_same_function(model, smaller)


def test_a_frozen_group_keeps_its_dead_units_and_says_why() -> None:
    first = weight(4, 3, 1, 1)
    first[2] = 0
    model = build("g (float[2,3,8,8] x) => (float[2,4,8,8] y) { y = Conv (x, u) }", {"u": first})
    steps, refusals = proposals(REWRITE, model)
    assert steps == []
    assert [reason[:41] for reason in refusals.values()] == [
        "1 of its 4 units are dead, but it reaches"[:41]
    ] or refusals


@pytest.mark.parametrize(
    "name", ["residual_pair", "concat", "inverted_residual", "channel_shuffle", "squeeze_excite", "mlp"]
)
def test_dead_units_of_small_networks(name: str) -> None:
    source = TINY[name]()
    model = model_io.prepare(model_io.load(source))
    graph = to_graph(model)
    coupling = couple(graph, model, 1)
    group = next(g for g in coupling.groups if g.frozen is None and g.units > 2)
    for node in graph.nodes:
        for slot in range(len(node.inputs)):
            for axis, term, role in coupling.roles.get((node.name, slot), ()):
                held = node.inputs[slot]
                if role != "consumes" or not isinstance(held, gs.Constant):
                    continue
                gone = np.setdiff1d(
                    np.arange(held.shape[axis]), kept(term, coupling.keep({group.name: range(1, group.units)}))
                )
                values = np.array(held.values)
                values[(slice(None),) * axis + (gone,)] = 0
                node.inputs[slot] = gs.Constant(f"{held.name}.silent.{node.name}", values)
    silent = to_model(graph, model)
    steps = [s for s in REWRITE.propose(to_graph(silent)) if isinstance(s, Step)]
    assert len(steps) == 1
    cut = to_graph(silent)
    REWRITE.apply(cut, steps[0])
    assert_same_function(silent, to_model(cut, silent))


def test_living_units_are_not_cut() -> None:
    graph = to_graph(block(weight(6, 3, 3, 3), weight(4, 6, 3, 3)))
    step = Step(rewrite="drop_units", subject="n_t", nodes=("n_t",), arguments={"cuts": {"n_t": [0, 1]}})
    with pytest.raises(RewriteFailed, match=r"^expected dead units in 'n_t'; some are alive; plan again$"):
        REWRITE.apply(graph, step)


@pytest.mark.parametrize(
    ("body", "factor", "merged"),
    [
        ("r = Relu (t)", 2.5, True),
        ("a = Relu (t)\n r = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)", 0.3, True),
        ("r = Sigmoid (t)", 1.0, True),
        ("r = Sigmoid (t)", 2.0, False),
        ("r = Relu (t)", -1.0, False),
        ("a = Add (t, k)\n r = Relu (a)", 2.0, False),
        ("h = ReduceMax <axes = [1]> (x)\n a = Add (t, h)\n r = Relu (a)", 2.0, False),
        ("h = ReduceMax <axes = [1]> (x)\n a = Add (t, h)\n r = Relu (a)", 1.0, True),
        ("a = BatchNormalization (t, s, b, m, v)\n r = Relu (a)", 1.0, False),
    ],
)
def test_multiples_merge_where_they_stay_multiples(body: str, factor: float, merged: bool) -> None:
    first = weight(6, 3, 3, 3)
    first[4] = factor * first[1]
    bias = weight(6, seed=5)
    bias[4] = factor * bias[1]
    extra = {"k": np.full((1, 1, 1), 0.5, np.float32)} if "k)" in body else norm(6) if "Batch" in body else {}
    model = block(first, weight(4, 6, 3, 3, seed=1), body, {**extra, "c": bias})
    smaller, count = apply_all(REWRITE, model)
    assert (count, sizes(smaller)["n_y"][1]) == ((1, 5) if merged else (0, 6))
    assert_same_function(model, smaller)


def test_nearly_a_multiple_is_none() -> None:
    first = weight(6, 3, 3, 3)
    first[4] = 2 * first[1]
    first[4, 0, 0, 0] *= 1 + 3e-6
    bias = np.zeros(6, np.float32)
    assert proposals(REWRITE, block(first, weight(4, 6, 3, 3, seed=1), extra={"c": bias})) == ([], {})


@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5), (2, 3, 6, 5)])
def test_a_stack_of_matrices_is_left_alone(shape: tuple[int, ...]) -> None:
    read, written = (*shape[:-2], 4, 6), (*shape[:-2], 4, 5)
    text = f"g (float{list(read)} x) => (float{list(written)} y) {{ y = MatMul (x, w) }}"
    steps, _ = proposals(REWRITE, build(text, {"w": weight(*shape, seed=3)}))
    assert steps == []
