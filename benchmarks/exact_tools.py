"""One cleaner over many files, each in its own process: seconds of the processor, peak memory, and what it wrote.

Run by `benchmarks.exact` with the interpreter that has the cleaner: a tool's name as argument, a JSON list of pairs
(source, destination) on standard input, one JSON line a file on standard output. Imports come before the clock.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

LONGEST_SECONDS = 1200
"""On the clock, so that a busy machine fails nobody."""

Tool = Callable[[Path, Path], None]


def blochfold(target: str) -> Tool:
    """Our exact rewrites for one target, carried out as a replay of their steps."""
    import backends
    from passes import apply, exact, model_io, storage

    backend = backends.get(target)

    def run(source: Path, destination: Path) -> None:
        model = model_io.prepare(model_io.load(source))
        steps = exact.simplify(model, backend, 1).steps
        storage.save(apply.rewrite(model, steps), destination)
        note = [
            {"rewrite": s.rewrite, "subject": s.subject, "note": s.note, "seconds_saved": s.seconds_saved}
            for s in steps
        ]
        destination.with_suffix(".json").write_text(json.dumps(note), encoding="utf-8")

    return run


def onnxsim() -> Tool:
    """The tool onnxsim with its defaults."""
    import onnx
    from onnxsim import simplify

    def run(source: Path, destination: Path) -> None:
        model, fits = simplify(onnx.load(source))
        if not fits:
            raise RuntimeError("its own check says that the result differs")
        onnx.save(model, destination)

    return run


def onnxslim() -> Tool:
    """OnnxSlim with its defaults."""
    import onnx
    from onnxslim import slim

    def run(source: Path, destination: Path) -> None:
        onnx.save(slim(onnx.load(source)), destination)

    return run


def onnxruntime() -> Tool:
    """ONNX Runtime's offline optimiser at the extended level: the highest that does not depend on the machine."""
    import onnxruntime as ort

    def run(source: Path, destination: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(destination)
        options.intra_op_num_threads = 1
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return run


PEERS: dict[str, Callable[[], Tool]] = {"onnxsim": onnxsim, "onnxslim": onnxslim, "onnxruntime": onnxruntime}


def measure(tool: Tool, source: Path, destination: Path) -> dict[str, object]:
    """Run in a forked child; the peak is the child's own resident set, imports included."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        sys.stdout = sys.stderr
        os.dup2(2, 1)
        signal.alarm(LONGEST_SECONDS)
        failure = ""
        try:
            tool(source, destination)
        except Exception as error:  # Whatever a tool raises is that file's result.
            failure = f"{type(error).__name__}: {error}"[:300]
        os.write(writing, failure.encode()[:4000])
        os._exit(0)
    os.close(writing)
    failure = ""
    with os.fdopen(reading, "rb") as pipe:
        failure = pipe.read().decode(errors="replace")
    _, status, usage = os.wait4(child, 0)
    if status and not failure:
        failure = f"ended by signal {status & 127}"
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "file": source.name,
        "failure": failure,
        "seconds": round(usage.ru_utime + usage.ru_stime, 4),
        "peak_bytes": usage.ru_maxrss * scale,
    }


def main() -> int:
    """Read the files, measure each, print one line a file."""
    name = sys.argv[1]
    tool = blochfold(name.partition("/")[2]) if name.startswith("blochfold/") else PEERS[name]()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for source, destination in json.load(sys.stdin):
        print(json.dumps(measure(tool, Path(source), Path(destination))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
