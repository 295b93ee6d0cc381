"""Campaigns on workers of Dask that faults kill."""

import os
import signal

import dask
import distributed
import nets
import pandas as pd
import pytest
import torch

from campaigning import dies_elsewhere

from pystack_nb.errors import CampaignError
from pystack_nb.faults import campaign as campaigns
from pystack_nb.faults import executors
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.models import BitFlip


@pytest.fixture
def client(tmp_path):
    # A worker that dies takes seconds to come again.
    with (
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": 0,
                # A cluster gives a worker up that is away, again, so long after it died.
                "distributed.deploy.lost-worker-timeout": "1 hour",
            }
        ),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(tmp_path / "dask"),
        ) as cluster,
        distributed.Client(cluster) as found,
    ):
        yield found


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(campaigns, "_BATCH", (16, 16))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nets.Dies().eval()

    def made(**options):
        options = {"seed": 5, "faults": 40, "sites": "neurons"} | options
        return Campaign(net, nets.samples(), BitFlip(), **options)

    return made


@pytest.mark.filterwarnings("ignore")
def test_a_fault_that_kills_each_worker_is_a_due_and_the_others_go_on(client, make):
    expected = make().run(progress=False)
    kills = expected["after"].abs() > 1e30
    assert 0 < kills.sum() < 4
    one = make()
    with pytest.warns(RuntimeWarning, match=r"fault \d+ .*kills the process.* DUE"):
        found = one.run(client, progress=False)
    lost = found["after"].isna() & expected["after"].notna()
    assert lost[kills].all()
    assert not lost[~kills].any()
    assert set(found["outcome"][kills]) == {"DUE"}
    pd.testing.assert_frame_equal(found[~kills], expected[~kills], check_exact=True)


@pytest.mark.filterwarnings("ignore")
def test_where_each_batch_kills_its_worker_no_fault_is_to_blame(client, make, monkeypatch):
    monkeypatch.setattr(campaigns, "_BATCH", (1, 1))
    monkeypatch.setattr(executors, "_HOPELESS", 2)
    one = make(metric=dies_elsewhere())
    one._plan = make()._planned(None, progress=False)
    with pytest.raises(CampaignError, match="workers of Dask died again and again"):
        one.run(client, progress=False)


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_whose_workers_are_gone_is_not_waited_for(client, make, monkeypatch):
    monkeypatch.setattr(executors, "_LOOK", 0.2)
    monkeypatch.setattr(executors, "_NO_WORKERS", 1.0)
    client.cluster.scale(0)
    client.retire_workers()
    with pytest.raises(CampaignError, match=r"no worker for 1 s: .* finished batches are kept"):
        make().run(client, progress=False)


def dies_once(path, payload):
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return payload


def test_a_job_whose_holder_died_is_sent_again(client, make, tmp_path):
    one = make()
    faults = one.plan().faults.head(4)
    job = executors.Job(campaigns.make_engine, one._arguments, 1)
    held = client.submit(dies_once, tmp_path / "died", executors._pickled(job), pure=False)
    distributed.wait(held)
    assert held.status == "error"
    pool = client.get_executor(pure=False)
    with executors._Alone(pool, (executors.work, "token", held)) as alone:
        found = alone.run(faults)
    assert found["fault"].tolist() == [0, 1, 2, 3]
