"""The trial that tells how long a campaign takes."""

from __future__ import annotations

import math
import os

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from campaigning import campaign
from nets import perceptron, samples

from pystack_nb.errors import CampaignError
from pystack_nb.faults import executors, sites
from pystack_nb.faults.trial import at_a_time, few


def faults_of(count, samples):
    rng = np.random.default_rng(1)
    return pd.DataFrame({"fault": np.arange(count), "sample": rng.integers(0, samples, count)})


def test_few_faults_have_as_many_of_a_sample_as_a_batch_has():
    left = faults_of(100_000, 400)
    found = few(left, 8000)
    assert len(found) == 1024
    assert found["fault"].is_unique
    of_each = found["sample"].value_counts()
    assert of_each.max() == 20
    assert len(of_each) < 60
    # From all that is left, and not from the first strata alone.
    assert 0.4 < (found["fault"] > 50_000).mean() < 0.6


@pytest.mark.parametrize(("count", "tried"), [(1, 1), (3, 3), (30, 4), (600, 60)])
def test_no_more_than_a_tenth_is_tried_but_for_some(count, tried):
    assert len(few(faults_of(count, 7), 8000)) == tried


class Engine:
    """Notes how many faults it is given at a time."""

    def __init__(self):
        self.counts = []

    def evaluate(self, faults):
        self.counts.append(len(faults))
        return faults[["fault"]].assign(outcome="masked")


def test_more_and_more_are_tried_at_a_time_and_all_of_them_are_given(monkeypatch):
    monkeypatch.setattr(executors, "_TRIAL_SECONDS", math.inf)
    engine, faults = Engine(), faults_of(100, 5)
    found = executors.tried(engine, faults)
    assert engine.counts == [1, 4, 32, 63]
    assert found["fault"].tolist() == list(range(100))
    assert 0 < found.attrs["seconds_each"] < found.attrs["seconds"]
    monkeypatch.setattr(executors, "_TRIAL_SECONDS", 0.0)
    engine = Engine()
    assert len(executors.tried(engine, faults)) == 5


def test_processes_are_counted_as_far_as_there_are_processors_for_their_threads():
    processors = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(1000) as pool:
        assert at_a_time(pool, 1) == processors
        assert at_a_time(pool, 1000) == 1
    with ThreadPoolExecutor(4) as pool:
        assert at_a_time(pool, 1) == 1
    assert at_a_time(None, 1) == 1


def test_a_plan_says_how_long_it_takes_here_and_on_a_pool():
    one = campaign(perceptron(), samples(20))
    assert 0 < one._planned(None, progress=False).seconds < 60
    other = campaign(perceptron(), samples(20))
    with ProcessPoolExecutor(2) as pool:
        assert 0 < other._planned(pool, progress=False).seconds < 60


def test_a_column_of_names_is_no_sites():
    table = sites(perceptron(), samples(2)[0])
    for chosen in (table["layer"], table["layer"].to_numpy(), ["first"], 3):
        with pytest.raises(CampaignError, match="isin"):
            campaign(sites=chosen)
