"""`python -m models.train_digits`: scikit-learn's bundled digits in, the shipped model and its data out.

Needs the extra `train`. Three disjoint stratified parts: training, calibration (images kept from training)
and held-out. One thread and fixed seeds: the same PyTorch on the same machine gives the same weights again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional

from models import digits, measure

SEED = 20251
CALIBRATION_IMAGES = 300
HELDOUT_IMAGES = 500
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
NORM_MOMENTUM = 0.1

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Tensors = dict[str, torch.Tensor]


class Part(NamedTuple):
    """Images of shape (n, 1, 8, 8) in 0..1 and their classes."""

    images: Images
    labels: Labels


def split() -> tuple[Part, Part, Part]:
    """Training, calibration and held-out digits: disjoint, every class in its proportion."""
    bundle = load_digits()
    images = (bundle.images / 16.0).astype(np.float32)[:, None]
    labels = bundle.target.astype(np.int64)
    rows = np.arange(len(labels))
    rest, heldout = train_test_split(rows, test_size=HELDOUT_IMAGES, random_state=SEED, stratify=labels)
    train, calibration = train_test_split(rest, test_size=CALIBRATION_IMAGES, random_state=SEED, stratify=labels[rest])
    parts = [Part(images[chosen], labels[chosen]) for chosen in (train, calibration, heldout)]
    return parts[0], parts[1], parts[2]


def train(part: Part) -> dict[str, npt.NDArray[np.float32]]:
    """Weights trained by stochastic gradient descent on a one-cycle schedule, with shifts by at most a pixel."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    weights = _initial_weights()
    learned = {name: tensor.requires_grad_() for name, tensor in weights.items() if "running" not in name}
    optimiser = torch.optim.SGD(
        [
            {"params": [t for t in learned.values() if t.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [t for t in learned.values() if t.dim() == 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
        nesterov=True,
    )
    images, labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(BATCH):
            scores = forward(weights, _shifted(images[rows]), training=True)
            optimiser.zero_grad()
            functional.cross_entropy(scores, labels[rows]).backward()
            optimiser.step()
            schedule.step()
    return {name: tensor.detach().numpy().copy() for name, tensor in weights.items()}


def forward(weights: Tensors, image: torch.Tensor, *, training: bool) -> torch.Tensor:
    """The network of `models.digits` in PyTorch; `training` also updates the running statistics in `weights`."""

    def conv_norm(conv: str, norm: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        kernel = weights[f"{conv}.weight"]
        y = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        scale, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
        return functional.batch_norm(y, mean, variance, scale, shift, training, NORM_MOMENTUM, digits.EPSILON)

    x = functional.relu(conv_norm("stem.conv", "stem.bn", image, 1))
    for name, _, _, stride in digits.blocks():
        y = functional.relu(conv_norm(f"{name}.conv1", f"{name}.bn1", x, stride))
        y = conv_norm(f"{name}.conv2", f"{name}.bn2", y, 1)
        if f"{name}.shortcut.conv.weight" in weights:
            x = conv_norm(f"{name}.shortcut.conv", f"{name}.shortcut.bn", x, stride)
        x = functional.relu(x + y)
    return functional.linear(x.mean((2, 3)), weights["head.weight"], weights["head.bias"])


def _initial_weights() -> Tensors:
    weights: Tensors = {}
    for name, shape in digits.weight_shapes().items():
        if len(shape) > 1:
            weights[name] = torch.nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out", nonlinearity="relu")
        else:
            weights[name] = torch.full(shape, float(digits.starts_at_one(name)))
    return weights


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixel along both axes, zeros drawn in."""
    padded = functional.pad(images, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(images)))
    rows = (down[:, None] + torch.arange(digits.SIDE))[:, :, None]
    columns = (right[:, None] + torch.arange(digits.SIDE))[:, None, :]
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the model and its data into a folder, and print the held-out accuracy."""
    parser = argparse.ArgumentParser(prog="python -m models.train_digits", description="Train the digits network.")
    parser.add_argument("--folder", type=Path, default=digits.FOLDER, help="where the files go (default: %(default)s)")
    folder: Path = parser.parse_args(arguments).folder
    begin = time.perf_counter()
    training, calibration, heldout = split()
    model = digits.build(train(training))
    onnx.checker.check_model(model, full_check=True)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / digits.MODEL.name)
    np.savez_compressed(folder / digits.CALIBRATION.name, image=calibration.images)
    np.save(folder / digits.CALIBRATION_LABELS.name, calibration.labels)
    np.savez_compressed(folder / digits.HELDOUT.name, image=heldout.images)
    np.save(folder / digits.HELDOUT_LABELS.name, heldout.labels)
    for name, part in (("training", training), ("calibration", calibration), ("held-out", heldout)):
        share = measure.accuracy(model, part.images, part.labels)
        print(f"{name:>12}: {100 * share:6.2f} % of {len(part.labels)} digits")
    print(f"{folder} written in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
