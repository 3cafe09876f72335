"""Exact rewrites together: a fixed point that every order reaches, prices that fall, choices that the target makes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Array, assert_close, assert_same_function, build, norm, operators, random_feeds, run

import backends
from models.tiny import TINY, UNRUNNABLE
from passes import apply, exact, model_io, rewrites
from passes.profile import modelled

TARGETS = ("cpu:avx512", "ascend", "mlu", "kunlunxin")
SMALL = sorted(set(TINY) - UNRUNNABLE)
Weights = dict[str, "Array | tuple[int, ...]"]

ATTENTION: Weights = {
    "u": (48, 48), "k": (48, 48), "w": (48, 48), "bu": (48,), "bk": (48,), "bw": (48,),
    "f": (48, 144), "bf": (144,), "n": np.array([48, 48, 48]),
}  # fmt: skip


def attention() -> onnx.ModelProto:
    """Two blocks of attention: the first computes Q, K and V apart, the second as one product and a Split."""
    return build(
        """attention (float[1,32,48] x) => (float[1,32,48] y) {
            q1 = MatMul (x, u)
            q = Add (q1, bu)
            k1 = MatMul (x, k)
            kk = Add (k1, bk)
            v1 = MatMul (x, w)
            v = Add (v1, bw)
            kt = Transpose <perm = [0,2,1]> (kk)
            s = MatMul (q, kt)
            p = Softmax <axis = -1> (s)
            o = MatMul (p, v)
            h = Add (o, x)
            g1 = MatMul (h, f)
            g = Add (g1, bf)
            q2, k2, v2 = Split <axis = -1> (g, n)
            kt2 = Transpose <perm = [0,2,1]> (k2)
            s2 = MatMul (q2, kt2)
            p2 = Softmax <axis = -1> (s2)
            o2 = MatMul (p2, v2)
            y = Add (o2, h)
        }""",
        ATTENTION,
    )


def test_two_targets_choose_opposite_merges() -> None:
    model = attention()
    cpu = exact.simplify(model, backends.get("cpu:avx512"), 1)
    ascend = exact.simplify(model, backends.get("ascend"), 1)
    assert [step.rewrite for step in cpu.steps] == ["split_parallel"]
    assert [step.rewrite for step in ascend.steps] == ["merge_parallel", "share_weights"]
    assert operators(cpu.model).count("Split") == 0
    assert operators(ascend.model).count("Split") == 2
    for found, target in ((cpu, "cpu:avx512"), (ascend, "ascend")):
        backend = backends.get(target)
        before, after = modelled(model, backend, 1)[1], modelled(found.model, backend, 1)[1]
        assert before is not None and after is not None
        assert before - after == pytest.approx(found.steps[0].seconds_saved)
        assert_same_function(model, found.model)
        declined = {r.subject: r.reason for r in found.refusals if "the target would need" in r.reason}
        assert declined, "the other way was priced and declined"


def test_a_real_region_is_composed_for_one_target_and_left_for_another() -> None:
    model = build(
        """g (float[1,24,56,56] x) => (float[1,24,56,56] y) {
            t = Conv <pads = [2,2,2,2], group = 24> (x, u)
            p = Conv (t, v)
            y = Relu (p)
        }""",
        {"u": (24, 1, 5, 5), "v": (24, 24, 1, 1)},
    )
    counts = {target: len(exact.simplify(model, backends.get(target), 1).model.graph.node) for target in TARGETS}
    assert set(counts.values()) == {2, 3}, counts


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_reach_a_fixed_point_on_every_target(name: str) -> None:
    model = model_io.prepare(model_io.load(TINY[name]()))
    for target in TARGETS:
        backend = backends.get(target)
        found = exact.simplify(model, backend, 1)
        replayed = apply.rewrite(model, found.steps)
        assert operators(replayed) == operators(found.model)
        # With its own optimisations on, the runtime computes quantised models in integers, the original too.
        feeds = random_feeds(model)
        assert_close(run(model, feeds), run(replayed, feeds))
        again = exact.simplify(found.model, backend, 1)
        assert again.steps == ()
        assert exact.simplify(model, backend, 1).steps == found.steps
        before, after = modelled(model, backend, 1)[1], modelled(found.model, backend, 1)[1]
        if before is not None and after is not None:
            assert after <= before * (1 + 1e-6)
        names = {trade.name for trade in rewrites.trades()}
        assert all(s.seconds_saved is None or s.seconds_saved > -1e-12 for s in found.steps if s.rewrite in names)


def mixed() -> onnx.ModelProto:
    """Regions, siblings, duplicates, idle nodes and moves, each in the way of another."""
    return build(
        """mixed (float[2,8,12,12] x) => (float[2,8,12,12] y) {
            a1 = Conv <pads = [1,1,1,1]> (x, w)
            a = BatchNormalization (a1, s, b, m, v)
            c = Conv (x, u)
            i = Identity (x)
            d = BatchNormalization (i, s, b, m, v)
            e = Add (a, c)
            f = Add (e, d)
            r = Relu (f)
            t = Transpose <perm = [0,2,3,1]> (r)
            t1 = Transpose <perm = [0,3,1,2]> (t)
            p = Conv (t1, p1)
            p0 = Relu (p)
            q = Conv (t1, q1)
            q0 = Relu (q)
            z = Concat <axis = 1> (p0, q0)
            l = Conv (z, low)
            l1 = Conv (l, high)
            y = Relu (l1)
        }""",
        {"w": (8, 8, 3, 3), "u": (8, 8, 1, 1), **norm(8), "p1": (6, 8, 1, 1), "q1": (4, 8, 1, 1), "low": (9, 10, 1, 1),
         "high": (8, 9, 1, 1)},
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_every_order_ends_in_the_same_place(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, backend = mixed(), backends.get(target)
    sure, traded = rewrites.all(), rewrites.trades()
    ends = []
    for turn in range(max(len(sure), len(traded))):
        monkeypatch.setattr(rewrites, "all", lambda turn=turn: sure[turn % len(sure) :] + sure[: turn % len(sure)])
        monkeypatch.setattr(
            rewrites, "trades", lambda turn=turn: traded[turn % len(traded) :] + traded[: turn % len(traded)]
        )
        found = exact.simplify(model, backend, 1)
        assert exact.simplify(found.model, backend, 1).steps == ()
        assert_same_function(model, found.model)
        ends.append(found)
    assert len({tuple(sorted(operators(found.model))) for found in ends}) == 1
    prices = [modelled(found.model, backend, 1)[1] for found in ends]
    assert prices == pytest.approx([prices[0]] * len(prices))


def test_what_has_no_price_is_not_traded() -> None:
    body = "t = Conv (x, u)\n c = Conv (t, v)\n y = Relu (c)"
    text = f"g (float[N,4,H,W] x) => (float[a,b,c,d] y) {{ {body} }}"
    model = build(text, {"u": (6, 4, 1, 1), "v": (4, 6, 1, 1)})
    assert operators(exact.simplify(model, backends.get("ascend"), 1).model) == ["Conv", "Relu"]
    body = "r = Reshape (x, k)\n t = Conv (r, u)\n y = Conv (t, v)"
    text = f"g (float[N,4,H,W] x, int64[4] k) => (float[a,b,c,d] y) {{ {body} }}"
    model = build(text, {"u": (6, 4, 1, 1), "v": (4, 6, 1, 1)})
    kept = exact.simplify(model, backends.get("ascend"), 1)
    assert operators(kept.model) == ["Reshape", "Conv", "Conv"]
    assert [r.reason for r in kept.refusals if r.subject == "n_y"] == ["the target cannot price it"]


# A random linear region is a nested list of operators; each is one line of text and its weights.
STEPS = ("conv1", "conv3", "valid3", "depthwise", "norm", "scale", "shift", "pad", "pool", "branch", "identity")


@st.composite
def regions(draw: st.DrawFn) -> tuple[str, Weights]:
    """A chain of linear operators from x to z on 4 channels, sums of branches among them."""
    lines: list[str] = []
    weights: Weights = {}

    def name(prefix: str = "t") -> str:
        return f"{prefix}{len(lines)}_{len(weights)}"

    def grow(source: str, depth: int) -> str:
        kind = draw(st.sampled_from(STEPS if depth < 2 else STEPS[:-2]))
        out, w = name(), name("w")
        biased = draw(st.booleans())
        bias = f", {w}b" if biased else ""
        shapes = {"conv1": (4, 4, 1, 1), "conv3": (4, 4, 3, 3), "valid3": (4, 4, 3, 1), "depthwise": (4, 1, 3, 3)}
        if kind in shapes:
            attributes = {"conv3": "pads = [1,1,1,1]", "depthwise": "pads = [1,1,1,1], group = 4"}.get(
                kind, "group = 1"
            )
            weights[w] = shapes[kind]
            if biased:
                weights[f"{w}b"] = (4,)
            lines.append(f"{out} = Conv <{attributes}> ({source}, {w}{bias})")
        elif kind == "norm":
            weights.update({f"{letter}{w}": values for letter, values in norm(4).items()})
            lines.append(f"{out} = BatchNormalization ({source}, s{w}, b{w}, m{w}, v{w})")
        elif kind in ("scale", "shift"):
            weights[w] = draw(st.sampled_from([(), (4, 1, 1), (1, 4, 1, 1)]))
            lines.append(f"{out} = {'Mul' if kind == 'scale' else 'Sub'} ({source}, {w})")
        elif kind == "pad":
            weights[w] = np.array([0, 0, 1, 0, 0, 0, 0, 2])
            lines.append(f"{out} = Pad ({source}, {w})")
        elif kind == "pool":
            lines.append(f"{out} = AveragePool <kernel_shape = [2,2]> ({source})")
        elif kind == "branch":
            weights[w] = (4, 4, 3, 3)
            weights[f"{w}u"] = (4, 4, 1, 1)
            lines.append(f"{out}a = Conv <pads = [1,1,1,1]> ({source}, {w})")
            lines.append(f"{out}b = Conv ({source}, {w}u)")
            lines.append(f"{out} = {draw(st.sampled_from(['Add', 'Sub']))} ({out}a, {out}b)")
        else:
            lines.append(f"{out} = Identity ({source})")
        return out

    source = "x"
    for _ in range(draw(st.integers(2, 5))):
        source = grow(source, 0)
    lines.append(f"z = Relu ({source})")
    return "\n".join(lines), weights


@settings(max_examples=30, deadline=None)
@given(region=regions(), target=st.sampled_from(TARGETS))
def test_random_linear_regions_keep_their_function(region: tuple[str, Weights], target: str) -> None:
    body, weights = region
    model = build(f"g (float[1,4,11,11] x) => (float[a,b,c,d] z) {{ {body} }}", weights)
    backend = backends.get(target)
    found = exact.simplify(model, backend, 1)
    replayed = apply.rewrite(model, found.steps)
    onnx.checker.check_model(replayed, full_check=True)
    assert operators(replayed) == operators(found.model)
    assert_same_function(model, replayed)
    assert exact.simplify(found.model, backend, 1).steps == ()
