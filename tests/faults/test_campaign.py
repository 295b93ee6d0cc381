"""Campaigns that are run: here and elsewhere, killed and resumed."""

import os
import signal
import subprocess
import sys
import textwrap

from concurrent.futures import (
    ThreadPoolExecutor,
)
from pathlib import Path

import nets
import numpy as np
import pandas as pd
import pytest
import reference
import torch

from campaigning import FAULTS, campaign, run, same
from recorded import recorded
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pystack_nb.errors import CampaignError
from pystack_nb.faults import executors
from pystack_nb.faults.annotate import annotate
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.data import tensors
from pystack_nb.faults.engine import EngineData
from pystack_nb.faults.exposure import exposure
from pystack_nb.faults.metrics import Exact, Top1
from pystack_nb.faults.models import BitFlip, StuckAt
from pystack_nb.faults.sites import sites


def test_results_are_those_of_one_fault_one_sample_one_forward(expected):
    inputs, labels = nets.samples()
    found = reference.evaluate(nets.perceptron(), EngineData([inputs], labels), expected, Top1())
    same(expected[list(found)], found)
    assert set(expected["outcome"]) == {"masked", "SDC", "DUE"}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_results_depend_on_no_batch_size(expected, batch_size):
    same(run(campaign(batch_size=batch_size)), expected)


def test_results_depend_on_no_size_of_parts(expected, small_batches, tmp_path):
    same(run(campaign(path=tmp_path)), expected)
    sizes = [len(pd.read_parquet(x)) for x in tmp_path.glob("part-*.parquet")]
    assert sum(sizes) == FAULTS
    assert len(sizes) > 20


def test_faults_that_told_how_long_it_takes_are_not_run_again(monkeypatch):
    evaluated, own = [], executors.evaluated

    def noted(engine, batch):
        evaluated.extend(batch["fault"])
        return own(engine, batch)

    monkeypatch.setattr(executors, "evaluated", noted)
    one = campaign()
    one.plan()
    assert 5 <= len(evaluated) <= FAULTS // 5
    run(one)
    assert sorted(evaluated) == [*range(FAULTS)]
    run(one)
    assert len(evaluated) == FAULTS


def test_another_seed_gives_other_faults(expected):
    assert not run(campaign(seed=2))["xor_mask"].equals(expected["xor_mask"])


def test_the_model_is_afterwards_as_it_was():
    net = nets.perceptron()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    run(campaign(net, error_model=StuckAt(1, field="exponent")))
    after = net.state_dict()
    assert all(
        torch.equal(v.view(torch.int32), after[k].view(torch.int32)) for k, v in before.items()
    )


def test_the_plan_is_printed_before_anything_runs(capsys, monkeypatch):
    printed = []
    own = Campaign._inject
    monkeypatch.setattr(
        Campaign,
        "_inject",
        lambda *args, **kw: (printed.append(capsys.readouterr().out), own(*args, **kw)),
    )
    run(campaign())
    assert f"{FAULTS} faults of 10,752" in printed[0]
    assert "about" in printed[0]


def test_a_pilot_is_printed_before_it_runs(capsys, monkeypatch):
    printed, own = [], Campaign._inject
    monkeypatch.setattr(
        Campaign,
        "_inject",
        lambda *args, **kw: (printed.append(capsys.readouterr().out), own(*args, **kw)),
    )
    run(campaign(allocation="neyman", faults=710))
    pilot, whole = printed
    assert "pilot" in pilot
    assert "700 faults of 10,752" in pilot
    assert "710 faults of 10,752" in whole


def test_recordings_of_this_process_get_an_event_of_each_fault(expected, small_batches):
    def by_threads():
        with ThreadPoolExecutor(2) as pool:
            run(campaign(faults=60), pool)

    for function in (lambda: run(campaign(faults=60)), by_threads):
        events = recorded(function).events
        events = events[events["kind"] == "fault"]
        told = pd.DataFrame(list(events["args"])).sort_values("fault", ignore_index=True)
        columns = ["fault", "layer", "role", "element", "bit", "outcome"]
        results = run(campaign(faults=60))
        pd.testing.assert_frame_equal(told[columns], results[columns], check_dtype=False)
        assert (events["name"] == [f"{x['layer']}:{x['role']}" for x in events["args"]]).all()
        assert (events["dur_ns"] > 0).all()


def test_a_bar_shows_the_progress(capsys):
    campaign().run()
    assert f"{FAULTS}/{FAULTS}" in capsys.readouterr().err


def test_neymans_pilot_is_part_of_the_sample(tmp_path):
    one = campaign(faults=1000, allocation="neyman", path=tmp_path)
    results = run(one)
    assert len(results) == 1000
    assert one.strata["faults"].min() >= 100
    again = campaign(faults=1000, allocation="neyman", path=tmp_path)
    same(run(again), results)
    total = one.total()
    assert 0 < total.low < total.rate < total.high < 0.2
    assert "SDC" in repr(one)


