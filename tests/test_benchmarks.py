"""The benchmark runner: it refuses wrong results, outlives its peers, and reads back what it wrote."""

import dataclasses
import gc
import itertools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("rich", reason="pip install '.[bench]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from rich.console import Console

import measure as measuring
import report
import run
import suites
import timing
from adapters import rnnkern_layer, torch_nn
from check import compare, expected
from results import Results, Row
from suites import Data, Problem

QUICK = measuring.Limits(budget=0.01, rounds=2)
TINY = Problem("lstm", hidden=8, batch=2, steps=5)


@pytest.fixture(autouse=True)
def small_runs(monkeypatch):
    """Few inputs; one thread: beside other tests, a pool of two spends its time waiting at barriers; and a collection
    before each timing that skips what other tests left."""
    monkeypatch.setattr(measuring, "MOST_INPUTS", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


def tiny(problem):
    """The same kind of problem in a size that takes no time."""
    sizes = {"steps": 4, "projection": 4}
    return dataclasses.replace(problem, hidden=8, batch=3, **{k: min(v, getattr(problem, k)) for k, v in sizes.items()})


def measure(problems, sides, out=None):
    results = Results.start("test", {})
    code = run.run_suite(problems, sides, results, QUICK, out=out)
    assert results.complete == (code == 0)
    return results, results.complete


def peer(build):
    return SimpleNamespace(NAME="peer", INSTALL="", BY_TRANSFORMS=True, load=lambda: None, build=build)


def test_every_kind_of_problem_in_the_suites_is_measured():
    problems = list(dict.fromkeys(tiny(p) for suite in suites.SUITES for p in suites.select(suite)))
    results, complete = measure(problems, run.available(["torch.nn"], Console(quiet=True)))
    assert complete
    assert [(r.side, r.message) for r in results.rows if r.status not in ("ok", "unsupported")] == []
    ours = [row for row in results.rows if row.side == "rnnkern"]
    assert len(ours) == len(problems)
    for row in ours:
        assert len(row.samples) == 2 and all(s > 0 for s in row.samples)
        assert bool(row.plan) == Problem(**row.problem).one_call


def test_results_of_another_schema_are_refused(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"schema": 0, "rows": []}))
    with pytest.raises(SystemExit, match=r"old\.json: not a file of results: expected results of schema 2, got 0"):
        Results.load(path)
    for other in ("{", "[]", '{"schema": 2}'):
        path.write_text(other)
        with pytest.raises(SystemExit, match=r"old\.json: not a file of results"):
            Results.load(path)
    with pytest.raises(SystemExit, match=r"none\.json: not a file of results"):
        Results.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "training"}, {"members": 2}, {"members": 2, "mode": "training"}, {"mode": "per-sample"}],
    ids=str,
)
@pytest.mark.parametrize("which", [0, -1])
def test_a_wrong_result_is_refused_and_not_timed(options, which):
    def build(data):
        right = torch_nn.build(data)

        def call(i):
            results = [r.clone() for r in getattr(right, "results", list)(right(i))]
            results[which].flatten()[-1] += 0.01
            return results

        return call

    results, complete = measure([dataclasses.replace(TINY, **options)], {"rnnkern": rnnkern_layer, "peer": peer(build)})
    ours, theirs = results.rows
    assert complete and ours.status == "ok" and ours.samples
    assert theirs.status == "wrong" and theirs.samples == []
    assert "is off by" in theirs.message


def test_the_result_of_another_input_is_refused():
    def build(data):
        right = torch_nn.build(data)

        def call(i):
            return right(0)

        call.results = right.results
        return call

    results, _ = measure([TINY], {"rnnkern": rnnkern_layer, "peer": peer(build)})
    assert [row.status for row in results.rows] == ["ok", "wrong"]


def test_nan_is_a_wrong_result():
    data = Data(TINY)
    want = expected(data)
    assert compare(TINY, want, want, is_peer=False) == (0.0, "")
    broken = [torch.full_like(want[0], float("nan")), *want[1:]]
    assert "y is off by nan" in compare(TINY, broken, want, is_peer=True)[1]


