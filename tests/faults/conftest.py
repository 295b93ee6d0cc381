from __future__ import annotations

import pytest
import torch

from campaigning import campaign, run
from tqdm import tqdm

from pystack_nb.faults import campaign as campaigns


# The networks are small, and other processes may keep the other processors busy.
torch.set_num_threads(1)

# The thread that looks after progress bars would be in the recordings of other tests.
tqdm.monitor_interval = 0


@pytest.fixture
def one_way_of_attention():
    # One way of attention for all: watched by hooks it takes another one.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.backends.mha.set_fastpath_enabled(fast)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(campaigns, "_BATCH", (25, 25))


@pytest.fixture(scope="session")
def expected():
    """What the usual campaign gives."""
    return run(campaign())
