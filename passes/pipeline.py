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
    apply,
    branches,
    candidates,
    coupling,
    exact,
    frontier,
    inputs,
    model_io,
    operators,
    parallel,
    plan,
    profile,
    redundancy,
    search,
    spectra,
    synthetic,
    workbench,
)
from passes.errors import PlanError, SettingsError, ValidationFailed
from passes.graph_io import to_graph
from passes.memory import affordable
from passes.progress import Progress, Silent
from passes.records import Branch, Group, Plan, Refusal
from passes.results import Outcome, Profile, SearchPoint, Variant
from passes.samples import Inputs
from passes.settings import Settings
from passes.validate import Judge
from passes.verdict import EXACT_ERROR
from passes.workload import Pricer, structures

PROBE_SAMPLES = 64
"""Held-out samples on which sensitivities are measured."""

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
        settings = replace(settings, repair=saved.repair, depth=saved.depth, seed=saved.seed, target=target)
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
    evidence = judge.evidence(simple.model)
    if evidence.worst > EXACT_ERROR:
        notes.append(f"the exact rewrites moved the outputs by {evidence.worst:.1e} on this machine and were left out")
        simple = exact.Simplified(model=original, steps=(), refusals=simple.refusals)
        evidence = judge.evidence(original)
    decided = _cut(simple, given, judge, backend, settings, saved, watch)
    notes.extend(decided.notes)
    model, evidence = (decided.found.model, decided.found.evidence) if decided.found else (simple.model, evidence)
    if saved is not None and not search.within(evidence, settings):
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


def _variants(
    found: Sequence[search.Found],
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
                after=after,
                evidence=one.evidence,
                within_budget=search.within(one.evidence, settings),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """What the lossy half of the way came to."""

    found: search.Found | None
    groups: tuple[Group, ...]
    branches: tuple[Branch, ...]
    refusals: tuple[Refusal, ...]
    points: tuple[SearchPoint, ...]
    notes: tuple[str, ...]
    frontier: tuple[search.Found, ...] = ()


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


def _cut(
    simple: exact.Simplified,
    given: _Given,
    judge: Judge,
    backend: Backend,
    settings: Settings,
    saved: Plan | None,
    watch: Progress,
) -> _Decided:
    """Couple, measure, offer, plan and search; or cut what a saved plan says."""
    graph = to_graph(simple.model)
    coupled = coupling.couple(graph, simple.model, settings.batch)
    found, refusals = candidates.gather(graph, coupled)
    residual, entangled = branches.find(graph, coupled) if settings.depth else ((), ())

    def decided(
        result: search.Found | None,
        *notes: str,
        points: tuple[SearchPoint, ...] = (),
        along: tuple[search.Found, ...] = (),
    ) -> _Decided:
        return _Decided(
            found=result,
            groups=coupled.groups,
            branches=residual,
            refusals=(*refusals, *entangled),
            points=points,
            notes=notes,
            frontier=along,
        )

    if saved is not None:
        # All groups are measured again, not only those that are cut: what is read out decides what the runtime fuses,
        # and with it the last digits of the moments.
        known = {candidate.group.name for candidate in found}, {branch.name for branch in residual}
        if not ({cut.group for cut in saved.shrinks} <= known[0] and {drop.branch for drop in saved.drops} <= known[1]):
            raise PlanError(
                "the plan cuts groups or branches that this version does not find in the model; make the plan again"
            )
        if not saved.lossy:
            return decided(None)
        if saved.inputs_digest != given.calibration.digest:
            raise PlanError("the plan was made with other inputs: give the same data, samples and seed as then")
    if settings.exact_only:
        return decided(None)
    if not found and not residual:
        return decided(None, "no group of this model can be cut: see --explain")
    with watch.stage("statistics", None):
        bench = workbench.measure(simple.model, graph, coupled, found, given.calibration, settings, watch, residual)
    if saved is not None:
        return decided(_replayed(saved, bench, judge, watch))
    pricer = Pricer(structures(graph), backend)
    market = plan.Market(coupled, pricer, [candidate.group.name for candidate in found], residual)
    few = inputs.first(given.evaluation, PROBE_SAMPLES)
    probe = Judge(simple.model, replace(few, labels=None), threads=settings.threads, batch=workbench.RUN_SAMPLES)
    with watch.stage("sensitivity", len(bench.offers) + len(residual)) as tick:
        sensitivity = search.sensitivities(bench, probe, backend.channel_step, tick)
    way = plan.walk(bench.offers, sensitivity, market, backend.channel_step, plan.WORTH, residual)
    result, points = search.best(bench, market, way, sensitivity, judge, settings, watch)
    notes = []
    if len(way) == 1:
        notes.append(
            f"no cut of this model is worth its loss on {backend.name}: all together save less than {plan.GAIN:.0%}"
        )
    elif result is None:
        notes.append("no cut that was tried keeps to the budget: exact rewrites only")
    if pricer.unpriced:
        notes.append(f"{backend.name} has no price for {', '.join(pricer.unpriced)}: whole times are unknown")
    along = frontier.explore(bench, market, way, sensitivity, judge, settings, watch) if settings.pareto else ()
    return decided(result, *notes, points=points, along=along)


def _replayed(saved: Plan, bench: apply.Bench, judge: Judge, watch: Progress) -> search.Found:
    model = apply.shrink(bench, saved.shrinks, saved.drops)
    if saved.repair:
        with watch.stage("repair", None) as tick:
            model = apply.mend(bench, model, saved.shrinks, progress=tick)
    widths = {cut.group: len(cut.keep) for cut in saved.shrinks}
    names = tuple(drop.branch for drop in saved.drops)
    point = plan.Point(widths=widths, seconds=None, saved=0.0, damage=0.0, drops=names)
    evidence = judge.evidence(model)
    return search.Found(point=point, cuts=saved.shrinks, drops=saved.drops, model=model, evidence=evidence)


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
