"""`convert` on models of other packages, with random weights."""

import pytest
import torch
from torch import nn

import rnnkern
import swapping


def normal(*shape, dtype):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(5)).to(dtype)


def test_deepar_of_gluonts(capsys):
    from gluonts.torch.model.deepar.module import DeepARModel

    model = DeepARModel(
        freq="D", context_length=24, prediction_length=6, cardinality=[3], hidden_size=40, lags_seq=[1, 2, 7]
    )

    def run(model, dtype):
        past, batch = model._past_length, 16
        series = normal(batch, past + 6, dtype=dtype).exp()
        times = normal(batch, past + 6, 1, dtype=dtype)
        static = torch.arange(batch)[:, None] % 3, torch.zeros(batch, 1, dtype=dtype)
        context = times[:, :past], series[:, :past], torch.ones(batch, past, dtype=dtype), times[:, past:]
        parameters, _, output, _, state = model.unroll_lagged_rnn(*static, *context, series[:, past:])
        loss = model.loss(*static, *context, series[:, past:], torch.ones(batch, 6, dtype=dtype))
        return parameters, output, state, loss

    swapping.check("gluonts DeepAR", model, run, 1, capsys)


def test_the_temporal_fusion_transformer_of_pytorch_forecasting(capsys):
    from pytorch_forecasting.metrics import MAE
    from pytorch_forecasting.models.temporal_fusion_transformer._tft_v2 import TFT

    metadata = {"max_encoder_length": 24, "max_prediction_length": 6, "encoder_cont": 4, "encoder_cat": 1,
                "decoder_cont": 3, "decoder_cat": 1, "static_continuous_features": 2}  # fmt: skip
    model = TFT(loss=MAE(), metadata=metadata)

    def run(model, dtype):
        sizes = {"encoder_cont": (24, 4), "encoder_cat": (24, 1), "decoder_cont": (6, 3), "decoder_cat": (6, 1),
                 "static_continuous_features": (1, 2)}  # fmt: skip
        return model({name: normal(16, *size, dtype=dtype) for name, size in sizes.items()})

    swapping.check("pytorch-forecasting TFT", model, run, 2, capsys)


def test_subclasses_of_pytorch_forecasting_are_left_and_named():
    from pytorch_forecasting.models.nn.rnn import GRU

    model = nn.Sequential(GRU(3, 4), nn.GRU(4, 4))
    with pytest.warns(UserWarning, match=r"0 \(GRU\): a subclass with its own"):
        rnnkern.convert(model)
    assert type(model[0]) is GRU and type(model[1]) is rnnkern.GRU


def test_the_recurrent_policy_of_sb3_contrib(capsys):
    from sb3_contrib import RecurrentPPO

    agent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
    steps, sequences = 16, 8

    def run(policy, dtype):
        from sb3_contrib.common.recurrent.type_aliases import RNNStates

        rows = steps * sequences
        states = tuple(normal(1, sequences, 256, dtype=dtype) for _ in range(2))
        starts = torch.zeros(rows, dtype=dtype)
        starts[::steps] = starts[5] = 1  # an episode ends in mid-sequence: the policy then calls one step at a time
        observations = normal(rows, 4, dtype=dtype)
        return policy.evaluate_actions(observations, torch.arange(rows) % 2, RNNStates(states, states), starts)

    # The policy casts observations to float32.
    swapping.check("sb3-contrib RecurrentPPO", agent.policy, run, 2, capsys, torch.float)
    agent.learn(64)
    before = agent.policy.lstm_actor.weight_hh_l0.detach().clone()
    rnnkern.convert(agent.policy)
    agent.learn(64)  # with the optimiser made before
    assert not torch.equal(agent.policy.lstm_actor.weight_hh_l0, before)


def test_the_taggers_of_stanza(capsys):
    from stanza.models.common.hlstm import HighwayLSTM
    from stanza.models.langid.model import LangIDBiLSTM

    lengths = [20, 17, 9, 2]

    def tag(model, dtype):
        output, state = model(normal(4, 20, 32, dtype=dtype), lengths)
        return output.data, state

    keywords = {"num_layers": 2, "batch_first": True, "bidirectional": True, "dropout": 0.3, "highway_func": torch.tanh}
    swapping.check("stanza HighwayLSTM", HighwayLSTM(32, 48, **keywords), tag, 2, capsys)
    swapping.check("stanza HighwayLSTM, cells", HighwayLSTM(32, 48, **keywords, rec_dropout=0.3), tag, 4, capsys)

    letters = {"<PAD>": 0, **{chr(97 + i): i + 1 for i in range(26)}}
    model = LangIDBiLSTM(letters, {"en": 0, "fr": 1, "ru": 2}, num_layers=2, embedding_dim=32, hidden_dim=64)
    text = torch.randint(27, (8, 40), generator=torch.Generator().manual_seed(0))
    swapping.check("stanza LangIDBiLSTM", model, lambda model, dtype: model(text), 1, capsys)


def test_graph_networks_of_torch_geometric(capsys):
    from torch_geometric.nn import AttentiveFP, GatedGraphConv, JumpingKnowledge, LSTMAggregation, Set2Set

    nodes, graphs = 60, 6
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(nodes, (2, 200), generator=generator)
    graph_of = torch.arange(nodes) // (nodes // graphs)

    def attend(model, dtype):
        return model(normal(nodes, 12, dtype=dtype), edges, normal(200, 3, dtype=dtype), graph_of)

    model = AttentiveFP(12, 32, 4, edge_dim=3, num_layers=3, num_timesteps=2, dropout=0.2)
    swapping.check("torch-geometric AttentiveFP", model, attend, 4, capsys)

    class Readouts(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph = GatedGraphConv(32, 3)
            self.jump = JumpingKnowledge("lstm", 32, 2)
            self.readouts = nn.ModuleList([LSTMAggregation(32, 16), Set2Set(32, 4)])

    def read(model, dtype):
        x = normal(nodes, 32, dtype=dtype)
        y = model.graph(x, edges)
        z = model.jump([x, y])
        return [readout(z, graph_of) for readout in model.readouts]

    swapping.check("torch-geometric readouts", Readouts(), read, 4, capsys)


def test_demucs(capsys):
    from demucs.demucs import Demucs

    model = Demucs(["drums", "rest"], channels=8, depth=5, lstm_layers=1, resample=False)
    swapping.check("demucs", model, lambda model, dtype: model(normal(1, 2, 8192, dtype=dtype)), 3, capsys)
