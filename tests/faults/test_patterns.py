"""Patterns: which elements a fault strikes together, and which by chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nets import lenet
from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults import (
    BitErrorRate,
    Channel,
    ElementErrorRate,
    Everywhere,
    Fault,
    Replace,
    Row,
    Several,
    Zero,
    inject,
)


IMAGES = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)


@pytest.mark.parametrize(
    ("pattern", "shape", "struck"),
    [
        (Channel(1), (3, 4, 8, 8), lambda t: t[:, 1]),
        (Channel(5, dim=-1), (3, 4, 8, 8), lambda t: t[..., 5]),
        (Everywhere(), (3, 4, 8, 8), lambda t: t),
    ],
)
def test_patterns_strike_what_they_name(pattern, shape, struck):
    expected = torch.zeros(shape)
    struck(expected)[...] = 9
    model = nn.Identity()
    with inject(model, Fault("", index=pattern, error=Replace(9.0))):
        assert torch.equal(model(torch.zeros(shape)), expected)
    expected[:2] = 0
    with inject(model, Fault("", index=pattern, error=Replace(9.0), sample=2)) as log:
        assert torch.equal(model(torch.zeros(shape)), expected)
    assert len(log) == int((expected != 0).sum())
    assert {index[0] for index in log.to_frame()["index"]} == {2}


def test_random_patterns_have_their_shape():
    model, x = nn.Identity(), torch.zeros(3, 4, 5)
    with inject(model, Fault("", index=Row(), error=Replace(1.0)), seed=1):
        assert sorted(model(x).sum(2).flatten().tolist()) == [0] * 11 + [5]
    with inject(model, Fault("", index=Row(dim=0), error=Replace(1.0)), seed=1):
        assert sorted(model(x).sum(0).flatten().tolist()) == [0] * 19 + [3]
    with inject(model, Fault("", index=Several(7), error=Replace(1.0)), seed=1):
        assert model(x).sum() == 7
    linear = nn.Linear(4, 3)
    with inject(linear, Fault("", "weight", Channel(2), Zero())):
        assert linear.weight.abs().sum(1).tolist()[2] == 0
        assert linear.weight[:2].all()


@pytest.mark.parametrize("rate", [0.0, 0.01, 1.0])
def test_rates_per_bit_and_per_element_are_kept(rate):
    model, x = nn.Identity(), torch.zeros(100, 100)
    with inject(model, Fault("", index=BitErrorRate(rate)), seed=0) as log:
        model(x)
    masks = np.concatenate([[np.uint64(0)], log.to_frame()["changed"].to_numpy(np.uint64)])
    flips = sum(mask.bit_count() for mask in masks.tolist())
    mean = 320_000 * rate
    assert abs(flips - mean) <= 6 * math.sqrt(mean * (1 - rate))
    with inject(model, Fault("", index=ElementErrorRate(rate), error=Replace(1.0)), seed=0):
        mean = 10_000 * rate
        assert abs(float(model(x).sum()) - mean) <= 6 * math.sqrt(mean * (1 - rate))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Several("a"), "count='a': give a whole number"),
        (lambda: Several(0), "1 or more"),
        (lambda: Channel("a"), "number='a'"),
        (lambda: Channel(0, dim=0.5), "dim=0.5"),
        (lambda: Row("a"), "dim='a'"),
        (lambda: BitErrorRate("a"), "from 0 to 1"),
        (lambda: ElementErrorRate(math.nan), "from 0 to 1"),
    ],
)
def test_a_pattern_that_can_not_be_is_refused_when_it_is_made(make, says):
    with pytest.raises(FaultError, match=says):
        make()


def test_a_seed_decides_and_each_fault_has_a_stream_of_its_own():
    model = lenet()

    def places(*faults, seed):
        with inject(model, *faults, seed=seed) as log:
            model(IMAGES)
        frame = log.to_frame()
        return frame[frame["fault"] == 0][["index", "bit"]].to_numpy().tolist()

    state_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one = places(Fault("0"), seed=5)
    assert one == places(Fault("0"), Fault("2"), Fault("5", "weight"), seed=5)
    assert one != places(Fault("0"), seed=6)
    assert torch.equal(state_before[0], torch.get_rng_state())
    assert (state_before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
