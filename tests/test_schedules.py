"""Lengths and resets: every sample, every segment gives what it gives alone, and nothing leaks."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from comparison import (
    assert_close,
    error,
    outputs_and_gradients,
    pair,
    pick,
    random_like,
    states,
    tensors_of,
)
from layer_inputs import LENGTHS, every_layer, packed, padded
from rnnkern import reference


def by_sample(theirs, x, hx, segments):
    """torch.nn on every sample's segments alone: outputs and final states; `segments[b]`: lists of steps."""
    directions = 2 if theirs.bidirectional else 1
    width = directions * (theirs.proj_size or theirs.hidden_size)
    outputs, finals = [], []
    for b, parts in enumerate(segments):
        y = torch.zeros(x.shape[0], width, dtype=x.dtype, device=x.device)
        state = pick(hx, slice(b, b + 1))
        forward_state, reverse_state = state, state
        for index, part in enumerate(parts):
            restarted = index > 0 or part[:1] == ["reset"]
            steps = [t for t in part if t != "reset"]
            zero = tuple(torch.zeros_like(h) for h in state) if isinstance(state, tuple) else torch.zeros_like(state)
            last = index == len(parts) - 1
            given = mixed(zero if restarted else state, state if last else zero, directions)
            if steps:
                out, after = theirs(x[steps, b : b + 1], given)
                y = y.index_copy(0, torch.tensor(steps, device=x.device), out[:, 0])
            else:
                after = given
            forward_state = after  # the last segment's
            if index == 0:
                reverse_state = after  # the first segment's
        outputs.append(y)
        finals.append(mixed(forward_state, reverse_state, directions))
    if not isinstance(hx, tuple):
        return torch.stack(outputs, 1), torch.cat(finals, 1)
    return torch.stack(outputs, 1), tuple(torch.cat(h, 1) for h in zip(*finals, strict=True))


def mixed(forward, reverse, directions):
    """Forward direction's rows of one state, the reverse direction's of another."""
    if isinstance(forward, tuple):
        return tuple(mixed(f, r, directions) for f, r in zip(forward, reverse, strict=True))
    if directions == 1:
        return forward
    return torch.stack([forward[d] if d % 2 == 0 else reverse[d] for d in range(forward.shape[0])])


ONE_LAYER = [
    ("LSTM", {}),
    ("LSTM", {"bidirectional": True, "proj_size": 3}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {"bidirectional": True}),
]
every_direction = pytest.mark.parametrize(("name", "variant"), ONE_LAYER, ids=lambda value: str(value).replace(" ", ""))


@every_direction
def test_a_length_ends_a_sample_as_if_it_ran_alone(name, variant, device):
    ours, theirs = pair(name, 5, 8, **variant, device=device)
    x = padded(device=device).requires_grad_()
    hx = states(ours, 4, device=device)
    found = tensors_of(ours(x, hx, lengths=torch.tensor(LENGTHS)))
    expected = tensors_of(by_sample(theirs, x, hx, [[list(range(length))] if length else [[]] for length in LENGTHS]))
    assert_close(found, expected)
    leaves = [x, *tensors_of(hx)]
    gradients = torch.autograd.grad(found, leaves + list(ours.parameters()), random_like(found))
    theirs_gradients = torch.autograd.grad(expected, leaves + list(theirs.parameters()), random_like(expected))
    assert_close(gradients, theirs_gradients)


