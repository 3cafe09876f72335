"""The matching is the least sum of angles over all matchings, and a model matches itself."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from test_analysis import dense, values_of, without_operators

from models.tiny import TINY
from models.wiring import redundant
from passes.comparison import compare
from passes.distances import fubini_study
from passes.errors import ModelError


def test_a_model_matches_itself_name_by_name() -> None:
    found = compare(redundant(), redundant())
    assert all(pair.first == pair.second for pair in found.pairs)
    assert all(pair.radians == pair.aligned == pair.operator_radians == 0 for pair in found.pairs)
    assert found.only_first == found.only_second == () and found.mean_radians == 0
    assert found.digests[0] == found.digests[1]


def test_copies_with_one_spectrum_go_to_their_names() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 6))
    model = dense({"a": weight, "b": weight, "c": weight})
    again = dense({"c": weight[::-1], "b": -weight, "a": weight})
    pairs = {pair.first: pair for pair in compare(model, again).pairs}
    assert {first: pair.second for first, pair in pairs.items()} == {"a": "a", "b": "b", "c": "c"}
    assert pairs["a"].operator_radians == 0
    assert pairs["b"].radians < 1e-7 < 1 < (pairs["b"].operator_radians or 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours = {f"a{i}": rng.standard_normal((4, 6)) * rng.uniform(0.3, 1, 6) for i in range(4)}
    theirs = {f"b{i}": rng.standard_normal((3 + i, 6)) * rng.uniform(0.3, 1, 6) ** 2 for i in range(5)}
    cost = [[fubini_study(values_of(a), values_of(b)) for b in theirs.values()] for a in ours.values()]
    best = min(sum(cost[i][j] for i, j in enumerate(order)) for order in itertools.permutations(range(5), 4))
    found = compare(dense(ours), dense(theirs))
    assert sum(pair.radians for pair in found.pairs) == pytest.approx(best, abs=1e-8)
    assert len(found.only_second) == 1 and found.only_first == ()
    for pair in found.pairs:
        s, t = values_of(ours[pair.first]), values_of(theirs[pair.second])
        padded = [np.pad(x, (0, 7 - len(x))) for x in (s, t)]
        gap = float(np.linalg.norm(padded[0] - padded[1]))
        assert pair.aligned == pytest.approx(gap / max(np.linalg.norm(s), np.linalg.norm(t)))
        assert (pair.operator_radians is not None) == (pair.first_shape == pair.second_shape)
    turned = compare(dense(theirs), dense(ours))
    assert {(p.second, p.first) for p in turned.pairs} == {(p.first, p.second) for p in found.pairs}


def test_two_architectures_and_json() -> None:
    found = compare(TINY["mlp"](), TINY["inverted_residual"]())
    data = json.loads(found.to_json())
    assert data["format"] == 1 and data["mean_radians"] == found.mean_radians > 0
    assert len(data["pairs"]) == len(found.pairs) > 0


def test_a_model_without_operators_is_named() -> None:
    with pytest.raises(ModelError, match="second has no linear operator"):
        compare(redundant(), without_operators())
