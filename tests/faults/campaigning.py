"""Campaigns that several files of tests look at."""

from __future__ import annotations

import os
import signal

from functools import partial

import nets
import pandas as pd

from pystack_nb.faults.campaign import Campaign


FAULTS = 600


def campaign(net=None, data=None, **options):
    data = nets.samples() if data is None else data
    return Campaign(net or nets.perceptron(), data, **({"seed": 1, "faults": FAULTS} | options))


def run(one, *args):
    return one.run(*args, progress=False)


def same(one, other):
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def dies_elsewhere():
    """Give a metric that kills each process but this one."""
    return partial(_dies, os.getpid())


def _dies(spared, golden, faulty, label):
    del golden, faulty, label
    if os.getpid() != spared:
        os.kill(os.getpid(), signal.SIGKILL)
    return False
