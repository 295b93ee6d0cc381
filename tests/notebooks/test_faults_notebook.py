"""The notebook about faults, from top to bottom, and whether what it says is so."""

from __future__ import annotations

import re

import demos
import pytest

from trace_processor import TraceProcessor


NAME = "04_faults"
SLICES = "select name, count() from slice where category = '{}' group by name order by name"
LAYERS = ["conv1", "conv2", "fc1", "fc2", "pool", "relu1", "relu2", "relu3"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "out"
    return demos.run(NAME, out), out


@pytest.fixture(scope="module")
def cells(demo):
    return {cell.id: cell for cell in demos.executed(demo[1], NAME)}


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_notebook_about_faults_runs_through(demo):
    finished, out = demo
    assert (finished.returncode, finished.stderr) == (0, "")
    assert {path.name for path in out.iterdir()} == {f"{NAME}.ipynb", "faults.pftrace"}


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_one_fault_of_the_notebook_is_taken_back(cells):
    before, within, after = re.findall(r"\d+\.\d%", demos.text(cells["one"]))
    assert before == after
    assert float(within[:-1]) < float(before[:-1])


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_a_bit_of_the_exponent_does_most_of_the_harm_in_the_notebook(cells):
    for name in ("weight-layers", "weight-bits", "neuron-bits"):
        assert any("image/png" in x.data for x in cells[name].outputs)
    assert "bit" in demos.text(cells["worst"])
    worst = [int(x) for x in re.findall(r"^\d+ +(\d+)", demos.text(cells["worst"]), re.MULTILINE)]
    assert worst[0] == 30


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_trace_of_the_notebook_has_each_layer_and_the_fault(demo):
    with TraceProcessor((demo[1] / "faults.pftrace").read_bytes()) as trace:
        assert trace.errors() == []
        layers = dict(trace.rows(SLICES.format("layer")))
        assert [layers[x] for x in LAYERS] == 8 * [101]
        assert trace.rows(SLICES.format("fault")) == [("relu2:output", 1)]


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_each_model_of_exposure_weights_the_same_faults(cells):
    totals = re.findall(
        r"(\S+), (\w+): .*%.*interval.*, ([\d,]+) faults", demos.text(cells["reweight"])
    )
    assert [x[:2] for x in totals] == [
        (name, kind)
        for name in ("busy", "live", "uniform-bits", "macs")
        for kind in ("weights", "activations")
    ]
    assert len({x[2] for x in totals}) == 2


def test_the_notebook_about_faults_is_kept_with_its_outputs_and_small():
    kept = demos.executed(demos.NOTEBOOKS, NAME)
    assert all(x.outputs for x in kept if x.id != "setup")
    assert (demos.NOTEBOOKS / f"{NAME}.ipynb").stat().st_size < 500_000
