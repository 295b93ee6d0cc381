"""What frames stand for: kind, function, file and lines, each distinct one once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pystack_nb.ragged import Rows, group
from pystack_nb.tables import categorical


if TYPE_CHECKING:
    import pandas as pd

    from pystack_nb.ragged import Ints

KINDS = ("python", "native", "kernel")
_FIELDS = ("kind", "function", "filename", "line_number", "first_line")


class Definitions:
    """A growing table of frame definitions; texts are numbers into one list of names."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._parts = [np.zeros((0, len(_FIELDS)), np.int64)]
        self._count = 0

    def name(self, text: str) -> int:
        """Give the number that stands for a text."""
        return self._names.setdefault(text, len(self._names))

    def add(
        self, kind: str, function: Ints, filename: Ints, line_number: Ints, first_line: Ints
    ) -> Ints:
        """Add definitions, and give their ids."""
        kinds = np.full(len(function), KINDS.index(kind))
        self._parts.append(np.column_stack([kinds, function, filename, line_number, first_line]))
        ids = np.arange(self._count, self._count + len(function))
        self._count += len(function)
        return ids

    def distinct(self) -> Distinct:
        """Merge definitions that are equal."""
        return Distinct(np.concatenate(self._parts), list(self._names))


class Distinct:
    """Definitions without repetition.

    Parameters
    ----------
    table : numpy.ndarray of int64, shape (n, 5)
        One row per definition added.
    names : list of str
        What the numbers for texts stand for.

    Attributes
    ----------
    of : numpy.ndarray of int64, shape (n,)
        Maps the id of an added definition to that of a distinct one.
    """

    def __init__(self, table: Ints, names: list[str]) -> None:
        counts = np.full(len(table), len(_FIELDS))
        flat = np.ascontiguousarray(table, np.int64).reshape(-1).view(np.uint64)
        self.of, first = group(Rows.packed(flat, counts), np.zeros(len(table), np.uint64))
        self._fields = dict(zip(_FIELDS, table[first].T, strict=True))
        self._names = names

    def column(self, field: str, ids: Ints) -> pd.Categorical | Ints:
        """Look a field of definitions up.

        Parameters
        ----------
        field : str
            ``kind``, ``function``, ``filename``, ``line_number`` or ``first_line``.
        ids : numpy.ndarray of int64
            Of distinct definitions; -1 for none, which gives a missing text or a 0.
        """
        texts = field in {"kind", "function", "filename"}
        values = np.append(self._fields[field], -1 if texts else 0)[ids]
        if not texts:
            return values
        return categorical(values, KINDS if field == "kind" else self._names)
