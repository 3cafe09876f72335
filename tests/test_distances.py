"""DESIGN 3.2 line by line, as theorems over random operators, and every distance against an independent computation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from passes import alignment, distances

# A loaded machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


Floats = npt.NDArray[np.float64]

SCALES = st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30])


@st.composite
def pairs(draw: st.DrawFn, count: int = 2) -> tuple[Floats, ...]:
    """Matrices of one shape: Gaussian, of any rank, with rows repeated now and then, on any scale."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(SCALES)
    found = []
    for _ in range(count):
        rank = draw(st.integers(0, min(rows, columns)))
        matrix = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
        if draw(st.booleans()):
            matrix = matrix[rng.integers(0, rows, rows)]
        found.append(scale * matrix)
    return tuple(found)


spectra = hnp.arrays(
    np.float64, st.integers(0, 8), elements=st.one_of(st.just(0.0), st.floats(1e-12, 1.0)), fill=st.nothing()
)


def values_of(matrix: Floats) -> Floats:
    return np.asarray(scipy.linalg.svdvals(matrix), dtype=np.float64)


def random_rotation(rng: np.random.Generator, size: int) -> Floats:
    return np.asarray(scipy.stats.ortho_group.rvs(size, random_state=rng) if size > 1 else np.eye(1), dtype=np.float64)


def slack(*matrices: Floats) -> float:
    return 1e-12 * sum(float(np.linalg.norm(m)) for m in matrices)


class TestInequalities:
    """Operators are never closer than their spectra say (DESIGN 3.2)."""

    @given(pairs())
    def test_mirsky_spectra_are_no_farther_apart_than_operators(self, pair: tuple[Floats, Floats]) -> None:
        a, b = pair
        assert np.linalg.norm(values_of(a) - values_of(b)) <= np.linalg.norm(a - b) + slack(a, b)

    @given(pairs())
    def test_weyl_bounds_the_spectral_norm(self, pair: tuple[Floats, Floats]) -> None:
        a, b = pair
        assert abs(values_of(a)[0] - values_of(b)[0]) <= np.linalg.norm(a - b, 2) + slack(a, b)

    @given(pairs())
    def test_von_neumann_orders_spectral_density_and_operator_angle(self, pair: tuple[Floats, Floats]) -> None:
        a, b = pair
        if not (a.any() and b.any()):
            return
        scale = max(float(np.abs(a).max()), float(np.abs(b).max()))
        a, b = a / scale, b / scale
        assert abs(np.vdot(a, b)) <= values_of(a) @ values_of(b) + slack(a, b) * (np.linalg.norm(a) + np.linalg.norm(b))
        spectral = distances.fubini_study(values_of(a), values_of(b))
        operator = distances.operator_angle(a, b)
        for side in ("output", "input"):
            density = distances.bures_angle(a, b, side=side)  # type: ignore[arg-type]
            # An angle near 0 amplifies rounding of the aligning rotation no more than the rotation's own size.
            assert spectral <= density + 1e-12
            assert density <= operator + 1e-12

    @given(pairs(), st.integers(0, 2**32 - 1))
    def test_the_lower_bound_is_attained_in_the_frame_of_the_other(
        self, pair: tuple[Floats, Floats], seed: int
    ) -> None:
        a, b = pair
        if not (a.any() and b.any()):
            return
        turn = alignment.rotation_aligned(a, b)
        assert distances.operator_angle(a, turn.p @ b @ turn.q.T) == pytest.approx(
            distances.fubini_study(values_of(a), values_of(b)), abs=1e-12
        )

    @given(pairs())
    def test_chord_and_angle_are_one_identity(self, pair: tuple[Floats, Floats]) -> None:
        s, t = values_of(pair[0]), values_of(pair[1])
        n_s, n_t = np.linalg.norm(s), np.linalg.norm(t)
        right = (n_s - n_t) ** 2 + 4 * n_s * n_t * math.sin(distances.fubini_study(s, t) / 2) ** 2
        assert np.sum((s - t) ** 2) == pytest.approx(right, rel=1e-12, abs=1e-14 * (n_s + n_t) ** 2)


