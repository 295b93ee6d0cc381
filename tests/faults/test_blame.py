"""Exceptions that are no outcome of a fault: memory that ran out, devices that were lost."""

from __future__ import annotations

import os

from contextlib import nullcontext

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
from pystack_nb.faults.engine_neurons import NeuronSweep
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


def physical_memory():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_what_the_processor_can_not_allocate_now_is_a_shortage(part):
    size = int(part * physical_memory())
    text = f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size} bytes. Error"
    with pytest.raises(MemoryShortageError, match="memory ran out on cpu"):
        check_blame(RuntimeError(text), torch.device("cpu"))


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_what_no_machine_could_allocate_is_an_outcome(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate(2**50)
    check_blame(caught.value, torch.device("cpu"))


@pytest.mark.parametrize(("asked", "raises"), [("79.00 GiB", True), ("3.64 TiB", False)])
def test_on_a_gpu_its_own_memory_counts(monkeypatch, asked, raises):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 80 * 2**30))
    error = torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {asked}. GPU 0")
    expected = pytest.raises(MemoryShortageError) if raises else nullcontext()
    with expected:
        check_blame(error, torch.device("cuda"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=str,
)
def test_libraries_of_a_gpu_that_can_not_allocate_are_short_of_memory(error):
    with pytest.raises(MemoryShortageError):
        check_blame(error, torch.device("cuda"))


class Sized(nn.Module):
    """Makes a tensor whose size is a number that a fault may change."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        y = self.linear(x)
        return y + torch.zeros(int(y.abs().max().clamp(1, 1e15)))[0]


@pytest.mark.parametrize("kind", ["neurons", "weights"])
def test_a_campaign_ends_whose_faults_ask_for_absurd_memory(kind):
    campaign = faults.Campaign(
        Sized().eval(), samples(), faults.BitFlip(bit=30), kind, seed=0, faults=20
    )
    assert "DUE" in set(campaign.run(progress=False)["outcome"])


def test_a_batch_that_asks_for_absurd_memory_is_run_one_by_one(monkeypatch):
    net, (inputs, labels) = perceptron(), samples()
    data = (inputs, labels)
    table = faults.Campaign(net, data, sites="neurons", seed=0, faults=50).plan().faults
    right = Engine(net, EngineData([inputs], labels)).evaluate(table)
    monkeypatch.setattr(NeuronSweep, "_strike", lambda *_: torch.empty(2**50))
    engine = Engine(net, EngineData([inputs], labels), batch_size=8)
    pd.testing.assert_frame_equal(engine.evaluate(table), right, check_exact=True)


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
