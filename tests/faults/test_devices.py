"""What works on a processor works on a GPU, where there is one, with nothing moved by hand."""

from __future__ import annotations

import pandas as pd
import pytest
import reference
import torch

from nets import flipped, lenet, same_bits, state, unchanged
from recorded import recorded

from pystack_nb import faults
from pystack_nb.errors import FaultError
from pystack_nb.faults.engine import Engine, EngineData
from pystack_nb.faults.metrics import Exact, Top1
from pystack_nb.faults.state import repeatable


# Found out when tests are collected: without a GPU there is nothing to skip.
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
pytestmark = pytest.mark.parametrize("device", DEVICES)


def made(device):
    """Give a model there, and samples that are not."""
    model = lenet().to(device)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 1, 8, 8, generator=generator)
    return model, inputs, torch.randint(10, (12,), generator=generator)


def table_of(model, inputs, count=120):
    return faults.Campaign(model, inputs, seed=0, faults=count).plan().faults


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_a_bit_of_an_element_is_flipped_where_it_is(device, dtype):
    plain = torch.arange(12).reshape(3, 4).to(dtype)
    for tensor in (plain.to(device, copy=True), plain.t().contiguous().to(device).t()):
        faults.flip_bit(tensor, (1, 2), 5)
        assert tensor.device.type == device
        assert same_bits(tensor.cpu(), flipped(plain, (1, 2), 5))


def test_sites_are_the_same_and_looking_leaves_generators(device):
    model, inputs, _ = made(device)
    before, given = state(model), inputs.to(device)
    drawn = torch.cuda.get_rng_state_all() if device == "cuda" else [torch.get_rng_state()]
    found = faults.sites(model, given)
    pd.testing.assert_frame_equal(found, faults.sites(lenet(), inputs))
    now = torch.cuda.get_rng_state_all() if device == "cuda" else [torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(now, drawn, strict=True))
    assert unchanged(model, before)


@pytest.mark.parametrize("role", ["output", "input", "weight", "bias"])
def test_faults_strike_and_are_taken_away(device, role):
    model, inputs, _ = made(device)
    before, given = state(model), inputs.to(device)
    right = model(given)
    for error in (faults.BitFlip(bits=30), faults.Noise(0.5), faults.StuckAt(1, bits=29)):
        with faults.inject(model, faults.Fault("5", role, error=error), seed=0) as log:
            wrong = model(given)
        assert len(log) == 1
        assert wrong.device.type == device
        assert not torch.equal(wrong, right)
    assert unchanged(model, before)
    assert torch.equal(model(given), right)


@pytest.mark.parametrize("metric", [Top1(), Exact(), lambda g, f, _: bool((g != f).any())])
@pytest.mark.parametrize("several", [None, 4])
def test_the_engine_gives_what_one_fault_per_forward_gives(device, metric, several):
    model, inputs, labels = made(device)
    table = table_of(model, inputs)
    data = EngineData([inputs.to(device)], labels)
    with repeatable(torch.device(device)):
        expected = reference.evaluate(model, data, table, metric, several)
    found = Engine(model, data, metric, weight_samples=several).evaluate(table)
    pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)


def test_a_campaign_takes_data_from_elsewhere(device):
    model, inputs, labels = made(device)
    before = state(model)
    campaign = faults.Campaign(model, (inputs, labels), seed=0, faults=150, metric=faults.TopK(2))
    assert len(campaign.run(progress=False)) == 150
    assert campaign.inputs[0].device.type == device
    assert campaign.fingerprint()["device"]["type"] == device
    assert unchanged(model, before)


def test_protections_are_profiled_and_compared_on_data_from_elsewhere(device):
    model, inputs, labels = made(device)
    table = table_of(model, inputs, 20)
    ranger = faults.Ranger.profile(model, inputs, batch_size=5)
    protections = {
        "Ranger": ranger,
        "NaN": faults.NanDetector(action="record"),
        "twice": faults.Duplicate(),
        "sums": faults.Checksum(),
    }
    found = faults.compare(model, (inputs, labels), table, protections, repeats=1)
    assert found["false_alarms"].tolist() == [0] * 5
    assert (found[["masked", "SDC", "DUE", "detected"]].sum(axis=1) == 20).all()


def test_pytorchfi_s_functions_strike(device):
    model, inputs, _ = made(device)
    given = inputs.to(device)
    pfi = faults.FaultInjection(model, 12, input_shape=[1, 8, 8], use_cuda=device == "cuda")
    wrong = pfi.declare_neuron_fi(
        batch=[3], layer_num=[0], dim1=[1], dim2=[2], dim3=[3], value=[1e4]
    )(given)
    differs = (wrong != model(given)).any(1)
    assert differs.nonzero().flatten().tolist() == [3]
    wrong = pfi.declare_weight_fi(layer_num=[0], k=[1], dim1=[0], dim2=[1], dim3=[1], value=[1e4])(
        given
    )
    assert wrong.device.type == device
    assert (wrong != model(given)).any()


@pytest.mark.parametrize("synchronize", [False, True])
def test_exposure_is_known_where_layers_were_waited_for(device, synchronize):
    model, inputs, _ = made(device)

    def run():
        with faults.annotate(model, synchronize=synchronize), torch.no_grad():
            model(inputs.to(device))

    rec = recorded(run)
    assert {args["device"] for args in rec.events["args"]} == {device}
    assert len(faults.exposure(rec, model, "uniform-bits"))
    if device == "cpu" or synchronize:
        assert (faults.exposure(rec, model, "busy")["bit_seconds"] >= 0).all()
    else:
        with pytest.raises(FaultError, match="synchronize=True"):
            faults.exposure(rec, model, "busy")