def test_weight_faults_can_be_tried_on_several_samples():
    one = campaign(sites="weights", weight_samples=3)
    results = run(one)
    assert (results["kind"] == "weight").all()
    inputs, labels = nets.samples()
    data = EngineData([inputs], labels)
    found = reference.evaluate(nets.perceptron(), data, results, Top1(), weight_samples=3)
    same(results[list(found)], found)


def test_sites_can_be_chosen():
    assert set(campaign(sites="neurons").sites["role"]) == {"output"}
    assert set(campaign(sites="weights").sites["role"]) == {"weight", "bias"}
    table = sites(nets.perceptron(), nets.samples()[0]).query("layer == 'last'")
    assert set(run(campaign(sites=table, faults=50))["layer"]) == {"last"}
    everything = campaign().sites
    assert not everything.duplicated(["layer", "call", "role"]).any()
    assert "input" not in set(everything["role"])


def test_each_element_is_one_of_the_sample_where_samples_are_folded_into_each_other():
    class Folds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.token = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.token(x.reshape(-1, 4)).view(*x.shape[:2], 3).mean(1)

    one = campaign(Folds().eval(), nets.samples(shape=(5, 4)), sites="neurons", faults=60)
    assert one.sites.query("layer == 'token'")["elements"].tolist() == [5 * 3]
    assert run(one)["before"].notna().all()


def test_the_samples_are_left_as_they_were():
    class Shifts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x.sub_(0.5))

    inputs, labels = nets.samples()
    one = campaign(Shifts().eval(), (inputs, labels), faults=30)
    run(one)
    assert torch.equal(inputs, nets.samples()[0])


