"""The calls of a spool file: its batches and counts into the tables of a Recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import tables, wire
from pystack_nb.calibration import calibrate
from pystack_nb.call_codes import CallCodes
from pystack_nb.pairing import BATCH, BatchFlag, pair


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.calibration import Calibration
    from pystack_nb.pairing import Paired
    from pystack_nb.ragged import Ints
    from pystack_nb.records import Heads, Kind, Records

_WORD = 8
_LARGEST_NS = 2**61
_MANY = 2**31  # batches lost: a damaged number must not overflow


@dataclass(frozen=True)
class Calls:
    """What a spool file says about calls.

    Attributes
    ----------
    table, counts : pandas.DataFrame
        As `Recording` has them.
    clock : Calibration
        How the counter was read.
    lost_batches : int
        Batches that are missing between others of their threads.
    not_named : int
        Calls of functions whose name is not known.
    demoted : list of dict
        Functions whose calls had counts only, from a time on.
    found : dict of str to int
        What was unusual: see `pairing.Paired`.
    counters : dict of str to int
        The probe's, by the names of `wire.CallCounter` in lower case.
    """

    table: pd.DataFrame
    counts: pd.DataFrame
    clock: Calibration
    lost_batches: int
    not_named: int
    demoted: list[dict[str, Any]]
    found: dict[str, int]
    counters: dict[str, int]


class CallRecords:
    """The records that are about calls."""

    def __init__(self, records: Records) -> None:
        self._records = records
        batches = records.of(wire.RecordType.CALLS, wire.CALLS)
        count, thread = batches.heads["batch"]["count"], batches.heads["batch"]["thread"]
        valid = (count <= wire.BATCH_WORDS) & (count * np.int64(_WORD) <= batches.tails)
        self._batches = _in_order(records.keep(batches, valid & (thread > 0)))
        self._clocks = records.of(wire.RecordType.CLOCK, wire.CLOCK).heads
        counts = records.of(wire.RecordType.COUNTS, wire.COUNTS)
        size = counts.heads["count"] * np.int64(wire.CODE_COUNT.itemsize)
        self._counts = records.keep(counts, size <= counts.tails)

    @property
    def heads(self) -> Heads:
        """Tell the fixed part of each batch, those that came twice left out, in order."""
        return self._batches.heads

    @property
    def present(self) -> bool:
        """Whether there is any of them: the recording is one of calls."""
        return bool(len(self.heads) or len(self._clocks) or len(self._counts.heads))

    @property
    def bounds(self) -> list[int]:
        """The first and the last time that is known without looking at words, or nothing."""
        ns = np.concatenate([self._clocks["pair"]["ns"], self.heads["batch"]["pair"]["ns"]])
        ns = ns[(ns > 0) & (ns < _LARGEST_NS)]
        return [int(ns.min()), int(ns.max())] if len(ns) else []

    def decode(self, end_ns: int, target_pid: int | None) -> Calls:
        """Make the tables.

        Parameters
        ----------
        end_ns : int
            Of the recording, where calls end that are still open.
        target_pid : int or None
            The process of batches that do not say theirs.
        """
        clock = self._calibrate()
        batches, lost = self._describe()
        paired = pair(self._records.words, batches, clock.knots, min(max(end_ns, 0), _LARGEST_NS))
        counters, counted = self._read_counts()
        if counters["max_events"] or counters["stopped"]:
            _end_with_the_last(paired.rows)
        codes = CallCodes.read(self._records, paired, counted["code_id"])
        not_named = int(np.count_nonzero(codes.unnamed[paired.rows["code"]]))
        table = _make_table(paired, codes, *self._processes(target_pid or 0))
        counts, of_code = _make_counts(counted, codes, clock.hz)
        if paired.found["damaged"]:
            self._records.problems.append(
                f"{paired.found['damaged']} events of calls are damaged and were left out"
            )
        return Calls(
            table,
            counts,
            clock,
            lost,
            not_named,
            _demoted(paired.changes, codes, of_code),
            paired.found,
            counters,
        )

    def _calibrate(self) -> Calibration:
        pairs = np.concatenate([self._clocks["pair"], self.heads["batch"]["pair"]])
        sources = self._clocks["clock"][self._clocks["clock"] < len(wire.ClockSource)]
        return calibrate(pairs, wire.ClockSource(sources[0]) if len(sources) else None)

    def _describe(self) -> tuple[NDArray[Any], int]:
        """Say where the words of each batch lie, and how many batches are missing."""
        heads = self.heads
        batches = np.zeros(len(heads), BATCH)
        new = _begins(heads["batch"]["thread"])
        sequence = np.minimum(heads["batch"]["sequence"], 2**62).astype(np.int64)
        missing = np.diff(sequence, prepend=0) - 1
        missing[new] = sequence[new]
        rest = (heads["header"]["flags"] & wire.CallsFlag.REST) != 0
        batches["offset"] = self._batches.starts + wire.CALLS.itemsize // _WORD
        batches["count"] = heads["batch"]["count"]
        batches["base"] = heads["batch"]["pair"]["after"]
        batches["thread"] = np.cumsum(new) - 1
        batches["flags"] = (missing > 0) * BatchFlag.LOST_BEFORE + rest * BatchFlag.CUT_SHORT
        return batches, int(np.minimum(missing, _MANY).sum())

    def _processes(self, target_pid: int) -> tuple[Ints, Ints]:
        """Tell the pid and the tid of each thread; the kernel's word counts more."""
        heads = self.heads
        first = np.flatnonzero(_begins(heads["batch"]["thread"]))
        by_kernel = np.where(heads["header"]["flags"] & wire.CallsFlag.REST, 0, heads["tid"])
        pid = np.maximum.reduceat(heads["pid"], first) if len(first) else heads["pid"]
        tid = np.maximum.reduceat(by_kernel, first) if len(first) else by_kernel
        tid = np.where(tid > 0, tid, heads["batch"]["tid"][first])
        pid = np.where(pid > 0, pid, target_pid)
        return pid.astype(np.uint32).view(np.int32), tid.astype(np.uint32).view(np.int32)

    def _read_counts(self) -> tuple[dict[str, int], NDArray[Any]]:
        names = [x.name.lower() for x in wire.CallCounter]
        if not len(self._counts.heads):
            return dict.fromkeys(names, 0), np.zeros(0, wire.CODE_COUNT)
        newest = len(self._counts.heads) - 1
        head = self._counts.heads[newest]
        tail = self._records.tail(self._counts, newest)
        counted = np.frombuffer(tail, wire.CODE_COUNT, int(head["count"]))
        known = counted["code_id"] < 1 << wire.OPERAND_BITS
        counters = np.minimum(head["counters"], _LARGEST_NS).tolist()
        return dict(zip(names, counters, strict=False)), counted[known]


