"""`blochfold groups`: a model in, the units that must shrink together out, and why the others are frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from passes import options
from passes.exits import console

HELP = (
    "List the units that must shrink together, and why the others are frozen.\n\n"
    "\b\n"
    "  blochfold groups model.onnx\n\n"
    "Nothing is optimised and nothing is written. A group names who makes its units, who reads them and who carries "
    "them along; a frozen one names the operator that holds it and why."
)

AsItIs = Annotated[bool, typer.Option("--as-it-is", help="Leave out the exact rewrites.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on the standard output, nothing else there.")]


def register(app: typer.Typer, guarded: Callable[..., int], codes: str) -> None:
    """Add the command; the arguments are those of `cli_analyze.register`."""

    @app.command("groups", help=HELP, epilog=codes, no_args_is_help=True)
    def groups_command(model: options.Model, as_it_is: AsItIs = False, as_json: AsJson = False) -> None:
        def work() -> int:
            from passes import groups

            found = groups.groups_of(model, settle=not as_it_is)
            if as_json:
                typer.echo(groups.to_json(found), nl=False)
            else:
                console().print(groups.table(found))
            return 0

        raise typer.Exit(guarded(work, announce=False))
