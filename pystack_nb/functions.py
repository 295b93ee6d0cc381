"""Samples and calls per function: what `Recording.functions` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import tables


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
    def of(cls, named: pd.DataFrame, **sums: Ints) -> _Part:
        texts = {x: np.asarray(named[x], dtype=object) for x in ("function", "filename")}
        return cls(texts | {"line_number": named["line_number"].to_numpy(np.int64)}, sums)

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
    groups = samples.groupby("stack_id", sort=False)
    weights, hits = groups["weight_ns"].sum(), groups.size()
    python = (frames["kind"] == "python").to_numpy()
    stack = frames["stack_id"].to_numpy()
    wanted = python | ~np.isin(stack, stack[python])
    frames, stack = frames[wanted], stack[wanted]
    keys = frames.groupby(
        ["function", "filename", "first_line"], observed=True, sort=False, dropna=False
    ).ngroup()
    function = keys.to_numpy()

    innermost = np.append(stack[1:] != stack[:-1], True) if len(stack) else wanted[:0]
    once = ~pd.DataFrame({"s": stack, "f": function}).duplicated().to_numpy()
    count = int(function.max(initial=-1)) + 1

    def total(of: pd.Series, rows: np.ndarray[Any, Any]) -> Ints:
        sums = np.zeros(count, np.int64)
        np.add.at(sums, function[rows], of.reindex(stack[rows], fill_value=0).to_numpy())
        return sums

    named = frames.iloc[np.flatnonzero(~keys.duplicated().to_numpy())]
    return _Part.of(
        named.rename(columns={"line_number": "line", "first_line": "line_number"}),
        sampled_ns=total(weights, once),
        sampled_self_ns=total(weights, innermost),
        samples=total(hits, once),
    )


def _of_calls(calls: pd.DataFrame) -> _Part:
    from pystack_nb.pairing import sum_up  # noqa: PLC0415  (compiled: only when there are calls)

    function, filename = calls["function"].cat, calls["filename"].cat
    pairs = (function.codes.to_numpy(np.int64) + 1) * (len(filename.categories) + 1)
    pairs += filename.codes.to_numpy() + 1
    distinct = pd.factorize(pairs)[0].astype(np.int64) << 32
    key = pd.factorize(distinct + calls["line_number"].to_numpy())[0].astype(np.int64)
    count = int(key.max(initial=-1)) + 1
    first = np.zeros(count, np.int64)
    first[key[::-1]] = np.arange(len(key) - 1, -1, -1)

    sums = sum_up(
        _by_thread(calls),
        key,
        count,
        parent=calls["parent"].to_numpy(),
        dur_ns=calls["dur_ns"].to_numpy(),
        self_ns=calls["self_ns"].to_numpy(),
        counted=(calls["kind"] != tables.CONTINUED).to_numpy(),
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