class TestFunctionalBound:
    """It holds for the aligned representative and for nothing less."""

    @given(pairs(), st.floats(0, 100), st.integers(0, 2**32 - 1))
    def test_holds_for_the_aligned_representative_through_relu(
        self, pair: tuple[Floats, Floats], radius: float, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        scale = max(1.0, float(np.abs(pair[0]).max()), float(np.abs(pair[1]).max()))
        a, b = (distances.augmented_matrix(m / scale, rng.standard_normal(m.shape[0])) for m in pair)
        turn = alignment.rotation_aligned(a, b)
        representative = turn.p @ b @ turn.q.T
        bound = distances.functional_bound(1.0, radius, values_of(a), values_of(b))
        assert bound.sharp <= bound.geometric * (1 + 1e-12)
        directions = rng.standard_normal((50, a.shape[1] - 1))
        inputs = radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        inputs = np.hstack([inputs, np.ones((50, 1))])
        gaps = np.maximum(inputs @ a[:-1].T, 0) - np.maximum(inputs @ representative[:-1].T, 0)
        worst = float(np.linalg.norm(gaps, axis=1).max())
        assert worst <= bound.sharp + 1e-12 * (1 + radius) * (np.linalg.norm(a) + np.linalg.norm(b))

    def test_is_false_without_the_alignment(self) -> None:
        weight = np.array([[1.0, 2.0], [3.0, -1.0]])
        x = np.array([1.0, 1.0])
        for other in (-weight, weight[::-1].copy()):
            s, t = values_of(weight), values_of(other)
            assert distances.fubini_study(s, t) < distances.NOISE_FLOOR_RADIANS
            assert distances.functional_bound(1.0, math.sqrt(2), s, t).geometric < 1e-12
            assert np.linalg.norm(np.maximum(weight @ x, 0) - np.maximum(other @ x, 0)) > 1

    def test_known_values_separate_the_two_forms(self) -> None:
        bound = distances.functional_bound(2.0, math.sqrt(3), [4.0, 1.0], [1.0, 1.0])
        assert bound.sharp == pytest.approx(2 * 2 * 3)
        assert distances.functional_bound(2.0, math.sqrt(3), [4.0, 3.0], [1.0, 1.0]).geometric == pytest.approx(
            2 * 2 * math.hypot(3, 2)
        )

    @pytest.mark.parametrize(("lipschitz", "radius"), [(-1.0, 1.0), (1.0, math.nan), (math.inf, 1.0)])
    def test_refuses_impossible_constants(self, lipschitz: float, radius: float) -> None:
        with pytest.raises(ValueError, match="must be finite and at least 0"):
            distances.functional_bound(lipschitz, radius, [1.0], [1.0])


class TestMetricAxioms:
    """Identity, symmetry, range and the triangle."""

    @given(spectra, spectra, spectra)
    @pytest.mark.parametrize("metric", [distances.fubini_study, distances.wasserstein2])
    def test_of_spectra(self, metric: Callable[[Floats, Floats], float], s: Floats, t: Floats, u: Floats) -> None:
        largest = math.pi / 2 if metric is distances.fubini_study else 1.0
        floor = 1e-15 if metric is distances.fubini_study else 1e-7
        assert metric(s, s) == 0.0
        assert metric(s, t) == metric(t, s)
        assert 0 <= metric(s, t) <= largest
        assert metric(s, u) <= metric(s, t) + metric(t, u) + floor

    @given(pairs(count=3))
    def test_of_operators(self, triple: tuple[Floats, Floats, Floats]) -> None:
        a, b, c = triple

        def signed(u: Floats, v: Floats) -> float:
            return distances.operator_angle(u, v, signed=True)

        for metric, largest in (
            (distances.operator_angle, math.pi / 2),
            (signed, math.pi),
            (distances.bures_angle, math.pi / 2),
        ):
            assert metric(a, a) == 0.0
            assert metric(a, b) == pytest.approx(metric(b, a), abs=1e-12)
            assert 0 <= metric(a, b) <= largest
            assert metric(a, c) <= metric(a, b) + metric(b, c) + 1e-12

    @given(pairs(count=3))
    def test_of_alignments(self, triple: tuple[Floats, Floats, Floats]) -> None:
        a, b, c = triple
        room = 1e-7 * sum(float(np.linalg.norm(m)) for m in triple)
        for signs in (False, True):

            def metric(u: Floats, v: Floats, signs: bool = signs) -> float:
                return alignment.permutation_aligned(u, v, signs=signs).distance

            assert metric(a, a) == 0.0
            assert metric(a, b) == pytest.approx(metric(b, a), abs=room)
            assert metric(a, c) <= metric(a, b) + metric(b, c) + room
        assert alignment.rotation_aligned(a, a).distance == 0.0


class TestInvariance:
    """Each distance forgets its own gauge (DESIGN 3.3)."""

    @given(pairs(), st.integers(0, 2**32 - 1))
    def test_spectra_forget_rotations_and_scale(self, pair: tuple[Floats, Floats], seed: int) -> None:
        rng = np.random.default_rng(seed)
        a, b = pair
        p, q = random_rotation(rng, a.shape[0]), random_rotation(rng, a.shape[1])
        if b.any():
            plain = distances.fubini_study(values_of(a), values_of(b))
            assert distances.fubini_study(values_of(a), 3 * values_of(p @ b @ q)) == pytest.approx(plain, abs=1e-12)

    @given(pairs(), st.integers(0, 2**32 - 1))
    def test_operator_angle_survives_a_common_rotation_and_a_sign(self, pair: tuple[Floats, Floats], seed: int) -> None:
        rng = np.random.default_rng(seed)
        a, b = pair
        p, q = random_rotation(rng, a.shape[0]), random_rotation(rng, a.shape[1])
        plain = distances.operator_angle(a, b)
        assert distances.operator_angle(p @ a @ q, -(p @ b @ q)) == pytest.approx(plain, abs=1e-12)

    @given(pairs(), st.integers(0, 2**32 - 1))
    def test_bures_angle_forgets_the_other_side(self, pair: tuple[Floats, Floats], seed: int) -> None:
        rng = np.random.default_rng(seed)
        a, b = pair
        turned = b @ random_rotation(rng, b.shape[1])
        assert distances.bures_angle(a, turned) == pytest.approx(distances.bures_angle(a, b), abs=1e-12)
        left = random_rotation(rng, b.shape[0]) @ b
        assert distances.bures_angle(a, left, side="input") == pytest.approx(
            distances.bures_angle(a, b, side="input"), abs=1e-12
        )

    @given(pairs(count=1), st.integers(0, 2**32 - 1))
    def test_alignments_undo_their_gauge(self, single: tuple[Floats], seed: int) -> None:
        rng = np.random.default_rng(seed)
        (a,) = single
        order = rng.permutation(a.shape[0])
        signs = rng.choice([-1.0, 1.0], a.shape[0])
        size = float(np.linalg.norm(a))
        assert alignment.permutation_aligned(a, a[order]).distance <= 1e-7 * size
        assert alignment.permutation_aligned(a, signs[:, None] * a[order], signs=True).distance <= 1e-7 * size
        turned = random_rotation(rng, a.shape[0]) @ a @ random_rotation(rng, a.shape[1])
        assert alignment.rotation_aligned(a, turned).distance <= 1e-13 * size


class TestGauges:
    """What may be done between two layers without anyone noticing (DESIGN 3.3), and what may not."""

    ACTIVATIONS: ClassVar[dict[str, Callable[[Floats], Floats]]] = {
        "relu": lambda x: np.maximum(x, 0),
        "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
        "tanh": np.tanh,
        "gelu": lambda x: x * scipy.special.ndtr(x),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "none": lambda x: x,
    }

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("gauge", ["permutation", "scale", "sign", "rotation"])
    @given(st.integers(0, 2**32 - 1))
    def test_what_passes_an_activation(self, activation: str, gauge: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        first, second, x = rng.standard_normal((4, 5)), rng.standard_normal((3, 4)), rng.standard_normal((5, 20))
        turn = {
            "permutation": np.eye(4)[rng.permutation(4)],
            "scale": np.diag(rng.uniform(1.5, 3.0, 4)),
            "sign": np.diag([-1.0, *rng.choice([-1.0, 1.0], 3)]),
            "rotation": random_rotation(rng, 4),
        }[gauge]
        allowed = {
            "permutation": set(self.ACTIVATIONS),
            "scale": {"relu", "leaky", "none"},
            "sign": {"tanh", "none"},
            "rotation": {"none"},
        }[gauge]
        sigma = self.ACTIVATIONS[activation]
        before = second @ sigma(first @ x)
        after = second @ np.linalg.inv(turn) @ sigma(turn @ first @ x)
        close = np.linalg.norm(after - before) <= 1e-10 * np.linalg.norm(before)
        assert close == (activation in allowed)

    @given(pairs(), st.integers(0, 2**32 - 1))
    def test_truncating_the_spectrum_is_the_best_of_its_rank(self, pair: tuple[Floats, Floats], seed: int) -> None:
        a = pair[0]
        left, s, right = np.linalg.svd(a, full_matrices=False)
        rng = np.random.default_rng(seed)
        for rank in range(len(s) + 1):
            tail = float(np.linalg.norm(s[rank:]))
            assert np.linalg.norm(a - (left[:, :rank] * s[:rank]) @ right[:rank]) == pytest.approx(tail, abs=slack(a))
            # Rivals: the best matrix of this rank in a random column space, and one near the best space.
            noise = rng.standard_normal((len(a), rank))
            for space in (noise, left[:, :rank] + 0.1 * noise):
                basis = np.linalg.qr(space)[0]
                assert np.linalg.norm(a - basis @ (basis.T @ a)) >= tail - slack(a)


class TestAgainstIndependentComputations:
    """The same numbers by another road."""

    @given(spectra, spectra)
    def test_fubini_study_is_arccos(self, s: Floats, t: Floats) -> None:
        if not (s.any() and t.any()):
            return
        s, t = np.sort(s)[::-1], np.sort(t)[::-1]
        length = min(len(s), len(t))
        cosine = s[:length] @ t[:length] / (np.linalg.norm(s) * np.linalg.norm(t))
        assert distances.fubini_study(s, t) == pytest.approx(math.acos(min(1.0, cosine)), abs=3e-8)

    @pytest.mark.parametrize("angle", [1e-14, 1e-10, 1e-6, 1e-2, 0.7])
    def test_small_angles_keep_their_digits(self, angle: float) -> None:
        s, t = [1.0, 1e-20], [math.cos(angle), math.sin(angle)]
        assert distances.fubini_study(s, t) == pytest.approx(angle, rel=1e-10)

    def test_wasserstein2_is_the_transport_plan_of_pot(self) -> None:
        ot = pytest.importorskip("ot", reason="POT is not installed")

        @given(spectra, spectra)
        def agrees(s: Floats, t: Floats) -> None:
            if not (s.sum() > 0 and t.sum() > 0):
                return
            masses = [np.sort(x)[::-1] / x.sum() for x in (s, t)]
            places = [np.arange(1, len(x) + 1) / len(x) for x in (s, t)]
            squared = ot.emd2_1d(*places, *(m / m.sum() for m in masses), metric="sqeuclidean")
            assert distances.wasserstein2(s, t) == pytest.approx(math.sqrt(max(0.0, squared)), abs=1e-7)

        agrees()

    @given(spectra, spectra)
    def test_wasserstein2_is_the_integral_over_quantiles(self, s: Floats, t: Floats) -> None:
        if not (s.sum() > 0 and t.sum() > 0):
            return
        levels = (np.arange(1000) + 0.5) / 1000
        quantiles = []
        for x in (s, t):
            x = np.sort(x)[::-1]
            shares = [x[: k + 1].sum() / x.sum() for k in range(len(x))]
            quantiles.append(np.array([(1 + sum(share < u for share in shares[:-1])) / len(x) for u in levels]))
        squared = float(np.mean((quantiles[0] - quantiles[1]) ** 2))
        assert distances.wasserstein2(s, t) ** 2 == pytest.approx(squared, abs=16 / 1000)

    def test_wasserstein2_closed_forms(self) -> None:
        # One mass at 1 against the masses at 1/2 and 1: the root of 1/2 * 1/4, not 1/8 and not the plain cost 1/4.
        assert distances.wasserstein2([5.0], [1.0, 1.0]) == pytest.approx(math.sqrt(1 / 8))
        assert distances.wasserstein2([1.0, 0.0], [1.0, 1.0]) == pytest.approx(math.sqrt(1 / 8))
        assert distances.wasserstein2([1.0, 0.0, 0.0, 0.0], [0.0]) == pytest.approx(1 / 4)

    @given(pairs())
    def test_bures_angle_is_the_fidelity_of_density_matrices(self, pair: tuple[Floats, Floats]) -> None:
        a, b = pair
        if not (a.any() and b.any()):
            return
        rho, sigma = (m @ m.T / np.sum(m**2) for m in (a, b))
        values, vectors = np.linalg.eigh(rho)
        root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
        fidelity = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ sigma @ root), 0)))
        assert math.cos(distances.bures_angle(a, b)) == pytest.approx(min(1.0, fidelity), abs=1e-6)

    def test_bures_angle_of_pure_and_mixed_states(self) -> None:
        # cos is the root fidelity: a pure state against the maximally mixed one has 1/sqrt(2), squared it is 1/2.
        pure, mixed = np.array([[1.0], [0.0]]), np.eye(2)
        assert distances.bures_angle(pure, mixed) == pytest.approx(math.pi / 4)
        assert distances.bures_angle(pure, np.array([[0.0], [2.0]])) == pytest.approx(math.pi / 2)

    @given(pairs(), st.booleans())
    def test_permutation_aligned_is_the_minimum_over_all(self, pair: tuple[Floats, Floats], signs: bool) -> None:
        a, b = (m[:5] for m in pair)
        best = math.inf
        for order in itertools.permutations(range(len(a))):
            rows = b[list(order)]
            gaps = np.sum((a - rows) ** 2, axis=1)
            if signs:
                gaps = np.minimum(gaps, np.sum((a + rows) ** 2, axis=1))
            best = min(best, math.sqrt(float(np.sum(gaps))))
        match = alignment.permutation_aligned(a, b, signs=signs)
        room = 1e-7 * (float(np.linalg.norm(a)) + float(np.linalg.norm(b)))
        assert match.distance == pytest.approx(best, rel=1e-9, abs=room)
        rebuilt = match.signs[:, None] * b[match.permutation]
        assert match.distance == pytest.approx(np.linalg.norm(a - rebuilt), rel=1e-12)
        assert sorted(match.permutation) == list(range(len(a)))

    @given(pairs(), st.integers(0, 2**32 - 1))
    def test_rotation_aligned_attains_its_value_and_nothing_beats_it(
        self, pair: tuple[Floats, Floats], seed: int
    ) -> None:
        a, b = pair
        rng = np.random.default_rng(seed)
        turn = alignment.rotation_aligned(a, b)
        assert turn.distance == pytest.approx(np.linalg.norm(a - turn.p @ b @ turn.q.T), abs=slack(a, b))
        assert turn.distance == pytest.approx(np.linalg.norm(values_of(a) - values_of(b)), abs=slack(a, b))
        for rotation in (turn.p, turn.q):
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-12)
        # scipy's one-sided solution, and random rotations, are rivals: none may come closer.
        one_sided, _ = scipy.linalg.orthogonal_procrustes(b.T, a.T)
        assert turn.distance <= np.linalg.norm(a - one_sided.T @ b) + slack(a, b)
        rival = random_rotation(rng, a.shape[0]) @ b @ random_rotation(rng, a.shape[1])
        assert turn.distance <= np.linalg.norm(a - rival) + slack(a, b)

    @given(pairs())
    def test_bures_chord_is_scipys_one_sided_procrustes(self, pair: tuple[Floats, Floats]) -> None:
        if not (pair[0].any() and pair[1].any()):
            return
        a, b = (m / np.linalg.norm(m) for m in pair)
        rotation, _ = scipy.linalg.orthogonal_procrustes(b, a)
        chord = float(np.linalg.norm(a - b @ rotation))
        assert distances.bures_angle(a, b) == pytest.approx(2 * math.asin(min(1.0, chord / 2)), abs=1e-12)


