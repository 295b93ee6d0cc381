"""Struck weights that the program writes to, exchanges, or strikes twice."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from nets import perceptron, same_bits, samples, state, unchanged
from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults import (
    BitFlip,
    Everywhere,
    Fault,
    Noise,
    Replace,
    Several,
    StuckAt,
    inject,
)


X = samples(2)[0]


def tied():
    """Give a network whose layers hold two views of one memory."""
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    net[1].weight = nn.Parameter(net[0].weight.data.t())
    return net


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("make", [perceptron, tied])
def test_contexts_may_end_in_any_order(make, seed):
    model, rng = make(), np.random.default_rng(seed)
    before = state(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    errors = [BitFlip(), Replace(5.0), Noise(1.0), StuckAt(1, bit=31)]
    live = []
    for _ in range(8):
        index = [Several(4), Everywhere()][int(rng.integers(2))]
        error = errors[int(rng.integers(4))]
        fault = Fault(str(rng.choice(layers)), "weight", index, error)
        live.append(inject(model, fault, seed=int(rng.integers(1000))))
        live[-1].__enter__()
        if rng.integers(2):
            model(X)
        if rng.integers(2):
            live.pop(int(rng.integers(len(live)))).__exit__(None, None, None)
    while live:
        assert not unchanged(model, before)
        live.pop(int(rng.integers(len(live)))).__exit__(None, None, None)
    assert unchanged(model, before)


def test_what_a_later_fault_made_stays_until_it_ends():
    model = nn.Linear(1, 1)
    before = state(model)
    first, second = (inject(model, Fault("", "weight", (0, 0), Replace(v))) for v in (1.0, 2.0))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert model.weight.item() == 2
    second.__exit__(None, None, None)
    assert unchanged(model, before)


def test_weights_that_are_loaded_under_a_fault_stay_as_they_were_loaded():
    model = perceptron()
    new = {name: torch.ones_like(tensor) for name, tensor in state(model).items()}
    with (
        inject(model, Fault("first", "weight", Everywhere())),
        inject(model, Fault("first", "weight", (0, 0), StuckAt(1, bit=31))),
    ):
        model.load_state_dict(new)
        model(X)
        assert model.first.weight[0, 0] == -1
    assert unchanged(model, new)


def test_elements_that_are_not_written_are_restored_and_those_that_are_stay():
    model = nn.Linear(2, 2)
    before = state(model)["weight"]
    with inject(model, Fault("", "weight", Everywhere(), Replace(9.0))), torch.no_grad():
        model.weight[1] = 4.0
    assert same_bits(model.weight[0], before[0])
    assert (model.weight[1] == 4).all()


def test_what_a_forward_writes_to_a_buffer_under_a_fault_stays():
    model = nn.BatchNorm1d(2, momentum=0.5).train()
    with inject(model, Fault("", "running_mean", 0, Replace(8.0), when=0)):
        model(torch.full((2, 2), 2.0))
    assert model.running_mean.tolist() == [5, 1]


def test_a_buffer_that_is_assigned_under_a_fault_stays_as_the_program_made_it():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count = self.count + 1
            return x

    for error, seen in [(Replace(5.0), 7), (StuckAt(1, bit=31), 0)]:
        model = Counts()
        with inject(model, Fault("", "count", 0, error)):
            model(X)
            model(X)
        assert model.count == seen


def test_a_parameter_that_is_exchanged_under_a_fault_is_told():
    model = perceptron()
    clean = state(model)
    old = model.first.weight
    with (
        pytest.raises(FaultError, match=r"weight of layer 'first'.*exchanged.*outside of inject"),
        inject(model, Fault("first", "weight")),
    ):
        model.first.weight = nn.Parameter(torch.zeros(4, 3))
    assert same_bits(old, clean["first.weight"])
    assert not model.first.weight.any()

    with pytest.raises(FaultError, match="exchanged"), inject(model, Fault("last", "bias")):
        model.load_state_dict(clean, assign=True)
    assert unchanged(model, clean)


def test_a_stuck_bit_is_stuck_in_a_parameter_that_is_exchanged_too():
    model = nn.Linear(1, 1)
    old, before = model.weight, model.weight.item()
    with inject(model, Fault("", "weight", (0, 0), StuckAt(1, bit=31))):
        model.weight = new = nn.Parameter(torch.ones(1, 1))
        model(torch.ones(1, 1))
        assert new.item() == -1
        assert old.item() == before
    assert new.item() == 1


def test_a_layer_that_is_exchanged_under_a_fault_is_told():
    model = perceptron()
    old, before = model.first, copy.deepcopy(model.first)
    with pytest.raises(FaultError, match="taken out"), inject(model, Fault("first", "weight")):
        model.first = nn.Linear(3, 4)
    assert same_bits(old.weight, before.weight)


def test_a_weight_that_moves_under_a_fault_is_restored_where_it_is_then():
    model = perceptron()
    before = state(model)
    with inject(model, Fault("first", "weight", Everywhere())):
        model.first.weight.data = model.first.weight.data.clone()
    assert unchanged(model, before)
