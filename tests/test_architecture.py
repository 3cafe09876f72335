"""The house keeps its plan: directions of import, who touches graphs, size and documentation of every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import passes

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("passes", "backends")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
LONGEST_FILE_LINES = 350
LONGEST_DOCSTRING_LINES = 6
GRAPH_KEEPERS = {
    # In and out, and reading: what a graph is made of.
    *(
        f"passes.{stage}"
        for stage in ("model_io", "graph_io", "graphs", "constants", "operators", "structure", "linear")
    ),
    *(f"passes.{stage}" for stage in ("regions", "nodeforms", "sizes", "siblings", "noops", "twin_units")),
    *(f"passes.{stage}" for stage in ("outlines", "vectors", "halves")),
    *(
        f"passes.{stage}"
        for stage in ("view", "signatures", "tracing", "coupling", "branches", "candidates", "targets")
    ),
    # Where a private copy is edited or handed on.
    *(f"passes.{stage}" for stage in ("apply", "workbench", "appraisal", "annotated", "exact")),
    *(module for module in FILES if module.startswith("passes.rewrites")),
}
HEAVY = ("onnxruntime", "onnx", "onnx_graphsurgeon", "scipy", "networkx", "typer", "rich", "PIL")
CONTRACTS = "[tool.importlinter]"


def _imports(module: str) -> Iterator[str]:
    """Dotted names of everything a file imports, each `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("module", FILES)
def test_module_docstring_says_its_business_shortly(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8")))
    assert docstring, f"{module} has no docstring"
    assert len(docstring.splitlines()) <= LONGEST_DOCSTRING_LINES


@pytest.mark.parametrize("module", FILES)
def test_file_stays_short(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE_LINES


@pytest.mark.parametrize("module", FILES)
def test_only_the_keepers_touch_graphs(module: str) -> None:
    touches = any(_is_within(name, "onnx_graphsurgeon") for name in _imports(module))
    assert not touches or module in GRAPH_KEEPERS, f"{module} should receive records, not a graph"


@pytest.mark.parametrize("module", FILES)
def test_nothing_imports_the_command_line(module: str) -> None:
    assert not any(_is_within(name, "passes.optimize") for name in _imports(module))


@pytest.mark.parametrize("module", [module for module in FILES if _is_within(module, "backends")])
def test_backends_do_not_know_passes(module: str) -> None:
    assert not any(_is_within(name, "passes") for name in _imports(module))


@pytest.mark.parametrize("module", FILES)
def test_nothing_shipped_imports_what_is_not(module: str) -> None:
    stays_home = ("models", "tests", "benchmarks")
    assert not any(_is_within(name, package) for name in _imports(module) for package in stays_home)


@pytest.mark.parametrize("name", passes.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(passes, name) is not None


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'passes' has no attribute 'optimise_model'$"):
        _ = passes.optimise_model


def test_importing_the_packages_is_quiet_and_light() -> None:
    code = f"import sys, passes, backends; print(*sorted(sys.modules.keys() & {set(HEAVY)}))"
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_import_contracts_are_kept() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed beside this Python")
    command = [str(linter), "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", result.stdout)


def test_import_contracts_name_every_stage_rewrite_and_chip() -> None:
    contracts = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition(CONTRACTS)[2]
    named = set(re.findall(r"(?:passes|backends)[\w.]*", contracts))
    shared = {"passes", "passes.rewrites.base"} | {m for m in FILES if m.startswith("backends") and not _is_chip(m)}
    assert sorted(FILES.keys() - named - shared) == []


def _is_chip(module: str) -> bool:
    """Whether the file declares a chip, as discovery sees it: a module-level name FAMILY."""
    body = ast.parse(FILES[module].read_text(encoding="utf-8")).body
    targets = [t for n in body for t in (n.targets if isinstance(n, ast.Assign) else [getattr(n, "target", None)])]
    return any(isinstance(target, ast.Name) and target.id == "FAMILY" for target in targets)
