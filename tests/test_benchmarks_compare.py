"""What tells one run from another: statistics, floors, and the comparison that guards against a slower release."""

import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="pip install '.[bench]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import committed
import compare
import floors
import goal
import measure
import run
import stats
from adapters import rnnkern_layer, torch_nn
from results import Results, Row, against_better, faster
from suites import Problem

TINY = Problem("lstm", hidden=8, batch=2, steps=5)
LIMITS = {
    "threads": 1,
    "caches": [
        {"level": "L1", "bytes": 32 << 10, "gbs": 221.0},
        {"level": "L2", "bytes": 1 << 20, "gbs": 118.0},
        {"level": "L3", "bytes": 32 << 20, "gbs": 99.0},
        {"level": "memory", "bytes": None, "gbs": 20.0},
    ],
    "fma_gflops": 117.0,
    "gemm_gflops": {"float32": 110.0, "bfloat16": 220.0},
}


def results(ours, theirs, problem=TINY):
    found = Results.start("test", {})
    for side, samples in (("rnnkern", ours), ("torch.nn", theirs)):
        status = "ok" if samples else "failed"
        found.rows.append(Row(problem.as_dict(), side, status, samples=samples, message="" if samples else "broke"))
    return found


def saved(tmp_path, name, *arguments):
    results(*arguments).save(tmp_path / name)
    return str(tmp_path / name)


STEADY = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01]


def times(factor):
    return [factor * sample for sample in STEADY]


def test_statistics():
    assert stats.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0)
    assert stats.ratio([([1.0, 2.0, 4.0], [2.0, 4.0, 4.0])]).value == 2.0


def test_the_interval_of_a_median_holds_it_and_narrows_with_more_samples():
    few, many = stats.bootstrap(STEADY), stats.bootstrap(STEADY * 20)
    assert few[0] < 1.0 < few[1] and few == stats.bootstrap(STEADY)
    assert many[1] - many[0] < few[1] - few[0]


def test_slower_is_said_of_thirty_pairs_from_three_processes():
    groups = [(times(1.0), times(0.9))] * 3
    short = stats.ratio(groups)
    assert short.pairs == 24 and not short.enough
    long = stats.ratio([(ours * 2, theirs * 2) for ours, theirs in groups])
    assert long.pairs == 48 and long.processes == 3 and long.enough and long.slower
    assert not stats.ratio([(ours * 2, ours * 2) for ours, _ in groups]).slower


def test_pairs_are_of_one_process():
    ours = [Row({}, "rnnkern", "ok", repeat=k, samples=[1.0 + k] * 3) for k in range(3)]
    theirs = [Row({}, "peer", "ok", repeat=k, samples=[2.0 + 2 * k] * 3) for k in (2, 0)]
    found = faster(ours, theirs)
    assert (found.value, found.pairs, found.processes) == (2.0, 6, 2)


def test_compare_is_silent_about_equal_runs(tmp_path, capsys):
    before = saved(tmp_path, "a.json", times(1), times(2))
    assert compare.main([before, before]) == 0
    assert "0 of 2 changed beyond noise" in capsys.readouterr().out


def test_compare_finds_a_regression_and_keeps_to_its_bound(tmp_path, capsys):
    before, after = saved(tmp_path, "a.json", times(1), times(2)), saved(tmp_path, "b.json", times(1.2), times(2))
    assert compare.main([before, after]) == 1
    printed = capsys.readouterr().out
    assert "1.20" in printed and "beside torch.nn" in printed
    assert compare.main([before, after, "--bound", "1.3"]) == 0
    assert compare.main([after, before]) == 0  # faster


def test_compare_is_not_misled_by_a_machine_that_became_slower(tmp_path):
    assert (
        compare.main([saved(tmp_path, "a.json", times(1), times(2)), saved(tmp_path, "b.json", times(3), times(6))])
        == 0
    )


def test_compare_reports_what_is_no_longer_measured(tmp_path, capsys):
    before, after = saved(tmp_path, "a.json", times(1), times(2)), saved(tmp_path, "b.json", [], times(2))
    assert compare.main([before, after]) == 1
    assert "no longer measured: rnnkern, LSTM inference H 8 B 2 T 5: failed: broke" in capsys.readouterr().out


