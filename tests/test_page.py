"""The page needs nothing but itself, cannot be made to run what a model file says, and works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_analysis import WITH_CURVES, dense

from models.wiring import redundant
from passes import page
from passes.analysis import analyse
from passes.findings import Analysis, AnalysisSettings

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LARGEST_BYTES = 10_000_000
PROBE = """<script>
"use strict";
{
window.addEventListener("error", e => { document.documentElement.dataset.error = e.message; });
const report = {};
const rows = () => [...document.querySelectorAll("#operators tbody tr")];
const names = () => rows().map(tr => tr.cells[0].textContent);
report.rows = rows().length;
const heads = [...document.querySelectorAll("#operators th button")];
const by = title => heads.find(h => h.textContent === title);
const started = performance.now();
by("effective rank").click();
report.rising = rows().slice(0, 50).map(tr => parseFloat(tr.cells[2].textContent));
by("effective rank").click();
report.falling = rows().slice(0, 50).map(tr => parseFloat(tr.cells[2].textContent));
const filter = document.getElementById("filter");
filter.value = names()[0];
filter.dispatchEvent(new Event("input"));
report.filtered = names();
filter.value = "";
filter.dispatchEvent(new Event("input"));
rows()[rows().length - 1].click();
report.chosen = document.getElementById("name").textContent;
report.last = names().at(-1);
report.lines = document.querySelectorAll("#spectrum polyline").length;
const near = document.querySelector("#near a");
if (near) { near.click(); report.followed = document.getElementById("name").textContent === near.textContent; }
const group = document.querySelector("#groups tbody tr");
if (group) { group.click(); report.curve = document.querySelectorAll("#curve polyline").length; }
const canvas = document.getElementById("graph"), box = canvas.getBoundingClientRect();
const at = (type, x, y, more) => {
  const about = { clientX: x, clientY: y, pointerId: 1, bubbles: true, cancelable: true, ...more };
  return type === "wheel" ? new WheelEvent(type, about) : new PointerEvent(type, about);
};
canvas.setPointerCapture = () => {};
const before = [panX, panY, zoom];
canvas.dispatchEvent(at("pointerdown", box.left + 10, box.top + 10));
canvas.dispatchEvent(at("pointermove", box.left + 60, box.top + 30));
canvas.dispatchEvent(at("pointerup", box.left + 60, box.top + 30));
report.panned = [panX - before[0], panY - before[1]];
canvas.dispatchEvent(at("wheel", box.left + 10, box.top + 10, { deltaY: -200 }));
report.zoomed = zoom / before[2];
const p = places[0];
canvas.dispatchEvent(at("pointerdown", box.left + zoom * p.x + panX, box.top + zoom * p.y + panY));
canvas.dispatchEvent(at("pointerup", box.left + zoom * p.x + panX, box.top + zoom * p.y + panY));
report.clicked = document.getElementById("name").textContent;
report.milliseconds = performance.now() - started;
report.ready = document.documentElement.dataset.ready;
report.error = document.documentElement.dataset.error || null;
report.injected = window.injected === true;
report.resources = performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length;
document.body.innerHTML = "";
document.body.append(JSON.stringify(report));
}
</script></body>"""


def browse(text: str, folder: Path) -> dict[str, object]:
    """Open the page without network in a headless browser, use it, and tell what happened."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    path = folder / "probe.html"
    path.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1400,1400",
        f"--user-data-dir={folder / 'p'}",
    ]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [browser, *flags, offline, "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert (done.returncode, complaints) == (0, [])
    body = re.search(r"<body>(\{.*\})\s*</body>", done.stdout, re.DOTALL)
    assert body is not None, done.stdout[-500:]
    report: dict[str, object] = json.loads(body[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return report


def values_in(text: str) -> dict[str, object]:
    found = re.search(r'<script id="values" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    values: dict[str, object] = json.loads(found[1])
    return values


@pytest.fixture(scope="module")
def seen() -> Analysis:
    return analyse(redundant(), WITH_CURVES)


def test_the_page_names_no_other_place(seen: Analysis) -> None:
    text = page.render(seen)
    addresses = set(re.findall(r"https?://[^\s\"']+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a namespace, never fetched"
    assert "src=" not in text and "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text
    assert page.PLACE not in text


def test_the_page_holds_what_the_analysis_found(seen: Analysis) -> None:
    values = values_in(page.render(seen))
    full = seen.as_json()
    operators, groups = values["operators"], values["groups"]
    assert isinstance(operators, list) and isinstance(groups, list)
    assert [one["name"] for one in operators] == [one.name for one in seen.operators]
    assert len(groups) == len(seen.groups)
    assert operators[0]["norm"] == pytest.approx(seen.operators[0].norm, rel=1e-4)
    assert values["digest"] == full["digest"]
    assert values_in(page.render(seen)) == values


def test_names_cannot_end_the_script() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 4))
    evil = "</script><script>window.injected=true</script><!--"
    text = page.render(analyse(dense({evil: weight, "good": weight + 1}), AnalysisSettings()))
    assert evil not in text
    assert [one["name"] for one in values_in(text)["operators"]] == [evil, "good"]  # type: ignore[attr-defined]


def test_a_browser_shows_it_and_obeys(seen: Analysis, tmp_path: Path) -> None:
    report = browse(page.render(seen), tmp_path)
    assert report["error"] is None and report["ready"] == "yes"
    assert report["resources"] == 0
    assert report["rows"] == 3 and report["lines"] == 2 and report["curve"] == 1
    rising, falling = report["rising"], report["falling"]
    assert isinstance(rising, list) and rising == sorted(rising) and falling == rising[::-1]
    assert report["filtered"] != [] and report["chosen"] == report["last"] and report["followed"] is True
    assert report["panned"] == [50, 20]
    assert report["zoomed"] == pytest.approx(np.exp(0.4))
    assert report["clicked"] == seen.operators[0].name


def test_a_browser_runs_nothing_of_a_models_names(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 4))
    names = ("</script><script>window.injected=true</script>", "<img src=x onerror=window.injected=true>", "a&amp;b")
    report = browse(
        page.render(analyse(dense({n: weight + i for i, n in enumerate(names)}), AnalysisSettings())), tmp_path
    )
    assert report["injected"] is False and report["error"] is None
    assert report["clicked"] == names[0]


def test_a_thousand_operators_stay_small_and_quick(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        f"/encoder/layer.{i}/attention/self/MatMul_{i}": rng.standard_normal((40, 64))
        * rng.uniform(0.9, 1.0) ** np.arange(64)
        for i in range(1000)
    }
    text = page.render(analyse(dense(weights), AnalysisSettings()))
    assert len(text.encode()) < LARGEST_BYTES
    report = browse(text, tmp_path)
    assert report["rows"] == 1000 and report["error"] is None and report["ready"] == "yes"
