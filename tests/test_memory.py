"""What `recompute=True` saves, by the profiler's allocator events."""

import pytest
import torch

import rnnkern

T, B, H, LAYERS, DIRECTIONS = 200, 16, 256, 3, 2


def peak_of_a_training_step(layer, x):
    """Bytes that are allocated at most at one time, beyond those before the step."""

    def step():
        layer(x)[0].sum().backward()
        layer.zero_grad(set_to_none=True)

    step()  # what is allocated once
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_recompute_lowers_the_peak_of_a_training_step(name):
    x = torch.randn(T, B, H)
    peaks = []
    for recompute in (False, True):
        layer = getattr(rnnkern, name)(H, H, LAYERS, bidirectional=True, recompute=recompute)
        peaks.append(peak_of_a_training_step(layer, x))
    saved = (peaks[0] - peaks[1]) / x.element_size()
    print(f"{name}: peak {peaks[0]:,} bytes, recomputing {peaks[1]:,}")
    assert saved >= 3 * T * B * H * LAYERS * DIRECTIONS
