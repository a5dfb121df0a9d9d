"""`LSTM`, `GRU` and `RNN`: torch.nn's layers, on this library's kernels.

Parameters, their names and initial values, `state_dict` and `repr` are those of `torch.nn.RNNBase`, which these classes
extend. They do not derive from `torch.nn.LSTM` and `torch.nn.GRU`: `torch.compile` breaks the graph at every instance
of those.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from rnnkern import checks, functional
from rnnkern.direct import infer_step
from rnnkern.symbolic import node_of, traced


class Recurrent(torch.nn.RNNBase):
    """What the three layers share.

    Keywords of every layer, beyond those of torch.nn:
        recompute: keep no gates for backward; rebuild them there.
        heads: a block-diagonal recurrent weight; `weight_hh_l{k}` is `[G*H, H/heads]`. Not with `proj_size`.
        recurrent_dropout: one mask a sample on the state before the recurrent product, the same at every step, scaled
            by 1 / (1 - p) (Gal and Ghahramani 2016).
        weight_dropout: DropConnect, one mask a call on each `weight_hh`, scaled likewise (Merity et al. 2018).
        zoneout: the share of units, of h and of c, that keep their old value at a step; in evaluation each is
            `zoneout * old + (1 - zoneout) * new` (Krueger et al. 2016).

    Random masks act in training alone. ValueError and TypeError name a keyword that is out of range or of a wrong type.
    """

    # Also what a layer has that was pickled or converted from one without these.
    recompute: bool = False
    heads: int = 1
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout: float = 0.0

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Any,
        dtype: Any,
        recompute: bool,
        heads: int,
        recurrent_dropout: float,
        weight_dropout: float,
        zoneout: float,
    ) -> None:
        checks.check_probability("recurrent_dropout", recurrent_dropout)
        checks.check_probability("weight_dropout", weight_dropout)
        checks.check_probability("zoneout", zoneout)
        checks.check_flag("recompute", recompute)
        if isinstance(hidden_size, int):  # RNNBase refuses any other
            checks.check_heads(heads, hidden_size, proj_size > 0)
        # RNNBase's constructor ends with reset_parameters(), which reads these.
        self.recompute = recompute
        self.heads = heads
        self.recurrent_dropout = recurrent_dropout
        self.weight_dropout = weight_dropout
        self.zoneout = zoneout
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device=device, dtype=dtype,
        )  # fmt: skip
        if heads > 1 and self._split_heads():  # a subclass's reset_parameters() did not
            self.reset_parameters()

    @property
    def _cell(self) -> str:
        """The cell's name in `rnnkern.reference`."""
        raise AttributeError(f"{type(self).__name__} has no cell")

    def reset_parameters(self) -> None:
        if self.heads > 1:
            self._split_heads()
        super().reset_parameters()

    def _split_heads(self) -> bool:
        """RNNBase makes the recurrent weight dense: gives it the shape `[G*H, H/heads]`, once. Whether it did now."""
        size, dense = self.hidden_size // self.heads, False
        for name in self._flat_weights_names:
            weight = self._parameters.get(name)
            if name.startswith("weight_hh") and weight is not None and weight.shape[1] != size:
                setattr(self, name, Parameter(weight.new_empty(weight.shape[0], size)))
                dense = True
        return dense

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take every parameter where it lies."""

    def _weights(self) -> list[Tensor]:
        """The parameters as they are now, flat, in torch's order."""
        parameters = self._parameters
        try:
            return [parameters[name] for name in self._flat_weights_names]  # type: ignore[misc]
        except KeyError:  # parametrised, or a replica of DataParallel
            return [getattr(self, name) for name in self._flat_weights_names]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        reset_mask: Tensor | PackedSequence | None = None,
        return_state_sequence: bool = False,
    ) -> tuple[Any, ...]:
        """The whole sequence: `(output, hx)`, and the states after every step if asked for.

        Args:
            input: `[T, B, I]`, `[B, T, I]` when `batch_first`, `[T, I]`, or a PackedSequence.
            hx: `h_0 [L*D, B, R]`, for an LSTM the pair of it and `c_0 [L*D, B, H]`; zero by default.
            lengths: integers `[B]`; the output past a length is zero, the final state is the one at the length.
            reset_mask: bool, `[T, B]` as the input is laid out; true where a new segment starts from the zero state.
            return_state_sequence: a third result, the cell states (GRU, RNN: the hidden states): `[L*D, T, B, H]`,
                `[L*D, B, T, H]` when `batch_first`, `[L*D, rows, H]` of a PackedSequence.
        """
        if traced(input) and (
            node := node_of(
                self, Recurrent.forward, input, hx, lengths=lengths, reset_mask=reset_mask,
                return_state_sequence=return_state_sequence,
            )
        ) is not None:  # fmt: skip
            return node
        weights = self._weights()
        if self.weight_dropout and self.training:
            for index, name in enumerate(self._flat_weights_names):
                if name.startswith("weight_hh"):
                    weights[index] = torch.dropout(weights[index], self.weight_dropout, True)
        settings = functional.Settings(
            self._cell, self.num_layers, bool(self.bidirectional), self.batch_first, self.dropout,
            self.recurrent_dropout, self.zoneout, self.training, self.heads, self.recompute,
        )  # fmt: skip
        return functional.run(settings, input, hx, weights, lengths, reset_mask, return_state_sequence)

    def step(self, input_t: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """One time step of a stream: `(output_t, hx)`, equal to `forward` on one step.

        Args:
            input_t: `[B, I]` or `[I]`.
            hx: as `forward` takes and gives it.

        Raises:
            ValueError: of a bidirectional layer, whose other direction begins at the end.
        """
        result = None
        if not (self.training and (self.dropout or self.recurrent_dropout or self.weight_dropout or self.zoneout)):
            result = infer_step(self, Recurrent.forward, input_t, hx)
        return step_by_forward(self, input_t, hx) if result is None else result

    def to_torch(self) -> torch.nn.RNNBase:
        """The equal torch.nn layer, sharing parameters and training mode; ValueError where there is none."""
        for keyword, default in self._no_torch_equal.items():
            value = getattr(self, keyword)
            if value != default:
                raise ValueError(f"torch.nn has no {type(self).__name__} with {keyword}={value!r}")
        from rnnkern.convert import as_torch

        return as_torch(self)

    # Keywords that torch.nn knows nothing of, with the value that it computes with.
    _no_torch_equal: dict[str, Any] = {"heads": 1, "recurrent_dropout": 0, "weight_dropout": 0, "zoneout": 0}

    def extra_repr(self) -> str:
        shown = [super().extra_repr()]
        for keyword in ("nonlinearity", *KEYWORDS):
            default = getattr(type(self), keyword, None)
            value = getattr(self, keyword, default)
            if value != default and (keyword, value) != ("nonlinearity", "relu"):  # torch.nn shows no relu either
                shown.append(f"{keyword}={value}")
        return ", ".join(shown)

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(
            f"torch.jit.script cannot take rnnkern.{type(self).__name__}, TorchScript has no operator for it: "
            "script layer.to_torch(), the equal torch.nn layer"
        )


def step_by_forward(layer: Any, input_t: Tensor, hx: Any) -> tuple[Tensor, Any]:
    """`layer(input, hx)` on one time step."""
    if layer.bidirectional:
        raise ValueError("step: a bidirectional layer needs the whole sequence, call forward")
    dim = input_t.dim()
    if dim != 1 and dim != 2:
        raise ValueError(f"{layer._get_name()}: Expected input_t to be 1D or 2D, got {dim}D instead")
    time = 1 if dim == 2 and layer.batch_first else 0
    output, hx = layer(input_t.unsqueeze(time), hx)
    return output.squeeze(time), hx


# Keywords that torch.nn's layers do not have.
KEYWORDS = (
    "reset_after", "forget_bias", "recompute", "heads", "recurrent_dropout", "weight_dropout", "zoneout",
)  # fmt: skip


class LSTM(Recurrent):
    """`torch.nn.LSTM` (Hochreiter and Schmidhuber 1997; Gers et al. 2000), on this library's kernels.

        i, f, o = sigmoid(W_ih x + b_ih + W_hh h + b_hh)  # each its own rows, in torch's order i, f, g, o
        g = tanh(...)
        c' = f * c + i * g
        h' = o * tanh(c'), with `proj_size` W_hr times it (Sak et al. 2014)

    Arguments, shapes and errors are torch's; keywords beyond them, but for `forget_bias`, are those of every layer
    (`help(rnnkern.modules.Recurrent)`). float64, float32, bfloat16 and float16.

    Args:
        forget_bias: initial value of the forget gate's slice of `bias_ih` (Jozefowicz et al. 2015 take 1); ValueError
            without biases.
    """

    forget_bias: float | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        forget_bias: float | None = None,
        recompute: bool = False,
        heads: int = 1,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float = 0.0,
    ) -> None:
        if forget_bias is not None:
            checks.check_number("forget_bias", forget_bias)
        if forget_bias is not None and bias is False:
            raise ValueError("forget_bias needs bias=True: there is no bias to set")
        self.forget_bias = forget_bias
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype, recompute, heads, recurrent_dropout, weight_dropout, zoneout,
        )  # fmt: skip

    @property
    def _cell(self) -> str:
        return "lstm"

    # For a subclass whose forward is written like torch's.
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    check_forward_args = torch.nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = torch.nn.LSTM.permute_hidden  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.forget_bias is None:
            return
        with torch.no_grad():
            for name in self._flat_weights_names:
                if name.startswith("bias_ih"):
                    # Gates i, f, g, o. Put together anew: a slice of a sharded tensor is a copy.
                    i, f, *rest = getattr(self, name).chunk(4)
                    bias = torch.cat([i, torch.full_like(f, self.forget_bias), *rest])
                    if name in self._parameters:
                        getattr(self, name).copy_(bias)
                    else:
                        setattr(self, name, bias)  # a parametrisation takes it through its right_inverse


