"""What users do to the parameters of a layer: normalised, adapted, pruned, moved, cast, saved; and hooks around it."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnnkern
from comparison import assert_close, assert_equal_to_torch, pair, random_like, tensors_of
from layer_inputs import every_layer, padded

NAME = "weight_hh_l0"


def train(module, x, steps=3):
    """A few steps of SGD on what requires a gradient; the losses."""
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = module(x)[0].square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses)


# --- parametrisations -------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, parametrizations.spectral_norm,
                                       parametrizations.orthogonal], ids=lambda f: f.__name__)  # fmt: skip
def test_parametrisations_train_as_torchs(name, normalise, device):
    ours, theirs = pair(name, 5, 8, device=device)
    for module in (ours, theirs):
        normalise(module, NAME)
    theirs.load_state_dict(ours.state_dict())
    x = padded(device=device)
    # Cached, because spectral_norm takes a step of its power iteration at every access, and torch.nn reads twice.
    with parametrize.cached():
        assert_equal_to_torch(ours, theirs, x)
    losses = []
    for module in (ours, theirs):
        for _ in range(2):
            with parametrize.cached():
                losses.append(train(module, x, steps=1))
        parametrize.remove_parametrizations(module, NAME)
        module.eval()
    assert_close(losses[:2], losses[2:])
    assert_equal_to_torch(ours, theirs, x)


@every_layer
def test_a_spectrally_normalised_weight_has_norm_one_however_often_it_is_read(name):
    layer = parametrizations.spectral_norm(getattr(rnnkern, name)(5, 8), NAME)
    train(layer, padded(torch.float32), steps=30)
    layer.eval()
    assert torch.linalg.matrix_norm(layer.weight_hh_l0, 2).item() == pytest.approx(1, abs=0.02)


class LowRank(nn.Module):
    """LoRA: the given weight, frozen, plus a trained product of rank 2."""

    def __init__(self, weight):
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, weight.shape[1], dtype=weight.dtype, device=weight.device))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], 2, dtype=weight.dtype, device=weight.device))

    def forward(self, weight):
        return weight + self.b @ self.a


def adapt(module):
    """LoRA on every weight, the biases frozen."""
    module.requires_grad_(False)
    for name in [name for name, _ in module.named_parameters() if name.startswith("weight")]:
        parametrize.register_parametrization(module, name, LowRank(getattr(module, name)))
    return module


@every_layer
def test_low_rank_adapters_train_alone_and_merge(name, device):
    ours, theirs = pair(name, 5, 8, 2, device=device)
    before = copy.deepcopy(ours.state_dict())
    for module in (ours, theirs):
        adapt(module)
    theirs.load_state_dict(ours.state_dict())
    x = padded(device=device)
    losses = train(ours, x)
    assert losses[-1] < losses[0]
    assert_close(losses, train(theirs, x))
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    for key, parameter in ours.named_parameters():
        assert parameter.requires_grad == key.endswith((".a", ".b"))
        assert parameter.requires_grad or parameter.grad is None
    for key, value in before.items():
        kept = f"parametrizations.{key}.original" if key.startswith("weight") else key
        assert torch.equal(ours.state_dict()[kept], value)

    adapted = ours(x)
    for key in before:
        if key.startswith("weight"):
            parametrize.remove_parametrizations(ours, key, leave_parametrized=True)
    assert ours.state_dict().keys() == before.keys() and type(ours) is getattr(rnnkern, name)
    assert_close(ours(x), adapted)
    with torch.no_grad():
        assert_close(ours.step(x[0])[0], adapted[0][0])


def test_an_adapter_over_a_converted_model_is_the_one_over_torchs():
    torch.manual_seed(0)
    theirs = adapt(nn.LSTM(5, 8, dtype=torch.float64))
    ours = rnnkern.convert(theirs, inplace=False)
    assert isinstance(ours, rnnkern.LSTM)
    x = padded()
    assert_close(train(ours, x), train(theirs, x))
    theirs.load_state_dict(ours.state_dict())
    assert_close(ours(x), theirs(x))


# --- pruning ----------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("converted", [False, True])
def test_pruned_weights_stay_zero_in_training_and_after(name, converted, device):
    ours, theirs = pair(name, 5, 8, device=device)
    if converted:
        _, ours = pair(name, 5, 8, device=device)
    for module in (ours, theirs):
        prune.l1_unstructured(module, NAME, amount=0.5)
        prune.ln_structured(module, "weight_ih_l0", amount=0.25, n=2, dim=0)
    ours = rnnkern.convert(ours)  # does nothing to a layer of ours
    x = padded(device=device)
    assert_equal_to_torch(ours, theirs, x)
    pruned = ours.weight_hh_l0_mask == 0
    assert pruned.sum() == pruned.numel() // 2
    assert_close(train(ours, x), train(theirs, x))
    assert not ours.weight_hh_l0_orig.grad[pruned].any()
    for module in (ours, theirs):
        for weight in (NAME, "weight_ih_l0"):
            prune.remove(module, weight)
    assert not ours.weight_hh_l0[pruned].any() and isinstance(ours.weight_hh_l0, nn.Parameter)
    assert_equal_to_torch(ours, theirs, x)


def test_pruning_over_all_layers_at_once():
    ours, theirs = (nn.ModuleList([module, copy.deepcopy(module)]) for module in pair("LSTM", 5, 8))
    for modules in (ours, theirs):
        prune.global_unstructured([(module, NAME) for module in modules], prune.L1Unstructured, amount=0.3)
    for one, other in zip(ours, theirs, strict=True):
        assert_equal_to_torch(one, other, padded())


# --- devices, dtypes, files -------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_a_cast_layer_computes_in_its_dtype(name, cast, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    cast_layer = getattr(copy.deepcopy(ours), cast)()
    dtype = cast_layer.weight_ih_l0.dtype
    assert {p.dtype for p in cast_layer.parameters()} == {dtype}
    theirs = copy.deepcopy(cast_layer).double().to_torch()
    assert_equal_to_torch(cast_layer, theirs, padded(dtype, device).requires_grad_(), dtype=dtype)


@every_layer
def test_a_meta_layer_is_made_empty_and_filled(name, device):
    filled = getattr(rnnkern, name)(5, 8, 2, dtype=torch.float64, device=device)
    with torch.device("meta"):
        empty, assigned = (getattr(rnnkern, name)(5, 8, 2, dtype=torch.float64) for _ in range(2))
    assert all(p.is_meta for p in empty.parameters())
    empty.to_empty(device=device).load_state_dict(filled.state_dict())
    assigned.load_state_dict(filled.state_dict(), assign=True)
    x = padded(device=device)
    for layer in (empty, assigned):
        assert_close(layer(x), filled(x))
        assert_close(train(copy.deepcopy(layer), x), train(copy.deepcopy(filled), x))
    assert assigned.weight_ih_l0.data_ptr() == filled.weight_ih_l0.data_ptr()


@every_layer
def test_a_saved_state_loads_into_either_library(name):
    ours, theirs = pair(name, 5, 8, 2, bidirectional=True)
    for saved, loading in ((ours, theirs), (theirs, ours)):
        saved.reset_parameters()
        file = io.BytesIO()
        torch.save(saved.state_dict(), file)
        file.seek(0)
        loading.load_state_dict(torch.load(file, weights_only=True))
        assert_close(ours(padded()), theirs(padded()))


# --- hooks ------------------------------------------------------------------------------------------------------------


@every_layer
def test_hooks_see_and_change_what_torchs_do(name, device):
    ours, theirs = pair(name, 5, 8, device=device)
    runs = []
    for module in (ours, theirs):
        seen = []

        def observe(event, *values, seen=seen):
            seen.append((event, [value.detach().clone() for value in tensors_of(values)]))

        module.register_forward_pre_hook(
            lambda module, inputs, keywords: ((2 * inputs[0],), {"hx": keywords["hx"]}), with_kwargs=True
        )
        module.register_forward_pre_hook(lambda module, inputs, observe=observe: observe("before", inputs))
        module.register_forward_hook(lambda module, inputs, outputs: (3 * outputs[0], outputs[1]))
        module.register_forward_hook(lambda module, inputs, outputs, observe=observe: observe("after", outputs))
        module.register_full_backward_pre_hook(lambda module, d_outputs: (5 * d_outputs[0], *d_outputs[1:]))
        module.register_full_backward_hook(
            lambda module, d_inputs, d_outputs, observe=observe: observe("backward", d_inputs, d_outputs)
        )
        module.bias_ih_l0.register_hook(lambda gradient: -gradient)
        module.weight_ih_l0.register_post_accumulate_grad_hook(
            lambda parameter, observe=observe: observe("accumulated", parameter.grad)
        )
        x = padded(device=device).requires_grad_()
        output, _ = module(x, hx=None)
        (output * random_like([output])[0]).sum().backward()
        runs.append((seen, [x.grad, *(parameter.grad for parameter in module.parameters())]))
    (ours_seen, ours_gradients), (theirs_seen, theirs_gradients) = runs
    assert [event for event, _ in ours_seen] == [event for event, _ in theirs_seen]
    assert {event for event, _ in ours_seen} == {"before", "after", "backward", "accumulated"}
    for (_, found), (_, expected) in zip(ours_seen, theirs_seen, strict=True):
        assert_close(found, expected, gradient=True)
    assert_close(ours_gradients, theirs_gradients, gradient=True)


def test_state_dict_hooks_and_global_hooks_run():
    layer, seen = rnnkern.GRU(5, 8), []
    layer.register_state_dict_post_hook(lambda module, state, prefix, metadata: seen.append("saved"))
    layer.register_load_state_dict_pre_hook(lambda *_: seen.append("loading"))
    layer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    layer.load_state_dict(layer.state_dict())
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        layer(padded(torch.float32))
        layer.step(padded(torch.float32)[0])
    finally:
        handle.remove()
    assert seen == ["saved", "loading", "loaded", rnnkern.GRU, rnnkern.GRU]
