"""`LSTMCell`, `GRUCell` and `RNNCell`: torch.nn's cells, one step of a layer with one direction.

A cell's results own their memory and backward does not read them, so that they can be changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from rnnkern import autocast, autograd, checks
from rnnkern.direct import run_cell
from rnnkern.symbolic import node_of, traced


class RecurrentCell(torch.nn.RNNCellBase):
    """What the three cells share."""

    def _check_input(self, input: Tensor) -> None:
        if input.dim() not in (1, 2):
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead")

    def _check_hidden(self, hx: Tensor | None) -> None:
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"{type(self).__name__}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")

    @property
    def _cell(self) -> str:
        """The cell's name in `rnnkern.reference`."""
        raise AttributeError(f"{type(self).__name__} has no cell")

    def _weights(self) -> list[Tensor]:
        """The parameters as they are now, in torch's order; of two biases one may be missing, as in torch's cells."""
        weights: list[Any] = [self.weight_ih, self.weight_hh]
        biases: list[Any] = [self.bias_ih, self.bias_hh]
        there = [bias for bias in biases if bias is not None]
        if len(there) == 1:
            biases = [torch.zeros_like(there[0]) if bias is None else bias for bias in biases]
        return weights + biases if there else weights

    def _step(self, input: Tensor, *states: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`(h, c)` after one step from `states`, or from zero; `c` of an LSTM alone."""
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if x.shape[1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}")
        weights: Sequence[Tensor] = self._weights()
        h, c = (*states, None, None)[:2]
        if h is not None:
            h = self._row(x, h, "hidden0", batched)
            c = None if c is None else self._row(x, c, "hidden1", batched)
        if autocast.applies_to(x):
            x, h, c, weights = autocast.cast(x, h, c, weights, cache=True)
        checks.check_weights(x, weights)
        for state in (h, c):
            if state is not None:
                checks.check_state_like(x, state)
        _, h_n, c_n, _ = autograd.layer(x.unsqueeze(0), weights, h, c, cell=self._cell)
        h_n, c_n = _without_first(h_n), None if c_n is None else _without_first(c_n)
        if not batched:
            h_n, c_n = _without_first(h_n), None if c_n is None else _without_first(c_n)
        return h_n, c_n

    def _row(self, x: Tensor, state: Tensor, name: str, batched: bool) -> Tensor:
        """A state as `[1, B, H]`."""
        if not batched:
            state = state.unsqueeze(0)
        if state.shape[0] != x.shape[0]:
            raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match {name} batch size {state.shape[0]}")
        if state.dim() < 2 or state.shape[1] != self.hidden_size:
            found = state.shape[1] if state.dim() > 1 else f"{state.dim()} dimension"
            raise RuntimeError(f"{name} has inconsistent hidden_size: got {found}, expected {self.hidden_size}")
        if state.dim() != 2:
            raise RuntimeError(f"{name}: expected size {[*x.shape[:1], self.hidden_size]}, got {list(state.shape)}")
        return state.unsqueeze(0)

    def to_torch(self) -> torch.nn.RNNCellBase:
        """The equal torch.nn cell, sharing parameters and training mode; ValueError of a subclass's own forward."""
        from rnnkern.convert import as_torch

        return as_torch(self)

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(
            f"torch.jit.script cannot take rnnkern.{type(self).__name__}, TorchScript has no operator for it: "
            "script cell.to_torch(), the equal torch.nn cell"
        )


def _without_first(state: Tensor) -> Tensor:
    """Without its first dimension, which is one. In place, for a result that is no view: others would share its version
    counter and its memory. But what wraps a tensor keeps the shape that it was made with."""
    return state.squeeze_(0) if type(state) is Tensor else state.squeeze(0)


class LSTMCell(RecurrentCell):
    """`torch.nn.LSTMCell`: one step of `rnnkern.LSTM`. Arguments, shapes and errors are torch's."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    @property
    def _cell(self) -> str:
        return "lstm"

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]:
        """`(h', c')` from `input [B, I]` or `[I]` and `hx = (h, c)`, each `[B, H]` or `[H]`."""
        if traced(input) and (node := node_of(self, LSTMCell.forward, input, hx)) is not None:
            return node
        plain = run_cell(self, "lstm", input, hx)
        if plain is not None:
            return plain
        self._check_input(input)
        if hx is None:
            return self._step(input)  # type: ignore[return-value]
        h, c = checks.lstm_states(hx, "lstm_cell")
        for index, state in enumerate((h, c)):
            if state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead")
        return self._step(input, h, c)  # type: ignore[return-value]


class GRUCell(RecurrentCell):
    """`torch.nn.GRUCell`: one step of `rnnkern.GRU`. Arguments, shapes and errors are torch's."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    @property
    def _cell(self) -> str:
        return "gru"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """`h'` from `input [B, I]` or `[I]` and `hx [B, H]` or `[H]`."""
        if traced(input) and (node := node_of(self, GRUCell.forward, input, hx)) is not None:
            return node
        plain = run_cell(self, "gru", input, hx)
        if plain is not None:
            return plain
        self._check_input(input)
        self._check_hidden(hx)
        return self._step(input, hx)[0]


class RNNCell(RecurrentCell):
    """`torch.nn.RNNCell`: one step of `rnnkern.RNN`. Arguments, shapes and errors are torch's."""

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    @property
    def _cell(self) -> str:
        return "rnn_" + self.nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """`h'` from `input [B, I]` or `[I]` and `hx [B, H]` or `[H]`."""
        if traced(input) and (node := node_of(self, RNNCell.forward, input, hx)) is not None:
            return node
        self._check_input(input)
        self._check_hidden(hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        plain = run_cell(self, self._cell, input, hx)
        return self._step(input, hx)[0] if plain is None else plain
