"""Drop-in `LSTM`, `GRU` and `RNN` layers for PyTorch, on kernels of their own.

`rnnkern.convert(model)` swaps the recurrent layers of a model; `rnnkern.explain(layer, input)` says how a call runs.
"""

from rnnkern import flops as _flops  # noqa: F401 (registers its formulas)
from rnnkern import functional
from rnnkern._version import __version__
from rnnkern.cells import GRUCell, LSTMCell, RNNCell
from rnnkern.convert import convert
from rnnkern.modules import GRU, LSTM, RNN
from rnnkern.plan import build_info, explain, plan, strategies, strategy
from rnnkern.quantized import quantize_dynamic

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "__version__",
    "build_info",
    "convert",
    "explain",
    "functional",
    "plan",
    "quantize_dynamic",
    "strategies",
    "strategy",
]