def test_compare_reports_a_check_that_failed_in_one_process(tmp_path, capsys):
    before, after = results(times(1), times(2)), results(times(1), times(2))
    after.rows.append(dataclasses.replace(after.rows[0], repeat=1, status="wrong", samples=[], message="error 0.1"))
    before.save(tmp_path / "a.json")
    after.save(tmp_path / "b.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert "rnnkern, LSTM inference H 8 B 2 T 5: wrong: error 0.1" in capsys.readouterr().out


@pytest.mark.parametrize(("ours", "code"), [(1.0, 0), (1.5, 1)])
def test_a_change_counts_beside_every_peer(tmp_path, capsys, ours, code):
    """One of two peers became faster, and rnnkern slower or not."""

    def three(name, factor, peer):
        found = results(times(factor), times(2 * peer))
        found.rows.append(dataclasses.replace(found.rows[1], side="onnxruntime", samples=times(2)))
        found.save(tmp_path / name)
        return str(tmp_path / name)

    assert compare.main([three("a.json", 1, 1), three("b.json", ours, 0.7)]) == code
    assert ("1.50" in capsys.readouterr().out) == bool(code)


def test_what_the_same_command_did_not_measure_is_no_longer_measured(tmp_path, capsys):
    other = dataclasses.replace(TINY, hidden=16)
    before, after = results(times(1), times(2)), results(times(1), times(2))
    before.rows += results(times(1), times(2), other).rows
    before.complete = True
    before.save(tmp_path / "a.json")
    for arguments, complete, code in (({}, False, 1), ({}, True, 1), ({"only": "H 8"}, True, 0)):
        after.arguments, after.complete = arguments, complete
        after.save(tmp_path / "b.json")
        assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == code
    assert "LSTM inference H 16 B 2 T 5: missing" in capsys.readouterr().out


def test_what_differs_between_processes_is_no_change(tmp_path, capsys):
    """Of the same code: one process is always a tenth slower."""

    def several(name, factors):
        found = results(times(factors[0]), times(2))
        for repeat, factor in enumerate(factors[1:], 1):
            found.rows += [dataclasses.replace(row, repeat=repeat) for row in results(times(factor), times(2)).rows]
        found.save(tmp_path / name)
        return str(tmp_path / name)

    before, same = several("a.json", [1.0, 1.1, 1.0]), several("b.json", [1.1, 1.1, 1.0])
    assert compare.main([before, same]) == 0
    printed = capsys.readouterr().out
    assert "0 of 2 changed beyond noise" in printed and "fewer than" not in printed
    assert compare.main([before, several("c.json", [1.3, 1.25, 1.3])]) == 1


def test_compare_needs_something_in_common(tmp_path):
    other = dataclasses.replace(TINY, hidden=16)
    before, after = saved(tmp_path, "a.json", times(1), times(2)), saved(tmp_path, "b.json", times(1), times(2), other)
    assert compare.main([before, after]) == 2


def test_older_results_lack_newer_members_of_a_problem(tmp_path):
    older, newer = results(times(1), times(2)), results(times(1.5), times(2))
    for row in older.rows:
        del row.problem["cells"], row.problem["members"]
    older.save(tmp_path / "a.json")
    newer.save(tmp_path / "b.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1


def test_a_planted_slowdown_is_caught(tmp_path, monkeypatch, threads):
    """A sleep in the layer: measured, written, compared."""
    threads(1)  # beside other programs a pool of two waits at barriers for longer than the sleep

    def measured(name):
        found = Results.start("test", {})
        limits = measure.Limits(budget=0.05, rounds=6)
        assert run.run_suite([TINY], {"rnnkern": rnnkern_layer, "torch.nn": torch_nn}, found, limits) == 0
        found.save(tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr(measure, "MOST_INPUTS", 4)
    before = measured("before.json")
    real = rnnkern_layer.build

    def slow(data):
        call = real(data)

        def asleep(i):
            time.sleep(0.002)
            return call(i)

        return asleep

    monkeypatch.setattr(rnnkern_layer, "build", slow)
    assert compare.main([before, measured("after.json"), "--bound", "1.5"]) == 1


@pytest.mark.parametrize(
    ("problem", "microseconds"),
    [  # the table of the machine with these limits
        (Problem("lstm", 64, 1, 100), 0.7),
        (Problem("lstm", 128, 1, 100), 3.3),
        (Problem("lstm", 512, 1, 100), 60),
        (Problem("gru", 512, 1, 100), 45),
        (Problem("gru", 128, 16, 100, mode="training"), 81),
        (Problem("lstm", 128, 16, 100, mode="training"), 108),
    ],
)
def test_floors_are_those_of_the_weights_read_and_the_products(problem, microseconds):
    found = 1e6 * floors.floor(problem, LIMITS, in_turn=True) / problem.steps
    assert found == pytest.approx(microseconds, rel=0.08)


def test_products_beside_streaming_take_the_longer_of_both():
    one, many = Problem("lstm", 512, 1, 100), Problem("lstm", 512, 64, 100)
    loop = 100 * floors.stream(4 * 4 * 512 * 512, LIMITS)
    assert floors.floor(one, LIMITS) == pytest.approx(loop, rel=0.02)
    assert floors.floor(one, LIMITS, in_turn=True) > 1.3 * loop
    assert floors.floor(many, LIMITS) == pytest.approx(floors.floor(many, LIMITS, in_turn=True))


def test_padding_and_narrow_types_lower_a_floor_and_directions_double_it():
    plain = Problem("lstm", 256, 16, 100)
    least = floors.floor(plain, LIMITS)
    assert floors.floor(dataclasses.replace(plain, packed=True), LIMITS) < least
    assert floors.floor(dataclasses.replace(plain, dtype="bfloat16"), LIMITS) < least
    assert floors.floor(dataclasses.replace(plain, bidirectional=True), LIMITS) == pytest.approx(2 * least)
    assert floors.floor(plain, {}) is None and floors.floor(plain, {"missing": "no compiler"}) is None


def test_a_step_from_the_zero_state_is_free_and_a_gpu_runs_both_directions_at_once():
    streamed = dataclasses.replace(TINY, hidden=256, input=8, batch=1, steps=1)
    least = floors.floor(streamed, LIMITS)
    assert floors.floor(dataclasses.replace(streamed, mode="step"), LIMITS) > 10 * least
    gpu = {"block_us": 0.03, "flag_us": 0.5, "l2_gbs": 6000.0, "memory_gbs": 4000.0, "l2_bytes": 60 << 20,
           "multiprocessors": 132, "gemm_gflops": {"float32": 4e5, "bfloat16": 7e5}}  # fmt: skip
    for hidden in (64, 512):
        one = Problem("lstm", hidden, 4, 1000, device="cuda")
        both = dataclasses.replace(one, bidirectional=True)
        assert floors.floor(one, gpu) < floors.floor(both, gpu) < 1.1 * floors.floor(one, gpu)


def test_limits_are_the_best_of_all_processes():
    slower = {"threads": 1, "caches": [{"level": "L1", "bytes": 1, "gbs": 5.0}], "fma_gflops": 9.0,
              "gemm_gflops": {"float32": 1.0, "bfloat16": 4.0}}  # fmt: skip
    other = {"threads": 1, "caches": [{"level": "L1", "bytes": 1, "gbs": 7.0}], "fma_gflops": 8.0,
             "gemm_gflops": {"float32": 2.0, "bfloat16": 3.0}}  # fmt: skip
    found = floors.best(slower, other)
    assert found["caches"][0]["gbs"] == 7.0 and found["fma_gflops"] == 9.0
    assert found["gemm_gflops"] == {"float32": 2.0, "bfloat16": 4.0}
    failed = {"threads": 1, "missing": "no compiler"}
    assert floors.best({}, other) == floors.best(failed, other) == floors.best(other, failed) == other
    assert floors.best({}, failed) == failed


def test_a_floor_that_was_beaten_says_nothing():
    found = Results.start("test", {})
    found.limits = LIMITS
    least = floors.floor(TINY, LIMITS)
    in_turn = floors.floor(TINY, LIMITS, in_turn=True)
    for factor, value in ((2.0, 2.0 * least / in_turn), (0.5, None)):
        ours = Row(TINY.as_dict(), "rnnkern", "ok", samples=[factor * least] * 3)
        case = goal.Case(TINY, {"rnnkern": [ours]}, committed.Run(found, ["a.json"]))
        assert goal.times_floor(case) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize("status", ["wrong", "failed"])
def test_without_one_of_the_peers_there_is_no_better_one(status):
    def rows(side, status="ok", samples=(1.0, 1.0)):
        return [Row(TINY.as_dict(), side, status, samples=list(samples))]

    sides = {"rnnkern": rows("rnnkern"), "torch.nn": rows("torch.nn"), "onnxruntime": rows("onnxruntime")}
    assert against_better(sides) is not None
    sides["onnxruntime"] = rows("onnxruntime", "unsupported", ())
    assert against_better(sides)[1] == "torch.nn"
    sides["onnxruntime"] = rows("onnxruntime", status, ())
    assert against_better(sides) is None


def test_the_limits_of_this_machine_are_measured():
    found = floors.measure_limits("cpu", 1, seconds=0.002)
    assert "missing" not in found, found
    assert [cache["level"] for cache in found["caches"]][-1] == "memory"
    assert all(cache["gbs"] > 0 for cache in found["caches"]) and found["fma_gflops"] > 0
    assert 0 < floors.floor(TINY, found) < 1


@pytest.mark.parametrize("count", [1, 2])
def test_rows_of_several_threads_know_how_far_apart_the_cores_were(monkeypatch, threads, count):
    threads(count)
    monkeypatch.setattr(measure, "MOST_INPUTS", 4)
    (row,) = measure.measure(TINY, {"rnnkern": rnnkern_layer}, measure.Limits(budget=0.01, rounds=2))
    assert row.status == "ok"
    if count == 1:
        assert row.hop_ns is None
    elif len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2:
        assert row.hop_ns == [None, None]
    else:
        assert len(row.hop_ns) == 2 and all(1 < ns < 1e6 for ns in row.hop_ns)


def test_without_a_compiler_there_are_no_floors(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(floors, "compiled", floors.compiled.__wrapped__)
    found = floors.measure_limits("cpu", 1)
    assert "no-such-compiler" in found["missing"] and floors.floor(TINY, found) is None
    assert floors.hop_ns() is None
