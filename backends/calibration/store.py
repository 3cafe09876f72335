"""Where a machine keeps what was fitted on it: facts of a chip in, a JSON file per machine out, and back.

The file is found by the processor, the version of ONNX Runtime and the number of threads' cores, so that a copied
home folder or an upgrade falls back to the shipped facts. A file that does not fit is no calibration.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_data_path

from backends.base import Fact
from backends.model import Backend

FOLDER_VARIABLE = "BLOCHFOLD_CALIBRATION"
"""Environment variable that names another folder."""
FORMAT = 4


def path() -> Path:
    """The file of this machine, whether it exists or not."""
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named) if named else user_data_path("blochfold", appauthor=False) / "calibration"
    return folder / f"cpu-{_machine()}.json"


def write(chip: Backend, base: str, summary: Mapping[str, float]) -> Path:
    """Keep the facts of a calibrated chip.

    Args:
        chip: Fitted.
        base: Name of the shipped chip that it started from.
        summary: Errors on held-out operators, kept beside the facts.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    facts = {name: {"value": fact.value, "source": fact.source} for name, fact in chip.facts().items()}
    content = {"format": FORMAT, "base": base, "facts": facts, "held_out": dict(summary)}
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(f".{os.getpid()}.part")
    aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(target)
    return target


def read(known: Mapping[str, Backend], name: str) -> Backend | None:
    """The calibrated chip of this machine under a name; None without a file that fits.

    Args:
        known: Shipped chips by variant.
        name: Of the result.
    """
    try:
        content = json.loads(path().read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return None
        base = known[content["base"]]
        facts = {key: Fact(value=entry["value"], source=entry["source"]) for key, entry in content["facts"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    vector = {key.removeprefix("vector."): fact for key, fact in facts.items() if key.startswith("vector.")}
    own = {key: fact for key, fact in facts.items() if not key.startswith("vector.")}
    try:
        return replace(base, **own, name=name, vector=vector)  # type: ignore[arg-type]
    except TypeError:
        return None


def _machine() -> str:
    described = Path("/proc/cpuinfo")
    try:
        text = described.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    wanted = ("model name", "flags", "cpu family", "model\t", "stepping")
    lines = sorted({line for line in text.splitlines() if line.startswith(wanted)})
    try:
        runtime = version("onnxruntime")
    except PackageNotFoundError:
        runtime = ""
    content = "\n".join((*lines, platform.machine(), platform.processor(), runtime))
    return hashlib.sha256(content.encode()).hexdigest()[:16]