class TestRanks:
    """Effective rank, entropy and stable rank."""

    @given(spectra)
    def test_are_ordered(self, s: Floats) -> None:
        stable, effective = distances.stable_rank(s), distances.effective_rank(s)
        rank = int(np.count_nonzero(s))
        assert (stable == effective == 0) if rank == 0 else 1 <= stable <= effective + 1e-9
        assert effective <= rank + 1e-9
        assert 0 <= distances.spectral_entropy(s) <= math.log(max(1, rank)) + 1e-12

    @given(spectra)
    def test_entropy_is_scipys(self, s: Floats) -> None:
        if s.sum() > 0:
            assert distances.spectral_entropy(s) == pytest.approx(float(scipy.stats.entropy(s)), abs=1e-12)

    def test_known_values_separate_the_conventions(self) -> None:
        s = [3.0, 1.0]
        entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert distances.spectral_entropy(s) == pytest.approx(entropy)
        assert distances.effective_rank(s) == pytest.approx(math.exp(entropy))
        assert distances.stable_rank(s) == pytest.approx(10 / 9)
        assert distances.effective_rank([2.0] * 5) == pytest.approx(5)

    @pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
    def test_forget_scale(self, scale: float) -> None:
        s = np.array([3.0, 1.0, 0.0])
        for measure in (distances.spectral_entropy, distances.effective_rank, distances.stable_rank):
            assert measure(scale * s) == pytest.approx(measure(s), rel=1e-12)


