"""The operators' kernels compute what the reference in double computes, forward and backward."""

import pytest
import torch

import helpers
import rnnkern
from comparison import assert_close
from helpers import (
    CELLS,
    assert_equals_reference,
    comparable_problem,
    every_cell,
    every_schedule,
    forced_isa,
    instruction_sets,
    named,
    pairwise,
    problem,
)
from rnnkern import autograd, ops, reference

OPTIONS = {
    "cell": CELLS,
    "schedule": helpers.SCHEDULES,
    "dtype": helpers.DTYPES,
    "width": helpers.WIDTHS,
    "masks": helpers.MASKS,
    "bidirectional": (False, True),
    "bias": (True, False),
    "reset": helpers.RESETS,
    "hidden_size": (1, 7, 16, 33, 64),
    "input_size": (1, 5, 16),
    "steps": (1, 2, 7),
    "batch": (1, 3, 9),
    "recompute": (False, True),
    "from_zero": (False, True),
}


def assert_choice_equals_reference(dtype, hidden_size, recompute, **choice):
    if dtype.itemsize == 2:  # the error of a gradient that is one number says nothing: its sum may cancel
        hidden_size = max(hidden_size, 7)
    assert_equals_reference(comparable_problem(dtype=dtype, hidden_size=hidden_size, **choice), recompute=recompute)


@pytest.fixture(params=instruction_sets())
def isa(request):
    """Every instruction set of this machine, forced."""
    with forced_isa(request.param) as name:
        yield name


@pytest.mark.parametrize("choice", pairwise(seed=1, **OPTIONS), ids=named)
def test_every_pair_of_options_equals_the_reference(choice, device):
    assert_choice_equals_reference(**choice, device=device)


@pytest.mark.parametrize("choice", pairwise(seed=2, **OPTIONS), ids=named)
def test_every_instruction_set_equals_the_reference(choice, isa):
    assert_choice_equals_reference(**choice)


@every_cell
@pytest.mark.parametrize("name", ["avx512_bf16", "avx512_amx"])
def test_dot_products_of_bfloat16_serve_bfloat16_alone(cell, name):
    if name not in instruction_sets():
        pytest.skip("this processor has no dot products of bfloat16")
    for dtype in helpers.DTYPES:  # operands that are rounded on the way leave other bits
        one = problem(cell, dtype=dtype, hidden_size=64)
        with forced_isa(name):
            dots = one.run()
        with forced_isa("avx512"):
            same = [torch.equal(a, b) for a, b in zip(dots, one.run(), strict=True)]
        assert not any(same) if dtype == torch.bfloat16 else all(same)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_in_16_bits_are_rounded_to_the_nearest(dtype, isa):
    """Sums of two numbers, which a float32 holds exactly."""
    layer = rnnkern.RNN(2, 40, nonlinearity="relu", bias=False, dtype=dtype)
    torch.nn.init.ones_(layer.weight_ih_l0)
    x = torch.rand(1, 200, 2).to(dtype)
    with torch.no_grad():
        y, _ = layer(x)
    assert torch.equal(y, x.float().sum(2, keepdim=True).to(dtype).expand(-1, -1, 40))


def test_relus_gradient_hides_no_nan(device):
    layer = rnnkern.RNN(2, 8, nonlinearity="relu", device=device)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.tensor([torch.inf, -torch.inf]))
    y, _ = layer(torch.ones(1, 1, 2, device=device))
    y.sum().backward()
    assert y.isnan().all() and layer.bias_ih_l0.grad.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 3])
@every_cell
def test_one_heads_infinity_stays_out_of_the_others(cell, steps, dtype, isa):
    """Heads of 7 units: a pair of bfloat16 must not reach into the next head."""
    one = problem(cell, dtype=dtype, width="heads", hidden_size=14, batch=1, steps=steps)
    expected = one.run()[0][..., :7]
    one.tensors["h_0"][..., 7:] = float("inf")
    assert torch.equal(one.run()[0][..., :7], expected)


@pytest.mark.parametrize("dtype", helpers.DTYPES, ids=str)
@every_schedule
@every_cell
def test_every_cell_dtype_and_schedule_equals_the_reference(cell, schedule, dtype, device):
    one = comparable_problem(cell, schedule, dtype=dtype, device=device, hidden_size=16, bidirectional=True)
    assert_equals_reference(one)


