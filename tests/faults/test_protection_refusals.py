"""What is no comparison of protections, and what to do then."""

from __future__ import annotations

import pytest
import torch

from nets import perceptron, samples, state, unchanged
from torch import nn

from pystack_nb import faults
from pystack_nb.errors import CampaignError, FaultError


def plan(model, data):
    return faults.Campaign(model, data, sites="weights", seed=0, faults=5).plan()


@pytest.mark.parametrize(
    ("protections", "options", "told"),
    [
        ([faults.Duplicate()], {}, "give a dict"),
        ({"twice": faults.Duplicate}, {}, "is no protection"),
        ({"twice": [faults.Duplicate]}, {}, "is no protection"),
        ({"twice": "Duplicate"}, {}, "is no protection"),
        ({"twice": faults.Duplicate()}, {"repeats": 0}, "repeats=0 can't be; .* 1 or more"),
        ({"twice": faults.Duplicate()}, {"repeats": 1.5}, "repeats=1.5 can't be; .* 1 or more"),
        ({"twice": faults.Duplicate()}, {"repeats": None}, "repeats=None can't be"),
        ({"twice": faults.Duplicate()}, {"batch_size": 0}, "batch_size=0 can't be"),
    ],
)
def test_what_is_no_protection_is_told(protections, options, told):
    model, data = perceptron(), samples(2)
    with pytest.raises(CampaignError, match=told):
        faults.compare(model, data, plan(model, data), protections, **options)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.Dropout()], ids=["norm", "dropout"])
def test_a_model_in_training_mode_is_refused_and_left_as_it_was(layer):
    model, data = nn.Sequential(nn.Linear(3, 3), layer).eval(), samples(2)
    planned = plan(model, data)
    model.train()
    before = state(model)
    with pytest.raises(FaultError, match=r"call model.eval\(\)"):
        faults.compare(model, data, planned, {"twice": faults.Duplicate()})
    assert unchanged(model, before)
    assert not any(len(x._forward_hooks) for x in model.modules())
    assert torch.is_grad_enabled()


def test_a_model_that_draws_random_numbers_is_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    model, data = nn.Sequential(nn.Linear(3, 3)).eval(), samples(2)
    planned = plan(model, data)
    model.append(Noisy())
    with pytest.raises(FaultError, match="draws random numbers"):
        faults.compare(model, data, planned, {"twice": faults.Duplicate()})


def test_one_name_is_no_list_of_layers_and_a_list_no_bounds():
    model = perceptron()
    for defence in (faults.Checksum(layers="first"), faults.Duplicate(layers="first")):
        with pytest.raises(FaultError, match="give a list of names"):
            faults.protect(model, defence).__enter__()
    with pytest.raises(FaultError, match="give a list of names"):
        faults.Ranger.profile(model, samples(2), layers="first")
    with pytest.raises(FaultError, match="give a dict"):
        faults.Ranger([("first", 0, 1)])


class Counts(nn.Module):
    """Counts its forwards in a buffer and in an attribute."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(3, 3), 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        self.seen += 1
        return self.linear(x)


def test_what_forwards_change_is_put_back():
    model, data = Counts().eval(), samples(2)
    table = faults.compare(model, data, plan(model, data), {"twice": faults.Duplicate()})
    assert len(table) == 2
    assert (float(model.count), model.seen) == (0, 0)
