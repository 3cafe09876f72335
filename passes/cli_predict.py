"""`blochfold predict` and `blochfold check`: what a chip would make of a model, without the chip.

A model file comes in, a table or JSON goes out; the exit code of `check` is its verdict.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

import backends
from passes import options
from passes.errors import SettingsError
from passes.exits import DONE, INVALID, console, guarded

if TYPE_CHECKING:
    from passes.fitness import Fitness
    from passes.prediction import Prediction

Top = Annotated[int, typer.Option("--top", help="Kernels listed, the longest first; 0 lists all in graph order.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", help="Sizes of an input, such as x:1,3,224,224. May be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on the standard output, nothing else there.")]


def predict(
    model: options.Model, target: options.Target = "cpu", top: Top = 20, shape: Shapes = None, as_json: AsJson = False
) -> None:
    """Modelled time on a chip, operator by operator: what bounds it, what padding wastes, what is not supported.

    Example:  blochfold predict model.onnx --target ascend:310p3 --shape x:1,3,224,224
    """
    if top < 0:
        raise typer.BadParameter(f"expected 0 or more; got {top}", param_hint="--top")

    def work() -> int:
        from passes import input_sizes, model_io, prediction

        loaded = model_io.load(model)
        shapes = input_sizes.resolve(loaded.proto, input_sizes.parse(shape or ()))
        found = prediction.predict(loaded, shapes, backends.get(target))
        if as_json:
            typer.echo(json.dumps(found.to_json(), indent=2, sort_keys=True))
        else:
            _show_prediction(found, top)
        return DONE

    raise typer.Exit(guarded(work, announce=False))


def check(
    model: options.Model, target: options.Target = "ascend", shape: Shapes = None, as_json: AsJson = False
) -> None:
    """Whether a chip's toolchain takes the model: FITS, or the obstacles with what to do about them.

    Example:  blochfold check model.onnx --target ascend

    Exit code: 0 it fits the chip's main route, 1 an error to mend, 2 wrong usage, 3 there are obstacles.
    """

    def work() -> int:
        from backends.toolchain import routes_of
        from passes import fitness, input_sizes, model_io

        loaded = model_io.load(model)
        given = input_sizes.parse(shape or ())
        if given:
            input_sizes.resolve(loaded.proto, given)
        chip = backends.get(target)
        routes = routes_of(chip)
        if routes is None:
            raise SettingsError(
                f"nothing is known of the toolchain of {chip.name}, so nothing can be said about the model; name one "
                'in its file: toolchain = "ascend:310p3", or another chip of ascend, cpu, kunlunxin or mlu'
            )
        found = [fitness.check(loaded, route, given) for route in routes]
        fits = not found or found[0].fits
        if as_json:
            content = {"target": chip.name, "fits": fits, "routes": [one.to_json() for one in found]}
            typer.echo(json.dumps(content, indent=2, sort_keys=True))
        else:
            _show_fitness(chip.name, found, fits=fits)
        return DONE if fits else INVALID

    raise typer.Exit(guarded(work, announce=False))


def register(app: typer.Typer) -> None:
    """Add both verbs to the command line."""
    for verb in (predict, check):
        app.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})(verb)


def _show_prediction(found: Prediction, top: int) -> None:
    from rich.table import Table

    from passes import readable

    screen = console()
    given = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found.shapes.items())
    unknown = sum(row.seconds is None for row in found.rows)
    screen.print(f"{found.target}, {given}: {len(found.rows)} kernels", markup=False)
    rows = list(found.rows)
    if top:
        rows = sorted(rows, key=lambda row: -1.0 if row.seconds is None else -row.seconds)[:top]
    priced = sum(row.seconds or 0.0 for row in found.rows) + found.overhead_seconds
    table = Table(box=None, pad_edge=False)
    for column in ("operators", "first node", "modelled", "share", "bound by", "padding"):
        table.add_column(column, justify="right" if column in ("modelled", "share", "padding") else "left")
    for row in rows:
        share = "" if row.seconds is None or not priced else readable.percent(row.seconds / priced, 1)
        table.add_row(
            "+".join(row.operators),
            readable.harmless(row.nodes[0]),
            readable.duration(row.seconds),
            share,
            row.bound,
            readable.percent(row.padding_share, 0) if row.padding_share else "",
        )
    screen.print(table, markup=False)
    if top and len(found.rows) > top:
        screen.print(f"... and {len(found.rows) - top} more (--top 0 lists all)")
    parts = ", ".join(f"{name} {readable.duration(seconds)}" for name, seconds in found.by_bound().items())
    screen.print(f"bound by: {parts}")
    for remark in dict.fromkeys(row.remark for row in found.rows if row.remark):
        screen.print(f"- {remark}", markup=False)
    said = readable.duration(found.seconds) if found.seconds is not None else f"unknown ({unknown} without a price)"
    screen.print(f"modelled total on {found.target}: {said}", markup=False)
    screen.print(f"{found.assumed[0]} of {found.assumed[1]} facts are assumed: blochfold backends show {found.target}")


def _show_fitness(target: str, found: list[Fitness], *, fits: bool) -> None:
    from passes import readable

    screen = console()
    for one in found:
        screen.print(f"{one.route}: {'fits' if one.fits else 'does not fit'}  ({one.source})", markup=False)
        for finding in one.findings:
            advice = f"{finding.advice[:1].upper()}{finding.advice[1:]}"
            line = f"  {finding.level}: {finding.subject}: {finding.what}. {advice}."
            screen.print(readable.harmless(line), markup=False, soft_wrap=True)
    if not found:
        screen.print("no compiler between: ONNX Runtime runs the file as it is")
    screen.print(f"{'FITS' if fits else 'DOES NOT FIT'}  {target}", markup=False)