@every_cell
def test_long_sequences_of_wide_layers_stay_within_the_tolerance(cell, device):
    sizes = {"steps": 60, "batch": 17, "input_size": 40, "hidden_size": 160}
    assert_equals_reference(comparable_problem(cell, dtype=torch.float32, device=device, **sizes))


@pytest.mark.parametrize("dtype", helpers.DTYPES, ids=str)
@every_cell
def test_recomputed_gates_give_the_same_gradients(cell, dtype, device):
    one = problem(cell, "lengths+reset", dtype=dtype, device=device, bidirectional=True, hidden_size=16)
    outputs, gradients = one.outputs_and_gradients()
    outputs_again, gradients_again = one.outputs_and_gradients(recompute=True)
    assert all(map(torch.equal, outputs, outputs_again))
    assert_close(gradients_again, gradients, dtype, gradient=True)


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)])
@every_cell
def test_empty_axes(cell, steps, batch, device):
    one = problem(cell, device=device, steps=steps, batch=batch, bidirectional=True)
    assert_equals_reference(one)
    if steps == 0:
        assert torch.equal(one.run()[1], one.tensors["h_0"])


@pytest.mark.parametrize("schedule", ["lengths", "lengths+reset"])
@every_cell
def test_padding_gives_zero_and_gets_gradient_zero(cell, schedule, device):
    one = problem(cell, schedule, device=device, bidirectional=True)
    (y, *_), (d_x, *_) = one.outputs_and_gradients()
    padding = torch.arange(5)[:, None] >= one.lengths
    assert padding.any()
    assert torch.equal(y[padding.to(device)], torch.zeros_like(y[padding.to(device)]))
    assert torch.equal(d_x[padding.to(device)], torch.zeros_like(d_x[padding.to(device)]))


def alone(one, row):
    """The problem of one row of its batch."""
    batch_dim = {"x": 1, "h_0": 1, "c_0": 1, "lengths": 0, "reset_mask": 1, "zoneout_h": 2, "zoneout_c": 2}
    tensors = {
        name: t if t is None or name not in batch_dim else t.narrow(batch_dim[name], row, 1)
        for name, t in one.tensors.items()
    }
    return helpers.replace(one, tensors=tensors)


@pytest.mark.parametrize("schedule", ["plain", "lengths", "reset", "lengths+reset"])
@every_cell
def test_a_row_gives_what_it_gives_alone(cell, schedule, device):
    one = problem(cell, schedule, device=device, batch=6, bidirectional=True, masks="zoneout_train")
    outputs = one.run()
    for row in range(6):
        results = alone(one, row).run()
        y, h_n, *rest = (out.narrow(dim, row, 1) for out, dim in zip(outputs, (1, 1, 1, 2), strict=False))
        assert_close(results, (y, h_n, *rest))


@pytest.mark.parametrize(("batch", "hidden_size"), [(17, 33), (40, 80), (33, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("schedule", ["plain", "lengths+reset"])
@every_cell
def test_many_rows_equal_the_reference_and_each_has_its_bits_alone(cell, schedule, dtype, batch, hidden_size, isa):
    """More than 16 rows and 32 of the depth, which a matrix unit takes at a time."""
    sizes = {"batch": batch, "hidden_size": hidden_size, "input_size": 70, "dtype": dtype}
    assert_equals_reference(comparable_problem(cell, schedule, **sizes))
    # The input product has nothing to sum, and there are more than the few rows whose weights are not packed.
    one = problem(cell, schedule, **sizes | {"input_size": 1, "steps": 9})
    y, h_n, *_ = one.run()
    for row in (0, 15, batch - 1):
        y_alone, h_alone, *_ = alone(one, row).run()
        assert torch.equal(y_alone[:, 0], y[: len(y_alone), row]) and torch.equal(h_alone[:, 0], h_n[:, row])


@pytest.mark.skipif("avx512_amx" not in instruction_sets(), reason="this processor has no matrix unit")
def test_the_matrix_unit_is_shared_with_other_libraries():
    """Each has its own shape of the unit's registers."""
    ours, theirs = (layer(40, 48).bfloat16() for layer in (rnnkern.LSTM, torch.nn.LSTM))
    x = torch.randn(7, 20, 40).bfloat16()
    with torch.inference_mode():
        expected, others = ours(x)[0], theirs(x)[0]
        for _ in range(3):
            assert torch.equal(ours(x)[0], expected) and torch.equal(theirs(x)[0], others)
            assert torch.equal(ours(x[:, :5])[0], expected[:, :5])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("schedule", ["plain", "lengths", "reset"])
@every_cell
def test_nan_and_infinity_stay_in_their_row(cell, schedule, value, device):
    one = problem(cell, schedule, device=device, batch=6, hidden_size=16, padding=0.0, dtype=torch.float32)
    clean, clean_gradients = one.outputs_and_gradients()
    for name in ("x", "h_0"):
        one.tensors[name][:, 0] = value
    dirty, dirty_gradients = one.outputs_and_gradients()
    others = slice(1, None)
    assert_close(dirty[0][:, others], clean[0][:, others], torch.float32)
    assert_close(dirty[1][:, others], clean[1][:, others], torch.float32)
    for found, expected in zip(dirty_gradients[:2], clean_gradients[:2], strict=True):  # of x and h_0
        assert_close(found[:, others], expected[:, others], torch.float32, gradient=True)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, torch.int32), (torch.float64, torch.int64)], ids=str)