class GRU(Recurrent):
    """`torch.nn.GRU` (Cho et al. 2014), on this library's kernels.

        r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)  # each its own rows, in torch's order r, z, n
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Arguments, shapes and errors are torch's; keywords beyond them, but for `reset_after`, are those of every layer
    (`help(rnnkern.modules.Recurrent)`). float64, float32, bfloat16 and float16.

    Args:
        reset_after: False for the paper's own, whose reset gate acts before the recurrent product:
            n = tanh(W_in x + b_in + W_hn (r * h) + b_hn). torch.nn has none of it.
    """

    reset_after: bool = True
    _no_torch_equal = {**Recurrent._no_torch_equal, "reset_after": True}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
        recompute: bool = False,
        heads: int = 1,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float = 0.0,
        proj_size: int | None = None,
    ) -> None:
        _refuse_projection(proj_size)
        checks.check_flag("reset_after", reset_after)
        self.reset_after = reset_after
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0,
            device, dtype, recompute, heads, recurrent_dropout, weight_dropout, zoneout,
        )  # fmt: skip

    @property
    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_v1"


class RNN(Recurrent):
    """`torch.nn.RNN` (Elman 1990), on this library's kernels: h' = f(W_ih x + b_ih + W_hh h + b_hh).

    Arguments, shapes and errors are torch's; keywords beyond them are those of every layer
    (`help(rnnkern.modules.Recurrent)`). float64, float32, bfloat16 and float16.

    Args:
        nonlinearity: f, "tanh" or "relu" as in torch, or "sigmoid".
    """

    nonlinearity: str = "tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        recompute: bool = False,
        heads: int = 1,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float = 0.0,
        proj_size: int | None = None,
    ) -> None:
        _refuse_projection(proj_size)
        checks.rnn_cell_name(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            "RNN_RELU" if nonlinearity == "relu" else "RNN_TANH", input_size, hidden_size, num_layers, bias,
            batch_first, dropout, bidirectional, 0, device, dtype, recompute, heads, recurrent_dropout,
            weight_dropout, zoneout,
        )  # fmt: skip
        self.mode = f"RNN_{nonlinearity.upper()}"  # RNNBase itself knows no sigmoid

    @property
    def _cell(self) -> str:
        return self.mode.lower()  # torch goes by it too

    def to_torch(self) -> torch.nn.RNNBase:
        if self.mode == "RNN_SIGMOID":
            raise ValueError("torch.nn has no RNN with nonlinearity='sigmoid'")
        return super().to_torch()


def _refuse_projection(proj_size: int | None) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
