"""Rows of different lengths that lie in one flat array: gather, join and group them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd


if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Ints: TypeAlias = NDArray[np.int64]
    Words: TypeAlias = NDArray[np.uint64]

# Elements that are worked on at a time: the temporaries stay in the cache.
_CHUNK = 1 << 19


class Rows(NamedTuple):
    """Rows that lie in one flat array, anywhere and in any order.

    Attributes
    ----------
    flat : numpy.ndarray
        The elements.
    starts, counts : numpy.ndarray of int64, shape (n,)
        Where each row begins, and how many elements it has.
    """

    flat: NDArray[Any]
    starts: Ints
    counts: Ints

    @classmethod
    def packed(cls, flat: NDArray[Any], counts: Ints) -> Rows:
        """Rows that follow each other without gaps."""
        return cls(flat, np.cumsum(counts) - counts, counts)

    def take(self, rows: Ints | slice) -> Rows:
        """Choose some of the rows, by number."""
        return Rows(self.flat, self.starts[rows], self.counts[rows])

    def elements(self, *, reverse: bool = False) -> NDArray[Any]:
        """Give the elements of row after row; with `reverse`, each row back to front."""
        return self.flat[_index(self.starts, self.counts, reverse=reverse)]

    def positions(self) -> Ints:
        """Tell the number of each element in its row, from 0."""
        return _index(np.zeros(len(self.counts), np.int64), self.counts)


def concatenate(*parts: Rows, reverse: bool = False) -> Rows:
    """Join ragged arrays row by row: row i of the first, then row i of the second...

    With `reverse`, each row of each part is taken back to front.
    """
    counts: Ints = np.sum([x.counts for x in parts], axis=0, dtype=np.int64)
    joined = Rows.packed(np.empty(int(counts.sum()), np.int64), counts)
    place = joined.starts
    for part in parts:
        joined.flat[_index(place, part.counts)] = part.elements(reverse=reverse)
        place = place + part.counts
    return joined


def group(rows: Rows, lead: Words) -> tuple[Ints, Ints]:
    """Find the distinct rows.

    Rows are equal if their elements and their `lead` are.  They are found by a hash, and
    then each row is compared with the one that stands for it, so that the result is exact.

    Parameters
    ----------
    rows : Rows
        n rows, of uint64.
    lead : numpy.ndarray of uint64, shape (n,)
        One more element of each row.

    Returns
    -------
    ids : numpy.ndarray of int64, shape (n,)
        Number of each row's group, in order of first appearance.
    first : numpy.ndarray of int64, shape (groups,)
        The first row of each group.
    """
    ids = pd.factorize(_hash(rows, lead))[0].astype(np.int64)
    first = _first(ids)
    different = _different(rows, lead, first[ids])
    if len(different):
        # Their hash is another row's by chance: number these few one by one.
        seen: dict[tuple[int, bytes], int] = {}
        for row in different.tolist():
            content = int(lead[row]), rows.take(slice(row, row + 1)).elements().tobytes()
            ids[row] = seen.setdefault(content, len(first) + len(seen))
        ids = pd.factorize(ids)[0].astype(np.int64)
        first = _first(ids)
    return ids, first


def _index(starts: Ints, counts: Ints, *, reverse: bool = False) -> Ints:
    ends = np.cumsum(counts)
    position = np.arange(ends[-1] if len(ends) else 0)
    if reverse:
        return np.repeat(starts + ends - 1, counts) - position
    return np.repeat(starts + counts - ends, counts) + position


def _chunks(counts: Ints) -> Iterator[slice]:
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        room = ends[start] - counts[start] + _CHUNK
        stop = int(np.searchsorted(ends, room, side="right"))
        stop = min(max(stop, start + 1), start + _CHUNK)
        yield slice(start, stop)
        start = stop


def _hash(rows: Rows, lead: Words) -> Words:
    key = _mix(lead + rows.counts.astype(np.uint64))
    for chunk in _chunks(rows.counts):
        part = rows.take(chunk)
        place = part.positions().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = _mix(part.elements().view(np.uint64) + place)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed)])
        ends = np.cumsum(part.counts)
        key[chunk] += sums[ends] - sums[ends - part.counts]
    return key


def _first(ids: Ints) -> Ints:
    first = np.zeros(int(ids.max(initial=-1)) + 1, np.int64)
    first[ids[::-1]] = np.arange(len(ids) - 1, -1, -1)
    return first


def _different(rows: Rows, lead: Words, other: Ints) -> Ints:
    """Find the rows that differ from row `other`."""
    unequal = (rows.counts != rows.counts[other]) | (lead != lead[other])
    for chunk in _chunks(rows.counts):
        length = np.where(unequal[chunk], 0, rows.counts[chunk])
        mine = Rows(rows.flat, rows.starts[chunk], length).elements()
        others = Rows(rows.flat, rows.starts[other[chunk]], length).elements()
        differ = np.flatnonzero(mine != others)
        unequal[chunk.start + np.searchsorted(np.cumsum(length), differ, side="right")] = True
    return np.flatnonzero(unequal)


def _mix(x: Words) -> Words:
    # The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit spreads.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
