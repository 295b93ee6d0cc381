"""Modules taken out of a corrupted model run under its faults, as they do in PyTorchFI's copy."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from pytorchfi_nets import BOTH, IMAGES, SHAPE, drawn_from, run, site_with
from torch import nn

from pystack_nb import neuron_error_models as neurons
from pystack_nb.faults import FaultInjection


SITE = {"layer_num": [1], "k": [2], "dim1": [1], "dim2": [0], "dim3": [2], "value": [100.0]}


@pytest.fixture
def model():
    return drawn_from()


@pytest.fixture
def pfi(model):
    return FaultInjection(model, 4, SHAPE, BOTH)


def in_turn(layers):
    x = IMAGES
    with torch.no_grad():
        for layer in layers:
            x = layer(x)
    return x


@pytest.mark.parametrize("kind", ["neuron", "weight"])
def test_the_layers_of_a_corrupted_sequential_run_one_by_one_under_the_faults(pfi, model, kind):
    if kind == "weight":
        corrupted = pfi.declare_weight_fi(**SITE)
    else:
        corrupted = pfi.declare_neuron_fi(**site_with(layer_num=[1], value=[1e4]))
    wrong, right = run(corrupted, IMAGES), run(model, IMAGES)
    assert not torch.equal(wrong, right)
    layers = [corrupted[i] for i in range(len(corrupted))]
    assert len(corrupted) == len(model) == len([*corrupted])
    assert torch.equal(in_turn(corrupted), wrong)
    assert torch.equal(in_turn(layers), wrong)
    assert torch.equal(in_turn([corrupted[:3], *corrupted[3:]]), wrong)
    assert torch.equal(in_turn([nn.Sequential(*corrupted)]), wrong)
    assert torch.equal(in_turn([getattr(corrupted, str(i)) for i in range(6)]), wrong)
    assert torch.equal(
        run(copy.deepcopy(layers[2]), run(model[:2], IMAGES)), layers[2](run(model[:2], IMAGES))
    )
    assert torch.equal(run(model, IMAGES), right)


def test_a_part_passes_for_its_module_and_shows_the_wrong_weight(pfi, model):
    corrupted = pfi.declare_weight_fi(**SITE)
    part = getattr(corrupted, "2")
    assert corrupted
    assert isinstance(part, nn.Conv2d)
    assert part.weight[2, 1, 0, 2] == part.state_dict()["weight"][2, 1, 0, 2] == 100
    assert model[2].weight[2, 1, 0, 2] != 100
    assert repr(part) == repr(model[2])
    assert part.bias is model[2].bias
    seen = []
    hook = part.register_forward_hook(lambda *_: seen.append(1))
    run(corrupted, IMAGES)
    hook.remove()
    run(corrupted, IMAGES)
    assert seen == [1]
    part.stride = (1, 1)
    assert model[2].stride == (1, 1)
    assert part.double().weight.dtype == model[2].weight.dtype == torch.float64


def test_parts_of_parts_and_of_dictionaries_are_under_the_faults_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), nn.ReLU())})

        def forward(self, x):
            return self.parts["body"](x)

    model = Net()
    pfi = FaultInjection(model, 1, [3], [nn.Linear])
    random.seed(0)
    corrupted = neurons.random_neuron_inj(pfi, 50, 60)
    x = torch.ones(1, 3)
    assert [*corrupted.parts] == ["body"]
    for body in (corrupted.parts["body"], corrupted.parts.body):
        assert run(body, x).max() > 40 > run(model, x).max()
        assert torch.equal(run(body, x), run(corrupted, x))
    for what in (len, iter, lambda x: x[0]):
        with pytest.raises(TypeError, match="Net"):
            what(corrupted)
    assert corrupted
