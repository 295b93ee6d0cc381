from __future__ import annotations

import pytest

from pytorchfi_nets import BOTH, SHAPE, drawn_from, site_with
from torch import nn

from pystack_nb.errors import FaultError, FaultLocationError
from pystack_nb.faults import FaultInjection


@pytest.fixture
def model():
    return drawn_from()


@pytest.fixture
def pfi(model):
    return FaultInjection(model, 4, SHAPE, BOTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": [4]}, "Invalid batch element!"),
        ({"batch": [-1]}, "Invalid batch element!"),
        ({"layer_num": [3]}, "Invalid layer!"),
        ({"layer_num": [-1]}, "Invalid layer!"),
        ({"dim1": [8]}, "Dimension 1"),
        ({"dim2": [-1]}, "Dimension 2"),
        ({"dim3": [None]}, "Dimension 3"),
        ({"dim3": []}, "missing values"),
        ({"batch": 0}, "brackets"),
        ({"value": []}, "value missing"),
        ({"layer": [0]}, "does not know layer"),
    ],
)
def test_neurons_that_are_not_there_are_refused(pfi, changes, message):
    with pytest.raises(FaultLocationError, match=message) as caught:
        pfi.declare_neuron_fault_injection(**site_with(**changes))
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, FaultError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_num": [3]}, "Invalid layer!"),
        ({"k": [8]}, "Dimension 0"),
        ({"k": [-1]}, "Dimension 0"),
        ({"dim3": [None]}, "Dimension 3"),
        ({"dim2": []}, "missing values"),
        ({"layer_num": [2]}, "more numbers"),
        ({"value": []}, "value missing"),
    ],
)
def test_weights_that_are_not_there_are_refused(pfi, changes, message):
    site = site_with(k=[0])
    del site["batch"]
    with pytest.raises(FaultLocationError, match=message):
        pfi.declare_weight_fault_injection(**site | changes)


def test_senseless_injections_are_refused(model):
    with pytest.raises(AssertionError, match="as a list"):
        FaultInjection(model, 1, (3, 8, 8))
    with pytest.raises(AssertionError, match="1 or more"):
        FaultInjection(model, 0, SHAPE)
    for types in (["conv"], [nn.Conv2d, "Linear"], nn.Conv2d, [nn.Conv2d(1, 1, 1)]):
        with pytest.raises(FaultLocationError, match="give classes of modules in brackets"):
            FaultInjection(model, 1, SHAPE, types)
    assert len(FaultInjection(model, 1, SHAPE, "all").layers) == 6
    with pytest.raises(FaultError, match="no layer of the types"):
        FaultInjection(model, 1, SHAPE, [nn.LSTM])
    pfi = FaultInjection(model, 1, SHAPE)
    for declare in (pfi.declare_neuron_fi, pfi.declare_weight_fi):
        with pytest.raises(ValueError, match="specify an injection"):
            declare()


def test_an_option_that_is_misspelt_is_refused_and_those_of_pytorchfi_are_taken():
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    assert FaultInjection(model, 1, SHAPE, use_cuda=False).use_cuda is False
    with pytest.raises(TypeError, match="use_cud"):
        FaultInjection(model, 1, SHAPE, use_cud=False)
