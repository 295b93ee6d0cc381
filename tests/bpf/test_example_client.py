"""A typical client program, recorded from its start to its end, against what it did."""

from __future__ import annotations

import json
import subprocess
import sys

from pathlib import Path

import pandas as pd
import pytest

import pystack_nb


PROGRAM = Path(__file__).with_name("programs") / "example_client.py"
HZ = 999


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What the command line recorded, and what the program told of itself."""
    path = tmp_path_factory.mktemp("example") / "recording"
    program = [sys.executable, PROGRAM]
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "pystack_nb.cli", "record"),
            *("--hz", str(HZ), "-o", path, "--", *program),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    told = json.loads(next(line for line in finished.stdout.splitlines() if line[:1] == "{"))
    return pystack_nb.load(path), told


def seconds_in(recording, function):
    """CPU seconds of the samples that have the function on their stack.

    By the rate that was reached: a virtual machine's timer also ticks while its host does
    something else, which is not the program's time.
    """
    hz = recording.info["hz"]
    frames = recording.stacks
    stacks = frames.loc[frames["function"] == function, "stack_id"].unique()
    samples = recording.samples
    return (
        samples.loc[samples["stack_id"].isin(stacks), "weight_ns"].sum()
        / 1e9
        * hz["asked"]
        / hz["reached"]
    )


@pytest.mark.parametrize("function", ["parse_sources", "count_primes", "sort_numbers", "recurse"])
def test_each_function_has_the_time_that_it_used(result, function):
    recording, told = result
    assert seconds_in(recording, function) == pytest.approx(told["spent"][function], rel=0.12)


def test_sleeping_takes_no_samples(result):
    recording, _ = result
    assert seconds_in(recording, "wait") < 0.05


def test_the_threads_are_told_apart(result):
    recording, told = result
    frames = recording.stacks
    for tid, function in zip(told["threads"], ["count_primes", "sort_numbers"], strict=True):
        samples = recording.samples[recording.samples["tid"] == tid]
        own = frames.loc[frames["function"] == function, "stack_id"].unique()
        assert len(samples) > 100
        assert samples["stack_id"].isin(own).mean() > 0.95


def test_recursion_is_whole_and_counts_once(result):
    recording, told = result
    functions = recording.functions().set_index("function")
    assert functions.loc["recurse", "total_ns"] / 1e9 < told["spent"]["recurse"] * 1.5
    frames = recording.stacks[recording.stacks["function"] == "recurse"]
    assert frames.groupby("stack_id").size().max() == 61


def test_everything_from_the_start_to_the_end_is_there(result):
    recording, told = result
    info = recording.info
    assert info["lost"] == 0
    assert info["complete"]
    assert info["error"] is None
    assert info["hz"]["reached"] > HZ * 0.97
    assert len(recording.samples) / HZ >= sum(told["spent"].values()) * 0.95
    assert info["wall_ns"] / 1e9 > sum(told["spent"].values()) / 2 + 0.5


def test_the_tables_are_those_of_the_contract(result):
    recording, _ = result
    assert " ".join(recording.samples.columns) == (
        "ts_ns pid tid comm cpu state weight_ns stack_id function filename line_number"
    )
    assert " ".join(recording.stacks.columns) == (
        "stack_id depth kind function filename line_number"
    )
    assert " ".join(recording.events.columns) == "ts_ns dur_ns pid tid kind name args"
    assert recording.samples["ts_ns"].is_monotonic_increasing
    assert recording.samples["ts_ns"].dtype == "int64"
    for column in ("comm", "state", "function", "filename"):
        assert isinstance(recording.samples[column].dtype, pd.CategoricalDtype)
    kinds = set(recording.stacks["kind"].unique())
    assert kinds <= {"python", "native", "kernel"}
    assert {"python", "native"} <= kinds
    # Only of a program that has just been executed is nothing known for some milliseconds.
    frameless = ~recording.samples["stack_id"].isin(recording.stacks["stack_id"])
    assert frameless.sum() <= recording.info["incomplete_by_cause"]["native-stack-missing"] < 50


def test_native_frames_are_named_and_lie_inside_the_python_ones(result):
    recording, _ = result
    stacks = recording.stacks
    native = stacks[stacks["kind"] == "native"]
    assert native["filename"].str.startswith("/").mean() > 0.9
    order = stacks["kind"].map({"python": 0, "native": 1, "kernel": 2}).astype(int)
    assert order.groupby(stacks["stack_id"]).is_monotonic_increasing.all()
