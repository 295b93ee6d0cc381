"""What tells one campaign from another."""

import functools

import nets
import pytest
import torch

from pystack_nb.faults import fingerprint
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.metrics import Tolerance, Top1
from pystack_nb.faults.protection_ranges import Ranger
from pystack_nb.faults.protection_scope import protect


LIMIT = 1.0


class Scaled(torch.nn.Module):
    def __init__(self, scale=1.0, act=torch.relu, limit=9e9):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(3, 3)
        self.scale, self.act, self.limit = [scale], act, limit

    def forward(self, x):
        return (self.act(self.linear(x)) * self.scale[0]).clamp(max=self.limit)


def of(net=None, **options):
    net = (net or Scaled()).eval()
    return Campaign(net, nets.samples(), **({"seed": 1, "faults": 10} | options)).fingerprint()


def differing(one, other):
    return {x for x in one if one[x] != other[x]}


def above(limit):
    return lambda golden, faulty, _: bool((golden - faulty).abs().max() > limit)


def above_global(golden, faulty, label):
    del label
    return bool((golden - faulty).abs().max() > LIMIT)


class Above:
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, golden, faulty, _):
        return bool((golden - faulty).abs().max() > self.limit)


def test_the_same_campaign_has_the_same_fingerprint():
    net = Scaled()
    assert of(net) == of(net) == of()
    assert of(metric=above(1)) == of(metric=above(1))
    assert of(metric=Above(1)) == of(metric=Above(1))


def test_other_golden_outputs_are_another_campaign():
    assert differing(of(), of(Scaled(scale=-1.0))) == {"golden"}
    assert "golden" in differing(of(), of(Scaled(act=torch.tanh)))


def test_plain_attributes_hooks_and_own_forwards_are_part_of_the_model():
    # None of them changes an output without a fault.
    net = Scaled(limit=8e9)
    assert differing(of(), of(net)) == {"model"}
    hooked = Scaled()
    hooked.linear.register_forward_hook(lambda _, __, y: y.clamp(max=9e9))
    assert differing(of(), of(hooked)) == {"model"}
    own = Scaled()
    own.linear.forward = functools.partial(torch.nn.functional.linear, **own.linear._parameters)
    assert differing(of(), of(own)) == {"model"}


def test_protections_are_told_by_their_bounds_and_not_by_their_counts():
    net, (inputs, _) = nets.perceptron(), nets.samples()
    found = []
    for factor in (1, 1, 4):
        with protect(net, Ranger.profile(net, inputs * factor)):
            found.append(of(net))
            net(inputs)
            assert of(net) == found[-1]
    assert found[0] == found[1]
    assert differing(found[0], found[2]) == {"model"}
    assert differing(found[0], of(net)) == {"model"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (above(1), above(2)),
        (Above(1), Above(2)),
        (Above(1).__call__, Above(2).__call__),
        (functools.partial(above_global, label=1), functools.partial(above_global, label=2)),
        (lambda *_, limit=1: limit > 1, lambda *_, limit=2: limit > 1),
        (above(torch.ones(1)), above(torch.zeros(1))),
        (above({"limit": [1]}), above({"limit": [2]})),
        (Tolerance(1e-3), Tolerance(1e-4)),
        (Top1(), Top1(class_dim=-1)),
    ],
)
def test_metrics_are_told_by_what_they_were_made_with(one, other):
    assert fingerprint.describe(one) != fingerprint.describe(other)


def test_a_metric_is_told_by_plain_values_of_its_module(monkeypatch):
    before = fingerprint.describe(above_global)
    assert before == fingerprint.describe(above_global)
    monkeypatch.setitem(globals(), "LIMIT", 2.0)
    assert fingerprint.describe(above_global) != before


def test_what_holds_itself_is_told():
    one = Above(1)
    one.self = one
    assert fingerprint.describe(one) == fingerprint.describe(one)


def test_the_number_of_threads_is_part_of_it(monkeypatch):
    one = of()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert differing(one, of()) == {"threads"}
