"""Peers that live in other Python environments: found, run in their own process, taken to the goal's size by bisection.

A measured network and a goal come in, the largest model of the peer that keeps to the bound goes out, or the smallest
that it can make. A peer whose interpreter lacks it is not available, in words.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx

import backends
from benchmarks.common import ROOT
from benchmarks.quality import ours
from benchmarks.quality.rows import Goal
from passes.graph_io import to_graph
from passes.profile import modelled
from passes.records import Json

STEPS = 7
"""Bisections of the share that is pruned: to a hundredth."""

DEEPEST = 0.99

LONGEST_SECONDS = 900.0
"""One job of a peer; it is ended then."""


class NotAvailableError(Exception):
    """The peer cannot be run here; the message says why."""


class Worker:
    """A peer's process, answering one job a line."""

    def __init__(self, python: str, script: str, longest: float = LONGEST_SECONDS) -> None:
        self._longest = longest
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on exit
        try:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).parent / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
                cwd=ROOT,
            )
        except OSError as error:
            self._complaints.close()
            raise NotAvailableError(f"{python} cannot be run: {error}") from error

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What was not written to a process that has ended is lost, as it should be.
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()
        self._complaints.close()

    def do(self, **job: Json) -> None:
        """One job.

        Raises:
            NotAvailableError: The process ended, as it does when the tool is not installed.
            RuntimeError: The tool failed, in its own words, or took too long.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        answer = ""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._longest, end)
        timer.start()
        if stdin is not None and stdout is not None:
            try:
                stdin.write(json.dumps(job) + "\n")
                stdin.flush()
                answer = stdout.readline()
            except BrokenPipeError:
                answer = ""
        timer.cancel()
        if late.is_set():
            raise RuntimeError(f"took longer than {self._longest:g} seconds")
        if not answer:
            self._process.wait()
            self._complaints.seek(0)
            raise NotAvailableError(" ".join(self._complaints.read().split())[-200:] or "the peer's process ended")
        failure = str(json.loads(answer)["failure"])
        if failure:
            raise RuntimeError(failure)


def size(shop: ours.Shop, goal: Goal, model: onnx.ModelProto) -> float:
    """Of a model that was made elsewhere, in the goal's measure: what was taken away is taken from our whole.

    Raises:
        ValueError: A shape in it is not known.
    """
    if goal.kind == "weights":
        return shop.size(goal, {}) - (_constants(shop.bench.model) - _constants(model))
    macs, _ = modelled(model, backends.get("cpu"), 1)
    if macs is None:
        raise ValueError("expected a model whose shapes can all be inferred")
    return float(macs)


def _constants(model: onnx.ModelProto) -> float:
    """Elements of the constants of Conv, Gemm and MatMul, biases included."""
    constants = {tensor.name: int(np.prod(tensor.dims, dtype=np.int64)) for tensor in model.graph.initializer}
    for node in to_graph(model).nodes:
        if node.op == "Constant":
            constants[node.outputs[0].name] = int(node.attrs["value"].values.size)
    names = {
        name
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        for name in node.input[:3]
    }
    return float(sum(constants[name] for name in names if name in constants))


def shrink_until(
    shop: ours.Shop, goal: Goal, make: Callable[[float], onnx.ModelProto], deepest: float = DEEPEST
) -> tuple[onnx.ModelProto, float, bool]:
    """The least pruned model that keeps to the bound, its share, and whether any does; else the smallest model.

    Args:
        shop: The network.
        goal: Its bound is kept.
        make: Gives the peer's model for a share to prune in 0..1.
        deepest: Largest share that the peer takes.
    """
    bound = shop.bound(goal)
    low, high = 0.0, deepest
    best, share = make(high), high
    if size(shop, goal, best) > bound:
        return best, share, False
    for _ in range(STEPS):
        middle = (low + high) / 2
        model = make(middle)
        if size(shop, goal, model) <= bound:
            high, best, share = middle, model, middle
        else:
            low = middle
    return best, share, True


def default_python() -> str:
    """The interpreter that runs the benchmark."""
    return sys.executable
