"""Residual branches: all are found, with what serves them alone; near misses are refused with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from residual import convolutional, transformer
from rewriting import build

from models.tiny import TINY, UNRUNNABLE
from passes import branches
from passes.coupling import couple
from passes.graph_io import to_graph
from passes.records import Branch


def find(model: onnx.ModelProto) -> tuple[dict[str, Branch], dict[str, str]]:
    graph = to_graph(model)
    before = model.SerializeToString(deterministic=True)
    found, refused = branches.find(graph, couple(graph, model, 1))
    assert model.SerializeToString(deterministic=True) == before
    return {branch.name: branch for branch in found}, {refusal.subject: refusal.reason for refusal in refused}


def test_every_block_of_a_residual_network_is_a_branch() -> None:
    found, refused = find(convolutional(blocks=3))
    assert list(found) == ["n_s1", "n_s2", "n_s3"] and not refused
    branch = found["n_s2"]
    assert branch.nodes == ("n_a2", "n_b2", "n_c2")
    assert (branch.tensor, branch.slot, branch.axis) == ("c2", 0, 1)
    assert branch.groups == ("n_a2",), "the stream lies outside as well"


def test_attention_and_mlp_behind_their_normalisations_are_branches() -> None:
    found, refused = find(transformer())
    assert list(found) == ["n_m1", "n_t1", "n_m2", "n_t2"] and not refused
    attention, mlp = found["n_m1"], found["n_t1"]
    assert attention.nodes[0] == "n_l1" and attention.nodes[-1] == "n_attended1" and len(attention.nodes) == 17
    assert (attention.slot, attention.axis) == (1, 2)
    assert mlp.nodes == ("n_n1", "n_up1", "n_upb1", "n_act1", "n_down1", "n_downb1")
    assert mlp.groups == ("n_up1",)


def body(
    lines: str, outputs: str = "float[N,8,4,4] y", inputs: str = "float[N,8,4,4] x", **weights: object
) -> onnx.ModelProto:
    given = {"w": (8, 8, 1, 1), "v": (8, 8, 1, 1)} | weights
    used = {name: value for name, value in given.items() if f"{name})" in lines or f"{name}," in lines}
    return build(f"g ({inputs}) => ({outputs}) {{ {lines} }}", used)  # type: ignore[arg-type]


def test_the_input_of_the_model_may_be_what_goes_on() -> None:
    found, _ = find(body("a = Conv (x, w) y = Add (x, a)"))
    assert found["n_y"].nodes == ("n_a",)


def test_what_others_read_stays_outside() -> None:
    """The first convolution serves two branches; each alone can lose the rest."""
    found, _ = find(
        body(
            """s = Relu (x) a = Conv (s, w) b = Relu (a) c = Conv (b, v) d = Conv (b, v)
            t = Add (s, c) y = Add (t, d)"""
        )
    )
    assert found["n_t"].nodes == ("n_c",)
    assert "n_y" not in found, "the sum before it is not what the second one is computed from"


def test_branches_lie_inside_one_another() -> None:
    found, _ = find(body("a = Conv (x, w) b = Conv (a, v) c = Add (a, b) d = Relu (c) y = Add (x, d)"))
    assert found["n_c"].nodes == ("n_b",)
    assert found["n_y"].nodes == ("n_a", "n_b", "n_c", "n_d")


REFUSED = {
    "projection": (
        "s = Relu (x) a = Conv (s, w) b = Conv (s, v) y = Add (a, b)",
        {},
        "both of its operands are computed: none goes on unchanged past a branch",
    ),
    "read twice": (
        "s = Relu (x) a = Conv (s, w) t = Add (s, a) u = Mul (t, a) y = Relu (u)",
        {},
        "its branch ends in 'a', which is read 2 times",
    ),
    "an output": (
        "s = Relu (x) a = Conv (s, w) y = Add (s, a)",
        {"outputs": "float[N,8,4,4] y, float[N,8,4,4] a"},
        "its branch ends in 'a', which is an output of the model",
    ),
    "broadcast": (
        "s = Relu (x) a = GlobalAveragePool (s) b = Conv (a, w) y = Add (s, b)",
        {},
        "its operands differ in shape, or their shapes are not known",
    ),
    "other precision": (
        """s = Relu (x) h = Cast <to = 10> (s) a = Conv (s, w) b = Cast <to = 10> (a) c = Cast <to = 1> (b)
        y = Add (s, c)""",
        {},
        "its branch changes precision at Cast 'n_b'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_near_misses_are_refused_with_the_reason(name: str) -> None:
    lines, more, reason = REFUSED[name]
    found, refused = find(body(lines, **more))  # type: ignore[arg-type]
    assert not found
    assert list(refused.values()) == [reason]


@pytest.mark.parametrize(
    "lines",
    [
        "s = Relu (x) a = Sigmoid (s) y = Add (s, a)",  # No weights: an activation in pieces looks like that.
        "s = Relu (x) a = Conv (s, w) y = Sub (s, a)",
        "s = Relu (x) a = Conv (s, w) y = Add (a, c)",
        "y = Add (x, x)",
    ],
)
def test_other_sums_are_no_question(lines: str) -> None:
    found, refused = find(body(lines, c=np.ones((8, 1, 1), np.float32)))
    assert not found and not refused


def test_a_row_that_only_looks_alike_at_batch_one_is_refused() -> None:
    """The branch is one row wide, or what goes on is: told at another size of the batch."""
    rows = """s = ReduceMean <axes = [0], keepdims = 1> (x) a = Add (s, x) b = Conv (a, w) y = Add (s, b)"""
    found, refused = find(body(rows))
    assert "n_y" not in found
    assert refused["n_y"] == "its operands differ in shape, or their shapes are not known"


@pytest.mark.parametrize("name", sorted(set(TINY) - UNRUNNABLE))
def test_nodes_of_a_branch_serve_it_alone_in_every_small_model(name: str) -> None:
    model = TINY[name]()
    found, _ = find(model)
    outputs = {value.name for value in model.graph.output}
    for branch in found.values():
        inside = set(branch.nodes) | {branch.name}
        made = {t for node in model.graph.node if node.name in branch.nodes for t in node.output}
        assert not made & outputs
        assert all(node.name in inside for node in model.graph.node if made & set(node.input))
