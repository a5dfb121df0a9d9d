"""Lightning trains a converted model as it does the original, and its checkpoint goes back."""

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rnnkern
from comparison import assert_close

STEPS, BATCH, SIZE = 12, 8, 6


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.LSTM(SIZE, 16, 2, dropout=0.2, bidirectional=True, batch_first=True)
        self.decoder = nn.GRU(32, 16, batch_first=True)
        self.head = nn.Linear(16, 1)
        self.losses = []

    def forward(self, x):
        return self.head(self.decoder(self.encoder(x)[0])[0])

    def training_step(self, batch, index):
        x, y = batch
        loss = (self(x) - y).square().mean()
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(model, folder, precision):
    x = torch.randn(32, STEPS, SIZE, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x.cumsum(1)[..., :1])
    if precision != "64-true":
        data = TensorDataset(*(tensor.float() for tensor in data.tensors))
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, precision=precision, gradient_clip_val=1.0,
        accumulate_grad_batches=2, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(2)
    trainer.fit(model, DataLoader(data, BATCH))
    return trainer


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_converted_model_trains_and_is_saved_as_the_original(tmp_path):
    theirs, ours = Model(), rnnkern.convert(Model())
    assert type(ours.encoder) is rnnkern.LSTM and type(ours.decoder) is rnnkern.GRU
    fit(theirs, tmp_path, "64-true")
    trainer = fit(ours, tmp_path, "64-true")
    assert len(ours.losses) == 12
    assert_close(ours.losses, theirs.losses, gradient=True)
    assert_close(list(ours.parameters()), list(theirs.parameters()), gradient=True)
    file = tmp_path / "model.ckpt"
    trainer.save_checkpoint(file)
    loaded = Model.load_from_checkpoint(file)  # of torch.nn, in its own dtype
    assert type(loaded.encoder) is nn.LSTM
    assert_close(list(loaded.parameters()), list(ours.float().parameters()), torch.float)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_converted_model_learns_in_other_precisions(precision, tmp_path):
    model = rnnkern.convert(Model())
    fit(model, tmp_path, precision)
    assert sum(model.losses[-4:]) < 0.95 * sum(model.losses[:4])
