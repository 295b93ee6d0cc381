"""Ctrl-C wherever it may come: the model is left as it was."""

from __future__ import annotations

import contextlib

import pytest
import torch

from interrupting import interrupted_everywhere
from nets import perceptron, quantised_linear, same_bits, samples, state, unchanged
from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults import Custom, Fault, Replace, StuckAt, inject


X = samples(2)[0]
INJECTING = ("injection.py", "patches.py", "hooks.py", "elements.py")


def left_as_it_was(model, before):
    def check(place):
        assert unchanged(model, before), place

    return check


def test_faults_of_all_kinds_are_undone_wherever_an_interrupt_comes():
    model = nn.Linear(3, 3)
    faults = [
        Fault("", "weight", (0, 0), StuckAt(1, bit=30)),
        Fault("", "bias", 0, Replace(9.0), when=0),
        Fault("", index=(0, 0)),
    ]

    def run():
        with inject(model, *faults), inject(model, Fault("", "weight", (0, 0), Replace(3.0))):
            model(X)

    assert interrupted_everywhere(run, left_as_it_was(model, state(model)), *INJECTING) > 400


def test_a_packed_weight_is_undone_wherever_an_interrupt_comes():
    model = quantised_linear()
    before = model[0].weight().int_repr().clone()

    def run():
        with inject(model, Fault("0", "weight", (0, 0)), Fault("0", "bias", 0, when=0)):
            model(X)

    def check(place):
        assert torch.equal(model[0].weight().int_repr(), before), place
        assert unchanged(model, {}), place

    assert interrupted_everywhere(run, check, *INJECTING) > 100


def test_a_fault_that_fails_is_undone_wherever_an_interrupt_comes_as_well():
    def bad(values, rng):
        raise RuntimeError("on purpose")

    model = perceptron()
    half = Replace(9.0) + Custom(bad)

    def run():
        with (
            pytest.raises(RuntimeError, match="on purpose"),
            inject(model, Fault("last", "bias", 0), Fault("first", "weight", (0, 0), half)),
        ):
            pass

    assert interrupted_everywhere(run, left_as_it_was(model, state(model)), *INJECTING) > 100


@pytest.mark.parametrize("other_memory", [False, True])
def test_what_the_program_has_written_under_a_stuck_bit_stays_wherever_an_interrupt_comes(
    other_memory,
):
    model, held = nn.Linear(2, 2), {}
    weight = model.weight.data

    def run():
        model.weight.data = weight
        weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        held.update(state(model))
        with inject(model, *(Fault("", "weight", (0, 0), StuckAt(1, bit=b)) for b in (22, 21))):
            model(X[:, :2])
            if other_memory:
                model.weight.data = weight.clone()
            model.weight.data[0] = torch.tensor([5.0, 6.0])
            held["weight"][0] = torch.tensor([5.0, 6.0])
            model(X[:, :2])

    def check(place):
        assert unchanged(model, held), place

    assert interrupted_everywhere(run, check, *INJECTING) > 100


@pytest.mark.parametrize("other_memory", [False, True])
def test_faults_go_on_after_an_interrupt_that_was_caught_within_the_context(other_memory):
    model, before, seen = nn.Linear(2, 2), {}, []
    clean = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    first, later = torch.tensor([[1.5, 2.0], [3.0, 9.0]]), torch.tensor([[1.5, 2.0], [3.0, 4.0]])
    faults = [
        Fault("", "weight", (0, 0), StuckAt(1, bit=22)),
        Fault("", "weight", (1, 1), Replace(9.0), when=0),
    ]

    def write():
        if other_memory:
            model.weight.data = clean.clone()
        else:
            model.weight.data.copy_(clean)

    def run():
        write()
        before.update(state(model))
        seen.clear()
        # It strikes forward 0, which may not have come as far as that.
        with contextlib.suppress(FaultError), inject(model, *faults):
            watch = model.register_forward_hook(lambda *_: seen.append(model.weight.data.clone()))
            try:
                model(X[:, :2])
                write()
                model(X[:, :2])
            except KeyboardInterrupt:
                model.weight.data[0] = clean[0]
                for _ in range(2):
                    model(X[:, :2])
            watch.remove()

    def check(place):
        assert unchanged(model, before), place
        assert all(same_bits(x, later) for x in seen[1:]), place
        assert not seen or same_bits(seen[0], first) or same_bits(seen[0], later), place

    assert interrupted_everywhere(run, check, *INJECTING) > 100
