"""Cut a recording's events to a cell: the part of `pystack_nb.trim` that is about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd


if TYPE_CHECKING:
    from collections.abc import Mapping


def trim_events(events: pd.DataFrame, cell: Mapping[str, Any]) -> pd.DataFrame:
    """Keep the events of the cell's time, and mark the cell.

    Parameters
    ----------
    events : pandas.DataFrame
        `Recording.events`.
    cell : mapping
        With ``pid``, ``tid``, ``start_ns`` and ``end_ns``.

    Returns
    -------
    pandas.DataFrame
        What began before the cell begins with it.  What went on after it ends with it, and has
        ``complete`` False in its ``args``.  An event of kind ``mark`` named ``cell`` is added.
    """
    start_ns, end_ns = int(cell["start_ns"]), int(cell["end_ns"])
    mark = {
        "ts_ns": start_ns,
        "dur_ns": end_ns - start_ns,
        "pid": cell["pid"],
        "tid": cell["tid"],
        "kind": "mark",
        "name": "cell",
        "args": {},
    }
    ts_ns = events["ts_ns"].to_numpy()
    ends_ns = ts_ns + events["dur_ns"].to_numpy()
    keep = (ends_ns >= start_ns) & (ts_ns <= end_ns)
    if not keep.any():
        return pd.DataFrame([mark], columns=events.columns)
    events, ts_ns, ends_ns = events[keep], ts_ns[keep], ends_ns[keep]
    args = events["args"].to_numpy(dtype=object).copy()
    for row in np.flatnonzero(ends_ns > end_ns):
        args[row] = {**args[row], "complete": False}
    begun_ns = np.maximum(ts_ns, start_ns)
    cut = events.assign(
        ts_ns=begun_ns,
        dur_ns=np.minimum(ends_ns, end_ns) - begun_ns,
        kind=events["kind"].astype(object),
        name=events["name"].astype(object),
        args=args,
    )
    marked = pd.DataFrame([mark], columns=events.columns)
    # First: where it begins with another one, that one lies in it.
    return pd.concat([marked, cut], ignore_index=True)
