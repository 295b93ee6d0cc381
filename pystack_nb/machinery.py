"""What of a recording belongs to IPython and the magic, rather than to the cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pystack_nb import tables


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Machinery:
    """Files and folders (these end in ``/``) of what runs a cell.

    Attributes
    ----------
    carriers : tuple of str
        What calls code that is not its own: event loops, the start of a thread.
    others : tuple of str
        The rest: what these call is part of the machinery, too.
    inside : tuple of str
        What stands between the cell's code and what it has called, such as another magic.
    threads : tuple of str
        How the names of its threads that run no Python begin.
    """

    carriers: tuple[str, ...]
    others: tuple[str, ...]
    inside: tuple[str, ...]
    threads: tuple[str, ...]


def of_file(table: pd.DataFrame, belongs: Callable[[str], bool]) -> Bools:
    """Ask a question about each distinct file name, and spread the answers to the rows."""
    names = table["filename"].cat
    answers = np.array([belongs(str(name)) for name in names.categories] + [False], dtype=bool)
    return answers[names.codes.to_numpy()]


def renamed(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Call files by other names; two may get the same one."""
    column = table["filename"].cat
    texts = [names.get(name, name) for name in column.categories]
    number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([*(number[text] for text in texts), -1], dtype=np.int32)
    return table.assign(filename=tables.categorical(codes[column.codes.to_numpy()], number))
