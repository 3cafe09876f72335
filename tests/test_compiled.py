"""A digest tells graphs of the runtime apart by what takes time, not by names."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import build

from benchmarks.compiled import digest
from passes.errors import ModelError

CONV = "g (float[1,4,9,9] x) => (float[1,6,9,9] y) { t = Conv <pads = [1,1,1,1]> (x, w)\n y = Relu (t) }"


def test_names_and_idle_nodes_do_not_count() -> None:
    model = build(CONV, {"w": (6, 4, 3, 3)})
    other = build(
        CONV.replace("y = Relu (t)", "u = Identity (t)\n y = Relu (u)").replace("w)", "weight)"),
        {"weight": (6, 4, 3, 3)},
    )
    assert digest(model) == digest(other)


def test_sizes_attributes_and_bounds_count() -> None:
    model = build(CONV, {"w": (6, 4, 3, 3)})
    smaller = CONV.replace("[1,1,1,1]> (x", "[0,0,0,0]> (x")
    assert digest(build(smaller, {"w": (6, 4, 1, 1)})) != digest(model)
    cut = "g (float[8] x) => (float[a] y) { y = Slice (x, s, e) }"
    digests = {digest(build(cut, {"s": np.array([0]), "e": np.array([end])})) for end in (2, 3)}
    assert len(digests) == 2


def test_what_the_runtime_refuses_has_none() -> None:
    model = build("g (float[4] x) => (float[4] y) { y = Relu (x) }", {})
    model.graph.node[0].domain = "nowhere"
    model.opset_import.add(domain="nowhere", version=1)
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot write the model: "):
        digest(model)
