"""README's figures, GOALS.md and the plots are those of the committed results, and say what the results say."""

import dataclasses
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="pip install '.[bench]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import committed
import goal
import goals
import readme
from goals_cpu import CPU
from goals_gpu import GPU, modelled
from results import Results, Row
from suites import Problem, select


def run(pairs, suite="grid", threads=1, processes=3, samples=10):
    """A run with these problems and how many times slower torch.nn is at each."""
    found = Results.start(suite, {"samples": samples})
    found.environment["threads"] = threads
    for repeat in range(processes):
        for problem, slower in pairs:
            for side, seconds in (("rnnkern", 1e-4), ("torch.nn", slower * 1e-4)):
                times = [seconds * (1 + 0.01 * (k % 3)) for k in range(samples)]
                found.rows.append(Row(problem.as_dict(), side, "ok", repeat, samples=times))
            found.rows.append(Row(problem.as_dict(), "onnxruntime", "unsupported", repeat))
    return committed.Run(found, ["made-up.json"])


def test_machines_stand_side_by_side():
    one, other, more = (
        run([(problem, 2.0)], "quick", threads) for problem, threads in ((LSTM, 1), (GRU, 1), (LSTM, 2))
    )
    one.results.environment["cpu"], other.results.environment["cpu"] = ZEN4, "another"
    table, of_two = readme.quick_tables([one, other, more])
    assert table.splitlines()[0] == "| `quick` | Zen 4, 1 thread | another, 1 thread |"
    assert f"| {LSTM.name[:-6]} | 1.01 (2.00) |  |" in table and f"| {GRU.name[:-6]} |  | 1.01 (2.00) |" in table
    assert "GRU" in of_two and of_two.count("2.00") == 1


def test_readme_shows_the_machine_that_was_measured_last():
    old, one, two = run([(LSTM, 3.0)], "quick"), run([(LSTM, 2.0)], "quick"), run([(LSTM, 4.0)], "quick", threads=2)
    for found, cpu, day in ((old, "another", 1), (one, ZEN4, 1), (two, ZEN4, 2)):
        found.results.environment["cpu"], found.results.created = cpu, f"2026-01-0{day}T00:00:00Z"
    shown = readme.section([old, one, two])
    assert "| `quick` | Zen 4, 1 thread | Zen 4, 2 threads |" in shown and "another" not in shown
    assert f"| {LSTM.name[:-6]} | 1.01 (2.00) | 1.01 (4.00) |" in shown


def test_the_overview_counts_a_problem_once_by_the_latest():
    wide = dataclasses.replace(LSTM, batch=256)
    older, newer = run([(LSTM, 8.0), (wide, 1.5)]), run([(LSTM, 6.0), (GRU, 2.0)])
    older.results.created, newer.results.created = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    for found in ([older, newer], [newer, older]):
        (row,) = readme.overview(found).splitlines()[2:]
        assert "| 3.00 (1.50 of 2) |  | 2.00 (2.00 of 1) |  |  |  |" in row


def cells(work, wanted, runs):
    """The last two columns of the goal's line."""
    chosen = [one for one in CPU if (one.work, one.wanted) == (work, wanted)]
    (line,) = goals.lines(chosen, runs)
    return line.cells()[3:]


ZEN4 = "AMD EPYC family 25 model 17"
LSTM, GRU = Problem("lstm", 256, 64, 100), Problem("gru", 256, 64, 100)


def test_the_committed_figures_are_up_to_date():
    if not committed.FOLDER.exists():
        pytest.skip("an sdist has no results")
    assert readme.stale(committed.runs()) == [], "run make figures"


