"""One file per library that is measured. A new one needs its file alone.

An adapter is a module with

- ``NAME``: how it is called in tables and on the command line;
- ``INSTALL``: the command that installs it;
- ``load()``: imports what it needs; an ``ImportError`` or ``OSError`` means that it is not installed;
- ``build(data) -> call``: copies the weights of ``data.layer`` and returns a function of a running number ``i`` that
  does the problem's work on input ``i % len(data.inputs)``, and returns the tensors that ``check.expected`` lists.
  The runner calls it under ``torch.inference_mode()`` unless the problem is training.
  It raises ``Unsupported`` with the reason where the library cannot do the problem.

and, where it needs them,

- ``call.results(raw)``: turns what ``call`` returns into those tensors, for the check alone; a final state that the
  library does not give is ``None``;
- ``BY_TRANSFORMS``: it does ensembles and per-sample gradients (``Problem.by_transforms``);
- ``CELLS``: it has cells (``Problem.cells``);
- ``TOLERANCE``: the error that is allowed, of a library whose arithmetic is coarser than the problem's dtype;
- ``ASK``: why it is measured only where ``--peers`` names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


class Unsupported(Exception):
    """The library has no way to do this problem."""


def refuse(library: str, refusals: dict[str, bool]) -> None:
    """Raises ``Unsupported`` with the first reason that applies."""
    for reason, applies in refusals.items():
        if applies:
            raise Unsupported(f"{library}: {reason}")


def adapters() -> dict[str, ModuleType]:
    """By name; rnnkern itself comes first."""
    modules = [importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    found = {module.NAME: module for module in modules if hasattr(module, "NAME")}
    return {"rnnkern": found.pop("rnnkern"), "torch.nn": found.pop("torch.nn"), **found}
