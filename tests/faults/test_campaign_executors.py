"""Campaigns on pools of threads and processes, and on workers of Dask, some of which die."""

import os
import signal
import threading

from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from multiprocessing import get_context

import nets
import pandas as pd
import pytest
import torch

from campaigning import FAULTS, campaign, dies_elsewhere, run, same

from pystack_nb.errors import CampaignError
from pystack_nb.faults import campaign as campaigns
from pystack_nb.faults import executors
from pystack_nb.faults.models import BitFlip


def test_threads_give_the_same_results(expected, small_batches):
    with ThreadPoolExecutor(3) as pool:
        same(run(campaign(), pool), expected)


def test_processes_give_the_same_results_and_a_dead_one_costs_its_unfinished_batches(
    expected, small_batches, tmp_path, monkeypatch
):
    one, own, killed = campaign(path=tmp_path), campaigns.Store.append, []

    def append(store, batch):
        own(store, batch)
        if not killed and pool._processes:
            killed.append(next(iter(pool._processes)))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(campaigns.Store, "append", append)
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
        pytest.warns(RuntimeWarning, match="a new one of 2 .*unfinished batches"),
    ):
        same(run(one, pool), expected)
    assert killed
    parts = pd.concat(map(pd.read_parquet, tmp_path.glob("part-*")))
    assert sorted(parts["fault"]) == [*range(FAULTS)]


def test_a_batch_that_kills_each_worker_ends_in_an_error_and_others_are_kept(
    small_batches, tmp_path
):
    one = campaign(metric=dies_elsewhere(), path=tmp_path)
    one._plan = campaign()._planned(None, progress=False)
    with (
        ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool,
        pytest.warns(RuntimeWarning, match="a new one of 1"),
        pytest.raises(CampaignError, match=r"again and again.*with a new pool: finished batches"),
    ):
        run(one, pool)


@pytest.mark.filterwarnings("ignore:a worker of")
def test_a_fault_that_kills_each_worker_is_a_due_and_the_others_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(campaigns, "_BATCH", (8, 8))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nets.Dies().eval()
    options = {"net": net, "faults": 60, "seed": 5, "sites": "neurons", "error_model": BitFlip()}
    alone = campaign(**options)
    expected = run(alone)
    assert 0 < (expected["after"].abs() > 1e30).sum() < 10
    one = campaign(**options, path=tmp_path)
    with (
        ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool,
        pytest.warns(RuntimeWarning, match=r"fault \d+ .*kills the process.* DUE"),
    ):
        found = run(one, pool)
    kills = found["after"].isna() & expected["after"].notna()
    assert (expected["after"][kills].abs() > 1e30).all()
    assert set(found["outcome"][kills]) == {"DUE"}
    same(found[~kills], expected[~kills])
    assert len(run(campaign(**options, path=tmp_path))) == 60


def test_what_finished_before_a_pool_broke_is_kept():
    class Breaks(Executor):
        def submit(self, *task):
            future, batch = Future(), task[-1]
            if batch:
                future.set_result(batch)
            else:
                future.set_exception(BrokenExecutor())
            return future

    found = executors._each([3, 0, 4, 5], Breaks(), (None, "", ""))
    kept = set()
    with pytest.raises(CampaignError, match="a worker of the Breaks died"):
        kept.update(iter(found))
    for result in executors._until_broken(iter([3, 0, 4, 5]), Breaks(), (None, "", ""), lost := []):
        kept.add(result)
    assert kept == {3, 4, 5}
    assert lost == [0]


@pytest.mark.filterwarnings("ignore")
def test_a_worker_of_dask_that_is_killed_costs_its_unfinished_batch_only(
    expected, small_batches, tmp_path, monkeypatch
):
    distributed = pytest.importorskip("distributed")
    own, killed = campaigns.Store.append, []
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(tmp_path / "dask"),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):

        def append(store, batch):
            own(store, batch)
            if not killed:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        monkeypatch.setattr(campaigns.Store, "append", append)
        same(run(campaign(path=tmp_path / "results"), client), expected)
    assert killed
    parts = pd.concat(map(pd.read_parquet, (tmp_path / "results").glob("part-*")))
    assert sorted(parts["fault"]) == [*range(FAULTS)]


def test_a_model_that_cannot_be_sent_says_so():
    net = nets.perceptron()
    net.lock = threading.Lock()
    with ThreadPoolExecutor(1) as pool, pytest.raises(CampaignError, match="be sent"):
        run(campaign(net), pool)


def test_an_executor_that_is_none_is_refused():
    with pytest.raises(CampaignError, match=r"pass a concurrent\.futures pool"):
        run(campaign(), object())
