"""The table of tolerances allows what rounding costs, and not much more."""

import pytest
import torch

from rnnkern import reference

# Weights of three times the initial bound, as training makes them: rounding errors feed back.
STEPS, BATCH, SIZE, BOUND = 100, 4, 64, 3 / 64**0.5


def to_tf32(tensor):
    bits = tensor.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


ROUNDING = {
    "tf32": to_tf32,
    "float16": lambda tensor: tensor.half().double(),
    "bfloat16": lambda tensor: tensor.bfloat16().double(),
}


def run(rounded, cell, x, weights, h, c):
    """The reference in double, one step at a time, on operands that are rounded before every step."""
    x, weights = rounded(x), [rounded(w) for w in weights]
    outputs = []
    for x_t in x:
        h, c = rounded(h), None if c is None else rounded(c)
        y, h, c, _ = reference.layer(x_t.unsqueeze(0), weights, h, c, cell=cell)
        outputs.append(y)
    return rounded(torch.cat(outputs))


def random_problem(cell):
    def weight(*shape):
        return (torch.rand(*shape, dtype=torch.float64) * 2 - 1) * BOUND

    gate_size = reference.GATES[cell] * SIZE
    weights = [weight(gate_size, SIZE), weight(gate_size, SIZE), weight(gate_size), weight(gate_size)]
    x, h_0, c_0 = (torch.randn(*shape, SIZE, dtype=torch.float64) for shape in [(STEPS, BATCH), (1, BATCH), (1, BATCH)])
    return x, weights, h_0, c_0 if cell == "lstm" else None


# relu's states have no bound, and float16 overflows at such weights. The values of float32 and float64 are left out:
# kernels sum those in the dtype itself, which costs more than rounding the operands.
@pytest.mark.parametrize("dtype", ROUNDING)
def test_no_tolerance_is_more_than_twice_the_error_of_rounding_alone(dtype):
    errors = []
    for cell in reference.GATES:
        if cell != "rnn_relu":
            problem = random_problem(cell)
            exact = run(lambda tensor: tensor, cell, *problem)
            errors.append(((run(ROUNDING[dtype], cell, *problem) - exact).norm() / exact.norm()).item())
    assert reference.TOLERANCE[dtype] <= 2 * max(errors)
