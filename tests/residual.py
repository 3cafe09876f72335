"""Small residual networks for the tests of depth, and a bench measured on them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from cutting import Array, feeds_of
from rewriting import build

from passes import apply, branches, candidates, workbench
from passes.coupling import couple
from passes.graph_io import to_graph
from passes.plan import Point
from passes.progress import Silent
from passes.samples import Inputs, digest_feeds
from passes.settings import Settings


def block(number: int, source: str, kernel: int = 3) -> str:
    """Text of a basic block: it reads `source` and ends in `r{number}`."""
    pad = kernel // 2
    return f"""
        a{number} = Conv <pads = [{pad},{pad},{pad},{pad}]> ({source}, u{number}, v{number})
        b{number} = Relu (a{number})
        c{number} = Conv <pads = [{pad},{pad},{pad},{pad}]> (b{number}, w{number}, x{number})
        s{number} = Add (c{number}, {source})
        r{number} = Relu (s{number})"""


def convolutional(
    blocks: int = 3, channels: int = 16, strengths: Mapping[int, float] | None = None, kernel: int = 3, inner: int = 16
) -> onnx.ModelProto:
    """A stem, basic blocks on one stream and a classifier; `strengths` scales what a block adds."""
    rng = np.random.default_rng(5)
    strengths = strengths or {}
    text = "".join(block(n, "r0" if n == 1 else f"r{n - 1}", kernel) for n in range(1, blocks + 1))
    weights: dict[str, Array | tuple[int, ...]] = {"w": (channels, 3, 3, 3), "wz": (10, channels), "bz": (10,)}
    for n in range(1, blocks + 1):
        spread = 1 / np.sqrt(kernel * kernel * channels)
        weights[f"u{n}"] = rng.normal(0, spread, (inner, channels, kernel, kernel)).astype(np.float32)
        weights[f"v{n}"] = rng.normal(0, 0.1, inner).astype(np.float32)
        scale = np.float32(strengths.get(n, 1.0))
        weights[f"w{n}"] = scale * rng.normal(0, spread, (channels, inner, kernel, kernel)).astype(np.float32)
        # What is the same for every input may be large: the mean takes it up.
        weights[f"x{n}"] = rng.normal(0, 0.5, channels).astype(np.float32)
    return build(
        f"""g (float[N,3,8,8] x) => (float[N,10] y) {{
            s0 = Conv <pads = [1,1,1,1]> (x, w)
            r0 = Relu (s0){text}
            p = GlobalAveragePool (r{blocks})
            f = Flatten (p)
            y = Gemm <transB = 1> (f, wz, bz)
        }}""",
        weights,
    )


def transformer(strengths: Mapping[str, float] | None = None) -> onnx.ModelProto:
    """Two blocks of attention and MLP behind LayerNormalization on a stream of 16 features, five tokens."""
    rng = np.random.default_rng(6)
    strengths = strengths or {}
    text = ""
    weights: dict[str, Array | tuple[int, ...]] = {"e": (12, 16), "wz": (16, 10)}
    weights["hidden_shape"] = np.array([0, 5, 2, 8], dtype=np.int64)
    weights["joined_shape"] = np.array([0, 5, 16], dtype=np.int64)
    weights["root"] = np.array(np.sqrt(8.0), dtype=np.float32)
    for n, source in ((1, "t0"), (2, "t1")):
        text += f"""
            l{n} = LayerNormalization <axis = -1> ({source}, g{n}, h{n})
            q{n} = MatMul (l{n}, wq{n})
            k{n} = MatMul (l{n}, wk{n})
            v{n} = MatMul (l{n}, wv{n})
            qr{n} = Reshape (q{n}, hidden_shape)
            kr{n} = Reshape (k{n}, hidden_shape)
            vr{n} = Reshape (v{n}, hidden_shape)
            qt{n} = Transpose <perm = [0,2,1,3]> (qr{n})
            kt{n} = Transpose <perm = [0,2,3,1]> (kr{n})
            vt{n} = Transpose <perm = [0,2,1,3]> (vr{n})
            score{n} = MatMul (qt{n}, kt{n})
            scaled{n} = Div (score{n}, root)
            soft{n} = Softmax <axis = -1> (scaled{n})
            mixed{n} = MatMul (soft{n}, vt{n})
            back{n} = Transpose <perm = [0,2,1,3]> (mixed{n})
            joined{n} = Reshape (back{n}, joined_shape)
            attended{n} = MatMul (joined{n}, wo{n})
            m{n} = Add ({source}, attended{n})
            n{n} = LayerNormalization <axis = -1> (m{n}, i{n}, j{n})
            up{n} = MatMul (n{n}, wu{n})
            upb{n} = Add (up{n}, bu{n})
            act{n} = Relu (upb{n})
            down{n} = MatMul (act{n}, wd{n})
            downb{n} = Add (down{n}, bd{n})
            t{n} = Add (m{n}, downb{n})"""
        for name in ("wq", "wk", "wv", "wo"):
            weights[f"{name}{n}"] = rng.normal(0, 0.25, (16, 16)).astype(np.float32)
        weights[f"wu{n}"] = rng.normal(0, 0.25, (16, 32)).astype(np.float32)
        weights[f"wd{n}"] = rng.normal(0, 0.25, (32, 16)).astype(np.float32)
        weights |= {f"bu{n}": (32,), f"bd{n}": (16,)}
        weights |= {f"{name}{n}": np.ones(16, np.float32) for name in ("g", "i")}
        weights |= {f"{name}{n}": (16,) for name in ("h", "j")}
        weights[f"wo{n}"] = np.float32(strengths.get(f"attention{n}", 1.0)) * np.asarray(weights[f"wo{n}"])
        weights[f"wd{n}"] = np.float32(strengths.get(f"mlp{n}", 1.0)) * np.asarray(weights[f"wd{n}"])
    return on_tokens(text, weights)


def on_tokens(text: str, weights: Mapping[str, Array | tuple[int, ...]]) -> onnx.ModelProto:
    """A network on five tokens: an embedding `e`, what leads from `t0` to `t2`, the mean and a classifier `wz`."""
    return build(
        f"""g (float[N,5,12] x) => (float[N,10] y) {{
            t0 = MatMul (x, e){text}
            pooled = ReduceMean <axes = [1], keepdims = 0> (t2)
            y = MatMul (pooled, wz)
        }}""",
        weights,
    )


def move_between(before: Point, after: Point) -> tuple[str, int | None]:
    """The one edit by which two points of a way differ: a group or rank and its width, or a branch and None."""
    (only,) = [(name, None) for name in set(after.drops) - set(before.drops)] or (
        set(after.widths.items()) - set(before.widths.items())
    )
    return only


def inputs_of(model: onnx.ModelProto, samples: int = 96, seed: int = 3) -> Inputs:
    feeds = feeds_of(model, samples, seed)
    return Inputs(feeds=feeds, labels=None, source="normal", digest=digest_feeds(feeds))


def bench_of(model: onnx.ModelProto, samples: int = 96, batch: int = 1) -> apply.Bench:
    """Everything measured, with branches; `batch` is the one at which it will be priced."""
    graph = to_graph(model)
    coupling = couple(graph, model, batch)
    found, _ = candidates.gather(graph, coupling)
    residual, _ = branches.find(graph, coupling)
    calibration = inputs_of(model, samples)
    return workbench.measure(model, graph, coupling, found, calibration, Settings(threads=1), Silent(), residual)
