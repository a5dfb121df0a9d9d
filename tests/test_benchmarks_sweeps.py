"""The times of a GPU's strategies: the report says what lies in the file, and on a GPU they are taken."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="pip install '.[bench]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import sweeps
from suites import Problem

LAYER = Problem("lstm", 64, 3, 10, "training", device="cuda")


def row(strategy, forward, predicted):
    return {
        "problem": LAYER.as_dict(),
        "strategy": strategy,
        "forward": forward,
        "plan": {"forward": {"us_per_step": predicted}},
    }


def test_the_report_compares_the_plans_choice_with_the_fastest(capsys):
    refused = {"problem": LAYER.as_dict(), "strategy": "stationary:cluster", "refused": "no clusters"}
    rows = [
        row("planned", 30e-6, 2.0),
        row("stationary:block", 20e-6, 1.0),
        row("stationary:grid", 30e-6, 2.0),
        refused,
    ]
    sweeps.report(rows)
    _, line, last = capsys.readouterr().out.splitlines()
    assert line.split()[-7:] == ["stationary:block", "2.00", "1.50", "block", "0.50", "grid", "0.67"]
    assert last == "what the plan takes needs at most 1.50 times what the fastest strategy needs"


def test_committed_times_can_be_read():
    files = sorted((Path(sweeps.__file__).parent / "results" / "gpu").glob("sweeps-*.json"))
    for file in files:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        for problem, sweep, times in sweeps.sweeps(rows):
            assert problem.steps > 0
            assert sweep in ("forward", "backward")
            assert all(0 < time < 1e6 for pair in times.values() for time in pair)


def test_an_ended_run_keeps_its_rows(monkeypatch):
    monkeypatch.setattr(sweeps, "kernel_times", lambda sides: None)
    monkeypatch.setattr(sweeps.rnnkern, "strategies", list)
    problems = [dataclasses.replace(LAYER, device="cpu", steps=steps) for steps in range(1, 3 * sweeps.TOGETHER)]
    saved = []
    rows = sweeps.measure(problems, budget=1e-3, seconds=0, save=lambda rows: saved.append(len(rows)))
    assert saved == [len(rows)] == [sweeps.TOGETHER]
    assert all(one["strategy"] == "planned" and one["plan"]["strategy"] == "simd" and one["samples"] for one in rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_every_strategy_is_timed_on_cuda():
    saved = []
    rows = {one["strategy"]: one for one in sweeps.measure([LAYER], budget=0.01, save=saved.extend)}
    assert saved == list(rows.values())
    assert "planned" in rows
    for one in rows.values():
        assert "refused" in one or one["samples"], one
        if one["strategy"].startswith("stationary") and "refused" not in one:
            assert 0 < one["forward"] < 1
            assert 0 < one["backward"] < 1