@pytest.mark.parametrize("calls_before", [0, 1, 10])
def test_a_peer_that_crashes_is_reported_and_the_rest_is_measured(calls_before):
    """While it is checked, while it is warmed up, while it is timed."""

    def build(data):
        right = torch_nn.build(data)

        def call(i):
            if next(count) >= calls_before:
                raise RuntimeError("peer has no more wishes\nsecond line")
            return right(i)

        call.results = right.results
        return call

    count = itertools.count()
    results, complete = measure(
        [TINY, dataclasses.replace(TINY, cell="gru")], {"rnnkern": rnnkern_layer, "peer": peer(build)}
    )
    assert complete and len(results.rows) == 4
    for ours, theirs in (results.rows[:2], results.rows[2:]):
        assert ours.status == "ok" and len(ours.samples) == 2
        assert (theirs.status, theirs.message) == ("failed", "RuntimeError: peer has no more wishes")


def test_a_peer_that_cannot_do_a_problem_says_why():
    problem = dataclasses.replace(TINY, reset=0.5)
    results, _ = measure([problem], {"rnnkern": rnnkern_layer, "torch.nn": torch_nn})
    ours, theirs = results.rows
    assert ours.status == "ok"
    assert (theirs.status, theirs.message) == ("unsupported", "torch.nn has no reset mask")


def test_a_peer_that_is_not_installed_is_named_with_how_to_install_it(monkeypatch):
    def load():
        raise ImportError("no module")

    missing = SimpleNamespace(NAME="peer", INSTALL="pip install peer", load=load)
    monkeypatch.setattr(run, "adapters", lambda: {"rnnkern": rnnkern_layer, "peer": missing})
    console = Console(record=True, quiet=False, file=open("/dev/null", "w"))
    assert list(run.available(None, console)) == ["rnnkern"]
    assert "peer is not installed (no module): pip install peer" in console.export_text()


def test_an_interruption_keeps_what_was_measured(tmp_path):
    def build(data):
        if data.problem.cell == "gru":
            raise KeyboardInterrupt
        return torch_nn.build(data)

    out = tmp_path / "results.json"
    _, complete = measure([TINY, dataclasses.replace(TINY, cell="gru")], {"peer": peer(build)}, out)
    assert not complete
    kept = Results.load(out)
    assert not kept.complete
    assert [row.problem["cell"] for row in kept.rows] == ["lstm"] and kept.rows[0].samples


def test_the_time_limit_ends_a_run():
    problems = [dataclasses.replace(TINY, steps=steps) for steps in range(1, 200)]
    results = Results.start("test", {})
    assert run.run_suite(problems, {"torch.nn": torch_nn}, results, measuring.Limits(seconds=0.5)) == 0
    assert 0 < len(results.rows) < len(problems)
    assert not results.complete


def test_samples_of_the_sides_are_taken_in_turn_and_inputs_rotate():
    calls = []

    def side(name):
        def call(i):
            calls.append((name, i))
            time.sleep(0.005)  # longer than a sample should take: one call each

        return call

    timed = timing.interleave({"a": side("a"), "b": side("b")}, budget=0.125, rounds=3)
    assert {name: (one.calls, len(one.samples)) for name, one in timed.items()} == {"a": (1, 3), "b": (1, 3)}
    assert [i for _, i in calls] == list(range(len(calls)))
    order = [name for name, _ in calls[-12:]]  # each sample is one untimed and one timed call
    assert order == ["a", "a", "b", "b", "b", "b", "a", "a", "b", "b", "a", "a"]


def test_a_side_waits_until_no_thread_of_the_one_before_runs(monkeypatch):
    """Threads that spin show by the processor time that the process uses: here in two looks of three."""
    used = iter([0.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    with monkeypatch.context() as patched:
        patched.setattr(timing.time, "process_time", lambda: next(used))
        assert timing.wait_for_idle_threads() >= 3 * timing.QUIET
    assert next(used, None) is None
    events = []
    monkeypatch.setattr(timing, "wait_for_idle_threads", lambda: events.append("wait") or 0.0)
    sides = {name: lambda i, name=name: events.append(name) for name in "ab"}
    timing.interleave(sides, budget=1e-6, rounds=1)
    order = [name for name, _ in itertools.groupby(events)]
    assert order == ["wait", "a", "wait", "b", "wait", "a", "wait", "b"]


def test_the_table_names_the_worst_case():
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    results = Results.start("test", {})
    for hidden, theirs in ((8, 3e-3), (16, 0.5e-3)):
        problem = dataclasses.replace(TINY, hidden=hidden).as_dict()
        results.rows += [Row(problem, "rnnkern", "ok", samples=[1e-3]), Row(problem, "peer", "ok", samples=[theirs])]
    report.print_report(results, console)
    text = console.export_text()
    assert "3.00" in text
    assert "worst case: 0.50× against peer: LSTM inference H 16 B 2 T 5" in text
