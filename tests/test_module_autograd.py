"""Backward of whole layers: gradient penalties, frozen parameters, initial states, results changed in place."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnkern
from comparison import assert_close, outputs_and_gradients, pair, states, tensors_of, without_cudnn
from helpers import OperatorCalls
from layer_inputs import every_layer, packed, padded

# --- gradient penalty -------------------------------------------------------------------------------------------------


class Critic(nn.Module):
    """Of WGAN-GP (Gulrajani et al. 2017): a score for each sequence `[T, B, I]`."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.score = nn.Linear(8, 1, dtype=layer.weight_ih_l0.dtype, device=layer.weight_ih_l0.device)
        nn.init.constant_(self.score.weight, 0.3)
        nn.init.zeros_(self.score.bias)

    def forward(self, x):
        return self.score(self.layer(x)[0][-1])

    def loss(self, real, fake, share):
        """Its loss, and the mean distance of the gradient's norm from one."""
        mixed = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self(mixed).sum(), mixed, create_graph=True)
        distance = slope.norm(dim=(0, 2)) - 1
        return self(fake).mean() - self(real).mean() + 10 * distance.square().mean(), distance.abs().mean()


def real_fake_and_share(dtype, device):
    real, fake = padded(dtype, device, batch=16), 0.5 * padded(dtype, device, batch=16).cos()
    return real, fake, torch.rand(1, 16, 1, device=device).to(dtype)


@every_layer
def test_a_gradient_penalty_trains_as_torchs(name, device):
    ours, theirs = (Critic(layer) for layer in pair(name, 5, 8, device=device))
    optimizers = [torch.optim.SGD(critic.parameters(), 0.01) for critic in (ours, theirs)]
    batch = real_fake_and_share(torch.float64, device)
    for _ in range(3):
        for critic, optimizer in zip((ours, theirs), optimizers, strict=True):
            with without_cudnn():
                value, _ = critic.loss(*batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    assert_close(list(ours.parameters()), list(theirs.parameters()), gradient=True)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
@every_layer
def test_a_gradient_penalty_brings_the_gradients_norm_to_one(name, dtype, device):
    critic = Critic(getattr(rnnkern, name)(5, 8, device=device))
    optimizer = torch.optim.Adam(critic.parameters(), 0.02)
    distances = []
    for _ in range(60):
        with torch.autocast(device, dtype, enabled=dtype is not None):
            value, distance = critic.loss(*real_fake_and_share(torch.float32, device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        distances.append(distance.item())
    assert sum(distances[-10:]) / 10 < distances[0] / 2


# --- what is frozen, what is learned ----------------------------------------------------------------------------------


def asked_of_backward(layer, *arguments):
    """`needs` of every call of the backward operator, in the order of the calls."""
    with OperatorCalls() as operators:
        sum(t.sum() for t in tensors_of(layer(*arguments))).backward()
    return [given["needs"] for name, given in operators.calls if name == "layer_backward"]


@every_layer
def test_only_what_is_not_frozen_is_computed(name, device):
    layer, _ = pair(name, 5, 8, 2, device=device)
    x = padded(device=device)
    h_0, c_0, lstm = False, False, name == "LSTM"
    first = [False, h_0, c_0, True, True, True, True]  # x, the states and the weights of the first layer
    second = [True, h_0, c_0, True, True, True, True]
    assert asked_of_backward(layer, x) == [second, first]

    for parameter_name, parameter in layer.named_parameters():
        parameter.requires_grad_("l1" in parameter_name)
    assert asked_of_backward(layer, x) == [[False, *second[1:]]]  # the first layer has no backward at all

    layer.requires_grad_(False)
    layer.bias_hh_l0.requires_grad_()
    assert asked_of_backward(layer, x) == [
        [True, False, False, False, False, False, False],
        [False, False, False, False, False, False, True],
    ]

    layer.requires_grad_(False)
    needs = [False, True, lstm, False, False, False, False]
    assert asked_of_backward(layer, x, states(layer, 4, device=device)) == [[True, *needs[1:]], needs]


@every_layer
def test_frozen_parameters_and_the_others_get_their_gradients(name, device):
    ours, theirs = pair(name, 5, 8, 2, device=device)
    for layer in (ours, theirs):
        for parameter_name, parameter in layer.named_parameters():
            parameter.requires_grad_("weight_hh" in parameter_name)
        with without_cudnn():
            layer(padded(device=device))[0].square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert_close(one.grad, other.grad, gradient=True)


@pytest.mark.parametrize("kind", ["padded", "packed"])
@every_layer
def test_initial_states_are_learned(name, kind, device):
    """One learned state for the whole batch, and nothing else that is differentiable."""
    ours, theirs = pair(name, 5, 8, 2, bidirectional=True, device=device)
    x = packed(device=device) if kind == "packed" else padded(device=device)

    def gradients(layer):
        layer.requires_grad_(False)
        learned = states(layer, 1, device=device)
        whole = [h.expand(-1, 4, -1) for h in tensors_of(learned)]
        with without_cudnn():
            y, _ = layer(x, tuple(whole) if name == "LSTM" else whole[0])
        y = y.data if isinstance(y, PackedSequence) else y
        return torch.autograd.grad(y.square().sum(), tensors_of(learned))

    assert_close(gradients(ours), gradients(theirs), gradient=True)


@every_layer
def test_backward_in_eval_mode_is_that_of_training(name, device):
    layer, _ = pair(name, 5, 8, 2, device=device)
    x, hx = padded(device=device).requires_grad_(), states(layer, 4, device=device)
    training = outputs_and_gradients(layer, x, hx)
    found = outputs_and_gradients(layer.eval(), x, hx)
    for one, other in zip(sum(found, []), sum(training, []), strict=True):
        assert torch.equal(one, other)


# --- results changed in place -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batched", "batch first", "unbatched", "packed"])
@every_layer
def test_a_layers_output_changed_in_place_is_noticed(name, kind, device):
    layer, _ = pair(name, 5, 8, batch_first=kind == "batch first", device=device)
    x = packed(device=device) if kind == "packed" else padded(device=device)
    y, _ = layer(x[:, 0] if kind == "unbatched" else x)
    y = y.data if kind == "packed" else y
    changed = y.relu_() if kind == "batched" else y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed.sum().backward()


@every_layer
def test_a_weight_changed_before_backward_is_noticed(name, device):
    layer, _ = pair(name, 5, 8, device=device)
    y, _ = layer(padded(device=device))
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_layer
def test_final_states_can_be_changed_in_place(name, device):
    layer, _ = pair(name, 5, 8, bidirectional=True, device=device)
    x = padded(device=device).requires_grad_()

    def gradients(change):
        y, hx = layer(x)
        changed = [change(state) for state in tensors_of(hx)]
        return torch.autograd.grad(y.sum() + sum((t * t).sum() for t in changed), [x, *layer.parameters()])

    assert_close(gradients(torch.Tensor.sigmoid_), gradients(torch.Tensor.sigmoid), gradient=True)


@every_layer
def test_anomaly_mode_finds_the_layer(name, device):
    layer, _ = pair(name, 5, 8, device=device)
    x = padded(device=device)
    x[2] = float("inf")
    with pytest.warns(UserWarning, match="Error detected in LayerForward"), torch.autograd.detect_anomaly():
        y, _ = layer(x)
        with pytest.raises(RuntimeError, match="nan values"):
            y.sum().backward()
