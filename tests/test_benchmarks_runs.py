"""The command line of the benchmark runner: its processes, what it keeps when it is interrupted, how it goes on."""

import dataclasses
import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="pip install '.[bench]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import measure
import run
import suites
from adapters import rnnkern_layer, torch_nn
from measure import Watch
from results import Results
from suites import Problem

TINY = Problem("lstm", hidden=8, batch=2, steps=5)
PROBLEMS = [TINY, dataclasses.replace(TINY, cell="gru"), dataclasses.replace(TINY, cell="rnn", mode="training")]


class Children:
    """Stands for run.spawn: runs the command's arguments in this process, and counts."""

    def __init__(self):
        self.commands = []
        self.killed_at = {}  # number of the command → signal that ends it

    def __call__(self, command):
        self.commands.append(command)
        assert command[:2] == [sys.executable, run.__file__]
        number = len(self.commands) - 1
        code = run.main(command[2:])
        return -self.killed_at.get(number, -code), False


@pytest.fixture
def children(monkeypatch):
    """Three tiny problems in the quick suite, measured by processes that are functions here."""
    found = Children()
    monkeypatch.setattr(run, "spawn", found)
    monkeypatch.setattr(measure, "MOST_INPUTS", 4)
    monkeypatch.setattr(run.floors, "measure_limits", lambda device, threads: {"threads": threads, "missing": "no"})
    monkeypatch.setitem(suites.SUITES, "quick", lambda: iter(PROBLEMS))
    threads = torch.get_num_threads()
    gc.freeze()  # what other tests left is not looked through before each timing
    yield found
    gc.unfreeze()
    torch.set_num_threads(threads)


def bench(out, *more):
    own = ["--suite", "quick", "--threads", "1", "--samples", "2", "--budget", "0.01", "--peers", "torch.nn"]
    return run.main([*own, "--out", str(out), *more])


def rows(path):
    return [(row.repeat, row.key, row.side, row.status, len(row.samples)) for row in Results.load(path).rows]


def interrupt_at(monkeypatch, number):
    """Ctrl-C while the given problem is measured."""
    real, calls = measure.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measure, "measure", interrupted)


