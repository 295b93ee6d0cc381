"""From an instruction to its line: the location table of CPython 3.11 and later.

The format is that of ``Objects/locations.md`` in CPython (``InternalDocs/code_objects.md``
from 3.14 on).  The table comes from another process, so each byte of it may be wrong.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHORT_LAST = 9
_ONE_LINE = range(10, 13)
_NO_COLUMNS = 13
_LONG = 14
_LARGEST_LINE = 2**31 - 1
_LONGEST_VARINT = 6


# What runs a cell is the same in each.
@lru_cache(maxsize=1024)
def decode_lines(table: bytes, first_line: int) -> NDArray[np.int32]:
    """Decode a code object's ``co_linetable``.

    Parameters
    ----------
    table : bytes
        If it is damaged or cut short, the lines up to there are returned.
    first_line : int
        The code object's ``co_firstlineno``.

    Returns
    -------
    numpy.ndarray of int32
        The line of each code unit (two bytes of bytecode); 0 where there is none.  It can't be
        written to.
    """
    lines = array("i")
    line, position, end = first_line, 0, len(table)
    while position < end:
        entry = table[position]
        position += 1
        if not entry & 0x80:
            break
        code, shown = (entry >> 3) & 15, True
        if code <= _SHORT_LAST:
            position += 1
        elif code in _ONE_LINE:
            line += code - 10
            position += 2
        elif code in (_NO_COLUMNS, _LONG):
            delta, position = _varint(table, position)
            line += -(delta >> 1) if delta & 1 else delta >> 1
            for _ in range(3 if code == _LONG else 0):
                _, position = _varint(table, position)
        else:
            # No line: the running line stays as it is for the entries behind.
            shown = False
        if position > end:
            break
        told = line if shown and 0 < line <= _LARGEST_LINE else 0
        lines.extend([told] * ((entry & 7) + 1))
    found = np.array(lines, np.int32)
    found.flags.writeable = False  # the next who asks gets it, too
    return found


def _varint(table: bytes, position: int) -> tuple[int, int]:
    """Read 6 bits a byte, lowest first; a position behind the end says that it is cut."""
    value = 0
    for n, byte in enumerate(table[position : position + _LONGEST_VARINT]):
        value |= (byte & 63) << (6 * n)
        if not byte & 64:
            return value, position + n + 1
    return 0, len(table) + 1
