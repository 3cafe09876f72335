"""`blochfold compare`: two models in, their operators matched by distance out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from passes import options
from passes.exits import console

HELP = (
    "Match the operators of two models by the distance of their spectra.\n\n"
    "\b\n"
    "  blochfold compare model.onnx model.ascend.onnx\n"
    "  blochfold compare vit.onnx bert.onnx --json\n\n"
    "A model before and after optimisation, or two architectures: spectra need no common shape. Each operator of the "
    "smaller model gets one of the other, so that the sum of the angles is least. A small angle nominates a "
    "substitution; the operator angle, where the shapes are one, says whether it would do the same."
)

First = Annotated[Path, typer.Argument(metavar="A.onnx", help="A trained ONNX file. It is never changed.")]
Second = Annotated[Path, typer.Argument(metavar="B.onnx", help="Another one.")]
All = Annotated[bool, typer.Option("--all", help="List every pair.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on the standard output, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def register(app: typer.Typer, guarded: Callable[..., int], codes: str) -> None:
    """Add the command; the arguments are those of `cli_analyze.register`."""

    @app.command(help=HELP, epilog=codes, no_args_is_help=True)
    def compare(
        first: First,
        second: Second,
        as_json: AsJson = False,
        everything: All = False,
        quiet: Quiet = False,
        threads: options.Threads = 0,
    ) -> None:
        def work() -> int:
            from passes import analysis_tables, comparison
            from passes.terminal import watch

            found = comparison.compare(first, second, threads=threads, progress=watch(quiet=quiet))
            if as_json:
                typer.echo(found.to_json(), nl=False)
            else:
                analysis_tables.show_comparison(found, console(), everything=everything)
            return 0

        raise typer.Exit(guarded(work, announce=False))
