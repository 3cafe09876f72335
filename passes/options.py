"""What can be said on the command line, each option once: annotated types for the commands' signatures go out.

Ranges and defaults live in `Settings`; only what is no setting (an unknown target, a list that is no list of numbers)
is refused here, as wrong usage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import backends
from passes.settings import DEFAULT_MAX_ERROR, GEOMETRIES, LANDMARKS

_RESULT, _BUDGET, _DATA, _METHOD, _REPORT = "Result", "Budget", "Data", "Method", "Report"
_IMAGES = "Folders of images: (value / divide-by - mean) / std"


def known_target(target: str) -> str:
    """The target as it is.

    Raises:
        typer.BadParameter: No chip has that name; the message lists the known ones.
    """
    try:
        backends.get(target)
    except (backends.UnknownTarget, backends.InvalidChip) as error:
        raise typer.BadParameter(str(error)) from error
    return target


def numbers(option: str, text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    """Numbers with commas between them; the default when the option was not given.

    Raises:
        typer.BadParameter: A part is not a number.
    """
    if text is None:
        return default
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        message = f"expected one number or three with commas, such as 0.485,0.456,0.406; got {text!r}"
        raise typer.BadParameter(message, param_hint=option) from error


def _option(panel: str, names: str, text: str, callback: Callable[[str], str] | None = None) -> Any:
    return typer.Option(*names.split(), help=text, rich_help_panel=panel, callback=callback)


_TARGET = (
    f"Chip, as family or family:variant, or a chip file FILE.toml. Families: {', '.join(backends.names())}. "
    "See `blochfold backends list`."
)
_INPUTS = (
    "Inputs: .npz, .npy, a test_data_set folder, a folder of images, or file.py:function. "
    "May be repeated. Without any, inputs are synthetic."
)

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A trained ONNX file. It is never changed.")]
Target = Annotated[str, _option(_RESULT, "--target -t", _TARGET, known_target)]
Output = Annotated[
    Path | None,
    _option(_RESULT, "--output -o", "Where the result goes; by default MODEL.TARGET.onnx beside the model."),
]
ExactOnly = Annotated[bool, _option(_RESULT, "--exact-only", "Only rewrites that keep the outputs (1e-5 relative).")]
PlanOnly = Annotated[bool, _option(_RESULT, "--plan-only", "Decide, write the plan as JSON, cut nothing.")]
SavedPlan = Annotated[Path | None, _option(_RESULT, "--plan", "Carry out a saved plan instead of making one.")]

EmitToolchain = Annotated[
    bool,
    _option(_RESULT, "--emit-toolchain", "Also write what the chip's compiler needs, beside the result."),
]

MaxDrop = Annotated[
    float | None, _option(_BUDGET, "--max-drop", "Largest loss of accuracy: 0.01 is one point. Needs --labels.")
]
MaxError = Annotated[
    float | None,
    _option(
        _BUDGET,
        "--max-error",
        f"Largest relative L2 error of any output; {DEFAULT_MAX_ERROR} when no budget is given.",
    ),
]
Speedup = Annotated[float | None, _option(_BUDGET, "--speedup", "Modelled speed-up to reach, such as 2.0.")]

Pareto = Annotated[
    int, _option(_BUDGET, "--pareto", "Write that many models along the frontier of loss and time too, and its plot.")
]

Data = Annotated[list[str] | None, _option(_DATA, "--data", _INPUTS)]
Labels = Annotated[Path | None, _option(_DATA, "--labels", "Class of each sample: .npy, .npz or text.")]
EvalData = Annotated[
    list[str] | None, _option(_DATA, "--eval-data", "Inputs that the budget is measured on; else a part of --data.")
]
EvalLabels = Annotated[Path | None, _option(_DATA, "--eval-labels", "Class of each sample of --eval-data.")]
Samples = Annotated[int, _option(_DATA, "--samples", "Inputs for statistics and repair, at most.")]
EvalSamples = Annotated[int, _option(_DATA, "--eval-samples", "Held-out inputs for the budget, at most.")]

GeometryName = Annotated[str, _option(_METHOD, "--geometry", f"What nominates units: {', '.join(GEOMETRIES)}.")]
LandmarksName = Annotated[
    str, _option(_METHOD, "--landmarks", f"What orders the units of the kernel: {', '.join(LANDMARKS)}.")
]
KernelRank = Annotated[
    int | None,
    _option(_METHOD, "--kernel-rank", "Steps of a kernel's factorisation at most; wider widths get a bound."),
]
KernelTolerance = Annotated[
    float,
    _option(_METHOD, "--kernel-tolerance", "Share of the residual at which a factorisation stops, such as 0.001."),
]
NoRepair = Annotated[bool, _option(_METHOD, "--no-repair", "Do not refit what reads the cut units.")]
NoLowRank = Annotated[bool, _option(_METHOD, "--no-low-rank", "Make no operator two of lower rank.")]
NoDepth = Annotated[bool, _option(_METHOD, "--no-depth", "Leave no residual branch out.")]
Batch = Annotated[int, _option(_METHOD, "--batch", "Batch size at which times are modelled and measured.")]
Seed = Annotated[int, _option(_METHOD, "--seed", "Of everything random.")]
Threads = Annotated[int, _option(_METHOD, "--threads", "Of ONNX Runtime; 0 lets it decide.")]

ImageMean = Annotated[str | None, _option(_IMAGES, "--image-mean", "One number, or three with commas.")]
ImageStd = Annotated[str | None, _option(_IMAGES, "--image-std", "One number, or three with commas.")]
ImageDivideBy = Annotated[float, _option(_IMAGES, "--image-divide-by", "255 for inputs in 0..1, 1 for 0..255.")]
ImageChannels = Annotated[str, _option(_IMAGES, "--image-channels", "Order of the channels: rgb or bgr.")]
ImageCrop = Annotated[
    int | None, _option(_IMAGES, "--image-crop", "Side of the centre crop; by default images are resized whole.")
]

AsJson = Annotated[bool, _option(_REPORT, "--json", "The report as JSON on the standard output, nothing else there.")]
Explain = Annotated[bool, _option(_REPORT, "--explain", "List every group and operator: what was done, or why not.")]
ReportPath = Annotated[
    Path | None,
    _option(_REPORT, "--report", "Where the JSON report goes; by default beside the result, ending in .report.json."),
]
Quiet = Annotated[bool, _option(_REPORT, "--quiet", "No progress, and only the verdict on the standard output.")]
