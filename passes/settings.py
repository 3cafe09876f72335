"""Every knob once: frozen, self-checking; the command line and the library both build a `Settings`.

A knob that is None means "decided by the run", and the report says what was decided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from passes.errors import SettingsError

Geometry = Literal["spectral", "operator", "kernel", "magnitude", "random"]
GEOMETRIES: tuple[str, ...] = get_args(Geometry)

Landmarks = Literal["pivoted", "uniform", "leverage"]
LANDMARKS: tuple[str, ...] = get_args(Landmarks)

DEFAULT_MAX_ERROR = 0.05
"""Relative L2 of the outputs on held-out inputs, when the user names no budget (issue: the main job)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreparation:
    """How a folder of images becomes an input array: decode, resize, scale, normalise, lay out.

    The value of a pixel is `(v / divide_by - mean) / std` with v in 0..255.

    Attributes:
        mean: Per channel, after the division.
        std: Per channel, positive.
        divide_by: 255 for inputs in 0..1, 1 for inputs in 0..255.
        channels: Order of the channels, "rgb" or "bgr".
        crop: Side of the centre crop after the shorter side is resized to it; None resizes to the input's size.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    divide_by: float = 255.0
    channels: Literal["rgb", "bgr"] = "rgb"
    crop: int | None = None

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) not in (1, 3):
            raise SettingsError(f"image mean and std need 1 or 3 values; got {self.mean} and {self.std}")
        if any(s <= 0 or not math.isfinite(s) for s in self.std):
            raise SettingsError(f"image std must be positive; got {self.std}")
        if not self.divide_by > 0:
            raise SettingsError(f"image divide_by must be positive; got {self.divide_by}")
        if self.channels not in ("rgb", "bgr"):
            raise SettingsError(f"image channels must be 'rgb' or 'bgr'; got {self.channels!r}")
        if self.crop is not None and self.crop < 1:
            raise SettingsError(f"image crop must be a positive side length; got {self.crop}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user wants of one run.

    Attributes:
        target: Chip, `family` or `family:variant` ("ascend:910b").
        output: Where the model goes; None means `<stem>.<target>.onnx` beside the source.
        data: Files, folders or `file.py:function` with inputs; empty means synthetic inputs.
        labels: `.npy`/`.npz`/text of class indices, as many as there are samples.
        eval_data: Inputs on which the budget is measured; empty means a held-out part of `data`. Inputs that the model
            was trained on flatter the original, so that losses look larger on them than on new ones.
        eval_labels: Labels of `eval_data`.
        image: How folders of images are prepared.
        max_drop: Largest loss of the metric, a fraction of 1 (0.01 is one point of accuracy).
        max_error: Largest relative L2 of any output on held-out inputs.
        speedup: Modelled speed-up to reach at least; a run that cannot reach it within the budget says so.
        pareto: Models along the frontier of loss and time to write beside the result; 0 for none.
        exact_only: Only rewrites that keep the outputs within 1e-5.
        plan_only: Decide, write the plan, cut nothing.
        plan: A saved plan to replay.
        geometry: What nominates units: the paper's spectra, operator states, or the data's kernel;
            "magnitude" and "random" are the field's baselines, for comparison.
        landmarks: What orders the units of the kernel geometry: "pivoted" Cholesky on what the consumers lose, or, to
            compare it with, "uniform" draws or draws by "leverage" score.
        kernel_rank: Steps of the kernel's factorisation at most; wider widths of a group are then priced with the last
            residual, an upper bound. None for all.
        kernel_tolerance: Share of the residual of keeping nothing at which a factorisation stops, in 0..1.
        repair: Refit consumers in closed form after the cut.
        depth: Whole residual branches compete with widths.
        low_rank: Operators that become two, with fewer dimensions between them, compete with widths. Needs `repair`.
        batch: Batch size at which the target's time is modelled and ONNX Runtime is measured.
        samples: Inputs used for statistics and repair, at most.
        eval_samples: Held-out inputs, at most, on which the budget is measured.
        seed: Of everything random.
        threads: Of ONNX Runtime; 0 lets it decide.
    """

    target: str = "cpu"
    output: Path | None = None
    data: tuple[str, ...] = ()
    labels: Path | None = None
    eval_data: tuple[str, ...] = ()
    eval_labels: Path | None = None
    image: ImagePreparation = ImagePreparation()
    max_drop: float | None = None
    max_error: float | None = None
    speedup: float | None = None
    pareto: int = 0
    exact_only: bool = False
    plan_only: bool = False
    plan: Path | None = None
    geometry: Geometry = "kernel"
    landmarks: Landmarks = "pivoted"
    kernel_rank: int | None = None
    kernel_tolerance: float = 0.0
    repair: bool = True
    depth: bool = True
    low_rank: bool = True
    batch: int = 1
    samples: int = 1024
    eval_samples: int = 4096
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.target:
            raise SettingsError("target is empty; name a chip, for example cpu or ascend:310p3")
        _fraction("max_drop", self.max_drop, upper=1.0)
        _fraction("max_error", self.max_error, upper=math.inf)
        if self.speedup is not None and not (math.isfinite(self.speedup) and self.speedup >= 1):
            raise SettingsError(f"speedup must be a finite factor of at least 1; got {self.speedup}")
        if self.geometry not in GEOMETRIES:
            raise SettingsError(f"geometry must be one of {', '.join(GEOMETRIES)}; got {self.geometry!r}")
        if self.landmarks not in LANDMARKS:
            raise SettingsError(f"landmarks must be one of {', '.join(LANDMARKS)}; got {self.landmarks!r}")
        _fraction("kernel_tolerance", self.kernel_tolerance, upper=1.0)
        for name, value, least in (
            ("kernel_rank", 1 if self.kernel_rank is None else self.kernel_rank, 1),
            ("pareto", self.pareto, 0),
            ("batch", self.batch, 1),
            ("samples", self.samples, 1),
            ("eval_samples", self.eval_samples, 1),
            ("seed", self.seed, 0),
            ("threads", self.threads, 0),
        ):
            if value < least:
                raise SettingsError(f"{name} must be at least {least}; got {value}")
        if (self.eval_data or self.eval_labels is not None) and not self.data:
            raise SettingsError("eval_data is judged on, not calibrated on: give data as well")
        if self.eval_labels is not None and not self.eval_data:
            raise SettingsError("eval_labels need the eval_data they belong to; give eval_data as well")
        judged = self.eval_labels if self.eval_data else self.labels
        if self.max_drop is not None and judged is None:
            raise SettingsError(
                "max_drop needs a metric: give labels (eval_labels for eval_data), or bound the outputs with max_error"
            )
        if self.labels is not None and not self.data:
            raise SettingsError("labels need the data they belong to; give data as well")
        if self.pareto and (self.exact_only or self.plan_only or self.plan is not None):
            raise SettingsError("pareto writes cut models: drop exact_only, plan_only or plan, or drop pareto")
        if self.plan is not None and self.plan_only:
            raise SettingsError("plan and plan_only contradict each other: a plan is either made or replayed")

    @property
    def error_budget(self) -> float | None:
        """The bound on the outputs' relative L2: the user's, or the default without a budget or a goal."""
        if self.max_error is None and self.max_drop is None and self.speedup is None:
            return DEFAULT_MAX_ERROR
        return self.max_error


def _fraction(name: str, value: float | None, *, upper: float) -> None:
    if value is not None and not (0 <= value <= upper and math.isfinite(value)):
        bound = "a finite number of at least 0" if math.isinf(upper) else f"between 0 and {upper:g}"
        raise SettingsError(f"{name} must be {bound}; got {value}")
