"""The angle by blocks is that of the augmented matrices, in every layout, precision and scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.distances import augmented_matrix, operator_angle
from passes.operators import Weights
from passes.records import Operator
from passes.stored_angle import operator_radians


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["as stored", "transposed", "mixed"]), st.sampled_from(["f4", "f8"]))
def test_the_angle_by_blocks_is_that_of_the_augmented_matrices(seed: int, layout: str, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    groups, rows, columns = (int(rng.integers(1, high)) for high in (3, 70, 1500))
    scales = 10.0 ** rng.integers(-30, 31, 2) if rng.random() < 0.5 else np.ones(2)
    found = []
    for position, scale in enumerate(scales):
        values = (rng.standard_normal((groups, rows, columns)) * scale).astype(dtype)
        if layout == "transposed" or (layout == "mixed" and position):
            values = np.ascontiguousarray(values.swapaxes(1, 2)).swapaxes(1, 2)
        offset = rng.standard_normal((groups, rows)) if rng.random() < 0.5 else None
        operator = Operator(
            name=f"op{position}", kind="MatMul", weight="w", bias=None, groups=groups, rows=rows, columns=columns
        )
        found.append(Weights(operator=operator, matrices=values, bias=offset))
    a, b = found
    u, v = (augmented_matrix(one.matrices, one.bias) for one in found)
    assert operator_radians(a, b) == pytest.approx(operator_angle(u, v, signed=True), rel=1e-9, abs=1e-14)
    assert operator_radians(a, a) == 0.0


def test_the_angle_by_blocks_neither_overflows_nor_takes_two_shapes() -> None:
    def huge(rows: int, scale: float) -> Weights:
        operator = Operator(name="op", kind="MatMul", weight="w", bias=None, groups=1, rows=rows, columns=3)
        return Weights(operator=operator, matrices=np.full((1, rows, 3), scale), bias=None)

    assert operator_radians(huge(2, 1e200), huge(2, 1e250)) == pytest.approx(0, abs=1e-15)
    assert operator_radians(huge(2, -1e200), huge(2, 1e200)) == pytest.approx(math.pi)
    with pytest.raises(ValueError, match=r"one shape; got \(1, 2, 3\) and \(1, 4, 3\)"):
        operator_radians(huge(2, 1.0), huge(4, 1.0))
