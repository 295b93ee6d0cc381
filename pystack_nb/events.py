"""The events that a process told of itself, from its blocks to the table of a Recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.event_file import BEGUN, COLUMNS
from pystack_nb.util import printable


if TYPE_CHECKING:
    from numpy.typing import NDArray

_DAMAGED = "a block of events is damaged and was left out"


class Events:
    """The events of a recording.

    Parameters
    ----------
    blocks : list of dict
        As `pystack_nb.event_file` writes them, in any order.
    problems : list of str
        Gets a note for what can't be read.

    Attributes
    ----------
    lost : int
        How many the process could not write.
    """

    def __init__(self, blocks: list[dict[str, Any]], problems: list[str]) -> None:
        self.lost = 0
        self._kinds: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._contents: list[dict[str, Any]] = []
        parts = [np.zeros((len(COLUMNS) + 1, 0), np.int64)]
        for block in blocks:
            try:
                if "lost" in block:
                    self.lost += int(block["lost"])
                else:
                    parts.append(self._part(block))
            except (KeyError, IndexError, TypeError, ValueError, OverflowError):
                problems.append(_DAMAGED)
        table = np.concatenate(parts, axis=1)
        self._table = dict(zip((*COLUMNS, "pid"), table, strict=True))
        begun = self._table["dur_ns"] == BEGUN
        ended = np.isin(self._table["number"], self._table["number"][~begun])
        keep = ~(begun & ended)
        self._table = {x: y[keep] for x, y in self._table.items()}
        self._is_open = begun[keep]

    @property
    def pids(self) -> NDArray[np.int64]:
        """The process that told each of them."""
        pids: NDArray[np.int64] = self._table["pid"]
        return pids

    @property
    def bounds(self) -> list[int]:
        """When the first began and the last one ended, ns; empty without events."""
        ts_ns, dur_ns = self._table["ts_ns"], self._table["dur_ns"]
        if not len(ts_ns):
            return []
        return [int(ts_ns.min()), int((ts_ns + np.maximum(dur_ns, 0)).max())]

    def table(self, end_ns: int) -> pd.DataFrame:
        """Make the table.

        Parameters
        ----------
        end_ns : int
            When the recording ended, and with it what was still open; that has ``complete``
            False in its args.
        """
        found = self._table
        ts_ns = found["ts_ns"]
        until_end = np.maximum(end_ns - ts_ns, 0)
        args = np.empty(len(ts_ns), object)
        if len(ts_ns):
            contents = np.empty(len(self._contents), object)
            contents[:] = self._contents
            args[:] = contents[found["args"]]
        for row in np.flatnonzero(self._is_open):
            args[row] = {**args[row], "complete": False}
        return pd.DataFrame(
            {
                "ts_ns": ts_ns,
                "dur_ns": np.where(self._is_open, until_end, found["dur_ns"]),
                "pid": found["pid"].astype(np.int32),
                "tid": found["tid"].astype(np.int32),
                "kind": tables.categorical(found["kind"], self._kinds),
                "name": tables.categorical(found["name"], self._names),
                "args": pd.Series(args, dtype="object"),
            }
        )

    def tell(self, info: dict[str, Any]) -> None:
        """Add to a recording's ``info`` what did not arrive."""
        if self.lost:
            info["lost_by_cause"]["events-lost"] = self.lost
            info["lost"] += self.lost
            info["notes"].append(
                f"{self.lost:,} marks and other events of the process itself were not kept: there "
                "were too many, or no room for them"
            )

    def _part(self, block: dict[str, Any]) -> NDArray[np.int64]:
        """Read a block's rows, with numbers of strings and args that hold for all blocks."""
        rows = np.array([block["columns"][x] for x in COLUMNS], np.int64)
        _, _, _, kind, name, args, _ = rows
        kinds, names = _checked(block["kinds"], str, kind), _checked(block["names"], str, name)
        contents = _checked(block["contents"], dict, args)
        pid = int(block["pid"])
        rows[3] = _numbers(kinds, self._kinds)[kind]
        rows[4] = _numbers(names, self._names)[name]
        rows[5] += len(self._contents)
        self._contents += contents
        return np.vstack([rows, np.full(rows.shape[1], pid, np.int64)])


def _checked(values: list[Any], kind: type, used: NDArray[np.int64]) -> list[Any]:
    if not all(isinstance(x, kind) for x in values) or used.min() < 0 or used.max() >= len(values):
        raise ValueError(_DAMAGED)
    return values


def _numbers(texts: list[str], known: dict[str, int]) -> NDArray[np.int64]:
    return np.array([known.setdefault(printable(x), len(known)) for x in texts], np.int64)
