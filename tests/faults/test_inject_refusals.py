"""Faults that can't be: an error that says what to do, and the model as it was."""

from __future__ import annotations

import warnings

import pytest
import torch

from nets import Shared, lenet, state, unchanged
from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults import (
    BitErrorRate,
    BitFlip,
    Channel,
    Custom,
    Fault,
    Row,
    Several,
    StuckAt,
    Zero,
    inject,
    sites,
)


IMAGES = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda: Fault("5.weigth"), "'5'"),
        (lambda: Fault(3), "a layer has a name"),
        (lambda: Fault("5", None), "a role has a name"),
        (lambda: Fault("5", error=Custom(lambda *_: None)), "return the values"),
        (lambda: Fault("5", error=Custom(lambda *_: "a")), "return the values"),
        (lambda: Fault("5", error=Custom(lambda *_: 1j)), "return real ones"),
        (lambda: Fault("5", "weights"), "'weight' or 'bias'"),
        (lambda: Fault("2", "weight"), "owns none"),
        (lambda: Fault("5", "weight", (10, 0)), "from 0 to 9"),
        (lambda: Fault("5", "weight", (0,)), "2 dimensions"),
        (lambda: Fault("5", "weight", (0, -1)), "counts from 0"),
        (lambda: Fault("5", "weight", "all"), "whole number"),
        (lambda: Fault("5", "weight", [0, 1]), "several are a tuple"),
        (lambda: Fault("5", error=BitFlip(bit=1.0)), "whole number"),
        (lambda: Fault("5", error=BitFlip() + 1), "and 1 is none"),
        (lambda: Fault("5", "weight", error=BitFlip(bit=32)), "no bit 32"),
        (lambda: Fault("5", "weight", error=30), "no error model"),
        (lambda: Fault("5", "weight", call=1), "role input or output"),
        (lambda: Fault("5", "weight", Several(1000)), "choose fewer"),
        (lambda: Fault("5", "weight", Channel(10)), "no channel 10"),
        (lambda: Fault("5", "weight", Row(dim=2)), "no dimension 2"),
        (lambda: Fault("5", "weight", BitErrorRate(0.1), Zero()), "ElementErrorRate"),
        (lambda: Fault("5", "weight", BitErrorRate(2)), "from 0 to 1"),
        (lambda: Fault("5", index=(0, 10)), "from 0 to 9"),
        (lambda: Fault("5", index=Channel), r"a class: Channel\(\) is a pattern"),
        (lambda: Fault("5", index=(3, 0)), "no sample 3"),
        (lambda: Fault("5", index=(3, 10)), "from 0 to 9"),
        (lambda: Fault("5", sample=3), "no sample 3"),
        (lambda: Fault("5", sample=0, index=(1, 0)), "leave one"),
        (lambda: Fault("5", "output.0"), "choose 'output'"),
        (lambda: Fault("5", call=1), "none got there"),
        (lambda: Fault("5", when=7), "forward 7"),
        (lambda: Fault("5", when=()), "names no forward"),
        (lambda: Fault("5", error=BitFlip(bit=40)), "no bit 40"),
    ],
)
def test_a_fault_that_can_not_be_is_an_error_and_the_model_is_as_before(fault, says):
    model = lenet()
    before = state(model)
    with pytest.raises(FaultError, match=says), inject(model, Fault("0", "weight"), fault()):
        model(IMAGES)
    assert unchanged(model, before)


def test_what_is_no_model_no_fault_or_no_seed_is_refused():
    for model, faults, seed in [
        (len, [Fault("")], 0),
        (lenet(), [], 0),
        (lenet(), [Fault("")], -1),
    ]:
        with pytest.raises(FaultError), inject(model, *faults, seed=seed):
            pass


def test_faults_in_a_list_and_batches_of_nothing_are_told_what_to_do():
    model, fault = nn.Linear(2, 2), Fault("")
    with pytest.raises(FaultError, match=r"inject\(model, \*faults\)"), inject(model, [fault]):
        pass
    with pytest.raises(FaultError, match="one sample or more"), inject(model, fault):
        model(torch.zeros(0, 2))


def test_a_fault_that_no_forward_reached_is_an_error_but_hides_no_other_one():
    model = Shared()
    with pytest.raises(FaultError, match="did not take place"), inject(model, Fault("unused")):
        model(torch.randn(1, 4, 6, 6))
    with pytest.raises(ZeroDivisionError), inject(model, Fault("unused")):
        raise ZeroDivisionError


def test_a_model_that_is_converted_under_a_fault_is_told():
    model = nn.Linear(2, 2)
    with pytest.raises(FaultError, match="outside of inject"), inject(model, Fault("", "weight")):
        model.double()
    stuck = Fault("", "weight", error=StuckAt(1))
    with pytest.raises(FaultError, match="outside of inject"), inject(model, stuck):
        model.float()(torch.ones(1, 2))


def test_lazy_layers_are_told_to_be_run_first():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.LazyLinear(3)
    with pytest.raises(FaultError, match="run the model once"), inject(model, Fault("", "weight")):
        pass


@pytest.mark.parametrize(
    "compiled",
    [
        lambda model: torch.jit.trace(model, IMAGES),
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.Sequential(torch.jit.trace(model, IMAGES)),
    ],
)
def test_compiled_models_are_told_apart(compiled):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = compiled(lenet())
    with pytest.raises(FaultError, match="is compiled"), inject(model, Fault("5", "weight")):
        pass
    with pytest.raises(FaultError, match="is compiled"):
        sites(model, IMAGES)
