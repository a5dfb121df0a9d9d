"""`convert` swaps torch.nn's layers for rnnkern's and keeps everything that hangs on them."""

import copy
import functools
import warnings
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import rnnkern
from comparison import assert_close

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
every_module = pytest.mark.parametrize("name", NAMES)


def torchs(name, **keywords):
    torch.manual_seed(0)
    return getattr(nn, name)(5, 8, **keywords, dtype=torch.float64)


def x_for(name):
    return torch.randn((4, 5) if name.endswith("Cell") else (6, 4, 5), dtype=torch.float64)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 5)
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(5, 8, 2, batch_first=True, dropout=0.5, bidirectional=True)})
        self.blocks = nn.ModuleList([nn.GRU(16, 8), nn.Sequential(nn.GRUCell(8, 8))])

    def forward(self, tokens):
        y, _ = self.encoder["rnn"](self.embed(tokens))
        y, _ = self.blocks[0](y)
        return self.blocks[1](y[0])


@every_module
@pytest.mark.parametrize("variant", [{}, {"bias": False}], ids=str)
def test_a_layer_as_the_root_is_returned_swapped(name, variant):
    original = torchs(name, **variant)
    swapped = rnnkern.convert(original)
    assert type(swapped) is getattr(rnnkern, name) and type(original) is getattr(nn, name)
    assert all(one is other for one, other in zip(original.parameters(), swapped.parameters(), strict=True))
    assert repr(swapped) == repr(original)
    x = x_for(name)
    assert_close(swapped(x), original(x))


def test_every_layer_of_a_model_is_swapped_in_place_and_twice_is_once():
    torch.manual_seed(0)
    model = Model().eval()
    tokens = torch.randint(10, (3, 7))
    expected = model(tokens)
    parameters = dict(model.named_parameters())
    assert rnnkern.convert(model) is model
    assert type(model.encoder["rnn"]) is rnnkern.LSTM
    assert type(model.blocks[0]) is rnnkern.GRU
    assert type(model.blocks[1][0]) is rnnkern.GRUCell
    assert not model.encoder["rnn"].training
    assert_close(model(tokens), expected, torch.float32)
    found = dict(model.named_parameters())
    assert found.keys() == parameters.keys() and all(found[key] is parameters[key] for key in found)
    layers = list(model.modules())
    rnnkern.convert(model)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))


def test_an_optimiser_made_before_still_trains_the_model():
    model = Model()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    rnnkern.convert(model)
    before = model.blocks[0].weight_ih_l0.detach().clone()
    model(torch.randint(10, (3, 7))).square().sum().backward()
    optimiser.step()
    assert not torch.equal(model.blocks[0].weight_ih_l0, before)


class Pair(NamedTuple):
    first: nn.Module
    second: nn.Module


@pytest.mark.parametrize("swap", [rnnkern.convert, rnnkern.quantize_dynamic])
def test_whatever_refers_to_a_layer_refers_to_the_swapped_one(swap):
    """As in models from before ModuleList: what its forward calls is not what its children are."""

    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnns = [nn.LSTM(5, 5), nn.GRU(5, 5)]
            for index, layer in enumerate(self.rnns):
                self.add_module(f"rnn{index}", layer)
            self.by_name = {"pair": (self.rnns[0], [self.rnns[1]])}
            self.by_name["itself"] = self.by_name
            self.again = [self.by_name["pair"], weakref.proxy(self.rnns[0])]
            self.call = functools.partial(self.rnns[0])
            self.method = self.rnns[1].forward
            self.named = Pair(*self.rnns)

        def forward(self, x):
            for layer in self.rnns:
                x, _ = layer(x)
            return x

    model, x = Old(), torch.randn(3, 2, 5)
    expected = model(x)
    old = swap(model)
    assert old.rnns == [old.rnn0, old.rnn1] == [old.by_name["pair"][0], *old.by_name["pair"][1]]
    assert old.again[0] == old.by_name["pair"]
    assert not any(type(layer) in (nn.LSTM, nn.GRU) for layer in old.rnns)
    assert old.call.func is old.named.first is old.rnn0 and old.method.__self__ is old.named.second is old.rnn1
    if swap is rnnkern.convert:
        assert_close(old(x), expected, torch.float32)


