"""The draws come from pytorchfi 0.6.0 (`multi_weight_inj`, from its source at 1acb342).

They were recorded on `drawn_from` as the functions below run, with `pytorchfi.core.fault_injection`
in the place of `FaultInjection`: what was declared, and the number that `random` gives next.
"""

from __future__ import annotations

import json
import random

from pathlib import Path

import pytest
import torch

from pytorchfi_nets import BOTH, IMAGES, SHAPE, drawn_from, run

from pystack_nb import neuron_error_models as neurons
from pystack_nb import weight_error_models as weights
from pystack_nb.faults import FaultInjection


TABLE = json.loads((Path(__file__).parent / "pytorchfi_draws.json").read_text())
RANGES = [2.0, 3.0, 1.5]


@pytest.fixture
def model():
    return drawn_from()


@pytest.fixture
def pfi(model):
    return FaultInjection(model, 4, SHAPE, BOTH)


NEURON_CALLS = {
    "random_neuron_inj": {},
    "random_neuron_inj_batched": {},
    "random_neuron_inj_batched(rand_loc=False)": {"rand_loc": False},
    "random_neuron_inj_batched(rand_val=False)": {"rand_val": False},
    "random_neuron_inj_batched(False, False)": {"rand_loc": False, "rand_val": False},
    "random_inj_per_layer": {},
    "random_inj_per_layer_batched": {},
    "random_inj_per_layer_batched(rand_loc=False)": {"rand_loc": False},
    "random_inj_per_layer_batched(rand_val=False)": {"rand_val": False},
}
BIT_CALLS = {
    "random_neuron_single_bit_inj": {},
    "random_neuron_single_bit_inj_batched": {},
    "random_neuron_single_bit_inj_batched(rand_loc=False)": {"rand_loc": False},
}
WEIGHT_CALLS = {
    "random_weight_inj": (12, {"min_val": -3, "max_val": 5}),
    "random_weight_inj(corrupt_layer=2)": (12, {"corrupt_layer": 2, "min_val": -3, "max_val": 5}),
    "zero_func_rand_weight": (12, {}),
    "multi_weight_inj": (14, {"sdc_p": 4e-3}),
}


def declared(pfi, expected):
    assert pfi.corrupt_batch == expected["batch"]
    assert pfi.corrupt_layer == expected["layer"]
    assert [pfi.corrupt_dim1, pfi.corrupt_dim2, pfi.corrupt_dim3] == expected["dims"]
    assert pfi.corrupt_dim == expected["dims"]
    assert pfi.corrupt_value == expected["value"]
    assert random.random() == expected["after"]


@pytest.mark.parametrize("name", NEURON_CALLS)
def test_neuron_functions_draw_what_pytorchfi_drew(pfi, name):
    random.seed(11)
    function = getattr(neurons, name.split("(")[0])
    corrupted = function(pfi, min_val=-3, max_val=5, **NEURON_CALLS[name])
    run(corrupted, IMAGES)
    declared(pfi, TABLE[name])


@pytest.mark.parametrize("name", BIT_CALLS)
def test_bit_flip_functions_draw_what_pytorchfi_drew(model, name):
    pfi = neurons.single_bit_flip_func(model, 4, SHAPE, bits=8)
    random.seed(11)
    function = getattr(neurons, name.split("(")[0])
    run(function(pfi, RANGES, **BIT_CALLS[name]), IMAGES)
    declared(pfi, TABLE[name])


@pytest.mark.parametrize("name", WEIGHT_CALLS)
def test_weight_functions_draw_what_pytorchfi_drew(pfi, model, name):
    seed, kwargs = WEIGHT_CALLS[name]
    random.seed(seed)
    corrupted = getattr(weights, name.split("(")[0])(pfi, **kwargs)
    state = corrupted.state_dict()
    changed = [
        [key, index]
        for key, value in model.state_dict().items()
        for index in (state[key] != value).nonzero().tolist()
    ]
    assert changed == [entry[:2] for entry in TABLE[name]["changed"]]
    for key, index, *value in TABLE[name]["changed"]:
        assert state[key][tuple(index)].item() == pytest.approx(*value or [0.0], rel=1e-6)
    assert random.random() == TABLE[name]["after"]


def test_locations_and_sizes_are_pytorchfis(pfi):
    random.seed(13)
    drawn = [list(weights.random_weight_location(pfi)) for _ in range(6)]
    drawn += [list(neurons.random_neuron_location(pfi)) for _ in range(6)]
    assert drawn == TABLE["locations"]
    assert [list(size) for size in pfi.weights_size] == TABLE["weights_size"]
    assert pfi.output_size == TABLE["output_size"]


def test_quantised_flips_are_pytorchfis_within_the_range(model):
    pfi = neurons.single_bit_flip_func(model, 4, SHAPE)
    flips = [
        pfi._flip_bit_signed(torch.tensor(value), 3.0, bit).item()
        for value in (0.011, -1.0, 2.9, -2.9, 0.0, 1.5)
        for bit in range(8)
    ]
    assert flips == pytest.approx(TABLE["flips"])


@pytest.mark.parametrize(
    ("value", "bit", "expected"),
    [(3.0, 0, 126 / 128 * 3), (9.0, 7, -1 / 128 * 3), (-9.0, 0, -127 / 128 * 3)],
)
def test_values_beyond_the_range_saturate_before_the_flip(model, value, bit, expected):
    pfi = neurons.single_bit_flip_func(model, 4, SHAPE)
    for number in (value, value * float("inf")):
        flipped = pfi._flip_bit_signed(torch.tensor(number), 3.0, bit)
        assert flipped.item() == pytest.approx(expected)
    assert pfi._flip_bit_signed(torch.tensor(float("nan")), 3.0, bit).isnan()