@every_layer
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_padding_never_leaks(name, poison, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    lengths = torch.tensor(LENGTHS)
    past = (torch.arange(6)[:, None] >= lengths).to(device)
    clean = padded(device=device).masked_fill(past[..., None], 0.0)
    x = clean.masked_fill(past[..., None], poison).requires_grad_()
    found, gradients = outputs_and_gradients(
        ours, x, states(ours, 4, device=device), lengths=lengths, return_state_sequence=True
    )
    expected, expected_gradients = outputs_and_gradients(
        ours, clean.requires_grad_(), states(ours, 4, device=device), lengths=lengths, return_state_sequence=True
    )
    assert_close(found, expected)
    assert_close(gradients, expected_gradients)
    assert not found[0][past].any()
    assert not found[-1][:, past].any()
    assert not gradients[0][past].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_lengths_may_be_of_any_integer_dtype(dtype):
    ours, _ = pair("GRU", 5, 8)
    expected = ours(padded(), lengths=torch.tensor(LENGTHS))
    assert_close(ours(padded(), lengths=torch.tensor(LENGTHS, dtype=dtype)), expected)


@every_layer
def test_lengths_equal_the_packed_sequence(name, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    hx = states(ours, 4, device=device)
    lengths = torch.tensor([3, 6, 1, 4])
    output, state = ours(packed(device=device), hx)
    assert_close((pad_packed_sequence(output)[0], state), ours(padded(device=device), hx, lengths=lengths))


@every_layer
def test_batch_first_and_unbatched_input_take_their_own_lengths_and_masks(name):
    first, _ = pair(name, 5, 8, batch_first=True)
    plain, _ = pair(name, 5, 8)
    x, lengths = padded(), torch.tensor(LENGTHS)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.3
    y, hx, sequence = plain(x, lengths=lengths, reset_mask=mask, return_state_sequence=True)
    found = first(x.transpose(0, 1), lengths=lengths, reset_mask=mask.t(), return_state_sequence=True)
    assert_close(found, (y.transpose(0, 1), hx, sequence.transpose(1, 2)))
    alone = plain(x[:, 0], lengths=lengths[0], reset_mask=mask[:, 0], return_state_sequence=True)
    assert_close(alone, (y[:, 0], pick(hx, 0), sequence[:, :, 0]))


RESETS = {
    "some": [[2, 3], [0, 4], [], [5]],
    "first step": [[0], [0], [0], [0]],
    "all": [list(range(6))] * 4,
    "none": [[], [], [], []],
}


@every_direction
@pytest.mark.parametrize("resets", RESETS.values(), ids=RESETS.keys())
def test_a_reset_starts_a_segment_that_gives_what_it_gives_alone(name, variant, resets, device):
    ours, theirs = pair(name, 5, 8, **variant, device=device)
    x = padded(device=device).requires_grad_()
    hx = states(ours, 4, device=device)
    mask = torch.zeros(6, 4, dtype=torch.bool)
    segments = []
    for b, starts in enumerate(resets):
        mask[starts, b] = True
        bounds = sorted({0, *starts, 6})
        parts = [list(range(start, stop)) for start, stop in zip(bounds, bounds[1:], strict=False)]
        segments.append([["reset", *parts[0]], *parts[1:]] if 0 in starts else parts)
    found = tensors_of(ours(x, hx, reset_mask=mask.to(device)))
    expected = tensors_of(by_sample(theirs, x, hx, segments))
    assert_close(found, expected)
    leaves = [x, *ours.parameters()]
    gradients = torch.autograd.grad(found, leaves, random_like(found))
    assert_close(gradients, torch.autograd.grad(expected, [x, *theirs.parameters()], random_like(expected)))


@every_layer
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nan_survives_no_reset_in_any_layer(name, bidirectional):
    ours, _ = pair(name, 5, 8, 2, bidirectional=bidirectional)
    x = padded(batch=1)
    x[1] = float("nan")
    mask = torch.tensor([[False], [True], [True], [False], [False], [False]])
    y, _ = ours(x, reset_mask=mask)
    assert y[1].isnan().all()
    clean = x.clone()
    clean[1] = 0.0
    expected, _ = ours(clean, reset_mask=mask)
    keep = [0, 2, 3, 4, 5]
    assert_close(y[keep], expected[keep])


@every_layer
def test_a_packed_reset_mask_equals_the_padded_one(name, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, device=device)
    lengths = torch.tensor([3, 6, 1, 4])
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    mask = mask.to(device)
    packed_mask = pack_padded_sequence(mask, lengths, enforce_sorted=False)
    hx = states(ours, 4, device=device)
    output, state, sequence = ours(packed(device=device), hx, reset_mask=packed_mask, return_state_sequence=True)
    expected = ours(padded(device=device), hx, lengths=lengths, reset_mask=mask, return_state_sequence=True)
    padded_sequence = pad_packed_sequence(output._replace(data=sequence.movedim(0, 1)))[0].movedim(2, 0)
    assert_close((pad_packed_sequence(output)[0], state, padded_sequence), expected)


@every_layer
def test_rows_of_a_batch_do_not_see_each_other(name, device):
    ours, _ = pair(name, 5, 8, 2, bidirectional=True, dtype=torch.float32, device=device)
    x = padded(torch.float32, device)
    expected = ours(x)[0]
    poisoned = x.clone()
    poisoned[:, 1] = float("nan")
    poisoned[2, 3] = float("inf")
    y = ours(poisoned)[0]
    assert y[:, 1].isnan().all()
    assert error(y[:, [0, 2]], expected[:, [0, 2]]) <= reference.TOLERANCE["float32"]
