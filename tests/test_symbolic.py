"""torch.fx takes our layers for leaves, as it does torch.nn's."""

import pytest
import torch
from torch import nn

import rnnkern


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


def test_a_layer_alone_is_no_leaf_of_itself():
    for module in (rnnkern.GRU(5, 8), nn.GRU(5, 8)):
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(module)
