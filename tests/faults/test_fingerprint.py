"""What tells one campaign from another."""

import dataclasses
import functools

import nets
import pytest
import torch

from pystack_nb.errors import CampaignError
from pystack_nb.faults import fingerprint
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.metrics import Tolerance, Top1
from pystack_nb.faults.models import Custom
from pystack_nb.faults.patterns import Pattern
from pystack_nb.faults.protection_ranges import Ranger
from pystack_nb.faults.protection_scope import protect


LIMIT = 1.0
LIMITS = (torch.ones(2), {"a": [2]})
OPERATION = torch.neg


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


@pytest.mark.parametrize(
    ("function", "name", "other"),
    [
        (above_global, "LIMIT", 2.0),
        (above_global, "LIMIT", (2.0,)),
        (above_global, "LIMIT", torch.ones(1)),
        (lambda x: [LIMIT for _ in x], "LIMIT", 2.0),
        (lambda: lambda: LIMIT, "LIMIT", 2.0),
        (lambda: LIMITS, "LIMITS", (torch.zeros(2), {"a": [2]})),
        (lambda: LIMITS, "LIMITS", (torch.ones(2), {"a": [1]})),
        (lambda x: -OPERATION(x), "OPERATION", torch.zeros_like),
        (lambda x: -OPERATION(x), "OPERATION", torch.Tensor.neg),
    ],
)
def test_a_function_is_told_by_what_it_takes_from_its_module(monkeypatch, function, name, other):
    before = fingerprint.describe(function)
    assert before == fingerprint.describe(function)
    monkeypatch.setitem(globals(), name, other)
    assert fingerprint.describe(function) != before


def operated(operation):
    return Custom(lambda values, _: operation(values))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.neg, torch.zeros_like),
        (torch.Tensor.neg, torch.Tensor.abs),
        (torch.ones(1).mul, torch.zeros(1).mul),
        (torch.nn.functional.relu6, torch.nn.functional.hardtanh),
    ],
)
def test_a_function_is_told_by_the_operations_in_its_closure(one, other):
    assert fingerprint.describe(operated(one)) == fingerprint.describe(operated(one))
    assert fingerprint.describe(operated(one)) != fingerprint.describe(operated(other))


def chosen(first, base=False):
    """Make a pattern whose classes differ in their code alone."""

    class Base(Pattern):
        pass

    Base.begin = (lambda _: 1) if base else (lambda _: 0)

    @dataclasses.dataclass(frozen=True)
    class Mine(Base):
        count: int = 1

        def elements(self, rng, region):
            raise NotImplementedError

    Mine.elements = (lambda *_: [0]) if first else (lambda *_: [1])
    return Mine()


def test_a_pattern_of_the_user_is_told_by_its_code_and_its_bases():
    told = {fingerprint.describe(chosen(*x)) for x in [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]}
    assert len(told) == 4


def test_a_folder_of_another_operation_is_refused(tmp_path):
    for operation in (torch.neg, torch.neg):
        data = {"error_model": operated(operation), "path": tmp_path}
        Campaign(nets.perceptron(), nets.samples(), **data, seed=0, faults=9).run(progress=False)
    data["error_model"] = operated(torch.zeros_like)
    with pytest.raises(CampaignError, match="error_model"):
        Campaign(nets.perceptron(), nets.samples(), **data, seed=0, faults=9).run(progress=False)


def test_what_holds_itself_is_told():
    one = Above(1)
    one.self = one
    assert fingerprint.describe(one) == fingerprint.describe(one)


def test_the_number_of_threads_is_part_of_it(monkeypatch):
    one = of()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert differing(one, of()) == {"threads"}
