"""`blochfold backends`: which chips are known, what each price rests on, and the calibration of this machine.

Tables or JSON go out. Nothing here changes a model.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

import backends
from passes.errors import OutputError, SettingsError
from passes.exits import DONE, console, guarded

if TYPE_CHECKING:
    from backends import Backend

app = typer.Typer(no_args_is_help=True, help="Chips: list them, show the facts of one, calibrate this machine.")

_AsJson = Annotated[bool, typer.Option("--json", help="JSON on the standard output, nothing else there.")]
_Chip = Annotated[str, typer.Argument(metavar="CHIP", help="family, family:variant, or a chip file FILE.toml")]


@app.command("list")
def list_chips(as_json: _AsJson = False) -> None:
    """Every chip with its headline facts and how many of its facts are assumed.

    Example:  blochfold backends list
    """
    raise typer.Exit(guarded(lambda: _list(as_json), announce=False))


@app.command()
def show(chip: _Chip, as_json: _AsJson = False) -> None:
    """Every fact of one chip with its source, and what is assumed.

    Example:  blochfold backends show ascend:310p3
    """
    raise typer.Exit(guarded(lambda: _show(backends.get(chip), as_json), announce=False))


@app.command()
def calibrate(
    chip: Annotated[str, typer.Argument(metavar="CHIP", help="cpu: the only chip that can be measured here")] = "cpu",
    seconds: Annotated[float, typer.Option("--seconds", help="Spent on each of about 145 small models.")] = 0.6,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and report, keep nothing.")] = False,
) -> None:
    """Measure this machine with ONNX Runtime, fit the cpu's facts to it, and keep them for later runs.

    Example:  blochfold backends calibrate cpu
    """
    if not seconds > 0:
        raise typer.BadParameter(f"expected more than 0; got {seconds}", param_hint="--seconds")
    raise typer.Exit(guarded(lambda: _calibrate(chip, seconds, keep=not dry_run), announce=False))


def _calibrate(name: str, seconds: float, *, keep: bool) -> int:
    from backends import cpu
    from backends.calibration import store
    from passes import terminal
    from passes.calibrate import calibrate as measure

    if backends.get(name).family != "cpu":
        raise SettingsError(f"cannot calibrate {name}: only the cpu at hand can be measured; give cpu")
    base = cpu.instructions()
    found = measure(cpu.SHIPPED[base], terminal.watch(quiet=False), seconds)
    screen = console()
    for title, numbers in (("shipped facts", found.shipped), ("calibrated", found.summary)):
        screen.print(
            f"{title}: on {numbers['operators']:.0f} held-out operators Spearman {numbers['spearman']:.3f}, "
            f"median error {numbers['median_error']:.1%}, 90th percentile {numbers['p90_error']:.1%}"
        )
    if not keep:
        return DONE
    try:
        written = store.write(found.chip, base, found.summary)
    except OSError as error:
        raise OutputError(f"cannot keep the calibration in {store.path()}: {error}") from error
    screen.print(f"kept: {written}", markup=False, soft_wrap=True)
    screen.print(f"`--target cpu` means cpu:{cpu.HERE} from now on; delete the file to go back")
    return DONE


def _list(as_json: bool) -> int:
    chips = [
        (variant, name == family.default, variant_chip)
        for family in backends.families().values()
        for name, variant_chip in family.variants.items()
        for variant in (variant_chip.name,)
    ]
    if as_json:
        rows = [{"name": name, "default": default, **_headline(chip)} for name, default, chip in chips]
        typer.echo(json.dumps(rows, indent=2, sort_keys=True))
        return DONE
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="Chips (* is what the bare family name means)", title_justify="left")
    for column in ("chip", "step", "matrix TMAC/s", "memory GB/s", "launch us", "facts", "assumed"):
        table.add_column(column, justify="left" if column == "chip" else "right")
    for name, default, chip in chips:
        headline = _headline(chip)
        table.add_row(
            f"{name}{' *' if default else ''}",
            str(chip.channel_step),
            f"{headline['macs_per_second'] / 1e12:.3g}",
            f"{headline['bytes_per_second'] / 1e9:.4g}",
            f"{headline['launch_seconds'] * 1e6:.3g}",
            f"{headline['facts']:.0f}",
            f"{headline['assumed']:.0f}",
        )
    screen = console()
    screen.print(table)
    screen.print("Sources of each number: blochfold backends show CHIP")
    return DONE


def _headline(chip: Backend) -> dict[str, float]:
    facts = chip.facts()
    return {
        "channel_step": chip.channel_step,
        "macs_per_second": chip.cores.value * chip.core_macs_per_second.value,
        "bytes_per_second": chip.bandwidth.value,
        "launch_seconds": chip.launch_matrix.value,
        "facts": len(facts),
        "assumed": sum(fact.mark == "assumed" for fact in facts.values()),
    }


def _show(chip: Backend, as_json: bool) -> int:
    facts = chip.facts()
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "name": chip.name,
                    "digest": chip.digest(),
                    "channel_step": chip.channel_step,
                    "residual": chip.residual,
                    "epilogues": sorted(chip.epilogues),
                    "facts": {
                        name: {"value": fact.value, "mark": fact.mark, "source": fact.source}
                        for name, fact in facts.items()
                    },
                },
                indent=2,
                sort_keys=True,
            )
        )
        return DONE
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=chip.name, title_justify="left")
    for column in ("fact", "value", "mark", "source"):
        table.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, f"{fact.value:.6g}", fact.mark, fact.source)
    marks = Counter(fact.mark for fact in facts.values())
    screen = console()
    screen.print(table, markup=False)
    screen.print(f"channel step {chip.channel_step}; widths worth trying are its multiples")
    screen.print(f"fused behind a matrix kernel: {', '.join(sorted(chip.epilogues)) or 'nothing'}")
    said = "yes" if chip.residual else "no"
    screen.print(f"a residual Add is fused: {said}")
    screen.print(f"rests on: {', '.join(f'{count} {mark}' for mark, count in sorted(marks.items()))}")
    return DONE
