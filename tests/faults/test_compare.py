"""Protections compared on faults of a campaign."""

import pytest
import torch

from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.models import BitFlip
from pystack_nb.faults.protection_compare import compare


class Columns(nn.Module):
    """Gives a column of classes for each sample."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        return self.linear(x).T


def columns():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Columns().eval(), torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def test_an_output_with_samples_in_another_dimension_is_judged_as_in_a_campaign():
    model, x = columns()
    campaign = Campaign(model, x, BitFlip(field="exponent"), "weights", seed=0, faults=60)
    outcomes = campaign.run(progress=False)["outcome"]
    table = compare(model, x, campaign.plan().faults, {}, repeats=1)
    assert 5 < (outcomes == "SDC").sum() < 55
    for outcome in ("masked", "SDC", "DUE"):
        assert (outcomes == outcome).sum() == table[outcome].item()


def test_a_model_that_gives_no_tensor_is_refused():
    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            self.linear(x)
            return "done"

    model, x = columns()
    rows = Campaign(model, x, BitFlip(), "weights", seed=0, faults=3).plan().faults
    with pytest.raises(FaultError, match=r"no tensor, .*: let it return one"):
        compare(Nothing(), x, rows, {}, repeats=1)