@pytest.mark.parametrize("swap", [rnnkern.convert, rnnkern.quantize_dynamic])
def test_a_layer_inside_of_torch_compile_is_left_and_named(swap):
    """Calls of what torch.compile gives go to the very layer that it was given, whatever takes its place."""
    model = nn.Sequential(nn.Linear(5, 5), torch.compile(nn.LSTM(5, 5, 2, dropout=0.5), backend="eager"))
    with pytest.warns(UserWarning, match=r"1\._orig_mod \(LSTM\): it is compiled; compile it after"):
        swapped = swap(model)
    assert type(swapped[1]._orig_mod) is nn.LSTM
    x = torch.randn(3, 2, 5)
    swapped.eval()
    assert torch.equal(swapped(x)[0], swapped[1]._orig_mod(swapped[0](x))[0])
    whole = swap(torch.compile(nn.Sequential(nn.GRU(5, 5)), backend="eager"))  # whose forward looks for the layer
    assert type(whole._orig_mod[0]) is not nn.GRU


def test_a_shared_layer_stays_one():
    layer = nn.LSTM(5, 5)
    model = nn.ModuleDict({"first": layer, "nested": nn.Sequential(nn.Linear(5, 5), layer)})
    rnnkern.convert(model)
    assert type(model["first"]) is rnnkern.LSTM
    assert model["first"] is model["nested"][1]


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.GRU(5, 5), nn.GRU(5, 5))
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    rnnkern.convert(model)
    assert model[1].weight_hh_l0 is model[0].weight_hh_l0
    assert model[1]._weights()[1] is model[0].weight_hh_l0


def test_a_deep_copy_leaves_the_original_alone():
    model = Model()
    converted = rnnkern.convert(model, inplace=False)
    assert type(model.encoder["rnn"]) is nn.LSTM and type(converted.encoder["rnn"]) is rnnkern.LSTM
    assert converted.encoder["rnn"].weight_ih_l0 is not model.encoder["rnn"].weight_ih_l0
    root = nn.GRU(5, 8)
    copied = rnnkern.convert(root, inplace=False)
    assert type(copied) is rnnkern.GRU and copied.weight_ih_l0 is not root.weight_ih_l0


@every_module
def test_hooks_survive_and_their_handles_still_remove_them(name):
    seen = []
    model = nn.Sequential(torchs(name))
    handles = [
        model[0].register_forward_hook(lambda *_: seen.append("forward")),
        model[0].register_forward_pre_hook(lambda *_: seen.append("before")),
        model[0].register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    rnnkern.convert(model)
    x = x_for(name).requires_grad_()

    def run():
        result = model(x)
        (result if torch.is_tensor(result) else result[0]).sum().backward()

    run()
    assert seen == ["before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    run()
    assert len(seen) == 3


@every_module
def test_hooks_of_loading_see_the_swapped_module(name):
    seen = []
    model = nn.Sequential(torchs(name))
    handle = model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    rnnkern.convert(model)
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]]
    copied = copy.deepcopy(model)
    copied.load_state_dict(model.state_dict())
    assert seen[1:] == [copied[0]]
    back = model[0].to_torch()
    back.load_state_dict(back.state_dict())
    assert seen[2:] == [back]
    handle.remove()
    model.load_state_dict(model.state_dict())
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_parametrisations_survive(name):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    weight = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    original = torchs(name)
    parametrize.register_parametrization(original, weight, Double())
    swapped = rnnkern.convert(original)
    assert isinstance(swapped, getattr(rnnkern, name)) and parametrize.is_parametrized(swapped, weight)
    x = x_for(name)
    expected = original(x)
    assert_close(swapped(x), expected)
    assert_close(copy.deepcopy(swapped)(x), expected)
    assert swapped.state_dict().keys() == original.state_dict().keys()
    back = swapped.to_torch()
    assert isinstance(back, getattr(nn, name)) and not isinstance(back, getattr(rnnkern, name))
    assert_close(back(x), expected)
    parametrize.remove_parametrizations(swapped, weight)
    assert type(swapped) is getattr(rnnkern, name)
    assert_close(swapped(x), expected)


def test_weight_norm_of_the_old_kind_survives():
    original = torchs("GRU")
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(original, "weight_hh_l0")
    swapped = rnnkern.convert(original)
    with torch.no_grad():
        swapped.weight_hh_l0_g.mul_(2)
    x = x_for("GRU")
    assert_close(swapped(x), original(x))


