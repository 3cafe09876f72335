"""The command line: arguments come in, tables or JSON go out, and the exit code says how it went.

0 done and validated, 1 the user can mend it, 2 usage, 3 validation failed and nothing was written, 130 interrupted.
Nothing imports this module; the heavy stages are imported when a run begins, so that help is quick.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

import backends
from passes import __version__, cli_analyze, cli_backends, cli_compare, cli_groups, cli_predict, options
from passes.errors import OutputError
from passes.exits import DONE, INVALID, console, guarded
from passes.settings import Geometry, ImagePreparation, Landmarks, Settings

if TYPE_CHECKING:
    from passes.results import Outcome

_DEFAULT = Settings()
_HELP_NAMES = {"help_option_names": ["-h", "--help"]}
_HELP = (
    "Make a trained ONNX file smaller and faster for one chip, without training, and show the evidence.\n\n"
    "\b\n"
    "  blochfold optimize model.onnx --target ascend --data images/\n"
    "  blochfold optimize model.onnx --data x.npz --labels y.npy --max-drop 0.01\n"
    "  blochfold optimize model.onnx --target mlu --exact-only --explain\n\n"
    "Writes a valid ONNX file of the same inputs and outputs, and a JSON report. The budget is measured on inputs "
    "that the optimisation did not see. Times are called modelled (on the chip) or measured (here, in ONNX Runtime). "
    "`python -m passes.optimize` takes the same arguments as `blochfold optimize`."
)
_CODES = "Exit code: 0 done and validated, 1 an error to mend, 2 wrong usage, 3 validation failed, 130 interrupted."

app = typer.Typer(
    name="blochfold",
    context_settings=_HELP_NAMES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
module_app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """How the user wants to see the run; nothing of it changes the result."""

    as_json: bool
    explain: bool
    quiet: bool
    report: Path | None
    emit_toolchain: bool = False


app.add_typer(cli_backends.app, name="backends")
cli_predict.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"blochfold {__version__}")
        raise typer.Exit


@app.callback()
def blochfold(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Make trained ONNX files smaller and faster for one chip, without training, with the evidence beside them.

    Example:  blochfold optimize model.onnx --target ascend --data images/
    """


@module_app.command(help=_HELP, epilog=_CODES, no_args_is_help=True, context_settings=_HELP_NAMES)
@app.command(help=_HELP, epilog=_CODES, no_args_is_help=True, context_settings=_HELP_NAMES)
def optimize(
    model: options.Model,
    target: options.Target = _DEFAULT.target,
    output: options.Output = None,
    exact_only: options.ExactOnly = False,
    plan_only: options.PlanOnly = False,
    plan: options.SavedPlan = None,
    emit_toolchain: options.EmitToolchain = False,
    max_drop: options.MaxDrop = None,
    max_error: options.MaxError = None,
    speedup: options.Speedup = None,
    pareto: options.Pareto = _DEFAULT.pareto,
    data: options.Data = None,
    labels: options.Labels = None,
    eval_data: options.EvalData = None,
    eval_labels: options.EvalLabels = None,
    samples: options.Samples = _DEFAULT.samples,
    eval_samples: options.EvalSamples = _DEFAULT.eval_samples,
    geometry: options.GeometryName = _DEFAULT.geometry,
    landmarks: options.LandmarksName = _DEFAULT.landmarks,
    kernel_rank: options.KernelRank = _DEFAULT.kernel_rank,
    kernel_tolerance: options.KernelTolerance = _DEFAULT.kernel_tolerance,
    no_repair: options.NoRepair = False,
    no_depth: options.NoDepth = False,
    no_low_rank: options.NoLowRank = False,
    batch: options.Batch = _DEFAULT.batch,
    seed: options.Seed = _DEFAULT.seed,
    threads: options.Threads = _DEFAULT.threads,
    image_mean: options.ImageMean = None,
    image_std: options.ImageStd = None,
    image_divide_by: options.ImageDivideBy = _DEFAULT.image.divide_by,
    image_channels: options.ImageChannels = _DEFAULT.image.channels,
    image_crop: options.ImageCrop = None,
    as_json: options.AsJson = False,
    explain: options.Explain = False,
    report: options.ReportPath = None,
    quiet: options.Quiet = False,
) -> None:
    """Build the settings, run, present, and exit with the code of the outcome."""
    if quiet and explain and not as_json:
        raise typer.BadParameter("--quiet hides what --explain lists: drop one of them", param_hint="--quiet")

    def work() -> int:
        image = ImagePreparation(
            mean=options.numbers("--image-mean", image_mean, _DEFAULT.image.mean),
            std=options.numbers("--image-std", image_std, _DEFAULT.image.std),
            divide_by=image_divide_by,
            channels=cast(Literal["rgb", "bgr"], image_channels),
            crop=image_crop,
        )
        settings = Settings(
            target=target,
            output=output,
            data=tuple(data or ()),
            labels=labels,
            eval_data=tuple(eval_data or ()),
            eval_labels=eval_labels,
            image=image,
            max_drop=max_drop,
            max_error=max_error,
            speedup=speedup,
            pareto=pareto,
            exact_only=exact_only,
            plan_only=plan_only,
            plan=plan,
            geometry=cast(Geometry, geometry),
            landmarks=cast(Landmarks, landmarks),
            kernel_rank=kernel_rank,
            kernel_tolerance=kernel_tolerance,
            repair=not no_repair,
            depth=not no_depth,
            low_rank=not no_low_rank,
            batch=batch,
            samples=samples,
            eval_samples=eval_samples,
            seed=seed,
            threads=threads,
        )
        return _run(
            model,
            settings,
            Presentation(as_json=as_json, explain=explain, quiet=quiet, report=report, emit_toolchain=emit_toolchain),
        )

    raise typer.Exit(guarded(work, announce=not as_json))


