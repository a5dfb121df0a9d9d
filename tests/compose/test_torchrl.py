"""torchrl's recurrent modules with this library's layers inside, through `examples/torchrl_adapter.py`."""

import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl import modules
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, InitTracker, TransformedEnv
from torchrl.modules import set_recurrent_mode

import rnnkern
from comparison import assert_close, random_like

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import torchrl_adapter

BATCH, STEPS, SIZE, HIDDEN = 3, 10, 4, 8


def pair(name, num_layers=1):
    """The adapted module with rnnkern's layer, and torchrl's with torch.nn's of equal weights."""
    states = ["h", "c"] if name == "LSTM" else ["h"]
    keys = {"in_keys": ["observation", *states], "out_keys": ["features", *(("next", state) for state in states)]}
    results = []
    for package, layers in ((torchrl_adapter, rnnkern), (modules, nn)):
        torch.manual_seed(0)
        layer = getattr(layers, name)(SIZE, HIDDEN, num_layers, batch_first=True, dtype=torch.double)
        results.append(getattr(package, f"{name}Module")(**{name.lower(): layer}, **keys))
    return results


def episodes(name, num_layers=1):
    """Steps in which episodes begin, each from the zero state, after a first one that goes on from a state."""
    is_init = torch.zeros(BATCH, STEPS, 1, dtype=torch.bool)
    is_init[0, 4] = is_init[1, 1] = is_init[1, 2] = is_init[2, 0] = is_init[2, 9] = True
    data = TensorDict({"is_init": is_init}, [BATCH, STEPS])
    data["observation"] = torch.randn(BATCH, STEPS, SIZE, dtype=torch.double)
    for state in ("h", "c") if name == "LSTM" else ("h",):
        data[state] = torch.randn(BATCH, STEPS, num_layers, HIDDEN, dtype=torch.double) * ~is_init[..., None]
    return data


every_module = pytest.mark.parametrize("name", ["LSTM", "GRU"])


@every_module
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_batch_of_episodes_gives_what_torchrls_modules_give(name, num_layers):
    ours, theirs = pair(name, num_layers)
    data = episodes(name, num_layers)
    results = []
    for module in (ours, theirs):
        with set_recurrent_mode(True):
            found = module(data.clone())
        features = found["features"]
        gradients = torch.autograd.grad(features, list(module.parameters()), random_like([features]))
        states = [found["next", state][:, -1] for state in ("h", "c") if ("next", state) in found.keys(True)]
        results.append(([features, *states], gradients))
    (found, gradients), (expected, expected_gradients) = results
    assert len(found) == (3 if name == "LSTM" else 2)
    assert_close(found, expected)
    assert_close(gradients, expected_gradients, gradient=True)


@every_module
def test_more_and_fewer_dimensions(name):
    ours, _ = pair(name)
    data = episodes(name)
    with set_recurrent_mode(True):
        expected = ours(data.clone())
        assert_close(ours(data[0].clone())["features"], expected["features"][0])
        assert_close(ours(data.clone()[None])["next", "h"], expected["next", "h"][None])


@every_module
def test_single_steps_are_torchrls_own(name):
    ours, theirs = pair(name)
    step = episodes(name)[:, 2]
    found, expected = ours(step.clone()), theirs(step.clone())
    assert_close(found["features"], expected["features"])
    assert_close(found["next", "h"], expected["next", "h"])


@every_module
def test_a_collector_steps_and_the_batch_trains(name):
    ours, _ = pair(name)
    module = ours.float()
    head = TensorDictModule(nn.Linear(HIDDEN, 2), ["features"], ["logits"])
    act = TensorDictModule(lambda logits: nn.functional.one_hot(logits.argmax(-1), 2), ["logits"], ["action"])
    env = TransformedEnv(GymEnv("CartPole-v1"), InitTracker())
    env = env.append_transform(module.make_tensordict_primer())
    collector = Collector(env, TensorDictSequential(module, head, act), frames_per_batch=120, total_frames=120)
    (data,) = collector
    collector.shutdown()
    assert data["is_init"].sum() > 1  # several episodes in the batch
    with set_recurrent_mode(True):
        again = module(data.select(*module.in_keys).clone())["features"]
    # The whole batch at once, with resets, gives what the collector saw step by step.
    assert_close(again, data["features"], torch.float)
    again.square().mean().backward()
    assert all(parameter.grad.any() for parameter in module.parameters())
