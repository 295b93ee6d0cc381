"""Outputs that are parts of something, and models that take one sample at a time."""

from __future__ import annotations

import pytest
import torch

from evaluated import check
from torch import nn

from pystack_nb.faults.engine import Engine, EngineData
from pystack_nb.faults.metrics import Exact


class Then(nn.Module):
    """A layer, and what a function makes of its output."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.layer, self.function = layer or nn.Linear(4, 6), function

    def forward(self, x):
        return self.function(self.layer(x))


def program(net, x):
    return Engine(net.eval(), EngineData([x]), Exact()).program


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y[:, :3],
        lambda y: y[:, 2:],
        lambda y: y.chunk(2, 1),
        lambda y: {"box": y[:, :4], "class": y[:, 4:]},
        lambda y: (y, y[:, 1:]),
        lambda y: y[:, :1].expand(-1, 3),
        lambda y: torch.view_as_complex(y.view(-1, 3, 2)).real,
        lambda y: y.view(-1, 2, 3).diagonal(0, 1, 2),
        lambda y: y.view(-1, 2, 3).transpose(1, 2),
    ],
)
def test_outputs_that_show_a_part_are_evaluated_in_batches(function):
    net, x = Then(function), torch.randn(10, 4)
    assert program(net, x) is not None
    check(net, [x], Exact())


def test_the_last_step_of_a_sequence_is_an_output_like_others():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0])[:, -1]

    net, x = Recurrent(), torch.randn(6, 5, 4)
    assert program(net, x) is not None
    check(net, [x])


def _alone(y):
    assert len(y) == 1
    return y


@pytest.mark.parametrize(
    "function", [lambda y: y.view(1, 6), lambda y: y.squeeze()[None], _alone, lambda y: y.squeeze()]
)
def test_models_for_one_sample_are_evaluated_one_by_one(function):
    net, x = Then(function), torch.randn(10, 4)
    assert program(net, x) is None
    check(net, [x], Exact())


def test_a_power_for_each_feature_is_no_plain_number():
    class Powers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
            self.powers = nn.Parameter(torch.linspace(1, 3, 6))

        def forward(self, x):
            return self.last(self.layer(x).clamp(min=1e-6).pow(self.powers))

    check(Powers(), [torch.randn(10, 4)])