@every_cell
def test_every_nan_stays_one(cell, dtype, bits, isa):
    """Whatever its sign and the bits of its payload are."""
    sign, quiet = torch.iinfo(bits).min, torch.tensor(float("nan"), dtype=dtype).view(bits).item()
    one = problem(cell, dtype=dtype, batch=6, hidden_size=17)
    payload = torch.tensor([0, 1, 127, 128, 255, quiet - 1])
    for negative in (0, sign):
        one.tensors["x"][0] = (payload | quiet | negative).to(bits).view(dtype)[:, None]
        assert one.run()[0].isnan().all()


def assert_tanh_does_not_pass_one(dtype, device="cpu"):
    layer = rnnkern.RNN(1, 1, bias=False, dtype=dtype, device=device)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
    x = torch.linspace(-30, 30, 300_001, dtype=dtype, device=device).view(1, -1, 1).requires_grad_()
    y, _ = layer(x)
    assert y.abs().max() == 1
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.min() == 0
    saturated = x.abs() > (9.6 if dtype == torch.float32 else 20)  # a unit that is dead for torch.nn is dead here
    assert (y[saturated].abs() == 1).all() and (slope[saturated] == 0).all()


every_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@every_precision
def test_tanh_does_not_pass_one(dtype, device):
    assert_tanh_does_not_pass_one(dtype, device)


@every_precision
def test_no_instruction_sets_tanh_passes_one(dtype, isa):
    assert_tanh_does_not_pass_one(dtype)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_no_part_of_an_infinite_gradient_reaches_a_value_that_zoneout_left_out(name, isa):
    layer = getattr(rnnkern, name)(3, 5, zoneout=1.0)
    x, h = torch.randn(4, 2, 3, requires_grad=True), torch.randn(1, 2, 5, requires_grad=True)
    y, _ = layer(x, (h, torch.randn(1, 2, 5)) if name == "LSTM" else h)
    d_x, d_h = torch.autograd.grad(y, (x, h), torch.full_like(y, float("inf")))
    assert (d_x == 0).all() and (d_h == float("inf")).all()


@every_cell
def test_a_reset_replaces_a_nan_state(cell, device):
    one = problem(cell, "reset", reset="first step", device=device)
    expected = one.run()
    one.tensors["h_0"].fill_(float("nan"))
    assert all(map(torch.equal, one.run(), expected))


@pytest.mark.parametrize("schedule", ["plain", "lengths+reset", "packed"])
@every_cell
def test_strides_and_offsets_do_not_matter(cell, schedule, device):
    def awkward(tensor):
        wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
        wide[..., 1::2] = tensor
        return wide[..., 1::2]

    one = problem(cell, schedule, device=device, bidirectional=True, masks="recurrent+zoneout_train")
    expected, expected_gradients = one.outputs_and_gradients()
    outputs, gradients = one.converted(awkward).outputs_and_gradients()
    assert all(map(torch.equal, outputs, expected))
    assert all(map(torch.equal, gradients, expected_gradients))


@every_schedule
@every_cell
def test_the_same_call_gives_the_same_bits(cell, schedule, device):
    one = problem(cell, schedule, device=device, dtype=torch.float32, hidden_size=33, batch=9, bidirectional=True)
    first, second = one.outputs_and_gradients(), one.outputs_and_gradients()
    for before, after in zip(first, second, strict=True):
        assert all(map(torch.equal, before, after))


