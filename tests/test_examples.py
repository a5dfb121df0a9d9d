"""The examples learn, in short versions of themselves, and their checkpoints are torch.nn's."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="pip install '.[examples]'")
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def one_thread():
    """Beside other tests, a pool of two threads spends its time waiting at barriers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHORT = ["--limit", "300000", "--hidden", "96", "--batch", "16", "--length", "64", "--sample", "40"]


@pytest.mark.parametrize("layer", ["lstm", "gru", "rnn"])
def test_char_lm_learns_more_than_pairs_and_torch_loads_its_checkpoint(layer, tmp_path, capsys):
    example = load_example("char_lm")
    checkpoint = str(tmp_path / "model.pt")
    trained = example.main(["--layer", layer, "--steps", "250", "--lr", "1e-2", "--out", checkpoint, *SHORT])
    assert trained["model"] < trained["bigram"]
    assert trained["torch"] == pytest.approx(trained["model"], abs=1e-5)
    assert "µs a time step" in capsys.readouterr().out

    loaded = example.main(["--load", checkpoint, "--impl", "torch", *SHORT])
    assert loaded["model"] == pytest.approx(trained["model"], abs=1e-5)


def test_char_lm_takes_any_text_and_samples_from_it(tmp_path):
    example = load_example("char_lm")
    text = tmp_path / "text.txt"
    text.write_text("пиши код, код пиши. " * 400, encoding="utf-8")
    arguments = ["--text", str(text), "--out", str(tmp_path / "model.pt"), "--steps", "100", "--lr", "1e-2"]
    trained = example.main([*arguments, "--hidden", "32", "--batch", "4", "--length", "32", "--sample", "0"])
    assert trained["model"] < 0.5 * trained["bigram"]  # a pair of characters cannot tell the two "код" apart
    model, vocabulary = example.load(tmp_path / "model.pt", "rnnkern")
    assert "код" in example.sample(model, vocabulary, "пиши ", 40, temperature=0.1)


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_char_lm_on_two_processes_learns_what_one_learns(way, tmp_path):
    arguments = ["--layer", "gru", "--steps", "30", "--out", str(tmp_path / "model.pt"), *SHORT, "--sample", "0"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(EXAMPLES / "distributed_char_lm.py"), *(["--shard"] if way == "FSDP2" else [])]
    done = subprocess.run([*launch, *script, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (bits,) = re.findall(rf"2 processes, {way}: (\S+) bits per character", done.stdout)

    example = load_example("char_lm")
    loaded = example.main(["--load", str(tmp_path / "model.pt"), *SHORT])
    assert loaded["model"] == pytest.approx(float(bits), abs=1e-4)
    alone = example.main(arguments)
    assert alone["model"] == pytest.approx(float(bits), abs=1e-3) and alone["model"] < 4.5


@pytest.mark.parametrize("layer", ["lstm", "gru"])
def test_many_to_one_reads_digits(layer):
    pytest.importorskip("sklearn", reason="pip install '.[examples]'")
    accuracy = load_example("many_to_one").main(["--task", "digits", "--layer", layer, "--epochs", "12"])
    assert accuracy["digits", layer] >= 0.9


@pytest.mark.parametrize("layer", ["lstm", "gru"])
def test_many_to_one_predicts_sunspots(layer):
    pytest.importorskip("statsmodels", reason="pip install '.[examples]'")
    error = load_example("many_to_one").main(["--task", "sunspots", "--layer", layer, "--epochs", "50"])
    assert error["sunspots", layer] <= 0.9
