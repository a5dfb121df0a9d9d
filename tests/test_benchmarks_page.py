"""The HTML report in a real browser: its table sorts and filters. `make test-report` runs this; without chromium it is
skipped elsewhere."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="pip install '.[bench]'")
pytest.importorskip("rich", reason="pip install '.[bench]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import page
import plots
from results import Results, Row
from suites import Problem

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
LIMITS = {
    "threads": 1,
    "caches": [{"level": "memory", "bytes": None, "gbs": 100.0}],
    "fma_gflops": 100.0,
    "gemm_gflops": {"float32": 100.0, "bfloat16": 200.0},
}


@pytest.fixture
def results():
    """Six problems; the peer is 2 to 7 times slower, but for the last: there it is faster. One peer fails."""
    found = Results.start("grid", {"suite": "grid"})
    found.limits = LIMITS
    for k, (cell, hidden) in enumerate([(c, h) for c in ("lstm", "gru") for h in (32, 256, 1024)]):
        problem = Problem(cell, hidden, batch=1, steps=100).as_dict()
        ours = [1e-4 * (k + 1)] * 5
        theirs = [s * (0.5 if k == 5 else k + 2) for s in ours]
        found.rows += [Row(problem, "rnnkern", "ok", samples=ours), Row(problem, "torch.nn", "ok", samples=theirs)]
        found.rows.append(Row(problem, "onnxruntime", "unsupported"))
    found.rows.append(Row(problem, "broken", "failed", message="RuntimeError: </script><b>no</b>"))
    return found


def in_browser(text, tmp_path, script):
    """What `script`, run at the end of the page, returns."""
    path, marker = tmp_path / "report.html", "browser-says"
    wrapped = f"""<pre id="{marker}"></pre><script>
      document.getElementById("{marker}").textContent = JSON.stringify((() => {{{script}}})())
    </script>"""
    path.write_text(text.replace("</html>", wrapped + "</html>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(rf'<pre id="{marker}">(.*?)</pre>', dom, re.DOTALL)
    assert found and found[1], dom[-2000:]
    return json.loads(html.unescape(found[1]))


HELPERS = """
  const table = () => [...document.querySelectorAll("tbody tr")].map((tr) => [...tr.cells].map((td) => td.textContent));
  const heads = [...document.querySelectorAll("thead th")];
  const column = (name) => table().map((row) => row[heads.findIndex((th) => th.textContent === name)]);
  const click = (name) => heads.find((th) => th.textContent === name).click();
  const type = (id, value) => {
    const field = document.getElementById(id);
    field.value = value;
    field.dispatchEvent(new Event(id === "filter" ? "input" : "change"));
  };
"""


@needs_browser
def test_the_table_sorts_and_filters_in_a_browser(results, tmp_path):
    seen = in_browser(
        page.page({"first": results}),
        tmp_path,
        HELPERS
        + """
  const seen = { heads: heads.map((th) => th.textContent), all: table().length };
  click("×"); seen.up = column("×"); seen.mark = heads.find((th) => th.textContent === "×").getAttribute("aria-sort");
  click("×"); seen.down = column("×");
  click("H"); seen.hidden = column("H");
  type("filter", "lstm H256"); seen.filtered = table();
  type("filter", "H2"); seen.noPart = table().length;
  type("filter", "nothing like it"); seen.none = table().length;
  type("filter", ""); type("verdict", "slower"); seen.slower = column("×");
  seen.count = document.getElementById("count").textContent;
  seen.colour = getComputedStyle(document.querySelector("td.slower")).color;
  type("verdict", "not measured"); seen.note = column("note");
  seen.plots = document.querySelectorAll("figure svg").length;
  seen.errors = document.querySelectorAll("figure + b, body > b").length;
  return seen;
""",
    )
    assert seen["heads"] == page.COLUMNS and seen["all"] == 7
    assert seen["up"] == ["0.500", "2", "3", "4", "5", "6", ""] and seen["mark"] == "ascending"
    assert seen["down"] == ["6", "5", "4", "3", "2", "0.500", ""]
    assert seen["hidden"] == ["32", "32", "256", "256", "1024", "1024", "1024"]
    assert len(seen["filtered"]) == 1 and seen["filtered"][0][1:4] == ["LSTM", "inference", "256"]
    assert seen["noPart"] == 0 and seen["none"] == 0
    assert seen["slower"] == ["0.500"] and seen["count"] == "1 of 7 rows"
    assert seen["colour"] == "rgb(187, 0, 0)"
    assert seen["note"] == ["broken: RuntimeError: </script><b>no</b>"]
    assert seen["plots"] == 2 and seen["errors"] == 0


def test_the_report_loads_nothing_from_elsewhere(results):
    links = re.findall(r"""(?:src|href)="([^"]*)"|url\(([^)]*)\)""", page.page({"first": results}))
    assert links and all(target.startswith("#") for pair in links for target in pair if target)


def test_a_plot_names_what_it_shows(results, tmp_path):
    made = plots.plots_of(results)
    assert [plot.kind for plot in made] == ["steps", "ratios"]
    plots.write(made, tmp_path)
    for plot in made:
        path = tmp_path / f"{plot.name}.svg"
        assert plots.digest_in(path) == plot.digest
        assert plots.svg(plot) == path.read_text()  # drawn again: the same file
        assert (tmp_path / f"{plot.name}.png").stat().st_size > 1000
    results.rows[0].samples = [2e-4] * 5
    assert plots.plots_of(results)[0].digest != made[0].digest
    assert plots.digest_in(tmp_path / "none.svg") is None


def test_odd_layers_are_not_plotted(results):
    for row in results.rows:
        row.problem = dataclasses.asdict(dataclasses.replace(Problem(**row.problem), bidirectional=True))
    assert plots.plots_of(results) == []