class TestEdges:
    """Zero, empty, huge, tiny and wrong input."""

    def test_augmented_matrix(self) -> None:
        found = distances.augmented_matrix([[1.0, 2.0]], [3.0])
        np.testing.assert_array_equal(found, [[1, 2, 3], [0, 0, 1]])
        np.testing.assert_array_equal(distances.augmented_matrix(np.zeros((2, 1, 1)), None)[1], [[0, 0], [0, 1]])
        assert distances.augmented_matrix(np.zeros((0, 3)), None).shape == (1, 4)

    def test_state_is_on_the_sphere(self) -> None:
        for scale in (1e-300, 1.0, 1e300):
            psi, norm = distances.state(scale * np.array([4.0, 3.0]))
            np.testing.assert_allclose(psi, [0.8, 0.6], rtol=1e-15)
            assert norm == pytest.approx(5 * scale, rel=1e-15)
        psi, norm = distances.state([0.0, 0.0])
        assert (norm, psi.tolist()) == (0.0, [0.0, 0.0])

    def test_zero_and_empty_spectra(self) -> None:
        for zero in ([], [0.0, 0.0]):
            assert distances.fubini_study(zero, [0.0]) == 0
            assert distances.fubini_study(zero, [1.0]) == pytest.approx(math.pi / 2)
            assert distances.wasserstein2(zero, [0.0]) == 0
            assert distances.functional_bound(1, 1, zero, [0.0]) == (0, 0)
            assert distances.effective_rank(zero) == distances.stable_rank(zero) == 0

    def test_zero_operators(self) -> None:
        zero, one = np.zeros((2, 3)), np.ones((2, 3))
        for angle in (distances.operator_angle, distances.bures_angle):
            assert angle(zero, zero) == 0
            assert angle(zero, one) == pytest.approx(math.pi / 2)
        assert alignment.permutation_aligned(zero, one).distance == pytest.approx(math.sqrt(6))
        assert alignment.rotation_aligned(zero, one).distance == pytest.approx(math.sqrt(6))
        empty = np.zeros((0, 3))
        assert alignment.permutation_aligned(empty, empty).distance == 0
        assert distances.bures_angle(empty, empty) == 0

    def test_signed_operator_angle_tells_a_sign(self) -> None:
        a = np.array([[1.0, 2.0]])
        assert distances.operator_angle(a, -a) == 0
        assert distances.operator_angle(a, -a, signed=True) == pytest.approx(math.pi)
        assert distances.operator_angle([[1.0, 0.0]], [[-1.0, 1.0]], signed=True) == pytest.approx(3 * math.pi / 4)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_angles_forget_scale(self, scale: float) -> None:
        rng = np.random.default_rng(5)
        a, b = rng.standard_normal((2, 4, 3))
        for angle in (distances.operator_angle, distances.bures_angle):
            assert angle(scale * a, b / scale) == pytest.approx(angle(a, b), rel=1e-12)
        for aligned in (alignment.permutation_aligned, alignment.rotation_aligned):
            assert aligned(scale * a, scale * b).distance == pytest.approx(scale * aligned(a, b).distance, rel=1e-12)
        assert distances.fubini_study(scale * values_of(a), values_of(b)) == pytest.approx(
            distances.fubini_study(values_of(a), values_of(b)), rel=1e-12
        )

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, bad: float) -> None:
        matrix, good = np.array([[1.0, bad]]), np.ones((1, 2))
        for pairwise in (distances.operator_angle, alignment.permutation_aligned, alignment.rotation_aligned):
            with pytest.raises(ValueError, match=r"NaN or infinity in shape \(1, 2\).*\(1, 2\) and \(1, 2\)"):
                pairwise(good, matrix)
        with pytest.raises(ValueError, match=r"second operator must be finite; got NaN or infinity in shape \(1, 2\)"):
            distances.bures_angle(good, matrix)
        for spectral in (distances.fubini_study, distances.wasserstein2):
            with pytest.raises(
                ValueError, match=r"second spectrum must be finite; got NaN or infinity in shape \(2,\)"
            ):
                spectral([1.0], [1.0, bad])
        with pytest.raises(ValueError, match="weight must be finite"):
            distances.augmented_matrix(matrix, None)

    def test_shapes_that_do_not_fit(self) -> None:
        a, b = np.ones((2, 3)), np.ones((3, 2))
        for pairwise in (distances.operator_angle, alignment.permutation_aligned, alignment.rotation_aligned):
            with pytest.raises(ValueError, match=r"same shape; got \(2, 3\) and \(3, 2\)"):
                pairwise(a, b)
        with pytest.raises(ValueError, match=r"same output dimension .* \(2, 3\) and \(3, 2\)"):
            distances.bures_angle(a, b)
        with pytest.raises(ValueError, match=r"one value a row of the weight; got weight \(2, 3\) and bias \(3,\)"):
            distances.augmented_matrix(a, np.ones(3))
        with pytest.raises(ValueError, match=r"first spectrum needs 1 axes; got shape \(2, 3\)"):
            distances.fubini_study(a, [1.0])
        with pytest.raises(ValueError, match=r"must not be negative; got -1.0 in shape \(1,\)"):
            distances.state([-1.0])
        with pytest.raises(ValueError, match="must be real numbers; got dtype complex128"):
            distances.operator_angle(a * 1j, a * 1j)