def _run(model: Path, settings: Settings, show: Presentation) -> int:
    from passes import frontier, pipeline, report, storage, terminal
    from passes.verdict import verdict

    plan_path = _plan_path(model, settings) if settings.plan_only else None
    read = (model, settings.labels, settings.plan, *map(Path, (*settings.data, *settings.eval_data)))
    if plan_path is not None:
        _check_place("plan", plan_path, read)
    if show.emit_toolchain:
        _say_what_is_not_emitted(settings)
    if show.report is not None:
        _check_place("report", show.report, (*read, settings.output, plan_path))
    # The standard output is for the result alone; a user's data function may print.
    with contextlib.redirect_stdout(sys.stderr):
        outcome = pipeline.optimize_model(model, settings, progress=terminal.watch(quiet=show.quiet))

    texts: dict[str, tuple[Path, str]] = {}
    if plan_path is not None:
        texts["plan"] = (plan_path, outcome.plan.to_json())
    report_path = show.report or _report_path(outcome)
    if report_path is not None:
        texts["report"] = (report_path, report.to_json(outcome, settings))
    if outcome.frontier and outcome.output is not None:
        drawn = frontier.picture(outcome.before, outcome.frontier, outcome.plan.target)
        texts["frontier"] = (Path(outcome.output).with_suffix(".pareto.svg"), drawn)
    written: dict[str, Path] = {}
    failure: OutputError | None = None
    for what, (path, text) in texts.items():
        try:
            storage.save_text(text, path, protected=[model])
            written[what] = path
        except OutputError as error:
            failure = error
    if show.emit_toolchain and outcome.output is not None:
        written |= _emit(Path(outcome.output), settings)
    # What a long run found is shown even when a file beside the model could not be written.
    _show(outcome, settings, show, written)
    if failure is not None:
        raise failure
    return INVALID if verdict(outcome, settings).word == "FAILED" else DONE


def _show(outcome: Outcome, settings: Settings, show: Presentation, written: dict[str, Path]) -> None:
    from passes import report

    if show.as_json:
        typer.echo(report.to_json(outcome, settings), nl=False)
        return
    # A name that the terminal's encoding cannot say is escaped, it does not end the run.
    screen = console()
    if show.quiet:
        report.print_verdict(outcome, settings, screen)
    else:
        report.render(outcome, settings, screen, explain=show.explain, written=written)


def _emit(result: Path, settings: Settings) -> dict[str, Path]:
    """Write the files of the chip's toolchain beside the result."""
    from passes import deploy, model_io, shapes

    loaded = model_io.load(result)
    sizes = shapes.input_shapes(loaded.proto, settings.batch)
    return {f"toolchain {path.suffix[1:]}": path for path in deploy.emit(loaded, result, settings.target, sizes)}


def _say_what_is_not_emitted(settings: Settings) -> None:
    from passes import deploy

    said = deploy.unneeded(backends.get(settings.target))
    if said is None and settings.plan_only:
        said = "--emit-toolchain writes nothing with --plan-only: run once more without it, or replay the plan"
    if said is not None:
        typer.echo(said, err=True)


def _plan_path(model: Path, settings: Settings) -> Path:
    if settings.output is not None:
        return settings.output
    return model.with_name(f"{model.stem}.{backends.label(settings.target)}.plan.json")


def _report_path(outcome: Outcome) -> Path | None:
    return None if outcome.output is None else Path(outcome.output).with_suffix(".report.json")


def _check_place(what: str, path: Path, taken: Iterable[Path | None]) -> None:
    """Refuse, before a long run, a place that cannot be written or that holds what the run reads or writes."""
    if any(other is not None and other.resolve() == path.resolve() for other in taken):
        raise OutputError(f"the {what} would replace {path}, which this run reads or writes; name another place")
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"cannot write the {what} to {path}: expected a file in a folder that exists")


cli_analyze.register(app, guarded, _CODES)
cli_compare.register(app, guarded, _CODES)
cli_groups.register(app, guarded, _CODES)


def main() -> None:
    """Entry point of the console script `blochfold`."""
    app()


if __name__ == "__main__":
    module_app()
