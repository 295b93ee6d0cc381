"""Samples and calls per function: what `Recording.functions` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.nesting import distinct_functions


if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pystack_nb.ragged import Ints
    from pystack_nb.recording import Recording

_KEY = ["function", "filename", "line_number"]
_SUMS = ["ncalls", "counted", "samples", "total_ns", "self_ns", "sampled_ns", "sampled_self_ns"]


def sum_up(
    samples: pd.DataFrame,
    frames: pd.DataFrame,
    calls: pd.DataFrame,
    counts: pd.DataFrame,
    *,
    sampled_times: bool = False,
) -> pd.DataFrame:
    """Sum the tables of a recording per function.

    Parameters
    ----------
    samples, frames, calls, counts : pandas.DataFrame
        As `Recording` has them.
    sampled_times : bool, optional
        Whether the times are those of samples for functions that have calls, too.

    Returns
    -------
    pandas.DataFrame
        As `Recording.functions` tells.
    """
    of_samples = _of_samples(samples, frames)
    parts = [of_samples]
    parts += [_of_calls(calls)] if len(calls) else []
    parts += [_of_counts(counts)] if len(counts) else []
    names = {x: np.concatenate([part.names[x] for part in parts]) for x in _KEY}
    group, first = _grouped(names.values())

    def total(column: str) -> Ints:
        sums = np.zeros(len(first), np.int64)
        at = 0
        for part in parts:
            if column in part.sums:
                np.add.at(sums, group[at : at + len(part)], part.sums[column])
            at += len(part)
        return sums

    called = np.zeros(len(first), bool)
    called[group[len(of_samples) :]] = True
    sums = {column: total(column) for column in _SUMS}
    exact_times = called & (not sampled_times)
    result = pd.DataFrame(
        {
            **{x: _categorical(names[x][first]) for x in ("function", "filename")},
            "line_number": names["line_number"][first].astype(np.int32),
            "ncalls": pd.arrays.IntegerArray(sums["ncalls"], ~called),
            "total_ns": np.where(exact_times, sums["total_ns"], sums["sampled_ns"]),
            "self_ns": np.where(exact_times, sums["self_ns"], sums["sampled_self_ns"]),
            "samples": sums["samples"],
            "counted": pd.arrays.IntegerArray(sums["counted"], ~called),
        }
    )
    return result.sort_values(
        ["self_ns", "total_ns"], ascending=False, kind="stable", ignore_index=True
    )


@dataclass(frozen=True)
class _Part:
    """Functions by their names, and what is known of each; a column that is not there is 0."""

    names: dict[str, NDArray[Any]]
    sums: dict[str, Ints]

    @classmethod
    def of(cls, named: pd.DataFrame, line: str = "line_number", **sums: Ints) -> _Part:
        texts = {x: np.array(tables.texts(named[x]), object) for x in ("function", "filename")}
        return cls(texts | {"line_number": named[line].to_numpy(np.int64)}, sums)

    def __len__(self) -> int:
        return len(self.names["line_number"])


def _grouped(keys: Iterable[NDArray[Any]]) -> tuple[Ints, Ints]:
    """Give the distinct rows of keys a number each, in order, and tell the first row of each."""
    group: Ints = np.zeros(0, np.int64)
    for number, key in enumerate(keys):
        codes = pd.factorize(key)[0].astype(np.int64) + 1  # 0: missing, which is one of its own
        group = pd.factorize(group * (len(key) + 1) + codes)[0] if number else codes
    first = np.flatnonzero(~pd.Series(group).duplicated().to_numpy())
    return pd.factorize(group)[0].astype(np.int64), first


def times_are_sampled(recording: Recording) -> bool:
    """Tell whether `Recording.functions` takes times from samples where there are calls, too.

    The time of a demoted function, whose calls are only counted, is in that of its callers,
    and where the recording of calls ended early, later ones have none: sums of calls then name
    the wrong function, and samples don't.
    """
    info = recording.info
    partial = bool(info.get("demoted") or info.get("calls_stopped"))
    return partial and len(recording.samples) > 0


def _of_samples(samples: pd.DataFrame, frames: pd.DataFrame) -> _Part:
    python = tables.is_text(frames["kind"], "python")
    stack = frames["stack_id"].to_numpy()
    wanted = np.flatnonzero(python | ~np.isin(stack, stack[python]))
    function, first = distinct_functions(frames.iloc[wanted], line="first_line")
    named = frames.iloc[wanted[first]]

    # Numbers for the stacks, those first that have frames; the last is nobody's.
    of_frame, stacks = pd.factorize(stack[wanted])
    of_sample = pd.Index(stacks).get_indexer(samples["stack_id"].to_numpy())
    weights, hits = np.zeros((2, len(stacks) + 1), np.int64)
    np.add.at(weights, of_sample, samples["weight_ns"].to_numpy())
    np.add.at(hits, of_sample, 1)
    innermost = np.append(of_frame[1:] != of_frame[:-1], True)[: len(of_frame)]
    once = ~pd.Series(of_frame * np.int64(len(first) + 1) + function).duplicated().to_numpy()

    def total(of: Ints, rows: NDArray[np.bool_]) -> Ints:
        sums = np.zeros(len(first), np.int64)
        np.add.at(sums, function[rows], of[of_frame[rows]])
        return sums

    return _Part.of(
        named,
        "first_line",
        sampled_ns=total(weights, once),
        sampled_self_ns=total(weights, innermost),
        samples=total(hits, once),
    )


def _of_calls(calls: pd.DataFrame) -> _Part:
    from pystack_nb.pairing import sum_up  # noqa: PLC0415  (compiled: only when there are calls)

    key, first = distinct_functions(calls)
    sums = sum_up(
        _by_thread(calls),
        key,
        len(first),
        parent=calls["parent"].to_numpy(),
        dur_ns=calls["dur_ns"].to_numpy(),
        self_ns=calls["self_ns"].to_numpy(),
        counted=~tables.is_text(calls["kind"], tables.CONTINUED),
    )
    return _Part.of(calls.iloc[first], **sums._asdict())


def _of_counts(counts: pd.DataFrame) -> _Part:
    ncalls, total_ns = (counts[x].to_numpy() for x in ("ncalls", "total_ns"))
    return _Part.of(counts, ncalls=ncalls, counted=ncalls, total_ns=total_ns)


def _by_thread(calls: pd.DataFrame) -> Ints:
    tid = calls["tid"].to_numpy()
    if not len(tid) or (tid == tid[0]).all():
        return np.arange(len(tid))
    return np.argsort(tid, kind="stable")


def _categorical(texts: NDArray[Any]) -> pd.Categorical:
    codes, names = pd.factorize(texts)
    return tables.categorical(codes, names)
