"""Campaigns that several files of tests look at."""

from __future__ import annotations

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
