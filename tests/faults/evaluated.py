"""Faults evaluated both ways, which the tests of the engine share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import reference

from torch import nn

from pystack_nb.faults import sites
from pystack_nb.faults.engine import Engine, EngineData
from pystack_nb.faults.metrics import Top1


ONES = np.uint64(2**64 - 1)


def flips(model, inputs, count, seed=0, kind=None):
    """Draw bit flips, each site as likely as another."""
    rng = np.random.default_rng(seed)
    table = sites(model, *[x[:1] for x in inputs])
    table = table[(table["bits"] > 0) & (table["elements"] > 0)]
    if kind is not None:
        table = table[table["kind"] == kind]
    rows = table.iloc[rng.integers(0, len(table), count)]
    bit = rng.integers(0, rows["bits"].to_numpy())
    return pd.DataFrame(
        {
            "fault": np.arange(count),
            "stratum": 0,
            **{name: rows[name].to_numpy() for name in ("layer", "call", "role", "kind")},
            "element": rng.integers(0, rows["elements"].to_numpy()),
            "sample": rng.integers(0, len(inputs[0]), count),
            "and_mask": np.full(count, ONES),
            "or_mask": np.zeros(count, np.uint64),
            "xor_mask": np.uint64(1) << bit.astype(np.uint64),
            "value": np.nan,
            "bit": bit,
        }
    )


def check(model, inputs, metric=None, labels=None, faults=None, **options):
    """Evaluate both ways, and give what the fast one gave."""
    model.eval()
    metric = metric or Top1()
    data = EngineData(inputs, labels)
    faults = flips(model, inputs, 250) if faults is None else faults
    several = options.get("weight_samples")
    found = Engine(model, data, metric, **options).evaluate(faults)
    expected = reference.evaluate(model, data, faults, metric, several)
    pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)
    return found


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    ).eval()