def _in_order(batches: Kind) -> Kind:
    """Order by thread and sequence; of equal ones, keep the one that did not come at the end."""
    head = batches.heads["batch"]
    rest = batches.heads["header"]["flags"] & wire.CallsFlag.REST
    batches = batches.take(np.lexsort((rest, head["sequence"], head["thread"])))
    head = batches.heads["batch"]
    again = ~_begins(head["thread"]) & ~_begins(head["sequence"])
    return batches.take(~again)


def _begins(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell where a value is another one than in the row before."""
    return np.append(True, column[1:] != column[:-1])[: len(column)]


def _end_with_the_last(rows: dict[str, NDArray[Any]]) -> None:
    """End calls that are still open when the newest event was: nothing was recorded behind it."""
    still_open = np.flatnonzero(~rows["complete"])
    if not len(still_open):
        return
    ends_ns = rows["ts_ns"] + np.where(rows["complete"], rows["dur_ns"], 0)
    behind = rows["ts_ns"][still_open] + rows["dur_ns"][still_open] - ends_ns.max()
    behind = np.maximum(behind, 0)
    rows["dur_ns"][still_open] -= behind
    # All of a stack end together, so only the innermost call loses time of its own.
    innermost = ~np.isin(still_open, rows["parent"][still_open])
    rows["self_ns"][still_open[innermost]] -= behind[innermost]


def _make_table(paired: Paired, codes: CallCodes, pid: Ints, tid: Ints) -> pd.DataFrame:
    rows = paired.rows
    thread = np.repeat(np.arange(len(tid), dtype=np.int32), paired.thread_rows)
    if np.count_nonzero(paired.thread_rows) > 1:
        order = np.argsort(rows["ts_ns"], kind="stable")
        place = np.empty(len(order) + 1, np.int64)
        place[order] = np.arange(len(order))
        place[-1] = -1
        rows["parent"] = place[rows["parent"]]
        thread = thread[order]
        for name in list(rows):
            rows[name] = rows.pop(name)[order]  # one column at a time: there may be many calls
    code, kind = rows.pop("code"), rows.pop("kind")
    kind[codes.is_c[code] & (kind == 0)] = tables.CALL_KINDS.index(tables.C_CALL)
    return pd.DataFrame(
        {
            **rows,
            "pid": pid[thread],
            "tid": tid[thread],
            "function": codes.text(codes.function, code),
            "filename": codes.text(codes.filename, code),
            "line_number": codes.line_number[code],
            "kind": tables.categorical(kind, tables.CALL_KINDS),
        },
        columns=list(tables.CALLS),
        copy=False,
    )


def _make_counts(
    counted: NDArray[Any], codes: CallCodes, hz: float
) -> tuple[pd.DataFrame, dict[int, int]]:
    """Make the table of what has counts only, and tell the number of calls by code id."""
    ids = counted["code_id"]
    calls = np.minimum(counted["count"]["calls"], _LARGEST_NS).astype(np.int64)
    ns = np.minimum(counted["count"]["ticks"] * (1e9 / hz), _LARGEST_NS).astype(np.int64)
    keys = np.column_stack([codes.function[ids], codes.filename[ids], codes.line_number[ids]])
    distinct, of_key = np.unique(keys, axis=0, return_inverse=True)
    sums = np.zeros((2, len(distinct)), np.int64)
    np.add.at(sums[0], of_key.reshape(-1), calls)
    np.add.at(sums[1], of_key.reshape(-1), ns)
    table = pd.DataFrame(
        {
            "function": tables.categorical(distinct[:, 0], codes.names),
            "filename": tables.categorical(distinct[:, 1], codes.names),
            "line_number": distinct[:, 2].astype(np.int32),
            "ncalls": sums[0],
            "total_ns": sums[1],
        }
    )
    by_calls = np.argsort(-sums[0], kind="stable")
    return table.take(by_calls).reset_index(drop=True), dict(
        zip(ids.tolist(), calls.tolist(), strict=True)
    )


def _demoted(
    changes: NDArray[Any], codes: CallCodes, counted: dict[int, int]
) -> list[dict[str, Any]]:
    """List the functions that were demoted, in the order of time."""
    since: dict[int, int] = {}
    until: dict[int, int | None] = {}
    for code_id, promoted, ns in np.sort(changes, order=["ns"]).tolist():
        if not promoted:
            since.setdefault(code_id, ns)
        if code_id in since:
            until[code_id] = ns if promoted else None
    return [
        {
            "function": codes.names[codes.function[code_id]],
            "filename": codes.names[codes.filename[code_id]],
            "line_number": int(codes.line_number[code_id]),
            "since_ns": ns,
            "until_ns": until[code_id],
            "counted": counted.get(code_id, 0),
        }
        for code_id, ns in since.items()
    ]
