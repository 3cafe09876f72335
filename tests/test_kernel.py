"""The kernel's residuals are what the samples say, and every greedy step is the best single step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.kernel import JITTER, Panel, along, angles, choose, leverage_order, nystrom, residual_of, uniform_order
from passes.records import Array, Floats

SEEDS = st.integers(0, 10_000)


def samples(seed: int, units: int, count: int = 200) -> Floats:
    """Correlated observations, (count, units)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, units)) @ rng.normal(size=(units, units)) + rng.normal(size=units)


def moment(z: Floats) -> Floats:
    return z.T @ z / len(z)


def panel(seed: int, units: int, block: int = 1, outputs: int = 7) -> Panel:
    weight = np.random.default_rng(seed + 1).normal(size=(outputs, units * block))
    return Panel(second=moment(samples(seed, units * block)), weight=weight.T @ weight, block=block)


def channels(keep: Sequence[int], block: int) -> Array:
    return np.array([unit * block + i for unit in keep for i in range(block)], dtype=np.intp)


def exact(panels: Sequence[Panel], keep: Sequence[int]) -> float:
    """tr(H (K - K_:S pinv(K_SS) K_S:)), with nothing of the module."""
    total = 0.0
    for p in panels:
        s = channels(keep, p.block)
        schur = p.second - p.second[:, s] @ np.linalg.pinv(p.second[np.ix_(s, s)]) @ p.second[s]
        total += float(np.trace(p.weight @ schur))
    return total


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, units=st.integers(2, 9), data=st.data())
def test_the_trace_is_the_consumers_mean_squared_error(seed: int, units: int, data: st.DataObject) -> None:
    keep = np.array(sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1))), dtype=np.intp)
    z = samples(seed, units)
    w = np.random.default_rng(seed + 1).normal(size=(5, units))
    k, h = moment(z), w.T @ w
    fold = nystrom(k, keep)
    measured = float(np.mean(np.sum(((z - z[:, keep] @ fold.T) @ w.T) ** 2, axis=1)))
    scale = float(np.trace(h @ k))
    rest = np.eye(units)
    rest[:, keep] -= fold
    assert measured == pytest.approx(float(np.trace(h @ rest @ k @ rest.T)), abs=1e-8 * scale)
    solution, *_ = np.linalg.lstsq(z[:, keep], z, rcond=None)
    least = float(np.mean(np.sum(((z - z[:, keep] @ solution) @ w.T) ** 2, axis=1)))
    assert measured >= least - 1e-8 * scale
    assert residual_of([Panel(second=k, weight=h)], keep) == pytest.approx(least, abs=100 * JITTER * scale)


def test_the_residual_is_exact_where_the_kernel_is_well_conditioned() -> None:
    z = np.random.default_rng(0).normal(size=(400, 6))
    w = np.random.default_rng(1).normal(size=(3, 6))
    keep = np.array([1, 4])
    # The smallest ridge that is not zero moves the solution by its own relative size.
    solution, *_ = np.linalg.lstsq(z[:, keep], z, rcond=None)
    least = float(np.mean(np.sum(((z - z[:, keep] @ solution) @ w.T) ** 2, axis=1)))
    assert exact([Panel(second=moment(z), weight=w.T @ w)], [1, 4]) == pytest.approx(least, rel=1e-8)
    assert residual_of([Panel(second=moment(z), weight=w.T @ w)], keep) == pytest.approx(least, rel=2 * JITTER)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, units=st.integers(1, 8), block=st.sampled_from([1, 1, 2, 3]), panels=st.integers(1, 3))
def test_one_factorisation_knows_the_residual_of_every_width(seed: int, units: int, block: int, panels: int) -> None:
    several = [panel(seed + 10 * i, units, block) for i in range(panels)]
    curve = choose(several)
    whole = exact(several, [])
    assert sorted(curve.order.tolist()) == list(range(units))
    assert curve.residual.shape == (units + 1,)
    assert curve.residual[0] == pytest.approx(whole)
    assert np.all(np.diff(curve.residual) <= 0)
    assert curve.residual[-1] == pytest.approx(0, abs=1e-4 * whole)
    for width in range(units + 1):
        keep = curve.order[:width]
        assert curve.residual[width] == pytest.approx(residual_of(several, keep), abs=1e-4 * whole)
        assert curve.residual[width] == pytest.approx(exact(several, keep.tolist()), abs=1e-4 * whole)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, units=st.integers(2, 7), block=st.sampled_from([1, 2, 3]))
def test_every_step_is_the_best_single_step(seed: int, units: int, block: int) -> None:
    several = [panel(seed, units, block), panel(seed + 77, units, block)]
    curve, whole = choose(several), exact(several, [])
    for width in range(units):
        taken = curve.order[:width].tolist()
        best = min(exact(several, [*taken, unit]) for unit in range(units) if unit not in taken)
        assert exact(several, curve.order[: width + 1].tolist()) <= best + 1e-4 * whole


