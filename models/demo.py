"""`python -m models.demo`: the main job on the shipped digits network, judged on digits that it never saw.

Runs the optimiser's command line on the model and its calibration digits, then prints the held-out accuracy,
the multiply-accumulates and the speed in ONNX Runtime, before against after, measured apart from `passes`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from models import digits, measure

OUTPUT_FOLDER = Path("demo-out")
BATCHES = (1, 16)


def optimise(target: str, output: Path) -> int:
    """Run the command that a user would type; its exit code."""
    command = ["-m", "passes.optimize", str(_short(digits.MODEL)), "--target", target]
    command += ["--data", str(_short(digits.CALIBRATION)), "--labels", str(_short(digits.CALIBRATION_LABELS))]
    command += ["--max-drop", "0.01", "--max-error", "0.18", "-o", str(output)]
    print("$ python", *command, flush=True)
    return subprocess.run([sys.executable, *command], check=False).returncode


def compare(before: Path, after: Path) -> str:
    """The table of held-out accuracy, multiply-accumulates, file size and speed of two models."""
    with np.load(digits.HELDOUT) as archive:
        images = archive["image"]
    labels = np.load(digits.HELDOUT_LABELS)
    accuracy = [100 * measure.accuracy(path, images, labels) for path in (before, after)]
    macs = [measure.macs(onnx.load(path)) for path in (before, after)]
    sizes = [path.stat().st_size for path in (before, after)]
    lines = [
        f"{len(labels)} held-out digits, ONNX Runtime, one thread of this machine's CPU",
        f"{'':<24}{'before':>12}{'after':>12}",
        f"{'accuracy':<24}{accuracy[0]:>10.2f} %{accuracy[1]:>10.2f} %{accuracy[1] - accuracy[0]:>+10.2f} points",
        f"{'multiply-accumulates':<24}{macs[0]:>12,}{macs[1]:>12,}{macs[0] / macs[1]:>9.2f}x fewer",
        f"{'file, bytes':<24}{sizes[0]:>12,}{sizes[1]:>12,}{sizes[0] / sizes[1]:>9.2f}x smaller",
    ]
    for batch in BATCHES:
        slow, fast = (1e6 * s for s in measure.median_seconds((before, after), {"image": images[:batch]}))
        label = f"time at batch {batch}"
        lines.append(f"{label:<24}{slow:>9.0f} µs{fast:>9.0f} µs{slow / fast:>9.2f}x faster, measured")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Optimise, compare, print; the exit code of the optimiser."""
    parser = argparse.ArgumentParser(prog="python -m models.demo", description="The main job on the digits network.")
    parser.add_argument("--target", default="cpu", help="the chip to fit the model on (default: %(default)s)")
    target: str = parser.parse_args(arguments).target
    OUTPUT_FOLDER.mkdir(exist_ok=True)
    output = OUTPUT_FOLDER / f"digits.{target.replace(':', '-')}.onnx"
    code = optimise(target, output)
    if code == 0:
        print()
        print(compare(digits.MODEL, output))
    return code


def _short(path: Path) -> Path:
    """The path as a user in the project's root would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
