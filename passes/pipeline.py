"""The way, on one page: load, simplify exactly, couple, measure, offer, plan, cut and repair, validate, write.

A model and settings come in, an `Outcome` goes out. The source is never touched; nothing is written before the
evidence is within the budget.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

import backends
from backends import Backend
from passes import (
    __version__,
    aims,
    apply,
    exact,
    inputs,
    lossy,
    model_io,
    operators,
    parallel,
    profile,
    redundancy,
    spectra,
    synthetic,
    workbench,
)
from passes.errors import PlanError, SettingsError, ValidationFailed
from passes.graph_io import to_graph
from passes.memory import affordable
from passes.progress import Progress, Silent
from passes.records import Plan
from passes.results import Outcome, Profile, Variant
from passes.samples import Inputs
from passes.settings import Settings
from passes.validate import Judge
from passes.verdict import EXACT_ERROR

EXACT_SAMPLES = 256
"""Held-out samples on which exact rewrites are looked at before anything is cut; what is written is judged on all."""

MADE_UP = 1024
"""Synthetic samples, calibration and evaluation together, when the user has none."""


def optimize_model(
    source: Path | str | onnx.ModelProto, settings: Settings, *, progress: Progress | None = None
) -> Outcome:
    """Make a model smaller and faster for one chip within a budget, and show the evidence.

    Args:
        source: A file or a model; never changed.
        settings: What the user wants.
        progress: Told how far the run is.

    Returns:
        The optimised model with its plan and evidence; with `plan_only`, the plan alone.

    Raises:
        PassesError: What the user can mend; ValidationFailed when the result cannot be trusted. Nothing is written.
    """
    with parallel.single_threaded():
        return _optimize(source, settings, progress or Silent())


def _optimize(source: Path | str | onnx.ModelProto, settings: Settings, watch: Progress) -> Outcome:
    started = time.perf_counter()
    saved = _read_plan(settings.plan) if settings.plan is not None else None
    if saved is not None:
        target = backends.replayed(settings.target, saved.target)
        settings = replace(
            settings,
            repair=saved.repair,
            depth=saved.depth,
            low_rank=bool(saved.low_ranks),
            seed=saved.seed,
            target=target,
        )
        settings = replace(settings, geometry=saved.geometry)  # type: ignore[arg-type]
    backend = _backend(settings.target)
    with watch.stage("load", None):
        loaded = model_io.load(source)
        output = _destination(loaded, settings)
        if saved is not None:
            _fits(saved, loaded)
        original = model_io.prepare(loaded)
        given = _inputs(settings, original)
    with watch.stage("exact rewrites", None):
        if saved is None:
            simple = exact.simplify(original, backend, settings.batch)
        else:
            simple = exact.Simplified(model=original, steps=saved.exact, refusals=saved.refusals)
        # Carried out once more in one go, as a replay does: both give the same bytes.
        simple = replace(simple, model=apply.rewrite(original, simple.steps))
    notes = [*loaded.notes, *given.all.notes]
    judge = Judge(original, given.evaluation, threads=settings.threads, batch=workbench.RUN_SAMPLES)
    if (moved := judge.moved(simple.model, EXACT_SAMPLES)) > EXACT_ERROR:
        notes.append(_left_out(moved))
        simple = exact.Simplified(model=original, steps=(), refusals=simple.refusals)
    decided = lossy.cut(simple, given.calibration, given.evaluation, judge, backend, settings, saved, watch)
    notes.extend(decided.notes)
    model = decided.found.model if decided.found else simple.model
    evidence = decided.found.evidence if decided.found else judge.evidence(model)
    if decided.found is None and evidence.worst > EXACT_ERROR:
        notes.append(_left_out(evidence.worst))
        simple = exact.Simplified(model=original, steps=(), refusals=simple.refusals)
        model, evidence = original, judge.evidence(original)
    if saved is not None and not aims.within(evidence, settings):
        raise ValidationFailed(
            "the replayed plan loses more on these inputs than the budget allows; nothing was written"
        )
    with watch.stage("measure", None):
        models = (original, model, *(found.model for found in decided.frontier))
        times = profile.measure(models, given.evaluation, batch=settings.batch, threads=settings.threads)
        before, after, *others = (
            profile.profile(m, backend, settings.batch, t) for m, t in zip(models, times, strict=True)
        )
    rewritten = to_graph(simple.model)
    known = operators.find(rewritten)
    twins = redundancy.twins(spectra.measure([op for op in known if op.groups == 1], rewritten))
    made = Plan(
        version=__version__,
        model_digest=loaded.digest,
        target=backend.name,
        target_digest=backend.digest(),
        inputs_digest=given.calibration.digest if decided.found else None,
        geometry=settings.geometry,
        repair=settings.repair,
        depth=settings.depth,
        seed=settings.seed,
        exact=simple.steps,
        shrinks=decided.found.cuts if decided.found else (),
        drops=decided.found.drops if decided.found else (),
        low_ranks=decided.found.low_ranks if decided.found else (),
        refusals=tuple(sorted({*simple.refusals, *decided.refusals})),
        seconds_before=before.modelled_seconds,
        seconds_after=after.modelled_seconds,
    )
    written = None
    if output is not None and not settings.plan_only:
        model_io.save(model, output, protected=loaded.files)
        written = str(output)
    return Outcome(
        frontier=_variants(decided.frontier, others, settings, output, loaded.files),
        model=None if settings.plan_only else model,
        plan=made,
        evidence=None if settings.plan_only else evidence,
        before=before,
        after=after,
        groups=decided.groups,
        branches=decided.branches,
        operators=known,
        twins=twins,
        points=decided.points,
        notes=tuple(dict.fromkeys(notes)),
        output=written,
        seconds=time.perf_counter() - started,
    )


def _left_out(moved: float) -> str:
    return f"the exact rewrites moved the outputs by {moved:.1e} on this machine and were left out"


def _variants(
    found: Sequence[aims.Found],
    profiles: Sequence[Profile],
    settings: Settings,
    output: Path | None,
    protected: Sequence[Path],
) -> tuple[Variant, ...]:
    """Write the models of the frontier beside the result, numbered from the shallowest."""
    made = []
    for number, (one, after) in enumerate(zip(found, profiles, strict=True), 1):
        place = None if output is None else output.with_name(f"{output.stem}.pareto{number}{output.suffix}")
        if place is not None:
            model_io.save(one.model, place, protected=protected)
        made.append(
            Variant(
                shrinks=one.cuts,
                drops=one.drops,
                low_ranks=one.low_ranks,
                after=after,
                evidence=one.evidence,
                within_budget=aims.within(one.evidence, settings),
                output=None if place is None else str(place),
            )
        )
    return tuple(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """The user's inputs, or made-up ones, and their two disjoint parts."""

    all: Inputs
    calibration: Inputs
    evaluation: Inputs


