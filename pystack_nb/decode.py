"""The bytes of a spool file into the tables of a Recording.

Nothing here runs once per sample but NumPy.  Samples are first grouped by their raw stack
(code ids, instructions, native and kernel stack ids), and only the distinct ones are given
names.  Python runs once per code object, per symbol and per META record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb import tables, wire
from pystack_nb.call_facts import tell_calls
from pystack_nb.calls import CallRecords
from pystack_nb.codes import define_python_frames
from pystack_nb.definitions import Definitions, Distinct
from pystack_nb.events import Events
from pystack_nb.facts import Facts
from pystack_nb.natives import define_native_frames
from pystack_nb.ragged import Rows, concatenate, group
from pystack_nb.records import Records
from pystack_nb.util import printable


if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from pystack_nb.ragged import Ints, Words
    from pystack_nb.records import Kind

_INCOMPLETE = {
    "too-deep": wire.SampleFlag.TOO_DEEP,
    "memory-not-readable": wire.SampleFlag.UNREADABLE,
    "code-not-named": wire.SampleFlag.UNNAMED,
    "map-full": wire.SampleFlag.MAP_FULL,
    "native-stack-missing": wire.SampleFlag.NATIVE_MISSING,
    "kernel-stack-missing": wire.SampleFlag.KERNEL_MISSING,
}
_LARGEST_CPU = 2**15 - 1


class Decoded(NamedTuple):
    """What ``Recording(*decoded)`` takes."""

    samples: pd.DataFrame
    frames: pd.DataFrame
    events: pd.DataFrame
    info: dict[str, Any]
    calls: pd.DataFrame
    counts: pd.DataFrame


def decode(buffer: Buffer) -> Decoded:
    """Decode a spool file.

    Parameters
    ----------
    buffer : bytes-like
        The file, or its beginning: what is whole in it is read, and what is wrong with it is
        told in ``info["notes"]``, with ``info["complete"]`` False.

    Returns
    -------
    Decoded
        The things that a Recording is made of.

    Raises
    ------
    RecordingFormatError
        If this is no spool file, or one of another version.
    """
    records = Records(buffer)
    facts = Facts(records)
    call_records = CallRecords(records)
    events = Events(facts.event_blocks, records.problems)
    samples = _read_samples(records)
    heads = samples.heads
    stacks = _resolve(records, samples)

    flags = {
        cause: ((heads["header"]["flags"] & flag) != 0) | stacks.missing.get(cause, False)
        for cause, flag in _INCOMPLETE.items()
    }
    ts_ns = heads["ts_ns"].astype(np.int64)
    comm, comms = _texts(heads["comm"])
    period = round(1e9 / facts.hz) if facts.hz else 0
    leaf = stacks.leaf[stacks.ids]
    table = pd.DataFrame(
        {
            "ts_ns": ts_ns,
            "pid": heads["pid"].astype(np.int32),
            "tid": heads["tid"].astype(np.int32),
            "comm": tables.categorical(comm, comms),
            "cpu": np.minimum(heads["cpu"], _LARGEST_CPU).astype(np.int16),
            "state": tables.categorical(np.zeros(len(heads), np.int64), [tables.ON_CPU]),
            "weight_ns": np.full(len(heads), period, np.int64),
            "stack_id": stacks.ids.astype(np.int32),
            "function": stacks.distinct.column("function", leaf),
            "filename": stacks.distinct.column("filename", leaf),
            "line_number": stacks.distinct.column("line_number", leaf).astype(np.int32),
        }
    )
    bounds = [*ts_ns[[0, -1]].tolist()] if len(ts_ns) else []
    bounds += call_records.bounds + events.bounds
    info = facts.info(min(bounds, default=None), max(bounds, default=None))
    pids = [heads["pid"], call_records.heads["pid"], events.pids]
    info |= {
        "samples": len(heads),
        "pids": np.unique(np.concatenate(pids)).tolist(),
        "incomplete": int(np.count_nonzero(np.any(list(flags.values()), axis=0))),
        "incomplete_by_cause": {x: int(np.count_nonzero(y)) for x, y in flags.items()},
        "trimmed": 0,
    }
    sent = call_records.heads[call_records.heads["comm"] != b""]
    info["thread_names"] = (
        _thread_names(sent["tid"], *_texts(sent["comm"]))
        | _thread_names(heads["tid"], comm, comms)
        | info["thread_names"]
    )
    calls = call_records.decode(info["end_ns"] or 0, info["target_pid"])
    tell_calls(info, calls, present=call_records.present)
    events.tell(info)
    info["complete"] = facts.ended and not records.problems and info["error"] is None
    info["notes"] += list(dict.fromkeys(records.problems))
    return Decoded(
        table,
        stacks.frames(),
        events.table(info["end_ns"] or 0),
        info,
        calls.table,
        calls.counts,
    )


class _Resolved(NamedTuple):
    """The distinct stacks of the samples, outermost frame first.

    Attributes
    ----------
    ids : numpy.ndarray of int64, shape (samples,)
        Each sample's stack.
    rows : Rows
        Ids of the stacks' frames in `distinct`.
    leaf : numpy.ndarray of int64, shape (stacks,)
        Each stack's innermost Python frame, or -1.
    distinct : Distinct
        What the frames stand for.
    missing : dict of str to numpy.ndarray of bool, shape (samples,)
        What could not be named, by cause.
    """

    ids: Ints
    rows: Rows
    leaf: Ints
    distinct: Distinct
    missing: dict[str, NDArray[np.bool_]]

    def frames(self) -> pd.DataFrame:
        """Make the table of frames."""
        frames = self.rows.elements()
        stack_id = np.repeat(np.arange(len(self.rows.counts), dtype=np.int32), self.rows.counts)
        return pd.DataFrame(
            {
                "stack_id": stack_id,
                "depth": self.rows.positions().astype(np.int16),
                **{x: self.distinct.column(x, frames) for x in ("kind", "function", "filename")},
                **{
                    x: self.distinct.column(x, frames).astype(np.int32)
                    for x in ("line_number", "first_line")
                },
            }
        )


def _read_samples(records: Records) -> Kind:
    """Read the samples, in order of time: several CPUs wrote them."""
    samples = records.of(wire.RecordType.SAMPLE, wire.SAMPLE)
    counts = samples.heads["frame_count"]
    samples = records.keep(
        samples,
        (counts <= wire.MAX_FRAMES) & (counts * np.int64(wire.FRAME.itemsize) <= samples.tails),
    )
    ts_ns = samples.heads["ts_ns"]
    if (ts_ns[1:] >= ts_ns[:-1]).all():
        return samples
    return samples.take(np.argsort(ts_ns, kind="stable"))


def _resolve(records: Records, samples: Kind) -> _Resolved:
    heads = samples.heads
    native, kernel = heads["native_stack"], heads["kernel_stack"]
    python = Rows(
        records.words,
        samples.starts + wire.SAMPLE.itemsize // 8,
        heads["frame_count"].astype(np.int64),
    )
    raw_ids, first = group(python, _pair(native, kernel))

    # From here on, one row per distinct raw stack.
    python = python.take(first)
    native, kernel = (x[first].astype(np.int64) for x in (native, kernel))
    definitions = Definitions()
    of_frame, frames = pd.factorize(python.elements())
    ids, unnamed = define_python_frames(records, np.asarray(frames), definitions)
    python_rows = Rows.packed(ids[of_frame], python.counts)
    used = np.concatenate([native, kernel])
    stacks = define_native_frames(records, used[used >= 0], definitions)
    native_at, kernel_at = stacks.find(native), stacks.find(kernel)
    distinct = definitions.distinct()
    # The inner frames of the interpreter are the Python frames that stand there already.
    joined = concatenate(
        python_rows,
        stacks.choose(native_at, inner=python.counts > 0),
        stacks.choose(kernel_at),
        reverse=True,
    )
    of_row = np.repeat(np.arange(len(first)), python.counts)
    missing = {
        "code-not-named": np.bincount(of_row, unnamed[of_frame], len(first)) > 0,
        "native-stack-missing": (native >= 0) & (native_at < 0),
        "kernel-stack-missing": (kernel >= 0) & (kernel_at < 0),
    }

    # Raw stacks that differ only in what has no name of its own become one.
    rows = Rows.packed(distinct.of[joined.flat], joined.counts)
    stack_ids, kept = group(
        Rows(rows.flat.view(np.uint64), rows.starts, rows.counts),
        python.counts.astype(np.uint64),
    )
    rows = rows.take(kept)
    innermost = rows.starts + python.counts[kept] - 1
    leaf = np.where(python.counts[kept] > 0, np.append(rows.flat, -1)[innermost], -1)
    return _Resolved(
        stack_ids[raw_ids],
        rows,
        leaf,
        distinct,
        {cause: flag[raw_ids] for cause, flag in missing.items()},
    )


def _pair(low: NDArray[np.int32], high: NDArray[np.int32]) -> Words:
    return low.astype(np.uint32) | high.astype(np.uint32).astype(np.uint64) << np.uint64(32)


def _texts(column: NDArray[np.bytes_]) -> tuple[Ints, list[str]]:
    """Give distinct byte strings numbers, and decode them up to their first NUL."""
    words = np.ascontiguousarray(column).view("<u8").reshape(-1, wire.COMM_SIZE // 8)
    counts = np.full(len(words), words.shape[1])
    codes, first = group(Rows.packed(words.reshape(-1), counts), np.zeros(len(words), np.uint64))
    texts = [
        printable(bytes(x).partition(b"\0")[0].decode("utf-8", "surrogateescape"))
        for x in words[first]
    ]
    # Two that differ behind their NUL are one text.
    numbers: dict[str, int] = {}
    of_text = np.array([numbers.setdefault(x, len(numbers)) for x in texts], np.int64)
    return of_text[codes] if texts else codes, list(numbers)


def _thread_names(tid: NDArray[np.uint32], comm: Ints, comms: list[str]) -> dict[str, str]:
    """Name each thread as its newest sample does; keys are text, as JSON wants them."""
    tids, newest = np.unique(tid[::-1], return_index=True)
    names = comm[::-1][newest]
    return {str(x): comms[y] for x, y in zip(tids.tolist(), names.tolist(), strict=True)}
