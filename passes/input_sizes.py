"""Sizes that a user gives for a model's inputs: `x:1,3,224,224` comes in, every input's shape goes out.

A size that the model leaves open has to be given; what does not fit the model is a ModelError that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from passes.errors import ModelError
from passes.interface import Slot, inputs_of

Shape = tuple[int, ...]


def parse(texts: Sequence[str]) -> dict[str, Shape]:
    """Sizes by input name.

    Args:
        texts: Each `name:1,3,224,224`; a name may hold colons, the sizes stand after the last one.

    Raises:
        ModelError: A text is of another form, a size is no whole number above 0, or a name comes twice.
    """
    given: dict[str, Shape] = {}
    for text in texts:
        name, colon, sizes = text.rpartition(":")
        parts = sizes.split(",") if sizes else []
        if not colon or not name:
            raise ModelError(f"--shape expects NAME:SIZES such as x:1,3,224,224; got {text!r}")
        if not all(part.strip().isascii() and part.strip().isdigit() and int(part) > 0 for part in parts):
            raise ModelError(f"--shape expects whole numbers above 0 after {name!r}; got {sizes!r}")
        if name in given:
            raise ModelError(f"--shape names the input {name!r} twice; give it once")
        given[name] = tuple(int(part) for part in parts)
    return given


def resolve(model: onnx.ModelProto, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shape of every input: what the model fixes, and what was given for the rest.

    Raises:
        ModelError: A name is no input, a rank or a fixed size differs, one symbol gets two sizes, or a size is open.
    """
    slots = {slot.name: slot for slot in inputs_of(model)}
    for name in given:
        if name not in slots:
            raise ModelError(f"--shape names {name!r}, which is no input; the inputs are {_listed(slots.values())}")
    symbols: dict[str, tuple[int, str]] = {}
    for name, sizes in given.items():
        _fit(slots[name], sizes, symbols)
    shapes: dict[str, Shape] = {}
    open_slots = []
    for name, slot in slots.items():
        known = given.get(name) or _filled(slot, symbols)
        if known is None:
            open_slots.append(slot)
        else:
            shapes[name] = known
    if open_slots:
        example = " ".join(f"--shape {slot.name}:{example_of(slot)}" for slot in open_slots)
        named = sorted({dim for slot in open_slots for dim in slot.shape or () if isinstance(dim, str)})
        said = f" (symbols: {', '.join(named)})" if named else ""
        raise ModelError(
            f"sizes are open in {_listed(open_slots)}{said}; give them, for example {example}, with your own numbers"
        )
    return shapes


def _fit(slot: Slot, sizes: Shape, symbols: dict[str, tuple[int, str]]) -> None:
    if slot.shape is None:
        return
    if len(slot.shape) != len(sizes):
        raise ModelError(f"--shape gives {len(sizes)} sizes for {slot}, which has {len(slot.shape)}")
    for dim, size in zip(slot.shape, sizes, strict=True):
        if isinstance(dim, int) and dim != size:
            raise ModelError(f"--shape gives {size} where {slot} has {dim}; a size that the model fixes cannot change")
        if isinstance(dim, str):
            known, by = symbols.setdefault(dim, (size, slot.name))
            if known != size:
                raise ModelError(f"--shape gives {dim} two sizes: {known} by {by!r} and {size} by {slot.name!r}")


def _filled(slot: Slot, symbols: Mapping[str, tuple[int, str]]) -> Shape | None:
    if slot.shape is None:
        return None
    sizes = [symbols[dim][0] if isinstance(dim, str) and dim in symbols else dim for dim in slot.shape]
    fixed = tuple(size for size in sizes if isinstance(size, int))
    return fixed if len(fixed) == len(sizes) else None


def example_of(slot: Slot) -> str:
    """Sizes that the input could be given, open ones as 1, as `--shape` reads them."""
    dims = slot.shape if slot.shape is not None else (None,)
    return ",".join(str(dim) if isinstance(dim, int) else "1" for dim in dims)


def _listed(slots: Iterable[Slot]) -> str:
    return ", ".join(str(slot) for slot in slots)
