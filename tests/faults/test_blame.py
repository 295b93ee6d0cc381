"""Exceptions that are no outcome of a fault: memory that ran out, devices that were lost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from nets import perceptron, samples
from torch import nn

from pystack_nb import faults
from pystack_nb.errors import CampaignError
from pystack_nb.faults.blame import MemoryShortageError, check_blame
from pystack_nb.faults.engine import Engine, EngineData
from pystack_nb.faults.engine_program import Program


SHORT = [MemoryError, torch.cuda.OutOfMemoryError]


def ids(kind):
    return kind.__name__


class Fails(nn.Module):
    """Raises where a number is huge, as a fault makes it."""

    def __init__(self, error):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.error = error

    def forward(self, x):
        y = self.linear(x)
        if not y.abs().max() < 1e6:
            raise self.error
        return y


def flips(kind, bit, count=1):
    """Give flips of a high bit of the exponent."""
    return pd.DataFrame(
        {
            "fault": range(count),
            "layer": "linear",
            "call": 0,
            "role": "bias" if kind == "weight" else "output",
            "kind": kind,
            "element": 0,
            "sample": 0,
            "and_mask": ~np.zeros(count, np.uint64),
            "or_mask": np.zeros(count, np.uint64),
            "xor_mask": np.full(count, 1 << bit, np.uint64),
            "value": np.nan,
            "bit": bit,
        }
    )


@pytest.mark.parametrize("kind", ["neuron", "weight"])
@pytest.mark.parametrize("error", SHORT, ids=ids)
def test_a_shortage_of_memory_is_no_outcome(kind, error):
    net, (inputs, labels) = Fails(ValueError()).eval(), samples()
    # A number below 1 becomes huge, as the bit is not set in it.
    nn.init.constant_(net.linear.bias, 0.5)
    nn.init.zeros_(net.linear.weight)
    engine, table = Engine(net, EngineData([inputs])), flips(kind, 30)
    assert engine.evaluate(table)["outcome"].tolist() == ["DUE"]
    compared = faults.compare(net, (inputs, labels), table, {}, repeats=1)
    assert compared["DUE"].tolist() == [1]
    net.error = error()
    with pytest.raises(MemoryShortageError, match="batch_size"):
        engine.evaluate(table)
    with pytest.raises(MemoryShortageError, match="no outcome"):
        faults.compare(net, (inputs, labels), table, {}, repeats=1)


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("error", SHORT, ids=ids)
def test_a_batch_that_is_too_large_for_the_memory_is_halved(monkeypatch, error, warm):
    net, (inputs, labels) = perceptron(), samples()
    data = EngineData([inputs], labels)
    campaign = faults.Campaign(net, (inputs, labels), sites="neurons", seed=0, faults=200)
    table, run = campaign.plan().faults, Program.run
    right = Engine(net, data).evaluate(table)
    sizes = []

    def little_memory(self, env, batch, start, end):
        sizes.append(batch)
        if batch > 9:
            raise error("out of memory")
        run(self, env, batch, start, end)

    engine = Engine(net, data, batch_size=64)
    if warm:
        engine.evaluate(table.head(1))
        assert engine.batch == 64
    monkeypatch.setattr(Program, "run", little_memory)
    found = engine.evaluate(table)
    assert max(sizes) == 64
    assert engine.batch == 8
    assert found.attrs["ways"] == right.attrs["ways"]
    pd.testing.assert_frame_equal(found, right, check_exact=True)


@pytest.mark.parametrize("error", SHORT, ids=ids)
def test_a_weight_fault_without_memory_has_no_outcome(monkeypatch, error):
    net, (inputs, _) = perceptron(), samples()
    engine, table = Engine(net, EngineData([inputs])), flips("weight", 30).assign(layer="last")
    engine.evaluate(table)

    def none(*_):
        raise error("out of memory")

    monkeypatch.setattr(Program, "run", none)
    with pytest.raises((MemoryShortageError, error)):
        engine.evaluate(table)


def test_what_the_processor_can_not_allocate_is_a_shortage():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    with pytest.raises(MemoryShortageError, match="memory ran out on cpu"):
        check_blame(caught.value, torch.device("cpu"))


def test_an_exception_on_a_device_that_works_is_an_outcome(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    check_blame(ValueError(), torch.device("cpu"))
    assert not waited
    check_blame(ValueError(), torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


@pytest.mark.parametrize("late", [True, False])
def test_a_lost_device_ends_a_campaign(monkeypatch, late):
    def broken(_):
        raise torch.AcceleratorError("device-side assert")

    monkeypatch.setattr(torch.accelerator, "synchronize", broken if late else lambda _: None)
    error = ValueError() if late else torch.AcceleratorError("device-side assert")
    with pytest.raises(CampaignError, match="restart the kernel"):
        check_blame(error, torch.device("cuda"))
