"""torch.fx takes our layers for leaves, as it does torch.nn's."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import rnnkern
from comparison import assert_close


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.layers = nn.ModuleList([getattr(nn, kind)(5, 8, bidirectional=True)])
        self.cell = getattr(nn, kind + "Cell")(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens, hx=None):
        y, _ = self.layers[0](self.embed(tokens), hx)
        h = self.cell(y[-1])
        return self.head(h[0] if isinstance(self.cell, (nn.LSTMCell, rnnkern.LSTMCell)) else h)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_converted_model_is_traced_to_the_same_nodes(kind):
    model = Model(kind)
    wanted = torch.fx.symbolic_trace(model)
    converted = rnnkern.convert(model, inplace=False)
    traced = torch.fx.symbolic_trace(converted)
    assert [(node.op, node.target) for node in traced.graph.nodes] == [
        (node.op, node.target) for node in wanted.graph.nodes
    ]
    assert type(traced.get_submodule("layers.0")) is getattr(rnnkern, kind)
    tokens = torch.randint(7, (6, 4))
    traced(tokens).sum().backward()
    assert all(p.grad is not None for p in converted.parameters())
    assert torch.equal(traced(tokens), converted(tokens))
    assert torch.allclose(traced(tokens), wanted(tokens), atol=1e-6)


def test_options_stand_in_the_node_and_quantised_layers_are_leaves():
    class WithLengths(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x, lengths):
            return self.layer(x, lengths=lengths, return_state_sequence=True)[2]

    x, lengths = torch.randn(6, 3, 5), torch.tensor([6, 0, 2])
    layer = rnnkern.LSTM(5, 8)
    for model in (WithLengths(layer), WithLengths(rnnkern.quantize_dynamic(layer))):
        traced = torch.fx.symbolic_trace(model)
        with torch.no_grad():
            assert torch.equal(traced(x, lengths), model(x, lengths))


class FromBuffer(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.register_buffer("start", torch.randn(4, 5))
        self.layer = layer

    def forward(self, *states):
        return self.layer(self.start, states if isinstance(self.layer, nn.LSTMCell | rnnkern.LSTMCell) else states[0])


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "GRU"])
def test_a_node_of_traced_states_alone(kind):
    """As of a decoder that starts from a token of its own."""

    class Model(FromBuffer):
        def forward(self, h, c):  # fx wants names
            return super().forward(h, c)

    layer, states = getattr(rnnkern, kind)(5, 8), torch.randn(2, *((1, 8) if kind == "GRU" else (4, 8)))
    model = Model(layer)
    traced = torch.fx.symbolic_trace(model)
    assert "call_module" in [node.op for node in traced.graph.nodes]
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2) if kind == "GRU" else layer.weight_hh.mul_(2)
    assert_close(traced(*states), model(*states), torch.float32)


def test_a_layer_of_which_nothing_is_traced_becomes_no_constant():
    class Model(FromBuffer):
        def forward(self, x):
            return x + self.layer(self.start)

    with pytest.raises(torch.fx.proxy.TraceError, match="GRUCell: expected an argument that is traced, got none"):
        torch.fx.symbolic_trace(Model(rnnkern.GRUCell(5, 8)))
    model, x = Model(rnnkern.GRUCell(5, 8)), torch.randn(4, 8)
    assert torch.equal(make_fx(model)(x)(x), model(x))


def test_a_layer_alone_is_no_leaf_of_itself():
    for module in (rnnkern.GRU(5, 8), nn.GRU(5, 8)):
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(module)


class Twice(rnnkern.LSTM):
    def forward(self, x, hx=None):
        y, hx = super().forward(2 * x, hx)
        return y + 1, hx


def hooked():
    layer = rnnkern.GRU(5, 8)
    layer.register_forward_hook(lambda module, arguments, results: (2 * results[0], results[1]))
    return layer


@pytest.mark.parametrize("make", [lambda: Twice(5, 8), hooked])
def test_what_runs_more_than_the_layer_is_a_leaf_where_the_tracer_says_so(make):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, rnnkern.modules.Recurrent)

    model = nn.Sequential(make())
    with pytest.raises(torch.fx.proxy.TraceError, match="0: a subclass of rnnkern's layers, or one with hooks"):
        torch.fx.symbolic_trace(model)
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    x = torch.randn(6, 3, 5)
    assert torch.equal(traced(x)[0], model(x)[0])
