"""Modelled time of a model on a chip, kernel by kernel: what bounds each, what padding wastes, what is not supported.

A checked model, the shapes of its inputs and a chip come in, a frozen `Prediction` goes out. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends import Backend
from backends.toolchain import ADVICE, routes_of
from passes.graph_io import to_graph
from passes.model_io import Loaded, prepare
from passes.records import Json
from passes.shapes import Shape, infer
from passes.structure import structures
from passes.workload import Pricer


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kernel: nodes that run as one.

    Attributes:
        nodes: Their names, in order.
        operators: Their types, in order.
        seconds: Modelled; None when it cannot be priced.
        bound: What the time goes to: matrix, vector, memory, launch or layout.
        macs: Multiply-accumulates.
        padding_share: Of the multiply-accumulates that run, the share spent on padding.
        remark: What the toolchain does with it, and what to do about that; "" when nothing.
    """

    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    seconds: float | None
    bound: str
    macs: int
    padding_share: float
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The modelled run.

    Attributes:
        target: Chip, with its variant.
        shapes: Of the inputs.
        rows: Every kernel, in the graph's order.
        overhead_seconds: Of the run beside its kernels.
        seconds: Of the run; None when a kernel cannot be priced.
        assumed: Facts of the chip that rest on assumptions, and all of them.
    """

    target: str
    shapes: Mapping[str, Shape]
    rows: tuple[Row, ...]
    overhead_seconds: float
    seconds: float | None
    assumed: tuple[int, int]

    def by_bound(self) -> dict[str, float]:
        """Seconds of the priced kernels by what bounds them, the longest first; the overhead under "run"."""
        total: dict[str, float] = {"run": self.overhead_seconds} if self.overhead_seconds else {}
        for row in self.rows:
            if row.seconds:
                total[row.bound] = total.get(row.bound, 0.0) + row.seconds
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def to_json(self) -> dict[str, Json]:
        """Everything, for a pipeline."""
        return {
            "target": self.target,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "seconds_modelled": self.seconds,
            "overhead_seconds": self.overhead_seconds,
            "seconds_by_bound": dict(self.by_bound()),
            "facts_assumed": self.assumed[0],
            "facts": self.assumed[1],
            "kernels": [
                {
                    "nodes": list(row.nodes),
                    "operators": list(row.operators),
                    "seconds_modelled": row.seconds,
                    "bound": row.bound,
                    "macs": row.macs,
                    "padding_share": row.padding_share,
                    "remark": row.remark,
                }
                for row in self.rows
            ],
        }


def predict(loaded: Loaded, inputs: Mapping[str, Shape], chip: Backend) -> Prediction:
    """Price every kernel of a model."""
    model = prepare(loaded)
    found = structures(to_graph(model))
    shapes = infer(model, inputs)
    pricer = Pricer(found, chip)
    kinds = {structure.name: structure.op_type for structure in found}
    rows = []
    for nodes, cost in pricer.kernels(shapes.get):
        operators = tuple(kinds[node] for node in nodes)
        wasted = 0.0 if cost is None or cost.padded_macs <= cost.macs else 1 - cost.macs / cost.padded_macs
        rows.append(
            Row(
                nodes=nodes,
                operators=operators,
                seconds=None if cost is None else cost.seconds,
                bound="" if cost is None else cost.bound,
                macs=0 if cost is None else cost.macs,
                padding_share=wasted,
                remark=_remark(chip, operators, pricer.unpriced),
            )
        )
    facts = chip.facts().values()
    return Prediction(
        target=chip.name,
        shapes=dict(inputs),
        rows=tuple(rows),
        overhead_seconds=chip.overhead_seconds,
        seconds=pricer.seconds(shapes.get),
        assumed=(sum(fact.mark == "assumed" for fact in facts), len(facts)),
    )


def _remark(chip: Backend, operators: tuple[str, ...], unpriced: tuple[str, ...]) -> str:
    remarks = [f"{kind} is unknown to the model: no price" for kind in operators if kind in unpriced]
    for route in (routes_of(chip) or ())[:1]:
        for kind in operators:
            what = ""
            if kind not in route.supported:
                what = "is not supported" if route.complete else "is not on the public list"
            elif kind in route.slow:
                what = route.slow[kind]
            if what:
                advice = f": {ADVICE[kind]}" if kind in ADVICE else ""
                remarks.append(f"{kind} {what} ({route.name}){advice}")
    return "; ".join(dict.fromkeys(remarks))
