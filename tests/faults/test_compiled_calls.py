"""torch.compile, which puts a frame evaluator of its own before the probe's."""

from __future__ import annotations

import pytest
import torch

from pystack_nb import PyStackProfiler


def leaf():
    pass


def twice(x):
    return x * 2


@pytest.mark.parametrize("when", ["before", "while"])
def test_calls_are_exact_around_compiled_functions(when):
    # GIVEN a function that PyTorch compiles, before the recording or in it
    torch._dynamo.reset()
    compiled = torch.compile(twice, backend="eager")
    x = torch.ones(3)
    if when == "before":
        compiled(x)
    # WHEN it is called among others
    with PyStackProfiler("calls", source="inprocess") as profiler:
        for _ in range(5):
            assert compiled(x).tolist() == [2, 2, 2]
            for _ in range(20):
                leaf()
    # THEN each call is there, once
    calls = profiler.recording.calls
    counted = calls[calls["filename"] == __file__]["function"].value_counts()
    assert (counted["twice"], counted["leaf"]) == (5, 100)
    assert profiler.recording.info["incomplete_by_cause"]["other-evaluator"] == 0
    assert (calls["complete"]).all()
    # AND afterwards it goes on without the probe
    assert compiled(x).tolist() == [2, 2, 2]
