"""The words of calls mode into rows, and rows into sums: arrays for the compiled part."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pystack_nb import _pairing


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.ragged import Ints, Words

# The structures of `_pairing.h`.
BATCH = np.dtype(
    [("offset", "<i8"), ("count", "<i8"), ("base", "<u8"), ("thread", "<u4"), ("flags", "<u4")]
)
KNOT = np.dtype([("counter", "<u8"), ("ns", "<i8")])
_DEFINITION = np.dtype([("code_id", "<u4"), ("is_c", "<u4"), ("offset", "<i8"), ("count", "<i8")])
_CHANGE = np.dtype([("code_id", "<u4"), ("promoted", "<u4"), ("ns", "<i8")])
_COLUMNS = {
    "ts_ns": np.int64,
    "dur_ns": np.int64,
    "self_ns": np.int64,
    "parent": np.int64,
    "depth": np.int32,
    "code": np.uint32,
    "kind": np.uint8,
    "complete": np.bool_,
}


class BatchFlag(IntFlag):
    """What is known of a batch: ``enum batch_flag``."""

    LOST_BEFORE = 1 << 0
    CUT_SHORT = 1 << 1


class Paired(NamedTuple):
    """Calls, thread by thread, in the order in which they began.

    Attributes
    ----------
    rows : dict of str to numpy.ndarray, shape (calls,)
        ``ts_ns``, ``dur_ns``, ``self_ns`` and ``parent`` (int64), ``depth`` (int32) and
        ``complete`` (bool) as in ``Recording.calls``; ``code`` (uint32), id of the code
        object; ``kind`` (uint8), index into `tables.CALL_KINDS`.
    thread_rows : numpy.ndarray of int64, shape (threads,)
        How many of the rows belong to each thread.
    definitions : numpy.ndarray
        Where the text of each code object lies: ``code_id is_c offset count``, in words.
    changes : numpy.ndarray
        From when on a code object's calls have counts only, or rows again: ``code_id
        promoted ns``.
    found : dict of str to int
        ``unpaired``, ends of calls that did not begin; ``damaged`` words; ``open`` calls;
        ``left_out``, calls that went on without a row; ``short_kept``, calls that should
        have none, being counted, but went on after a switch of stacks; ``gaps``, and
        ``gap_ns`` in them.
    """

    rows: dict[str, NDArray[Any]]
    thread_rows: Ints
    definitions: NDArray[Any]
    changes: NDArray[Any]
    found: dict[str, int]


def pair(words: Words, batches: NDArray[Any], knots: NDArray[Any], end_ns: int) -> Paired:
    """Make calls of the words of batches.

    Parameters
    ----------
    words : numpy.ndarray of uint64
        In which the batches lie.
    batches : numpy.ndarray of `BATCH`
        By thread, these numbered from 0 without gaps, and in the thread's own order.
    knots : numpy.ndarray of `KNOT`
        Points of the line from counter to ns: at least two, rising.
    end_ns : int
        When calls end that are open at the end.

    Returns
    -------
    Paired
        The calls, and what was unusual.
    """
    threads = int(batches["thread"][-1]) + 1 if len(batches) else 0
    calls, definitions, changes = _pairing.measure(words, batches, threads)
    # In the order in which the compiled part takes them.
    rows: dict[str, NDArray[Any]] = {
        name: np.empty(calls, dtype) for name, dtype in _COLUMNS.items()
    }
    defined, changed = np.empty(definitions, _DEFINITION), np.empty(changes, _CHANGE)
    thread_rows = np.zeros(threads, np.int64)
    found = _pairing.pair(
        words, batches, knots, end_ns, *rows.values(), defined, changed, thread_rows
    )
    # Short calls have no rows, which is known only when they end.
    rows = {name: column[: found["rows"]] for name, column in rows.items()}
    return Paired(rows, thread_rows, defined, changed, found)


class Sums(NamedTuple):
    """Sums by key: arrays of int64, shape (keys,)."""

    ncalls: Ints
    total_ns: Ints
    self_ns: Ints


def sum_up(
    order: Ints,
    key: Ints,
    keys: int,
    *,
    parent: Ints,
    dur_ns: Ints,
    self_ns: Ints,
    counted: NDArray[np.bool_],
) -> Sums:
    """Add calls up.

    Parameters
    ----------
    order : numpy.ndarray of int64, shape (n,)
        The rows, thread by thread, in the order in which they began.
    key : numpy.ndarray of int64, shape (n,)
        The function of each row.
    keys : int
        How many functions there are: `key` is less.
    parent, dur_ns, self_ns : numpy.ndarray of int64, shape (n,)
        As in ``Recording.calls``.
    counted : numpy.ndarray of bool, shape (n,)
        Whether it is a call of its own, and not one that went on.

    Returns
    -------
    Sums
        The total of a function leaves out what it took inside itself.
    """
    sums = Sums(*(np.zeros(keys, np.int64) for _ in Sums._fields))
    _pairing.sum_up(order, parent, key, dur_ns, self_ns, counted, *sums)
    return sums
