"""Names of functions in calls mode: ids of code objects into texts and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.codes import NOT_NAMED
from pystack_nb.util import printable


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.pairing import Paired
    from pystack_nb.ragged import Ints
    from pystack_nb.records import Records

_LARGEST_LINE = 2**31 - 1


class CallCodes(NamedTuple):
    """What is known of functions, by code id.

    Attributes
    ----------
    function, filename : numpy.ndarray of int64
        Numbers into `names`.
    line_number : numpy.ndarray of int32
        The first line; 0 for a C function.
    is_c, unnamed : numpy.ndarray of bool
        Whether it is a C function, and whether nobody told its name.
    names : list of str
        All texts, each once.
    """

    function: Ints
    filename: Ints
    line_number: NDArray[np.int32]
    is_c: NDArray[np.bool_]
    unnamed: NDArray[np.bool_]
    names: list[str]

    @classmethod
    def read(cls, records: Records, paired: Paired, also: NDArray[np.uint32]) -> CallCodes:
        """Read the definitions, for all ids that anything names."""
        ids = (paired.rows["code"], also, paired.definitions["code_id"], paired.changes["code_id"])
        size = 1 + max(int(x.max(initial=0)) for x in ids)
        numbers = {NOT_NAMED: 0, "": 1}
        codes = cls(
            np.zeros(size, np.int64),
            np.ones(size, np.int64),
            np.zeros(size, np.int32),
            np.zeros(size, np.bool_),
            np.ones(size, np.bool_),
            [],
        )
        for code_id, is_c, offset, count in paired.definitions.tolist():
            text = records.words[offset : offset + count].tobytes()
            filename, qualname, line = (*text.split(b"\0"), b"", b"", b"")[:3]
            codes.function[code_id] = numbers.setdefault(_decode(qualname), len(numbers))
            codes.filename[code_id] = numbers.setdefault(_decode(filename), len(numbers))
            codes.line_number[code_id] = _line(line)
            codes.is_c[code_id] = is_c
            codes.unnamed[code_id] = False
        codes.names.extend(numbers)
        return codes

    def text(self, field: Ints, ids: NDArray[np.uint32]) -> pd.Categorical:
        """Look the function or the file of many calls up, each distinct code once."""
        used = np.flatnonzero(np.bincount(ids, minlength=len(field)))
        few = tables.categorical(field[used], self.names)
        code = np.full(len(field), -1, few.codes.dtype)
        code[used] = few.codes
        return pd.Categorical.from_codes(code[ids], dtype=few.dtype)


def _decode(text: bytes) -> str:
    return printable(text.decode("utf-8", "replace"))


def _line(text: bytes) -> int:
    return min(int(text), _LARGEST_LINE) if text.isdigit() and len(text) < 20 else 0
