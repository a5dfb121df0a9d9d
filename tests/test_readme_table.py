"""README's table "Composes with": the tests that it names are there, and torch.nn does or refuses what it says."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch.autograd import functional
from torch.func import functional_call, grad, hessian, jacfwd, jvp, stack_module_state, vmap
from torch.testing import assert_close

from comparison import LAYERS

TESTS = Path(__file__).parent
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
UNKNOWN = "–"
BESIDE = "yes ⁷"


def rows():
    """`{feature: (torch.nn + cuDNN, torch.nn on the CPU, rnnkern, tests)}`."""
    section = README.split("\n## Composes with\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    table = {}
    for line in lines:
        feature, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        table[feature] = tuple(cells)
    return table


ROWS = rows()
every_row = pytest.mark.parametrize("feature", ROWS)


def named_tests(cell):
    """`` `test_file.py`: one, another`` -> `{("test_file.py", "test_one"), ...}`."""
    found = set()
    for file, names in re.findall(r"`((?:compose/)?test_\w+\.py)`: ([\w, ]+)", cell):
        found |= {(file, f"test_{name.strip()}") for name in names.split(",")}
    return found


@every_row
def test_the_tests_that_a_row_names_are_there(feature):
    named = named_tests(ROWS[feature][3])
    assert named
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}: {name}"


@every_row
def test_a_row_says_where_rnnkern_was_run(feature):
    assert ROWS[feature][2] in ("yes (CPU)", "yes ⁸", "written, not run")


# --- what torch.nn does -----------------------------------------------------------------------------------------------


class Case:
    """A layer and a cell of torch.nn, in its default dtype, and an input."""

    def __init__(self, name, device):
        torch.manual_seed(0)
        self.device = device
        self.layer = getattr(torch.nn, name)(3, 4, device=device)
        self.cell = getattr(torch.nn, f"{name}Cell")(3, 4, device=device)
        self.deep = getattr(torch.nn, name)(3, 4, 2, dropout=0.5, device=device)
        self.x = torch.randn(5, 2, 3, device=device)

    def y(self, x):
        return self.layer(x)[0]

    def loss(self, x):
        return self.y(x).square().sum()


def compiles(case):
    torch._dynamo.reset()
    torch.compile(case.layer, fullgraph=True, backend="aot_eager")(case.x)


def exports(case):
    time, batch = torch.export.Dim("time", min=2), torch.export.Dim("batch", min=2)
    torch.export.export(case.layer, (case.x,), dynamic_shapes={"input": {0: time, 1: batch}}, strict=False)


def autocasts(case):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(case.device, dtype):
            y = case.y(case.x)
        y.float().sum().backward()


def maps_the_batch(case):
    vmap(case.y)(torch.stack([case.x, case.x]))


def maps_an_ensemble(case):
    stacked, _ = stack_module_state([case.layer, case.layer])
    vmap(lambda values: functional_call(case.layer, values, (case.x,))[0])(stacked)


def gives_per_sample_gradients(case):
    values = {key: value.detach() for key, value in case.layer.named_parameters()}
    of_one = grad(lambda values, x: functional_call(case.layer, values, (x,))[0].sum())
    found = vmap(of_one, (None, 1))(values, case.x)
    assert_close(found["weight_hh_l0"][1], of_one(values, case.x[:, 1])["weight_hh_l0"])


def draws_masks_under_vmap(case):
    vmap(case.deep, randomness="different")(torch.stack([case.x, case.x]))


def differentiates_forward(case):
    jvp(case.y, (case.x,), (case.x,))
    jacfwd(case.y)(case.x)
    hessian(case.loss)(case.x)


def batches_gradients(case):
    y = case.y(case.x)
    torch.autograd.grad(y, case.layer.weight_hh_l0, torch.stack([y, y]).detach(), is_grads_batched=True)
    functional.jacobian(case.y, case.x, vectorize=True)


def differentiates_twice(case):
    x = case.x.requires_grad_()
    (slope,) = torch.autograd.grad(case.loss(x), x, create_graph=True)
    slope.square().sum().backward()


def differentiates_in_eval_mode(case):
    case.layer.eval()
    case.loss(case.x).backward()


def differentiates_a_retained_graph(case):
    value = case.loss(case.x)
    value.backward(retain_graph=True)
    value.backward()


def differentiates_initial_states(case):
    h = torch.zeros(1, 2, 4, device=case.device, requires_grad=True)
    hx = (h, h.detach().clone().requires_grad_()) if isinstance(case.layer, torch.nn.LSTM) else h
    case.layer(case.x, hx)[0].sum().backward()
    assert h.grad is not None


def lets_a_cells_result_be_changed(case):
    result = case.cell(case.x[0])
    (result if torch.is_tensor(result) else result[0]).relu_().sum().backward()


def is_right_or_raises_when_its_output_is_changed(case):
    def gradient(change):
        return torch.autograd.grad((change(case.y(case.x)) * 3).sum(), case.layer.weight_hh_l0)[0]

    expected = gradient(torch.relu)
    try:
        found = gradient(torch.relu_)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert_close(found, expected)


def is_deterministic(case):
    torch.use_deterministic_algorithms(True)
    try:
        gradients = [torch.autograd.grad(case.loss(case.x), case.layer.weight_hh_l0)[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*gradients)


# By a feature's first words: what to try, and how torch refuses it where it does.
TORCH = {
    "`torch.compile": (compiles, "Dynamo does not support RNN, GRU, or LSTM"),
    "`torch.export`": (exports, "your code specialized it to be a constant"),
    "AOTInductor": (exports, "your code specialized it to be a constant"),
    "autocast": (autocasts, "could not create a primitive descriptor for the LSTM"),
    "`vmap` over the batch": (maps_the_batch, "Batching rule not implemented for aten::"),
    "`vmap` over an ensemble": (maps_an_ensemble, "Batching rule not implemented for aten::"),
    "per-sample gradients": (gives_per_sample_gradients, "Batching rule not implemented for aten::|output with shape"),
    "random masks under `vmap`": (draws_masks_under_vmap, "Batching rule not implemented for aten::"),
    "`jvp`": (differentiates_forward, "Trying to use forward AD with"),
    "batched gradients": (batches_gradients, "Batching rule not implemented for aten::_cudnn_rnn_backward"),
    "double backward": (differentiates_twice, "Double backwards is not supported for CuDNN RNNs"),
    "backward in eval mode": (differentiates_in_eval_mode, "cudnn RNN backward can only be called in training mode"),
    "backward twice": (differentiates_a_retained_graph, None),
    "gradients into": (differentiates_initial_states, None),
    "a cell's result": (lets_a_cells_result_be_changed, "modified by an inplace operation"),
    "a layer's output": (is_right_or_raises_when_its_output_is_changed, None),
    "`torch.use_deterministic_algorithms": (is_deterministic, None),
}


def refused(attempt, message, device):
    """The layers of torch.nn that refuse, as the table writes it; another error than the expected one is raised."""
    names = []
    for name in LAYERS:
        try:
            attempt(Case(name, device))
        except Exception as error:
            if message is None or not re.search(message, str(error)):
                raise
            names.append(name)
    return "yes" if not names else "no" if len(names) == len(LAYERS) else f"{', '.join(names)} no"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of slow fallbacks
@every_row
def test_torch_does_or_refuses_what_the_table_says(feature, device):
    column = 0 if device == "cuda" else 1
    if ROWS[feature][column] == BESIDE:  # the named test runs torch.nn too
        return
    cell = re.sub(r" ?[¹²³⁴⁵⁶⁷⁸⁹⁰]+$", "", ROWS[feature][column])
    known = [value for words, value in TORCH.items() if feature.startswith(words)]
    if cell == UNKNOWN:  # torch says nothing of it, or there is nothing to compare
        assert column == 0 or not known
    elif cell != "not always":  # documented; no single run shows it
        (attempt, message), = known  # fmt: skip
        assert refused(attempt, message, device) == cell


def test_every_attempt_has_its_row():
    assert all(any(feature.startswith(words) for feature in ROWS) for words in TORCH)