def _backend(target: str) -> Backend:
    try:
        return backends.get(target)
    except (backends.UnknownTarget, backends.InvalidChip) as error:
        raise SettingsError(str(error)) from error


def _inputs(settings: Settings, model: onnx.ModelProto) -> _Given:
    if settings.eval_data:
        given = inputs.load(settings, model)
        judged = replace(settings, data=settings.eval_data, labels=settings.eval_labels, eval_data=(), eval_labels=None)
        evaluation = inputs.load(judged, model)
        evaluation = inputs.first(evaluation, settings.eval_samples)
        calibration = inputs.apart(given, evaluation, samples=settings.samples, seed=settings.seed)
        return _Given(all=given, calibration=calibration, evaluation=evaluation)
    if settings.data:
        given = inputs.load(settings, model)
    else:
        given = synthetic.synthesise(model, affordable(model, MADE_UP), settings.seed)
    calibration, evaluation = inputs.split(
        given, calibration=settings.samples, evaluation=settings.eval_samples, seed=settings.seed
    )
    return _Given(all=given, calibration=calibration, evaluation=evaluation)


def _destination(loaded: model_io.Loaded, settings: Settings) -> Path | None:
    if settings.output is not None or loaded.path is None:
        return settings.output
    return loaded.path.with_name(f"{loaded.path.stem}.{backends.label(settings.target)}.onnx")


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise PlanError(f"{path} is not a plan of this tool: {error}") from error


def _fits(saved: Plan, loaded: model_io.Loaded) -> None:
    if saved.model_digest != loaded.digest:
        raise PlanError(
            f"the plan was made for another model: SHA-256 {saved.model_digest[:9]}…, this is {loaded.digest[:9]}…"
        )
    if saved.version != __version__:
        raise PlanError(f"the plan was made by version {saved.version}, this is {__version__}; make the plan again")