def test_a_killed_campaign_goes_on_and_ends_with_the_same_table(expected, tmp_path):
    program = """
        import time
        import nets
        import torch
        from pystack_nb.faults import campaign as campaigns
        from pystack_nb.faults.store import Store

        def append(self, batch, own=Store.append):
            own(self, batch)
            print("part", flush=True)
            time.sleep(0.2)

        if __name__ == "__main__":
            torch.set_num_threads(1)
            Store.append = append
            campaigns._BATCH = (25, 25)
            one = campaigns.Campaign(
                nets.perceptron(), nets.samples(), seed=1, faults=600, path="results"
            )
            one.run(progress=False)
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.Popen(
        [sys.executable, script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    with child:
        parts = 0
        for line in child.stdout:
            parts += line == "part\n"
            if parts == 3:
                child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    folder = tmp_path / "results"
    (folder / "part-000000000-0.parquet.0.unfinished").write_bytes(b"PAR1")
    kept = campaign(path=folder)
    assert 2 * 25 < len(kept._done()) < FAULTS
    same(run(kept), expected)
    assert not list(folder.glob("*.unfinished"))


def test_a_finished_campaign_is_not_run_again(tmp_path, expected, capsys):
    run(campaign(path=tmp_path))
    assert "already" not in capsys.readouterr().out
    parts = sorted(tmp_path.iterdir())
    same(run(campaign(path=tmp_path)), expected)
    assert f"\n{FAULTS} of {FAULTS} faults are there already\n" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == parts


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": 2}, "seed: 1 there, 2 here"),
        ({"faults": 601}, "design.faults: 600 there, 601 here"),
        ({"net": nets.perceptron(seed=9)}, "model.weights"),
        ({"net": nets.perceptron(width=5)}, "model.structure"),
        ({"data": nets.samples(seed=5)}, "data:"),
        ({"error_model": BitFlip(bit=3)}, "error_model"),
        ({"metric": Exact()}, "metric"),
        ({"sites": "weights"}, "sites"),
        ({"weight_samples": 2}, "weight_samples: nothing there, 2 here"),
    ],
)
def test_a_folder_of_another_campaign_is_refused_and_the_difference_named(
    tmp_path_factory, options, told
):
    folder = tmp_path_factory.getbasetemp() / "another-campaign"
    if not folder.exists():
        run(campaign(path=folder))
    with pytest.raises(CampaignError, match=told):
        run(campaign(path=folder, **options))


def test_a_folder_of_a_recording_is_refused_by_what_it_is(tmp_path):
    for name in ("calls.parquet", "info.json", "samples.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(CampaignError, match=r"holds a recording.*pystack_nb\.load"):
        run(campaign(path=tmp_path))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CampaignError, match=r"thesis\.tex.*choose an empty folder"):
        run(campaign(path=tmp_path))
    with pytest.raises(CampaignError, match="choose another folder"):
        run(campaign(path=tmp_path / "thesis.tex"))


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    one, other = campaign(path=tmp_path), campaign(path=tmp_path)
    with one._store.opened(), pytest.raises(CampaignError, match="another process"):
        run(other)


def test_a_damaged_part_is_named(tmp_path):
    run(campaign(path=tmp_path))
    part = min(tmp_path.glob("part-*"))
    part.write_bytes(b"PAR1")
    with pytest.raises(CampaignError, match="delete it, and its faults are run again"):
        run(campaign(path=tmp_path))
    part.unlink()
    assert len(run(campaign(path=tmp_path))) == FAULTS


def test_all_forms_of_data_are_the_same_samples():
    inputs, labels = nets.samples()
    dataset = TensorDataset(inputs, labels)
    forms = [
        (inputs, labels),
        ([inputs], labels),
        (inputs, labels.tolist()),
        dataset,
        list(dataset),
        DataLoader(dataset, batch_size=3),
        DataLoader(dataset, batch_size=3, shuffle=True),
    ]
    for data in forms:
        (found,), found_labels = tensors(data)
        assert torch.equal(found, inputs)
        assert torch.equal(found_labels, labels)
    for data in (inputs, (inputs, None), list(inputs), TensorDataset(inputs)):
        (found,), none = tensors(data)
        assert torch.equal(found, inputs)
        assert none is None


def test_a_loader_that_shuffles_by_any_sampler_gives_its_samples_in_one_order():
    inputs, labels = nets.samples()
    dataset = TensorDataset(inputs, labels)
    some = [5, 1, 6]
    shuffled = SubsetRandomSampler(some)
    batches = [(inputs[[i]], labels[[i]]) for i in range(len(inputs))]
    for loader in (
        DataLoader(dataset, sampler=shuffled, batch_size=2),
        DataLoader(dataset, batch_sampler=BatchSampler(shuffled, 2, drop_last=False)),
        DataLoader(batches, sampler=shuffled, batch_size=None),
    ):
        (found,), found_labels = tensors(loader)
        assert torch.equal(found, inputs[sorted(some)])
        assert torch.equal(found_labels, labels[sorted(some)])
    (found,), _ = tensors(DataLoader(dataset, sampler=some, batch_size=2))
    assert torch.equal(found, inputs[some])


def test_a_loader_that_draws_other_samples_each_time_is_refused():
    sampler = WeightedRandomSampler(torch.ones(8), 30)
    loader = DataLoader(TensorDataset(*nets.samples()), sampler=sampler)
    with pytest.raises(CampaignError, match="WeightedRandomSampler draws other samples"):
        tensors(loader)


@pytest.mark.parametrize(
    "data",
    [3, None, [], (torch.ones(3), torch.ones(2)), torch.ones(0, 3), [torch.ones(1), torch.ones(2)]],
    ids=str,
)
def test_data_that_is_none_is_refused(data):
    with pytest.raises(CampaignError, match="pass"):
        tensors(data)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": None}, "pass seed=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": True}, "seed=True"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"faults": 2.5}, "faults=2.5"),
        ({"sites": "bits"}, "sites='bits' is unknown"),
        ({"sites": pd.DataFrame({"layer": ["last"]})}, "no column 'call'"),
        ({"metric": Top1(where_right=True), "data": nets.samples()[0]}, "needs labels"),
        ({"metric": 3}, "3 is no metric"),
        ({"net": abs}, "model is .*abs.*; pass a torch.nn.Module"),
        ({"error_model": "bitflip"}, "error_model is str 'bitflip'; pass an error model"),
        ({"error": "a"}, "error margin of a"),
        ({"confidence": "a"}, "confidence of a"),
        ({"allocation": "neyman"}, "faults=600 are fewer than the 700 of the pilot"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(options, told):
    with pytest.raises(CampaignError, match=told):
        campaign(**options)


def test_a_model_without_weights_has_none_to_strike():
    with pytest.raises(CampaignError, match="no weights of floating point"):
        campaign(torch.nn.ReLU(), sites="weights")


def test_results_before_a_run_are_refused():
    one = campaign()
    for ask in (lambda: one.results, lambda: one.strata, one.summary):
        with pytest.raises(CampaignError, match="run"):
            ask()
    assert "not run yet" in repr(one)


def test_a_function_can_be_the_metric(expected):
    def differs(golden, faulty, label):
        return bool(golden.argmax() != faulty.argmax()) and label is not None

    assert run(campaign(metric=differs))["outcome"].tolist() == expected["outcome"].tolist()


def test_the_uniform_exposure_of_a_recording_gives_the_size_weighted_rate():
    net, (inputs, _) = nets.perceptron(), nets.samples()

    def forwards():
        with annotate(net):
            for sample in inputs:
                net(sample[None])

    table = exposure(recorded(forwards), net, "uniform-bits")
    one = campaign(net, allocation="equal")
    run(one)
    found = one.reweight(table)
    assert found.covered == pytest.approx(1)
    assert found.total.rate == pytest.approx(one.total().rate)


def test_samples_are_drawn_from_all(expected):
    assert set(expected["sample"]) == set(range(8))
    assert np.isfinite(expected["before"]).all()
