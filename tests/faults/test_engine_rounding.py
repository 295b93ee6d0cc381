"""Numbers that rounding errors of a batch decide on, unless they are known to be that large."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluated import check, flips
from torch import nn


def set_to(net, inputs, numbers, **site):
    """Let faults write float32 numbers into a tensor."""
    kind = site.setdefault("kind", "neuron")
    stored = np.asarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    faults = flips(net, inputs, len(stored), kind=kind)
    masks = {"and_mask": np.uint64(0), "xor_mask": np.uint64(0), "or_mask": stored}
    return faults.assign(call=0, **site, **masks)


def test_outputs_that_a_fault_makes_vanish_are_rounded_as_they_were_before():
    torch.manual_seed(1)
    last = nn.Linear(64, 12, bias=False)
    with torch.no_grad():
        last.weight[:] = last.weight[0] * (1 + 1e-6 * torch.randn(12, 64))
    net, inputs = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), last).eval(), [torch.randn(8, 8)]
    faults = set_to(net, inputs, np.zeros(200), layer="1", role="output")
    faults["element"] %= 64
    # Each number takes away what all the others of its sample add.
    sample, element = (faults[x].to_numpy() for x in ("sample", "element"))
    with torch.no_grad():
        terms = (net[:2](inputs[0]) * last.weight[0]).double().numpy()
        own = last.weight[0].double().numpy()[element]
    rest = terms.sum(1)[sample] - terms[sample, element]
    numbers = -rest / own * (1 + 10 ** np.random.default_rng(0).uniform(-7, -3, 200))
    faults = set_to(net, inputs, numbers, layer="1", role="output", element=element, sample=sample)
    check(net, inputs, faults=faults, batch_size=16)


def test_outputs_that_are_nearly_infinite_may_be_so_in_a_batch_alone():
    torch.manual_seed(0)
    most = torch.finfo(torch.float32).max
    net, x = nn.Sequential(nn.Identity(), nn.Linear(64, 4, bias=False)).eval(), torch.rand(20, 64)
    with torch.no_grad():
        large = torch.rand(64) + 0.5
        net[1].weight[0] = large * (0.98 / (x @ large).max()) * most
        own = net[1].weight[0].double().numpy()
    site = {"layer": "0", "role": "output", "element": 5, "sample": np.arange(400) % 20}
    rest = (x.double().numpy() @ np.where(np.arange(64) == 5, 0, own))[site["sample"]]
    sums = most * (1 + np.random.default_rng(0).uniform(-2e-7, 2e-7, 400))
    faults = set_to(net, [x], (sums - rest) / own[5], **site)
    check(net, [x], faults=faults, batch_size=16)


class First(nn.Module):
    """Takes the first number from all of them."""

    def forward(self, x):
        return x - x[..., :1]


class Scales(nn.Module):
    def __init__(self, numbers):
        super().__init__()
        self.numbers = nn.Parameter(numbers)

    def forward(self, x):
        return x * self.numbers


def common(after):
    """Give layers that add the first of 48 numbers to all alike, and all but ignore the second."""
    spread = nn.Linear(48, 96, bias=False)
    with torch.no_grad():
        spread.weight[:, 0] = spread.weight[0, 0]
        spread.weight[:, 1] *= 1e-6
    return [spread, after, nn.Linear(96, 100, bias=False)]


def small(count):
    """Give samples whose only large number is the one that hardly counts."""
    x = torch.randn(count, 48) * 1e-6
    x[:, 0], x[:, 1] = 0, 1
    return x


@pytest.mark.parametrize("after", [First(), nn.LayerNorm(96)], ids=["first", "norm"])
def test_neurons_beside_larger_ones_that_hardly_count_may_make_large_numbers(after):
    torch.manual_seed(2)
    net, inputs = nn.Sequential(nn.Identity(), *common(after)).eval(), [small(300)]
    numbers = np.random.default_rng(0).uniform(0.3, 1, 300)
    faults = set_to(net, inputs, numbers, layer="0", role="output", element=0)
    faults["sample"] = np.arange(300)
    check(net, inputs, faults=faults, batch_size=16)


def test_weights_may_make_large_numbers_long_after_they_are_used():
    torch.manual_seed(2)
    first, second = torch.ones(48), torch.ones(48)
    first[0], second[1:] = 0, 1e-6
    net = nn.Sequential(Scales(first), nn.Tanh(), Scales(second), *common(First())).eval()
    inputs = [torch.randn(24, 48)]
    numbers = np.random.default_rng(0).uniform(0.3, 1, 150)
    site = {"layer": "0", "role": "numbers", "kind": "weight", "element": 0}
    faults = set_to(net, inputs, numbers, **site)
    check(net, inputs, faults=faults, batch_size=16, weight_samples=24)
