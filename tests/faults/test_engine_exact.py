"""Models that try to mislead the engine: outcomes are those of one fault per forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluated import check, flips
from torch import nn
from torch.nn import functional

from pystack_nb.faults.metrics import Exact


pytestmark = pytest.mark.usefixtures("one_way_of_attention")


def of_weights(net, inputs, count=150, role=None):
    """Draw flips of the ten highest bits of weights."""
    faults = flips(net, inputs, 40 * count, kind="weight")
    if role is not None:
        faults = faults[faults["role"] == role]
    faults = faults[faults["bit"] >= 22].head(count)
    assert len(faults) == count
    return faults.reset_index(drop=True)


def set_to(faults, numbers):
    """Let faults write float32 numbers."""
    stored = np.asarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    return faults.assign(and_mask=np.uint64(0), xor_mask=np.uint64(0), or_mask=stored)


class Transposed(nn.Module):
    """Its layer uses a view of the parameter that has the parameter's shape."""

    class Layer(nn.Module):
        def __init__(self, owner):
            super().__init__()
            self.__dict__["owner"] = owner

        def forward(self, x):
            return functional.linear(x, self.owner.view)

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))
        self.view = self.w.data.t()
        self.layer = self.Layer(self)
        self.out = nn.Linear(6, 5)

    def forward(self, x):
        return self.out(torch.relu(self.layer(x)))


class TestWeightsStruckInSeveralChannelsAtATime:
    def test_are_not_those_that_a_layer_sees_transposed(self):
        net, inputs = Transposed().eval(), [torch.randn(5, 6)]
        check(net, inputs, Exact(), faults=of_weights(net, inputs, role="w"))

    def test_are_not_those_whose_memory_a_bias_shares(self):
        net, inputs = (
            nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)),
            [torch.randn(5, 6)],
        )
        net[0].bias = nn.Parameter(net[0].weight.data.view(-1)[:6])
        check(net, inputs, Exact(), faults=of_weights(net, inputs, 400))


class Weighted(nn.Module):
    """Adds tensors with a factor, which vector instructions round once and others twice."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last, self.kind = nn.Identity(), nn.Identity(), kind

    def forward(self, x):
        x = self.first(x)
        if self.kind == "add":
            x = torch.add(x, x.abs(), alpha=0.3)
        elif self.kind == "sub":
            x = torch.sub(x, x.flip(-1), alpha=0.3)
        else:
            x = torch.add(x, 1.7, alpha=0.3)
        return self.last(x)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x):
        z = torch.view_as_complex(self.same(x))
        return torch.view_as_real(z * z.flip(-1)).flatten(1)


class TestOperationsThatRoundARowByItsPlaceInABatch:
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            ("add", torch.bfloat16),
            ("sub", torch.bfloat16),
            ("number", torch.float32),
            ("number", torch.float64),
        ],
    )
    def test_are_sums_with_a_factor(self, kind, dtype):
        net, inputs = Weighted(kind).to(dtype), [torch.randn(9, 5).to(dtype)]
        faults = flips(net, inputs, 80)
        low = (faults["bit"] % 4).to_numpy(np.uint64)
        check(net, inputs, Exact(), faults=faults.assign(xor_mask=np.uint64(1) << low))

    def test_are_those_on_complex_numbers(self):
        net, inputs = Complex(), [torch.randn(9, 5, 2)]
        check(net, inputs, Exact(), faults=flips(net, inputs, 120))
