"""Weights that seeded faults strike, and what is kept of them to be put back."""

import nets
import pytest
import torch

from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.models import Custom, Noise, Sequence, Zero
from pystack_nb.faults.patterns import BitErrorRate, Element, ElementErrorRate, Everywhere, Several


class Spills(Noise):
    """Writes beside what is struck, too."""

    def change(self, elements, drawn):
        super().change(elements, drawn)
        with torch.no_grad():
            elements.tensor.add_(1.0)


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(20, 50)).eval()


def doubled(values, rng):
    return values * 2


@pytest.mark.parametrize(
    ("error", "pattern", "whole"),
    [
        (Noise(1.0), Element(), False),
        (Custom(doubled), Several(3), False),
        (Sequence(Zero(), Noise(1.0)), Several(3), False),
        (Zero(), ElementErrorRate(0.01), False),
        (None, BitErrorRate(0.001), False),
        (Zero(), Everywhere(), True),
        (Spills(1.0), Element(), True),
        (Sequence(Zero(), Spills(1.0)), Several(3), True),
    ],
    ids=str,
)
def test_all_that_a_fault_writes_is_put_back_and_a_weight_kept_only_where_it_must_be(
    error, pattern, whole, monkeypatch
):
    net, data = linear(), nets.samples(4, (20,))
    weight, before = net[0].weight, nets.state(net)
    options = {"pattern": pattern, "faults": 20, "seed": 0}
    one = Campaign(net, data, error, "weights", **options)
    table = one.plan().faults.query("role == 'weight'")
    kept, clone = [], torch.Tensor.clone

    def spied(tensor, **how):
        # As bits: other copies are those of the model's state.
        kept.append(tensor.shape == weight.shape and tensor.dtype == torch.int32)
        return clone(tensor, **how)

    monkeypatch.setattr(torch.Tensor, "clone", spied)
    one._own().evaluate(table.reset_index(drop=True))
    assert any(kept) == whole
    assert nets.unchanged(net, before)
