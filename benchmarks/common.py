"""What the benchmarks share: the data folder, CIFAR-10 images as the models take them, results on disk.

Names of models come in, paths, arrays and one JSON file a benchmark go out. Without the data folder a benchmark says
so in one line and ends well.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from passes import __version__, runtime
from passes.records import Array, Json

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = Path(__file__).parent / "results"
EVALUATION_BATCH = 100
INPUT = "input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A CIFAR-10 classifier of the data folder and the normalisation that it was trained with."""

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def path(self) -> Path:
        """Where the file is."""
        return DATA / "models" / f"{self.name}.onnx"

    def images(self, part: str, limit: int | None = None) -> tuple[Array, npt.NDArray[np.int64]]:
        """Normalised images, float32 [N, 3, 32, 32], and labels of "calib" or "eval"; the first `limit` of them."""
        with np.load(DATA / "eval" / f"cifar10_{part}.npz") as archive:
            pixels, labels = archive["X"][:limit], archive["Y"][:limit]
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels.astype(np.int64)


NETWORKS = {
    network.name: network
    for network in (
        Network(name="resnet18-cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        Network(name="resnet20-cifar10", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
}


def available() -> bool:
    """Whether the data folder is there; says so when it is not."""
    if DATA.is_dir():
        return True
    print(f"skipped: the data folder {os.path.relpath(DATA)} is not there")
    return False


def predictions(model: onnx.ModelProto, images: Array, *, threads: int = 0) -> npt.NDArray[np.int64]:
    """Class of every image in ONNX Runtime on the CPU; 0 threads lets the runtime decide."""
    runner = runtime.session(model, threads=threads)
    output = runtime.tensor_outputs(runner)[0]
    runs = runtime.run_batches(runner, {INPUT: images}, EVALUATION_BATCH)
    return np.concatenate([np.argmax(values[output], axis=-1) for values in runs]).astype(np.int64)


def save(name: str, result: dict[str, Json]) -> Path:
    """Write results/NAME.json, canonical, with versions and the machine."""
    everything = {"versions": versions(), "machine": machine(), **result}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(everything, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    return path


def versions() -> dict[str, Json]:
    """Of everything that decides the figures."""
    return {
        "blochfold": __version__,
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
    }


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{models[0] if models else platform.processor() or platform.machine()}, {cores} cores, {platform.system()}"
