"""`blochfold analyze`: arguments in, tables, JSON, GraphML or a page out.

Registered by the command line, which brings the guard that turns errors into exit codes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from passes import options
from passes.exits import console
from passes.settings import ImagePreparation, Landmarks

if TYPE_CHECKING:
    from passes.findings import Analysis, Clustering

HELP = (
    "Show where a network repeats itself, before anything is touched.\n\n"
    "\b\n"
    "  blochfold analyze model.onnx\n"
    "  blochfold analyze model.onnx --html model.html --data images/\n"
    "  blochfold analyze model.onnx --json --clustering kmedoids --clusters 8\n\n"
    "Each operator with the spectrum of its augmented matrix, its nearest neighbours and its cluster; with --data, "
    "--curves or --html also, for each group of coupled units, the residual at every width. Without --data the curves "
    "are made on synthetic inputs. A close spectrum nominates; only the operator angle says that two do the same."
)
_SEE, _OUT, _CURVES = "What is close", "Result", "Curves of the groups"

Html = Annotated[Path | None, typer.Option("--html", help="Write one self-contained page.", rich_help_panel=_OUT)]
GraphMl = Annotated[Path | None, typer.Option("--graphml", help="Write the redundancy graph.", rich_help_panel=_OUT)]
All = Annotated[bool, typer.Option("--all", help="List everything, however long.", rich_help_panel=_OUT)]
AsJson = Annotated[
    bool, typer.Option("--json", help="JSON on the standard output, nothing else there.", rich_help_panel=_OUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=_OUT)]
Neighbours = Annotated[int, typer.Option("--neighbours", help="Nearest operators of each.", rich_help_panel=_SEE)]
Threshold = Annotated[
    float | None, typer.Option("--threshold", help="Angle up to which two are close, radians.", rich_help_panel=_SEE)
]
Quantile = Annotated[
    float | None,
    typer.Option("--quantile", help="The threshold as a share of all pairs; 0.05 by default.", rich_help_panel=_SEE),
]
ClusteringName = Annotated[
    str, typer.Option("--clustering", help="components, complete or kmedoids.", rich_help_panel=_SEE)
]
Clusters = Annotated[
    int | None, typer.Option("--clusters", help="How many; for kmedoids and complete.", rich_help_panel=_SEE)
]
Circular = Annotated[
    bool,
    typer.Option(
        "--circular", help="Also measure stride-1 convolutions as circular ones, by FFT.", rich_help_panel=_SEE
    ),
]
Curves = Annotated[
    bool | None,
    typer.Option("--curves/--no-curves", help="By default with --data or --html.", rich_help_panel=_CURVES),
]
Samples = Annotated[int, typer.Option("--samples", help="Inputs at most.", rich_help_panel=_CURVES)]


def register(app: typer.Typer, guarded: Callable[..., int], codes: str) -> None:
    """Add the command.

    Args:
        app: That the command belongs to.
        guarded: Runs a function and turns what a user can cause into an exit code; takes `announce`.
        codes: The exit codes, for the end of the help.
    """

    @app.command(help=HELP, epilog=codes, no_args_is_help=True)
    def analyze(
        model: options.Model,
        html: Html = None,
        graphml: GraphMl = None,
        as_json: AsJson = False,
        everything: All = False,
        quiet: Quiet = False,
        neighbours: Neighbours = 5,
        threshold: Threshold = None,
        quantile: Quantile = None,
        clustering: ClusteringName = "complete",
        clusters: Clusters = None,
        circular: Circular = False,
        curves: Curves = None,
        data: options.Data = None,
        samples: Samples = 64,
        kernel_rank: options.KernelRank = 256,
        kernel_tolerance: options.KernelTolerance = 1e-3,
        landmarks: options.LandmarksName = "pivoted",
        image_mean: options.ImageMean = None,
        image_std: options.ImageStd = None,
        image_divide_by: options.ImageDivideBy = 255.0,
        image_channels: options.ImageChannels = "rgb",
        image_crop: options.ImageCrop = None,
        seed: options.Seed = 0,
        threads: options.Threads = 0,
    ) -> None:
        def work() -> int:
            from passes.analysis import analyse
            from passes.findings import AnalysisSettings
            from passes.terminal import watch

            plain = ImagePreparation()
            settings = AnalysisSettings(
                neighbours=neighbours,
                threshold=threshold,
                quantile=quantile,
                clustering=cast("Clustering", clustering),
                count=clusters,
                circular=circular,
                curves=curves if curves is not None else bool(data or html),
                data=tuple(data or ()),
                image=ImagePreparation(
                    mean=options.numbers("--image-mean", image_mean, plain.mean),
                    std=options.numbers("--image-std", image_std, plain.std),
                    divide_by=image_divide_by,
                    channels=cast(Literal["rgb", "bgr"], image_channels),
                    crop=image_crop,
                ),
                samples=samples,
                kernel_rank=kernel_rank,
                kernel_tolerance=kernel_tolerance,
                landmarks=cast(Landmarks, landmarks),
                seed=seed,
                threads=threads,
            )
            # The standard output is for the result alone; a user's data function may print.
            with contextlib.redirect_stdout(sys.stderr):
                found = analyse(model, settings, progress=watch(quiet=quiet))
            _show(found, model, html, graphml, as_json=as_json, everything=everything)
            return 0

        raise typer.Exit(guarded(work, announce=False))


def _show(
    found: Analysis, model: Path, html: Path | None, graphml: Path | None, *, as_json: bool, everything: bool
) -> None:
    from passes import analysis_tables, page, storage

    written: list[str] = []
    for path, text in ((html, page.render), (graphml, lambda one: one.to_graphml())):
        if path is not None:
            storage.save_text(text(found), path, protected=[model])
            written.append(str(path))
    if as_json:
        typer.echo(found.to_json(), nl=False)
        return
    screen = console()
    analysis_tables.show_analysis(found, screen, everything=everything)
    for name in written:
        screen.print(f"written  {name}", markup=False, soft_wrap=True)