# One input feature: its product has nothing to sum, so that every bit is the recurrence's.
@pytest.mark.parametrize(("batch", "hidden_size"), [(9, 48), (9, 330), (1, 330)])
@pytest.mark.parametrize("dtype", helpers.DTYPES, ids=str)
@every_cell
def test_the_recurrence_has_the_same_bits_for_every_number_of_threads(cell, dtype, batch, hidden_size, threads):
    one = problem(cell, dtype=dtype, steps=6, batch=batch, input_size=1, hidden_size=hidden_size, bidirectional=True)
    states = 2 if cell == "lstm" else 1
    threads(1)
    outputs, (_, *gradients) = one.outputs_and_gradients()
    for count in (2, 3):
        threads(count)
        outputs_again, (_, *gradients_again) = one.outputs_and_gradients()
        assert all(map(torch.equal, outputs_again, outputs))
        assert all(map(torch.equal, gradients_again[:states], gradients[:states]))  # of the initial states


@pytest.mark.parametrize("schedule", ["plain", "lengths+reset", "packed+reset"])
@every_cell
def test_members_of_an_ensemble_give_what_they_give_alone(cell, schedule, device):
    first = problem(cell, schedule, device=device, bidirectional=True, masks="recurrent", padding=0.0)
    members = [first] + [  # with the same schedule, as packed ones must have
        first.converted(lambda t, scale=scale: t * scale if t.is_floating_point() else t) for scale in (0.5, -1.0)
    ]
    stacked = {
        name: [torch.stack(w) for w in zip(*(m.tensors["weights"] for m in members), strict=True)]
        if name == "weights"
        else value
        if value is None or name == "batch_sizes"
        else torch.stack([m.tensors[name] for m in members])
        for name, value in members[0].tensors.items()
    }
    options = ops.Options(0.0, cell, True, 1, ensemble=True, save=True, recompute=False, want_cells=True)
    tensors = (*(value for name, value in stacked.items() if name != "weights"), *stacked["weights"])
    results = ops.forward(options, tensors)
    alone = [member.run() for member in members]
    assert_close(results[: len(alone[0])], [torch.stack(r) for r in zip(*alone, strict=True)])


@pytest.mark.parametrize("needed", range(7))
@every_cell
def test_only_what_is_needed_is_computed(cell, needed, device):
    one = problem(cell, device=device)
    tensors = (*(value for name, value in one.tensors.items() if name != "weights"), *one.tensors["weights"])
    options = ops.Options(0.0, cell, False, 1, False, True, False, True)
    y, h_n, _, cells, gates = ops.forward(options, tensors)
    incoming = (torch.ones_like(y), None, None, None, y, cells, gates, *tensors)
    needs = [place == needed for place in range(7)]
    if needed == 2 and cell != "lstm":
        needs[0] = True
    gradients = ops.backward(options, needs, incoming)
    every = [True, True, cell == "lstm", *[True] * 4]
    expected = ops.backward(options, every, incoming)
    for gradient, wanted, full, there in zip(gradients, needs, expected, every, strict=True):
        if wanted and there:
            assert_close(gradient, full, gradient=True)
        else:
            assert gradient.numel() == 0


@every_cell
def test_nothing_is_kept_without_a_gradient(cell, device):
    one = problem(cell, device=device)
    tensors = (*(value for name, value in one.tensors.items() if name != "weights"), *one.tensors["weights"])
    options = ops.Options(0.0, cell, False, 1, False, save=False, recompute=False, want_cells=False)
    y, h_n, c_n, cells, gates = ops.forward(options, tensors)
    assert cells.numel() == gates.numel() == 0
    assert (c_n.numel() == 0) == (cell != "lstm")
    assert_close([y, h_n], one.run(reference.layer)[:2])


@every_cell
def test_cell_states_are_given_where_they_are_wanted(cell, device):
    one = problem(cell, device=device)
    arguments = {**one.tensors, **one.options}
    assert autograd.layer(**arguments)[3] is None
    wanted = autograd.layer(**arguments, want_cells=True)[3]
    assert (wanted is not None) == (cell == "lstm")


@pytest.mark.parametrize(("schedule", "missing", "message"), [
    ("plain", ("h_0",), "c_0: expected None without h_0, got a tensor"),
    ("plain", ("c_0",), "c_0: expected a tensor for cell lstm"),
    ("packed", ("h_0", "c_0"), "h_0: expected a tensor with batch_sizes, got None"),
])  # fmt: skip
def test_states_that_do_not_come_together_are_refused(schedule, missing, message, device):
    one = problem("lstm", schedule, device=device)
    with pytest.raises(ValueError, match=message):
        autograd.layer(**{**one.tensors, **dict.fromkeys(missing)}, **one.options)
