"""Protections of one model that are entered, left, copied and run in any order and thread."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch

from interrupting import interrupted_everywhere
from nets import state, unchanged
from torch import nn

from pystack_nb import faults
from pystack_nb.errors import FaultDetectedError


X = torch.linspace(-1, 1, 8).reshape(2, 4)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def traces(model):
    return sum(len(m._forward_hooks) + ("forward" in m.__dict__) for m in model.modules())


@pytest.mark.parametrize("first_out", [0, 1])
def test_protections_end_in_any_order(first_out):
    model = network()
    right = model(X)
    contexts = [faults.protect(model, faults.NanDetector(action="record")) for _ in range(2)]
    protecting = [context.__enter__() for context in contexts]
    model(X)
    contexts[first_out].__exit__(None, None, None)
    assert torch.equal(model(X), right)
    contexts[1 - first_out].__exit__(None, None, None)
    assert torch.equal(model(X), right)
    assert traces(model) == 0
    assert protecting[first_out].report()["checks"].tolist() == [1] * 3
    assert protecting[1 - first_out].report()["checks"].tolist() == [2] * 3


def test_what_runs_twice_is_the_layer_and_not_another_protection():
    model = network()
    with (
        faults.protect(model, faults.Checksum(layers=["0"])) as inner,
        faults.protect(model, faults.Duplicate(layers=["0"])) as outer,
    ):
        for _ in range(3):
            model(X)
        watch = next(iter(model[0]._forward_hooks.values()))
        assert watch._open.forwards == []
    assert inner.report()["checks"].tolist() == outer.report()["checks"].tolist() == [3]


def test_a_copy_or_a_saved_model_is_unprotected_and_works():
    model = network()
    model[1].forward = model[1].forward
    right = model(X)
    saved = io.BytesIO()
    with faults.protect(model, faults.NanDetector()):
        copied = copy.deepcopy(model)
        torch.save(model, saved)
    for other in (copied, torch.load(io.BytesIO(saved.getvalue()), weights_only=False)):
        assert torch.equal(other(X), right)
        assert other(X * torch.nan).isnan().all()
        with torch.no_grad():
            other[2].weight.zero_()
        assert torch.equal(other(X), other[2].bias.expand(2, 3))
        with faults.protect(other, faults.NanDetector()), pytest.raises(FaultDetectedError):
            other(X * torch.nan)
        assert torch.equal(copy.deepcopy(other)(X), other(X))
    assert torch.equal(model(X), right)


class Meeting(nn.Linear):
    """Of two forwards the one that began first, on negative numbers, ends first."""

    def __init__(self):
        super().__init__(4, 4)
        self.first_began, self.second_began, self.first_ended = (threading.Event() for _ in "abc")

    def forward(self, x):
        first = x[0, 0] < 0
        (self.first_began if first else self.second_began).set()
        (self.second_began if first else self.first_ended).wait(10)
        return super().forward(x)


def test_threads_do_not_mix_their_forwards():
    model, found = nn.Sequential(Meeting()).eval(), []

    def run(value):
        try:
            with torch.no_grad():
                model(torch.full((1, 4), value))
        except FaultDetectedError as error:
            found.append(error)
        if value < 0:
            model[0].first_ended.set()

    with faults.protect(model, faults.Checksum()) as protecting:
        first, second = (threading.Thread(target=run, args=(x,)) for x in (-3.0, 5.0))
        first.start()
        model[0].first_began.wait(10)
        second.start()
        first.join()
        second.join()
    assert found == []
    assert protecting.report()["checks"].tolist() == [2]


def test_a_forward_that_somebody_else_has_kept_runs_when_the_protection_has_ended():
    model = network()
    right = model(X)
    with faults.protect(model, faults.NanDetector()):
        kept = model[0].forward
        model[0].forward = lambda x: kept(x) * 1
    assert torch.equal(model(X), right)
    del model[0].forward
    assert traces(model) == 0


def test_a_model_is_unprotected_at_the_end_wherever_an_interrupt_comes():
    model, duplicate = network(), faults.Duplicate(layers=["0"])
    before, defences = state(model), [faults.NanDetector(), duplicate]

    def run():
        with faults.protect(model, *defences), faults.protect(model, faults.NanDetector()):
            model(X)

    def check(place):
        assert unchanged(model, before), place
        assert not any("forward" in module.__dict__ for module in model.modules()), place

    files = ("protection_scope.py", "protection_watch.py")
    assert interrupted_everywhere(run, check, *files) > 100
