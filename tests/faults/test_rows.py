"""What metrics are given, whichever way a fault is evaluated."""

import nets
import pytest
import torch

from torch import nn

from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.metrics import Metric, Verdict
from pystack_nb.faults.models import BitFlip
from pystack_nb.faults.patterns import Channel


class Untraceable(nn.Module):
    """No fixed list of operations: it looks at its numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        y = self.linear(x)
        return y * 2 if float(y.sum()) > 0 else y


class Steps(nn.Module):
    """Gives a class for each of five steps, with the batch second."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x):
        return self.linear(x.transpose(0, 1))


class Number(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x)[:, 0]


class Noted(Metric):
    def __init__(self):
        self.seen = set()

    def judge(self, golden, faulty, labels):
        self.seen |= {x.shape[1:] for x in (golden, faulty)}
        assert len(golden) == len(faulty) == len(labels)
        zero = torch.zeros(len(golden))
        return Verdict(zero.bool(), zero.double(), None)


@pytest.mark.parametrize("pattern", [None, Channel(dim=-1)])
@pytest.mark.parametrize(
    ("make", "shape", "of_sample"),
    [
        (nets.perceptron, (3,), (3,)),
        (Untraceable, (3,), (3,)),
        (Steps, (5, 2), (5, 3)),
        (Number, (3,), ()),
    ],
)
def test_a_metric_gets_each_sample_in_one_shape(make, shape, of_sample, pattern):
    net, data = make().eval(), nets.samples(shape=shape)
    options = {"pattern": pattern, "seed": 1, "faults": 40}
    metric, seen = Noted(), set()
    Campaign(net, data, BitFlip(), metric=metric, **options).run(progress=False)
    assert metric.seen == {of_sample}

    def function(golden, faulty, label):
        seen.update([golden.shape, faulty.shape])
        return 0.0

    Campaign(net, data, BitFlip(), metric=function, **options).run(progress=False)
    assert seen == {of_sample}