def test_no_pair_beats_greedy_by_much_on_an_easy_kernel() -> None:
    several = [panel(5, 6)]
    curve = choose(several)
    best = min(exact(several, pair) for pair in itertools.combinations(range(6), 2))
    assert best <= curve.residual[2] * (1 + 1e-9)
    assert curve.residual[2] <= 1.5 * best


def test_duplicates_cost_nothing() -> None:
    z = samples(1, 4)[:, [0, 1, 2, 3, 2, 0, 0]] * np.array([1, 1, 1, 1, 2.5, -0.5, 1])
    w = np.random.default_rng(2).normal(size=(6, 7))
    curve = choose([Panel(second=moment(z), weight=w.T @ w)])
    assert curve.residual[4] <= 1e-5 * curve.residual[0]
    assert curve.residual[3] > 1e-3 * curve.residual[0]
    source = np.array([0, 1, 2, 3, 2, 0, 0])
    assert sorted(source[curve.order[:4]].tolist()) == [0, 1, 2, 3], "one of each"


def test_a_zero_kernel_has_an_order_and_no_residual() -> None:
    for block in (1, 2):
        zero = np.zeros((3 * block, 3 * block))
        curve = choose([Panel(second=zero, weight=np.eye(3 * block), block=block)])
        assert curve.order.tolist() == [0, 1, 2]
        assert curve.residual.tolist() == [0, 0, 0, 0]
        assert residual_of([Panel(second=zero, weight=zero, block=block)], np.array([1])) == 0
    assert np.array_equal(nystrom(np.zeros((3, 3)), np.array([1])), np.eye(3)[:, [1]])
    assert nystrom(np.eye(3), np.array([], dtype=np.intp)).shape == (3, 0)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, block=st.sampled_from([1, 2]), mean=st.sampled_from([0.0, 3.0]))
def test_fewer_samples_than_units_measured_in_single_precision(seed: int, block: int, mean: float) -> None:
    rng = np.random.default_rng(seed)
    z = (rng.normal(size=(6, 24)) * rng.uniform(0.1, 10, 24) + mean).astype(np.float32)
    second = (z.T @ z).astype(np.float64) / 6
    noisy = second - np.outer(z.mean(axis=0, dtype=np.float64), z.mean(axis=0, dtype=np.float64))
    weight = rng.normal(size=(5, 24))
    several = [Panel(second=noisy, weight=weight.T @ weight, block=block)]
    curve = choose(several)
    assert curve.residual[6] <= 1e-3 * curve.residual[0]
    for width in (1, 3, 6, 12):
        keep = curve.order[:width]
        # A pivot just above the noise floor magnifies the rounding of the moments: 2.4 % is the most of 16,000 draws.
        assert residual_of(several, keep) == pytest.approx(curve.residual[width], abs=5e-2 * curve.residual[0])
        assert np.abs(nystrom(noisy, channels(keep.tolist(), block))).max() < 1e4


def test_noise_below_zero_is_folded_as_nothing() -> None:
    noise = -1e-9 * np.eye(4)
    assert np.all(np.isfinite(nystrom(noise, np.array([0, 2]))))


def test_a_unit_of_a_kernel_of_tiny_scale_is_still_a_unit() -> None:
    big, small = panel(3, 5), panel(3, 5)
    small = Panel(second=small.second * 1e-18, weight=small.weight)
    assert choose([small]).order.tolist() == choose([big]).order.tolist()


def test_units_that_nobody_reads_go_last_unless_they_foretell_others() -> None:
    weight = np.diag([0.0, 1.0, 0.0, 2.0, 0.5])
    curve = choose([Panel(second=np.eye(5), weight=weight)])
    assert curve.order.tolist() == [3, 1, 4, 0, 2]
    assert curve.residual[3] == pytest.approx(0)
    rng = np.random.default_rng(0)
    source = rng.normal(size=(500, 1))
    z = np.concatenate([source, source + 0.5 * rng.normal(size=(500, 6))], axis=1)
    told = choose([Panel(second=moment(z), weight=np.diag([0.0, *np.ones(6)]))])
    assert told.order[0] == 0, "nobody reads it, yet it says more about the others than any of them"


@pytest.mark.parametrize("block", [1, 2])
def test_ties_go_to_the_smaller_index(block: int) -> None:
    even = Panel(second=np.eye(4 * block), weight=np.eye(4 * block), block=block)
    assert choose([even]).order.tolist() == [0, 1, 2, 3]
    assert choose([even, even]).order.tolist() == [0, 1, 2, 3]


def test_choosing_changes_no_panel() -> None:
    given_panel = panel(8, 4, 2)
    second, weight = given_panel.second.copy(), given_panel.weight.copy()
    first = choose([given_panel])
    assert np.array_equal(given_panel.second, second)
    assert np.array_equal(given_panel.weight, weight)
    again = choose([given_panel])
    assert first.order.tobytes() == again.order.tobytes()
    assert first.residual.tobytes() == again.residual.tobytes()


def test_kept_units_rebuild_themselves_exactly() -> None:
    keep = np.array([0, 3, 4])
    fold = nystrom(moment(samples(4, 6)), keep)
    assert np.array_equal(fold[keep], np.eye(3))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, units=st.integers(2, 9), rank=st.integers(1, 9), block=st.sampled_from([1, 2]))
