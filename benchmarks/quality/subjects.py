"""The networks that quality is judged on, with their calibration and evaluation inputs, as they were trained on them.

A name comes in; a file, disjoint inputs and the labels of those to judge on go out.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

from benchmarks.common import DATA
from passes import runtime
from passes.records import Array
from passes.samples import Inputs, digest_feeds

EVAL = DATA / "eval"
SPLIT_SEED = 0
"""Of the two parts where one set of inputs serves calibration and evaluation."""

IMAGENET_CALIBRATION = 200
EVALUATION_RUN = 50

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Subject:
    """One trained classifier.

    Attributes:
        name: Of the file in the data folder.
        parts: Gives input name, calibration inputs, evaluation inputs and the latter's labels.
    """

    name: str
    parts: Callable[[], tuple[str, Array, Array, Labels]]

    @property
    def path(self) -> Path:
        """Where the file is."""
        return DATA / "models" / f"{self.name}.onnx"

    def calibration(self, samples: int) -> Inputs:
        """Inputs without labels, the first `samples` of a shuffled order."""
        name, calibration, _, _ = self.parts()
        return as_inputs(name, calibration[:samples], f"{self.name} calibration")

    def evaluation(self) -> tuple[Mapping[str, Array], Labels]:
        """Inputs that calibration has none of, and their labels."""
        name, _, evaluation, labels = self.parts()
        return {name: evaluation}, labels


def as_inputs(name: str, values: Array, source: str) -> Inputs:
    """One array as the optimiser takes it."""
    feeds = {name: values}
    return Inputs(feeds=feeds, labels=None, source=source, digest=digest_feeds(feeds))


def scores(model: onnx.ModelProto, feeds: Mapping[str, Array], threads: int = 0) -> Array:
    """First output for every sample, (samples, classes)."""
    runner = runtime.session(model, threads=threads)
    name = runtime.tensor_outputs(runner)[0]
    values = [run[name] for run in runtime.run_batches(runner, feeds, EVALUATION_RUN)]
    return np.concatenate(
        [value.reshape(-1, value.shape[-1]) if value.ndim == 2 else value.reshape(len(value), -1) for value in values]
    )


def _row(values: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def _cifar(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[], tuple[str, Array, Array, Labels]]:
    def prepared(part: str) -> tuple[Array, Labels]:
        with np.load(EVAL / f"cifar10_{part}.npz") as archive:
            pixels, labels = archive["X"], archive["Y"]
        scaled = (pixels.astype(np.float32) / np.float32(255) - _row(mean)) / _row(std)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels.astype(np.int64)

    @cache
    def parts() -> tuple[str, Array, Array, Labels]:
        calibration, _ = prepared("calib")
        order = np.random.default_rng(SPLIT_SEED).permutation(len(calibration))
        return "input", calibration[order], *prepared("eval")

    return parts


def _split(name: str, values: Array, labels: Labels, calibration: int) -> tuple[str, Array, Array, Labels]:
    order = np.random.default_rng(SPLIT_SEED).permutation(len(values))
    first, second = order[:calibration], np.sort(order[calibration:])
    return name, values[first], values[second], labels[second]


def _imagenet(name: str, read: Callable[[Image.Image], Array]) -> Callable[[], tuple[str, Array, Array, Labels]]:
    @cache
    def parts() -> tuple[str, Array, Array, Labels]:
        folder = EVAL / "imagenet_val500"
        rows = [line.split() for line in (folder / "labels.txt").read_text(encoding="utf-8").splitlines()]
        images = []
        for file, _ in rows:
            with Image.open(folder / file) as image:
                images.append(read(image.convert("RGB")))
        labels = np.array([int(label) for _, label in rows], dtype=np.int64)
        return _split(name, np.stack(images), labels, IMAGENET_CALIBRATION)

    return parts


def _mobilenet_image(image: Image.Image) -> Array:
    pixels = np.asarray(image.resize((244, 244), Image.Resampling.BILINEAR), dtype=np.float32) / np.float32(255)
    scaled = (pixels - _row((0.485, 0.456, 0.406))) / _row((0.229, 0.224, 0.225))
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _squeezenet_image(image: Image.Image) -> Array:
    left, top = ((side - 224) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32)[:, :, ::-1]
    return np.ascontiguousarray((pixels - _row((103.939, 116.779, 123.68))).transpose(2, 0, 1))


@cache
def _magika() -> tuple[str, Array, Array, Labels]:
    with np.load(EVAL / "magika_v3.npz") as archive:
        values, labels = archive["X"], archive["Y"]
    return _split("bytes", values, labels, len(values) // 2)


@cache
def _mnist() -> tuple[str, Array, Array, Labels]:
    count, side = 2000, 28
    with gzip.open(EVAL / "t10k-images-idx3-ubyte.gz") as stream:
        pixels = np.frombuffer(stream.read(), dtype=np.uint8, offset=16).reshape(-1, 1, side, side)[:count]
    with gzip.open(EVAL / "t10k-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read(), dtype=np.uint8, offset=8)[:count].astype(np.int64)
    values = (pixels.astype(np.float32) / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
    name = onnx.load(DATA / "models" / "mnist-cnn.onnx", load_external_data=False).graph.input[0].name
    return _split(name, values, labels, count // 2)


_AKAMASTER = _cifar((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(name="resnet18-cifar10", parts=_cifar((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
        Subject(name="resnet20-cifar10", parts=_AKAMASTER),
        Subject(name="resnet56-cifar10", parts=_AKAMASTER),
        Subject(name="mobilenetv2-imagenet", parts=_imagenet("image", _mobilenet_image)),
        Subject(name="squeezenet-imagenet", parts=_imagenet("data_0", _squeezenet_image)),
        Subject(name="vit-cifar10", parts=_cifar((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))),
        Subject(name="magika-v3_3", parts=_magika),
        Subject(name="mnist-cnn", parts=_mnist),
    )
}