def test_the_command_line_writes_a_file_that_reads_back_the_same(children, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert bench(out) == 0
    printed = capsys.readouterr().out
    assert "worst case" in printed and "LSTM inference H 8 B 2 T 5" in printed
    results = Results.load(out)
    assert results.complete and len(results.rows) == 6 and len(results.sittings) == 1
    again = tmp_path / "again.json"
    results.save(again)
    assert again.read_text() == out.read_text()
    facts = results.environment
    assert {"cpu", "cores", "threads", "python", "torch", "rnnkern", "precision", "code"} <= facts.keys()
    assert facts["threads"] == 1


def test_each_repeat_is_a_process_and_all_stand_in_one_file(children, tmp_path):
    out = tmp_path / "results.json"
    assert bench(out, "--repeats", "3") == 0
    assert len(children.commands) == 3
    results = Results.load(out)
    assert results.complete and len(results.sittings) == 3
    assert sorted(row.repeat for row in results.rows) == [0] * 6 + [1] * 6 + [2] * 6
    assert all(row.sitting == row.repeat for row in results.rows)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_interrupted_and_resumed_gives_the_same_rows(children, tmp_path, monkeypatch, number):
    """In the first and in the second process."""
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert bench(whole, "--repeats", "2") == 0
    with monkeypatch.context() as once:
        interrupt_at(once, number)
        assert bench(parts, "--repeats", "2") == run.INTERRUPTED
    kept = rows(parts)
    assert len(kept) == 2 * (number - 1) and not Results.load(parts).complete
    assert bench(parts, "--repeats", "2", "--resume") == 0
    assert rows(parts) == rows(whole) and rows(parts)[: len(kept)] == kept
    assert Results.load(parts).complete


def test_what_a_sitting_has_no_time_for_is_left_to_the_next(children, tmp_path):
    out = tmp_path / "results.json"
    assert bench(out, "--repeats", "2", "--resume", "--seconds", "0.0001") == 0
    assert len(rows(out)) < 12 and not Results.load(out).complete
    assert bench(out, "--repeats", "2", "--resume") == 0
    assert len(rows(out)) == 12 and Results.load(out).complete


def test_what_is_complete_is_not_measured_again(children, tmp_path):
    out = tmp_path / "results.json"
    assert bench(out) == 0
    before = Results.load(out).rows
    assert bench(out, "--resume") == 0
    assert Results.load(out).rows == before


@pytest.fixture
def refused(capsys):
    """Runs a command that is refused, and looks for what it says; nothing else is printed."""

    def refuse(out, *more, says):
        capsys.readouterr()
        assert bench(out, *more) == run.REFUSED
        printed = capsys.readouterr()
        assert re.search(says, printed.err) and "written to" not in printed.out

    return refuse


def test_another_run_is_not_gone_on_with(children, tmp_path, refused):
    out = tmp_path / "results.json"
    assert bench(out) == 0
    refused(out, "--resume", "--mode", "inference", says="of another run: mode was all, is inference")
    refused(out, "--resume", "--threads", "2", says="threads was 1, is 2")


def test_results_that_are_there_are_not_written_over(children, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert bench(out) == 0
    with pytest.raises(SystemExit):
        bench(out)
    assert "results.json exists: --resume goes on with it, or name another" in capsys.readouterr().err


def test_a_pattern_picks_problems(children, tmp_path, refused):
    out = tmp_path / "results.json"
    assert bench(out, "--repeats", "2", "--only", "GRU|training") == 0
    results = Results.load(out)
    found = {(row.problem["cell"], row.repeat) for row in results.rows}
    assert found == {("gru", 0), ("gru", 1), ("rnn", 0), ("rnn", 1)} and results.complete
    other = tmp_path / "other.json"
    refused(out, "--resume", says=r"only was GRU\|training, is None")
    refused(other, "--only", "bf16", says="the suite quick has no problem of --mode all that --only bf16 finds")
    refused(other, "--mode", "step", says="the suite quick has no problem of --mode step$")


def test_a_broken_pattern_is_said_to_be_one(children, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench(tmp_path / "results.json", "--only", "(")
    assert "--only: expected a regular expression, got '('" in capsys.readouterr().err


def test_changed_code_is_not_gone_on_with(children, tmp_path, refused):
    out = tmp_path / "results.json"
    assert bench(out) == 0
    results = Results.load(out)
    results.environment["code"] = "another"
    results.save(out)
    refused(out, "--resume", says="code was another")


def test_a_peer_that_kills_the_process_is_reported_and_the_run_goes_on(children, tmp_path, monkeypatch):
    """The first process is told to stop in the second problem, as if a signal had come while torch.nn ran."""
    out = tmp_path / "results.json"
    victim = PROBLEMS[1]
    real = torch_nn.build

    def build(data):
        if len(children.commands) == 1 and data.problem.cell == victim.cell:
            raise KeyboardInterrupt
        return real(data)

    monkeypatch.setattr(torch_nn, "build", build)
    children.killed_at[0] = signal.SIGSEGV
    real_call = Watch.__call__  # what came last before the signal: the empty name comes after, with the exception
    monkeypatch.setattr(Watch, "__call__", lambda self, side: real_call(self, side) if side else None)
    assert bench(out) == 0
    assert len(children.commands) == 2
    found = {(row.problem["cell"], row.side): row for row in Results.load(out).rows}
    assert len(found) == 6
    crashed = found[victim.cell, "torch.nn"]
    assert (crashed.status, crashed.message) == ("failed", "ended the process: SIGSEGV")
    assert all(len(row.samples) == 2 for row in found.values() if row is not crashed)


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
def test_a_broken_gpu_context_costs_one_side_of_one_problem(kind, children, tmp_path, monkeypatch):
    """Some libraries raise errors of their own; then the GPU itself is asked."""
    out = tmp_path / "results.json"
    real = torch_nn.build
    answers = []

    def build(data):
        if data.problem.cell == "gru":
            answers.append(False)
            raise kind("CUDA error: an illegal memory access was encountered")
        return real(data)

    monkeypatch.setattr(torch_nn, "build", build)
    monkeypatch.setattr(measure, "the_gpu_answers", lambda: answers.pop() if answers else True)
    assert bench(out) == 0
    assert len(children.commands) == 2
    failed = [row for row in Results.load(out).rows if row.status != "ok"]
    assert [(row.problem["cell"], row.side) for row in failed] == [("gru", "torch.nn")]
    assert "illegal memory access" in failed[0].message
    assert len(rows(out)) == 6


def test_a_padded_run_that_kills_the_process_is_not_tried_again(children, tmp_path, monkeypatch):
    out = tmp_path / "results.json"
    packed = dataclasses.replace(TINY, mode="training", packed=True)
    monkeypatch.setattr(run, "select", lambda *arguments: [packed])
    real = rnnkern_layer.build

    def build(data):
        if not data.problem.packed:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return real(data)

    monkeypatch.setattr(rnnkern_layer, "build", build)
    assert bench(out) == 1
    assert len(children.commands) == 2
    found = {row.side: row.status for row in Results.load(out).rows}
    assert found == {"rnnkern padded": "failed", "torch.nn": "ok"}


def test_our_own_failure_fails_the_command(children, tmp_path, monkeypatch):
    def build(data):
        raise RuntimeError("no")

    monkeypatch.setattr(rnnkern_layer, "build", build)
    assert bench(tmp_path / "results.json") == 1


def started(child, **keywords):
    """A process that runs `child`, a program, as the runner does, once it says so."""
    code = f"import sys; sys.path.insert(0, {str(Path(run.__file__).parent)!r}); import run; print('ready', flush=True)"
    code += f"; print(run.spawn([sys.executable, '-c', {child!r}]))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **keywords)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("listens", [True, False])
def test_ctrl_c_ends_what_it_runs_at_once_or_the_second_time(listens):
    """A command that ends by itself, and one that hangs."""
    hang = "" if listens else "signal.signal(signal.SIGINT, signal.SIG_IGN);"
    with started(f"import signal, time; {hang} time.sleep(60)", start_new_session=True) as process:
        for _ in range(1 if listens else 2):
            time.sleep(1)
            os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=30)[0] == f"({-(signal.SIGINT if listens else signal.SIGKILL)}, True)\n"


def test_what_ends_the_command_ends_the_process_that_measures():
    with started("import os, time; print(os.getpid(), flush=True); time.sleep(60)") as process:
        child = int(process.stdout.readline())
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
