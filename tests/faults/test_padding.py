"""Encoders that are given a padding mask, which PyTorch packs into nested tensors."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch

from interrupting import interrupted_everywhere
from nets import state, unchanged
from recorded import recorded
from torch import nn

from pystack_nb import faults
from pystack_nb.faults.padding import padded


# That the packing is of a prototype's kind.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class Sentence(nn.Module):
    """Uses all of what the encoder gives, padding too."""

    def __init__(self, norm=None, computed=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm)
        self.last = nn.Linear(8, 3)
        self.computed = computed

    def forward(self, x, mask=None):
        padding = x[..., 0] > 5 if self.computed else mask
        return self.last(self.encoder(x, src_key_padding_mask=padding).mean(1))


def made(norm=None, computed=False, lengths=(5, 3, 4, 1)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Sentence(norm, computed).eval(), torch.randn(4, 5, 8).clamp(-3, 3)
    mask = torch.arange(5) >= torch.tensor(lengths)[:, None]
    x[..., 0][mask] = 9.0
    return model, x, mask


def plain(model, *args):
    with torch.no_grad():
        return model(*args)


@pytest.mark.parametrize("norm", [None, nn.LayerNorm(8)], ids=["bare", "normalised"])
@pytest.mark.parametrize("lengths", [(5, 3, 4, 1), (5, 5, 5, 5), (1, 1, 1, 1)], ids=str)
def test_the_model_gives_what_it_gives_by_itself(norm, lengths):
    model, x, mask = made(norm, lengths=lengths)
    before, right = state(model), plain(model, x, mask)
    with padded(model), padded(model.encoder):
        assert not plain(model.encoder.layers[0], x).is_nested
        torch.testing.assert_close(plain(model, x, mask), right)
    assert unchanged(model, before)
    assert model.encoder.use_nested_tensor
    assert torch.equal(plain(model, x, mask), right)


def test_where_nothing_would_be_packed_padding_stays():
    model, x, mask = made()
    for given in (mask.flip(1), mask):
        with torch.set_grad_enabled(given is mask):
            right = model(x, given)
            with padded(model):
                torch.testing.assert_close(model(x, given), right, rtol=0, atol=0)


def test_contexts_end_in_any_order():
    model, _, _ = made()
    one, other = padded(model), padded(model)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not model.encoder.use_nested_tensor
    other.__exit__(None, None, None)
    assert model.encoder.use_nested_tensor


@pytest.mark.parametrize("norm", [None, nn.LayerNorm(8)], ids=["bare", "normalised"])
def test_a_copy_or_a_saved_model_packs_as_the_model_does_by_itself(norm):
    model, x, mask = made(norm)
    right, saved, packed = plain(model, x, mask), io.BytesIO(), []
    with padded(model):
        copied = copy.deepcopy(model)
        torch.save(model, saved)
        padding = plain(model, x, mask)
    saved.seek(0)
    for other in (copied, torch.load(saved, weights_only=False)):
        assert other.encoder.use_nested_tensor is True
        with padded(other):
            assert torch.equal(plain(other, x, mask), padding)
        hook = other.encoder.layers[0].register_forward_hook(
            lambda _, args, __: packed.append(args[0].is_nested)
        )
        assert torch.equal(plain(other, x, mask), right)
        hook.remove()
        assert torch.equal(plain(copy.deepcopy(other), x, mask), right)
    assert packed == [True, True]


def test_threads_do_not_mix_their_padding():
    model, x, mask = made(lengths=(5, 3, 4, 1))
    others = mask[[1, 0, 3, 2]]
    x[..., 0][others] = 9.0
    right, found, meet = {}, {}, threading.Barrier(2)
    for number, given in enumerate((mask, others)):
        right[number] = plain(model, x, given)

    def run(number, given):
        meet.wait()
        found[number] = [plain(model, x, given) for _ in range(20)]

    with padded(model):
        threads = [threading.Thread(target=run, args=pair) for pair in enumerate((mask, others))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, outputs in found.items():
        for output in outputs:
            torch.testing.assert_close(output, right[number])


def test_sites_are_those_of_a_padded_batch():
    model, x, mask = made()
    table = faults.sites(model, x, mask)
    row = table[(table["layer"] == "encoder.layers.1.linear1") & (table["role"] == "output")]
    assert row["shape"].item() == (4, 5, 16)
    assert row["elements"].item() == 4 * 5 * 16


def test_a_fault_strikes_one_sample_and_one_that_changes_nothing_none():
    model, x, mask = made(nn.LayerNorm(8))
    right = plain(model, x, mask)
    for fault, differing in [
        (faults.Fault("encoder.layers.1.linear1", "output", (1, 2, 3), faults.Replace(1e3)), [1]),
        (faults.Fault("encoder.layers.1.linear1", "output", (1, 4, 3), faults.Replace(1e3)), []),
    ]:
        with faults.inject(model, fault, seed=0) as log:
            found = plain(model, x, mask)
        assert len(log) == 1
        off = ~torch.isclose(found, right, rtol=1e-5, atol=1e-5).all(1)
        assert off.nonzero().flatten().tolist() == differing
    assert torch.equal(plain(model, x, mask), right)


def test_encoders_are_left_as_they_were_wherever_an_interrupt_comes():
    model, x, mask = made(nn.LayerNorm(8))
    before = state(model)

    def run():
        with padded(model), padded(model.encoder):
            plain(model, x, mask)

    def check(place):
        assert unchanged(model, before), place
        assert model.encoder.use_nested_tensor is True, place

    assert interrupted_everywhere(run, check, "padding.py", "hooks.py") > 50


@pytest.mark.parametrize("computed", [False, True])
def test_a_campaign_judges_by_what_the_model_gives(computed):
    model, x, mask = made(nn.LayerNorm(8), computed)
    seen = []

    def far(golden, faulty, _):
        seen.append(golden)
        return bool((golden - faulty).abs().max() > 1e-3)

    inputs = [x] if computed else [x, mask]
    campaign = faults.Campaign(model, (inputs, None), seed=0, faults=120, metric=far)
    results = campaign.run(progress=False)
    assert {*results["outcome"]} >= {"masked", "SDC"}
    right = plain(model, *inputs)
    for golden in seen:
        assert any(torch.allclose(golden, row, atol=1e-5) for row in right)


def test_pytorchfi_s_functions_reach_each_layer():
    model, x, mask = made()
    right = plain(model, x, mask)
    pfi = faults.FaultInjection(
        model, 4, input_shape=[5, 8], layer_types=["all"], use_cuda=False, inputs=(x, mask)
    )
    names = [layer.name for layer in pfi.layers]
    assert "encoder.layers.1.linear1" in names
    number = names.index("encoder.layers.1.linear1")
    wrong = pfi.declare_neuron_fi(
        batch=[1], layer_num=[number], dim1=[2], dim2=[3], dim3=[None], value=[1e3]
    )
    off = ~torch.isclose(plain(wrong, x, mask), right, rtol=1e-5, atol=1e-5).all(1)
    assert off.nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize(
    "make",
    [
        lambda *_: faults.Duplicate(),
        lambda *_: faults.Duplicate(layers=["encoder.layers.0"]),
        lambda *_: faults.NanDetector(),
        lambda *_: faults.Checksum(),
        lambda *given: faults.Ranger.profile(
            given[0], (list(given[1:]), None), layers=["encoder.layers.0", "last"]
        ),
    ],
    ids=["Duplicate", "one", "NanDetector", "Checksum", "Ranger"],
)
def test_protections_see_padded_batches(make):
    model, x, mask = made(nn.LayerNorm(8))
    right = plain(model, x, mask)
    with faults.protect(model, make(model, x, mask)) as protection:
        torch.testing.assert_close(plain(model, x, mask), right)
    report = protection.report()
    assert report["checks"].sum() > 0
    assert not report["detections"].any()


def test_the_exposure_of_a_recorded_model_is_known():
    model, x, mask = made()

    def run():
        with faults.annotate(model):
            plain(model, x, mask)

    table = faults.exposure(recorded(run), model, "live", inputs=(x, mask))
    rows = table[(table["layer"] == "encoder.layers.1.linear1") & (table["role"] == "output")]
    assert rows["bits"].item() == 4 * 5 * 16 * 32