def test_a_rank_stops_early_and_still_bounds_every_width(seed: int, units: int, rank: int, block: int) -> None:
    given_panel = panel(seed, units, block)
    whole, part = choose([given_panel]), choose([given_panel], rank=rank)
    steps = min(rank, units)
    assert part.order[:steps].tolist() == whole.order[:steps].tolist()
    assert sorted(part.order.tolist()) == list(range(units))
    np.testing.assert_array_equal(part.residual[: steps + 1], whole.residual[: steps + 1])
    scale = whole.residual[0]
    for width in range(1, units):
        assert residual_of([given_panel], part.order[:width]) <= part.residual[width] + 1e-4 * scale
    assert np.all(np.diff(part.residual) <= 0)


def test_a_tolerance_stops_where_the_residual_is_reached() -> None:
    given_panel = panel(5, 12)
    whole = choose([given_panel])
    for tolerance in (0.3, 0.05, 1.0):
        part = choose([given_panel], tolerance=tolerance)
        steps = max(1, int(np.argmax(whole.residual <= tolerance * whole.residual[0])))
        np.testing.assert_array_equal(part.order[:steps], whole.order[:steps])
        assert np.all(part.residual[steps:-1] == whole.residual[steps]) and part.residual[-1] == 0
    assert choose([given_panel], tolerance=0.0).order.tolist() == whole.order.tolist()


@pytest.mark.parametrize(("rank", "tolerance"), [(0, 0.0), (None, -0.1), (None, 1.5)])
def test_a_rank_or_tolerance_out_of_range_is_refused(rank: int | None, tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"rank >= 1 and a tolerance in \[0, 1\]; got"):
        choose([panel(1, 3)], rank=rank, tolerance=tolerance)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, units=st.integers(2, 8), block=st.sampled_from([1, 2]))
def test_any_order_has_its_certificate_after_every_step(seed: int, units: int, block: int) -> None:
    several = [panel(seed, units, block), panel(seed + 1, units, block)]
    for order in (uniform_order(units, seed), leverage_order(several, seed)):
        assert sorted(order.tolist()) == list(range(units))
        curve = along(several, order)
        for width in range(units + 1):
            assert curve.residual[width] == pytest.approx(
                exact(several, order[:width].tolist()), abs=1e-4 * curve.residual[0]
            )
    greedy = choose(several)
    np.testing.assert_allclose(along(several, greedy.order).residual, greedy.residual)


def test_leverage_prefers_what_nothing_else_says() -> None:
    rng = np.random.default_rng(2)
    common = rng.normal(size=(500, 1))
    z = np.concatenate([common + 0.01 * rng.normal(size=(500, 20)), rng.normal(size=(500, 1))], axis=1)
    found = Panel(second=moment(z), weight=np.eye(21))
    places = [int(np.flatnonzero(leverage_order([found], seed) == 20)[0]) for seed in range(40)]
    uniform = [int(np.flatnonzero(uniform_order(21, seed) == 20)[0]) for seed in range(40)]
    assert np.mean(places) < 3 < np.mean(uniform)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, units=st.integers(1, 7), block=st.sampled_from([1, 3]))
def test_angles_are_those_of_the_functions(seed: int, units: int, block: int) -> None:
    z = samples(seed, units * block)
    found = angles(moment(z), block)
    for i, j in itertools.product(range(units), repeat=2):
        a, b = (z[:, k * block : (k + 1) * block].ravel() for k in (i, j))
        cosine = abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert np.cos(found[i, j]) == pytest.approx(cosine, abs=1e-12)
    np.testing.assert_array_equal(found, found.T)
    assert not np.diagonal(found).any()


def test_angles_at_the_ends() -> None:
    z = np.array([[1.0, 2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0]])
    found = angles(moment(z))
    assert found[0, 1] < 1e-7, "proportional"
    assert found[0, 2] == pytest.approx(np.pi / 2), "uncorrelated"
    assert found[0, 3] == pytest.approx(np.pi / 2) and found[3, 4] == 0, "always zero"
    assert angles(moment(np.stack([z[:, 0], -z[:, 0]], axis=1)))[0, 1] < 1e-7, "a sign is a global phase"


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, units=st.integers(2, 8), data=st.data())
def test_merging_into_representatives_never_beats_nystrom(seed: int, units: int, data: st.DataObject) -> None:
    z, w = samples(seed, units), np.random.default_rng(seed).normal(size=(5, units))
    keep = np.array(sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1))), dtype=np.intp)
    heirs = data.draw(st.lists(st.integers(0, len(keep) - 1), min_size=units, max_size=units))
    assignment = np.zeros((units, len(keep)))
    assignment[np.arange(units), heirs] = 1.0
    merged = float(np.mean(np.sum(((z - z[:, keep] @ assignment.T) @ w.T) ** 2, axis=1)))
    best = residual_of([Panel(second=moment(z), weight=w.T @ w)], keep)
    assert best <= merged * (1 + 1e-4) + 1e-8
