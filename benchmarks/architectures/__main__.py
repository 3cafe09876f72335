"""Exports the catalogue: `python -m benchmarks.architectures [WORDS]`; needs the extra "architectures".

Writes FAMILY__NAME__EXPORTER.onnx into build/architectures, with both of PyTorch's exporters, and says which of them
declined which network. `python -m benchmarks.coverage` then judges the files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.architectures import convolutional, language, library, recurrent, spatial, tabular, vision
from benchmarks.architectures.catalogue import Architecture

CATALOGUE = (
    *convolutional.ENTRIES,
    *spatial.ENTRIES,
    *vision.ENTRIES,
    *language.ENTRIES,
    *recurrent.ENTRIES,
    *library.ENTRIES,
)
EXPORTERS = ("dynamo", "torchscript")
OPSETS = {"dynamo": 18, "torchscript": 17}


def export(entry: Architecture, exporter: str, path: Path) -> str:
    """Write one file; the first line of what went wrong, or an empty string."""
    torch.manual_seed(0)
    model = entry.build().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            if tensor.ndim == 1:
                # Freshly made scales and biases are all one or zero: equal tensors would be shared, zeros be dead.
                tensor.add_(0.2 * torch.rand_like(tensor))
    inputs = entry.inputs()
    names = [f"in{position}" for position in range(len(inputs))]
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if exporter == "torchscript":
                axes = {names[position]: dict(open_) for position, open_ in entry.dynamic.items()}
                torch.onnx.export(
                    model,
                    inputs,
                    path,
                    dynamo=False,
                    input_names=names,
                    dynamic_axes=axes,
                    opset_version=OPSETS[exporter],
                )
            else:
                _export_dynamo(model, inputs, names, entry, path)
    except Exception as error:
        path.unlink(missing_ok=True)
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]
    return ""


def _export_dynamo(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], names: list[str], entry: Architecture, path: Path
) -> None:
    """Open lengths are asked for, and given up where the exporter proves that they cannot be open."""
    auto = torch.export.Dim.AUTO
    shapes: tuple[object, ...] = tuple(dict.fromkeys(entry.dynamic.get(slot, {}), auto) for slot in range(len(inputs)))
    if isinstance(model, library.First):
        shapes = (shapes,)  # A variadic forward takes its shapes as one tuple.
    program = torch.onnx.export(
        model,
        inputs,
        dynamo=True,
        verbose=False,
        input_names=names,
        dynamic_shapes=shapes if entry.dynamic else None,
        opset_version=OPSETS["dynamo"],
    )
    program.save(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export all, or those whose name contains one of the given words."""
    parser = argparse.ArgumentParser(description="Export the architectures that coupling is judged on.")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "build" / "architectures")
    parser.add_argument("--exporter", choices=EXPORTERS, action="append")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    given.folder.mkdir(parents=True, exist_ok=True)
    if not given.words:
        warnings.simplefilter("ignore")  # Five iterations do not converge, and scikit-learn says so.
        print(f"{'tabular MLP':20s} {', '.join(tabular.export_all(given.folder))}")
    failed = 0
    for entry in CATALOGUE:
        if given.words and not any(word in entry.name for word in given.words):
            continue
        for exporter in given.exporter or EXPORTERS:
            family = entry.family.replace("/", "-").replace(" ", "-")
            begun = time.perf_counter()
            why = export(entry, exporter, given.folder / f"{family}__{entry.name}__{exporter}.onnx")
            failed += bool(why)
            note = why or f"{time.perf_counter() - begun:.1f} s"
            print(f"{entry.family:20s} {entry.name:24s} {exporter:12s} {note}", flush=True)
    print(f"{len(CATALOGUE)} architectures in the catalogue, {failed} exports declined", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
