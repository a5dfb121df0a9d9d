"""torchrl's `LSTMModule` and `GRUModule` with this library's layers inside: episodes are told apart by `reset_mask`.

    from torchrl_adapter import LSTMModule

    LSTMModule(lstm=rnnkern.LSTM(4, 64, batch_first=True), in_keys=["observation", "h", "c"], out_keys=[...])

torchrl's own modules cut a batch of steps into episodes, pad these to the longest, and pack them for `torch.nn.LSTM`
alone; here the whole batch is one call. Everything else (one step at a time in a collector, the primers, the keys) is
torchrl's.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl import modules


class _ResetByMask:
    """A step where `is_init` is true starts from the zero state, as an environment's primer gives it."""

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reads and writes the module's keys; `[..., T]` in recurrent mode, one step of `[...]` otherwise.

        The states after the last step are written there; before it they are zero.
        """
        if not self.recurrent_mode:
            return super().forward(tensordict)
        rows = tensordict.reshape(-1, tensordict.shape[-1])
        key, *state_keys, _ = self.in_keys
        layer = self.lstm if isinstance(self, modules.LSTMModule) else self.gru
        given = [rows.get(name, None) for name in state_keys]
        hx = None if None in given else [state[:, 0].transpose(0, 1) for state in given]
        if hx is not None and isinstance(self, modules.GRUModule):
            (hx,) = hx
        output, hx = layer(rows[key], hx, reset_mask=rows["is_init"].squeeze(-1))
        results = [output, *(_at_the_end(state, rows.shape[1]) for state in (hx if isinstance(hx, tuple) else (hx,)))]
        for name, result in zip(self.out_keys, results, strict=True):
            tensordict.set(name, result.reshape(*tensordict.shape, *result.shape[2:]))
        return tensordict


def _at_the_end(state: Tensor, steps: int) -> Tensor:
    """`[L, B, H]` as the last of the steps `[B, T, L, H]`."""
    layers, batch, width = state.shape
    everywhere = state.new_zeros(batch, steps, layers, width)
    everywhere[:, -1] = state.transpose(0, 1)
    return everywhere


class LSTMModule(_ResetByMask, modules.LSTMModule):
    """`torchrl.modules.LSTMModule` for `lstm=rnnkern.LSTM(..., batch_first=True)`."""


class GRUModule(_ResetByMask, modules.GRUModule):
    """`torchrl.modules.GRUModule` for `gru=rnnkern.GRU(..., batch_first=True)`."""
