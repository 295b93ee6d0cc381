"""What is put back after forwards."""

from types import SimpleNamespace

import pytest
import torch

from interrupting import interrupted_everywhere
from nets import state, unchanged
from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults.engine_direct import check_chance
from pystack_nb.faults.state import repeatable, untouched


def test_cudnn_is_as_it_was_when_the_last_of_several_ends():
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.deterministic
    try:
        flags.benchmark, flags.deterministic = True, False
        one, other = (repeatable(torch.device("cuda")) for _ in range(2))
        # As two threads do that begin together.
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert (flags.benchmark, flags.deterministic) == (False, True)
        other.__exit__(None, None, None)
        assert (flags.benchmark, flags.deterministic) == (True, False)
    finally:
        flags.benchmark, flags.deterministic = before


class Changing(nn.Module):
    """Changes a buffer, and puts another object in the place of an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.seen = None

    def forward(self, x):
        self.count += 1
        self.seen = x
        self.more = x
        return x


def test_what_forwards_change_is_put_back_wherever_an_interrupt_comes():
    model = nn.Sequential(Changing(), nn.BatchNorm1d(3))
    before = state(model)
    held = [dict(module.__dict__) for module in model.modules()]
    generators = torch.get_rng_state()

    def run():
        with untouched(model):
            model(torch.randn(2, 3))

    def check(place):
        assert unchanged(model, before), place
        assert [dict(module.__dict__) for module in model.modules()] == held, place
        assert torch.equal(torch.get_rng_state(), generators), place

    assert interrupted_everywhere(run, check, "state.py") > 30


@pytest.fixture
def generators(monkeypatch):
    """Give the generators of an accelerator that is not there, as torch would show them."""
    found = [torch.Generator().manual_seed(x) for x in range(2)]

    def states():
        return [x.get_state() for x in found]

    module = SimpleNamespace(
        is_initialized=lambda: True,
        get_rng_state_all=states,
        set_rng_state_all=lambda given: [x.set_state(y) for x, y in zip(found, given, strict=True)],
        found=found,
        states=states,
    )
    there = torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: there)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    return module


def as_apple_s(module):
    """Leave a single device, whose module has fewer functions."""
    del module.found[1:], module.is_initialized
    del module.get_rng_state_all, module.set_rng_state_all
    module.get_rng_state = module.found[0].get_state
    module.set_rng_state = module.found[0].set_state


class Draws(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.draw = lambda: torch.rand((), generator=generator)

    def forward(self, x):
        return x * self.draw()


@pytest.mark.parametrize("apple", [False, True])
def test_an_accelerator_s_generators_are_put_back_and_seen_to_draw(generators, apple):
    if apple:
        as_apple_s(generators)
    model, before = Draws(generators.found[-1]), generators.states()
    with untouched(model):
        model(torch.ones(2))
        assert not all(map(torch.equal, generators.states(), before))
    assert all(map(torch.equal, generators.states(), before))
    with pytest.raises(FaultError, match="draws random numbers"):
        check_chance(model, [torch.ones(2)])


def test_an_accelerator_that_is_not_in_use_is_not_asked_for_its_generators(generators):
    generators.is_initialized = lambda: False
    generators.get_rng_state_all = None
    with untouched(nn.Identity()):
        pass
    check_chance(nn.Identity(), [torch.ones(2)])