class OwnForward(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class OwnName(nn.GRUCell):
    pass


def test_what_cannot_be_swapped_is_left_and_named_with_the_reason():
    replaced = nn.GRU(5, 8)
    replaced.forward = lambda x: x
    compiled = nn.RNN(5, 8)
    compiled.compile()
    model = nn.ModuleDict({"a": OwnForward(5, 8), "b": nn.Sequential(OwnName(5, 8), nn.LSTM(5, 8)), "c": replaced})
    model["d"] = compiled
    model["e"] = nn.LSTM(5, 8)
    model["e"].zoneout = 0.1
    with pytest.warns(UserWarning) as caught:
        rnnkern.convert(model)
    (warning,) = caught
    assert str(warning.message) == (
        "rnnkern.convert left as they are: a (OwnForward): a subclass with its own forward; "
        "b.0 (OwnName): a subclass with its own class; c (GRU): its forward is replaced on the instance; "
        "d (RNN): it is compiled; compile it after the conversion; "
        "e (LSTM): its attribute 'zoneout' means something else there"
    )
    assert warning.filename == __file__
    assert type(model["a"]) is OwnForward and type(model["b"][0]) is OwnName and type(model["c"]) is nn.GRU
    assert type(model["b"][1]) is rnnkern.LSTM


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_is_left_and_named():
    model = nn.ModuleDict(
        {"scripted": torch.jit.script(nn.Sequential(nn.Linear(5, 5), nn.LSTM(5, 8))), "eager": nn.GRU(8, 8)}
    )
    with pytest.warns(UserWarning, match=r"left as they are: scripted\.1 \(.*\): it is a TorchScript module$"):
        rnnkern.convert(model)
    assert type(model["eager"]) is rnnkern.GRU
    assert model["scripted"](torch.randn(6, 4, 5))[0].shape == (6, 4, 8)


def test_a_layer_within_a_layer_is_swapped_too():
    outer = nn.LSTM(5, 8)
    outer.inner = nn.GRU(5, 8)
    model = rnnkern.convert(nn.Sequential(outer))
    assert type(model[0]) is rnnkern.LSTM and type(model[0].inner) is rnnkern.GRU


def test_the_mode_says_what_an_rnn_computes():
    """As in torch, whose older pickles have no `nonlinearity`."""
    original = torchs("RNN", nonlinearity="relu")
    del original.nonlinearity
    x = x_for("RNN")
    swapped = rnnkern.convert(original)
    assert_close(swapped(x), original(x))
    assert_close(swapped.to_torch()(x), original(x))


@pytest.mark.parametrize("function", [rnnkern.convert, rnnkern.quantize_dynamic])
def test_only_modules_are_taken(function):
    with pytest.raises(TypeError, match=r"^module must be a torch.nn.Module, got builtins.list$"):
        function([nn.LSTM(5, 8)])


def test_nothing_is_said_where_all_was_swapped():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnnkern.convert(Model())
        rnnkern.convert(nn.Linear(2, 2))
        rnnkern.convert(rnnkern.convert(nn.LSTM(5, 8)))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_there_and_back_is_the_same_layer(name):
    original = torchs(name, num_layers=2, bidirectional=True)
    back = rnnkern.convert(original).to_torch()
    assert vars(back).keys() == vars(original).keys()
    x = x_for(name)
    assert_close(back(x), original(x))


def test_a_converted_layer_moves_between_devices_and_dtypes():
    swapped = rnnkern.convert(torchs("LSTM")).float()
    assert swapped(x_for("LSTM").float())[0].dtype == torch.float32
    assert swapped.to("meta").weight_ih_l0.is_meta


@pytest.mark.parametrize("base", [rnnkern.GRU, rnnkern.LSTMCell])
def test_a_forward_of_its_own_has_no_torch_equal(base):
    class Doubled(base):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    with pytest.raises(ValueError, match="torch.nn has no equal of Doubled, which has a forward of its own"):
        Doubled(5, 8).to_torch()


def test_the_torch_equal_of_a_compiled_layer_runs_torchs_code():
    layer = rnnkern.GRU(5, 8, dtype=torch.float64)
    layer.compile()
    back = layer.to_torch()
    x = x_for("GRU")
    assert_close(back(x), nn.GRU.forward(back, x))
    assert back._compiled_call_impl is None and layer._compiled_call_impl is not None
