"""Which faults tell how long a campaign takes, and how many are run at a time."""

from __future__ import annotations

import math
import os

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pandas as pd


_FAULTS = (4, 1024)  # at least and at most, and no more than a tenth of those that are left
_AMONG = 64  # times as many are looked at


def few(left: pd.DataFrame, together: int) -> pd.DataFrame:
    """Choose faults that take as long as others do in their batches.

    What comes before a fault is computed once for all faults of a sample in a batch.  Of some
    samples there are as many faults here as of each in a batch, and no faults of the others.

    Parameters
    ----------
    left : pandas.DataFrame
        Rows of `Plan.faults`.
    together : int
        How many are a batch.
    """
    most = int(min(max(len(left) // 10, _FAULTS[0]), _FAULTS[1]))
    rng = np.random.default_rng(0)
    among = rng.choice(len(left), min(len(left), _AMONG * most), replace=False)
    found = left.iloc[among]
    of_each = math.ceil(min(together, len(left)) / found["sample"].nunique())
    found = found[(found.groupby("sample").cumcount() < of_each).to_numpy()]
    # Drawn in any order, so that the first samples are any.
    order = np.argsort(pd.factorize(found["sample"])[0], kind="stable")
    return found.iloc[order[:most]].reset_index(drop=True)


def at_a_time(executor: Any, threads: int) -> float:
    """Tell how many processes an executor keeps busy, each with so many threads.

    Threads of one process are not counted: in small networks they wait for each other.
    """
    if isinstance(executor, ProcessPoolExecutor):
        processors = len(os.sched_getaffinity(0))
        workers: int = vars(executor)["_max_workers"]
        return max(1.0, min(workers, processors / threads))
    if hasattr(executor, "scheduler_info"):
        return max(1, len(executor.scheduler_info()["workers"]))
    return 1.0