def test_stale_figures_are_noticed(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pip install '.[bench]'")
    fresh = run([(LSTM, 2.0), (dataclasses.replace(LSTM, hidden=512), 2.0)])
    texts, plots, where = tmp_path / "README.md", tmp_path / "plots", tmp_path / "GOALS.md"
    texts.write_text(f"before\n{readme.BEGIN}\n{readme.END}\nafter\n")
    for name, value in (("README", texts), ("RESULTS", tmp_path / "RESULTS.md"), ("PLOTS", plots)):
        monkeypatch.setattr(readme, name, value)
    monkeypatch.setattr(goals, "OUT", where)

    pictures = ["made-up-inference-float32-T100-ratios.svg", "made-up-inference-float32-T100-steps.svg"]
    assert readme.stale([fresh]) == ["GOALS.md", "README.md", "RESULTS.md", *pictures]
    readme.write([fresh])
    assert readme.stale([fresh]) == []
    assert texts.read_text().startswith("before\n") and texts.read_text().endswith("after\n")
    for row in fresh.results.rows:
        row.samples = row.samples if row.side == "rnnkern" else [2 * sample for sample in row.samples]
    assert "README.md" in readme.stale([fresh])
    readme.write([fresh])
    texts.write_text(texts.read_text().replace("4.00", "3.00"))
    assert readme.stale([fresh]) == ["README.md"]
    readme.write([])
    assert readme.stale([]) == [] and list(plots.iterdir()) == []


def test_a_goal_shows_its_worst_problem():
    work, wanted = "large batch (B ≥ 64), inference", "nowhere slower"
    wide = dataclasses.replace(LSTM, batch=256)
    assert cells(work, wanted, [run([(LSTM, 1.2), (wide, 1.5)])]) == ["1.20× (LSTM inference H 256 B 64 T 100)", "met"]
    found = cells(work, wanted, [run([(LSTM, 1.2), (wide, 0.8)])])
    assert found == ["0.80× (LSTM inference H 256 B 256 T 100)", "**not met**: 1 of 2 do"]
    assert cells(work, wanted, []) == ["not measured", ""]


def test_a_problem_in_two_runs_counts_once_by_the_latest_that_can_say():
    work, wanted = "large batch (B ≥ 64), inference", "nowhere slower"
    older, newer = run([(LSTM, 1.2)]), run([(LSTM, 0.8)])
    older.results.created, newer.results.created = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    for found in ([older, newer], [newer, older]):
        assert cells(work, wanted, found) == ["0.80× (LSTM inference H 256 B 64 T 100)", "**not met**: 0 of 1 do"]
    newer.results.rows = [row for row in newer.results.rows if row.side != "onnxruntime"]
    assert cells(work, wanted, [older, newer]) == ["1.20× (LSTM inference H 256 B 64 T 100)", "met"]


def test_what_failed_its_check_in_one_process_meets_no_goal():
    work, wanted = "large batch (B ≥ 64), inference", "nowhere slower"
    bad = run([(LSTM, 1.2), (dataclasses.replace(LSTM, batch=256), 1.5)])
    bad.results.rows[0].status, bad.results.rows[0].samples = "wrong", []
    assert cells(work, wanted, [bad]) == ["0.00× (LSTM inference H 256 B 64 T 100)", "**not met**: 1 of 2 do"]
    assert readme.quick_cell(LSTM, dict(bad.problems())[LSTM]) == "wrong"


def test_a_complete_run_stands_before_a_newer_one_that_is_not(tmp_path):
    for name, slower, complete, day in (("a", 2.0, True, 1), ("b", 3.0, False, 2)):
        one = run([(LSTM, slower)]).results
        one.complete, one.created, one.environment["code"] = complete, f"2026-01-0{day}T00:00:00Z", name
        one.save(tmp_path / f"{name}.json")
    (found,) = committed.runs(tmp_path)
    assert found.files == ["a.json"]


def test_few_pairs_or_processes_prove_nothing():
    work, wanted = "large batch (B ≥ 64), inference", "nowhere slower"
    assert cells(work, wanted, [run([(LSTM, 1.2)], processes=2, samples=20)])[0].startswith("not measured well enough")
    assert cells(work, wanted, [run([(LSTM, 1.2)], processes=3, samples=9)])[0].startswith("not measured well enough")


def test_nothing_is_said_of_the_better_peer_where_one_was_left_out():
    whole = run([(LSTM, 1.2)])
    alone = run([(LSTM, 1.2)])
    alone.results.rows = [row for row in alone.results.rows if row.side != "onnxruntime"]
    work = "large batch (B ≥ 64), inference", "nowhere slower"
    assert cells(*work, [whole])[1] == "met"
    assert cells(*work, [alone])[1] == ""


def test_goals_of_one_thread_are_not_met_with_two():
    small = dataclasses.replace(LSTM, hidden=32, batch=1)
    work, wanted = "inference B 1, one thread, H ≤ 64", "≥ 1.5× better peer"
    assert cells(work, wanted, [run([(small, 9.0)], threads=2)]) == ["not measured", ""]
    assert cells(work, wanted, [run([(small, 9.0)], threads=1)])[1] == "met"


def test_every_cpu_goal_has_problems_in_some_suite():
    """So that none can stay unmeasured for ever."""
    suites = ("quick", "packed", "goals", "composed", "shapes", "grid")
    for threads in (1, 2):
        runs = [run([(p, 1.0) for p in select(suite)], suite, threads, 1, 1) for suite in suites]
        cases = [goal.Case(problem, sides, one) for one in runs for problem, sides in one.problems()]
        unseen = [one.work for one in CPU if not any(one.about(case) for case in cases)]
        assert all(("two threads" if threads == 1 else "one thread") in work for work in unseen), unseen


def test_gpu_goals_share_the_problems_out():
    """A plain problem counts for one goal against cuDNN; one with resets has a goal of its own."""
    against_cudnn = [one for one in GPU if "cuDNN" in one.wanted and not ("alone" in one.work or "room" in one.work)]
    for dtype in ("float32", "bfloat16", "float16"):
        problems = [p for suite in ("grid", "deepbench", "shapes") for p in select(suite, dtype=dtype)]
        one = run([(p, 1.0) for p in problems], threads=1, processes=1, samples=1)
        for problem, sides in one.problems():
            count = sum(g.about(goal.Case(problem, sides, one)) for g in against_cudnn)
            assert count == (0 if problem.reset else 1), problem.name


def test_modelled_floors_are_of_lstm_inference():
    assert modelled(Problem("lstm", 512, 16, 100)) == 1.9
    assert modelled(Problem("lstm", 512, 16, 100, dtype="bfloat16")) == 0.88
    assert modelled(Problem("lstm", 512, 256, 100)) is None and modelled(Problem("gru", 512, 16, 100)) is None


def test_files_of_the_same_code_are_repeats_of_one_run(tmp_path):
    def save(name, code, created, repeats, **arguments):
        found = Results.start("quick", arguments)
        found.environment["code"], found.created = code, created
        found.rows = [Row(LSTM.as_dict(), "rnnkern", "ok", k, samples=[1.0]) for k in range(repeats)]
        found.save(tmp_path / name)

    save("a.json", "old", "2020-01-01T00:00:00Z", 3)
    save("b.json", "new", "2021-01-01T00:00:00Z", 2)
    save("c.json", "new", "2021-01-02T00:00:00Z", 1)
    (found,) = committed.runs(tmp_path)
    assert found.files == ["b.json", "c.json"]
    assert [row.repeat for row in found.results.rows] == [0, 1, 2]
    save("part.json", "old", "2020-01-01T00:00:00Z", 1, only="GRU")
    whole, part = committed.runs(tmp_path)
    assert whole.files == found.files and part.files == ["part.json"]
    assert (whole.what, part.what) == ("quick", "quick --only 'GRU'")
