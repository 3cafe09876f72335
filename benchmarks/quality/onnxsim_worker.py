"""onnxsim's structured pruning in a process of its own, with the interpreter that has onnxsim.

One JSON object a line comes in (source, destination, calibration, and what to do); one a line goes out, with the
failure in words or an empty one. Nothing of this project is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim

RUN_SAMPLES = 32
MOST_RUNS = 64
"""Its calibration takes seconds a run, however small: a model of a fixed batch of one shows it fewer inputs."""

Batches = list[dict[str, Any]]


def batches(path: str, model: onnx.ModelProto) -> Batches:
    """Calibration inputs in runs of the size that the model takes."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    count = len(next(iter(arrays.values())))
    fixed = next(v for v in model.graph.input if v.name in arrays).type.tensor_type.shape.dim[0].dim_value
    step = fixed or RUN_SAMPLES
    stop = min(count - count % fixed if fixed else count, MOST_RUNS * step)
    return [{name: array[start : start + step] for name, array in arrays.items()} for start in range(0, stop, step)]


def simplify(job: dict[str, Any]) -> None:
    """Its own clean-up first: pruning expects normalisations to be folded."""
    model, fits = onnxsim.simplify(onnx.load(job["source"]))
    if not fits:
        raise RuntimeError("its own check says that the simplified model differs")
    onnx.save(model, job["destination"])


def prune(job: dict[str, Any]) -> None:
    """Magnitude or Wanda, one sparsity for every chain that it recognises."""
    model = onnx.load(job["source"])
    if job["wanda"]:
        calibration = batches(job["calibration"], model)
        model = onnxsim.apply_structured_wanda_pruning(model, calibration, sparsity=job["sparsity"])
    else:
        model = onnxsim.apply_structured_pruning(model, sparsity=job["sparsity"])
    onnx.save(model, job["destination"])


def finetune(job: dict[str, Any]) -> None:
    """Its closed-form ridge for MatMul and Gemm."""
    before, after = onnx.load(job["source"]), onnx.load(job["pruned"])
    onnx.save(onnxsim.apply_pruning_finetune(before, after, batches(job["calibration"], before)), job["destination"])


ACTIONS = {"simplify": simplify, "prune": prune, "finetune": finetune}


def main() -> int:
    """Answer jobs until the input ends."""
    answers = sys.stdout
    # What the tool prints must not get between the answers.
    sys.stdout = sys.stderr
    for line in sys.stdin:
        job = json.loads(line)
        failure = ""
        try:
            ACTIONS[job["action"]](job)
        except Exception as error:  # Whatever a tool raises is that job's result.
            failure = f"{type(error).__name__}: {error}"[:300]
            Path(job["destination"]).unlink(missing_ok=True)
        answers.write(json.dumps({"failure": failure}) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
