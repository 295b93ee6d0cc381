"""What of a recording belongs to IPython and the magic, rather than to the cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pystack_nb import tables


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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
    display : tuple of str
        What shows the value of the cell's last expression, which is no work of the cell's ...
    renderers : tuple of str
        ... but for the functions of the value that these ask for its looks.
    """

    carriers: tuple[str, ...]
    others: tuple[str, ...]
    inside: tuple[str, ...]
    threads: tuple[str, ...]
    display: tuple[str, ...] = ()
    renderers: tuple[str, ...] = ()

    def is_other(self, file: str) -> bool:
        """Tell whether what a function of this file calls is part of the machinery."""
        return file.startswith(self.others) and not file.startswith(self.carriers)

    def runs_users_code(self, files: Iterable[str]) -> bool:
        """Tell whether a stack, outermost first, has code that the user called, or may call it."""
        called_by_other = any_other = False
        for file in files:
            other = self.is_other(file)
            if not other and not file.startswith(self.carriers):
                return not called_by_other
            called_by_other = other
            any_other |= other
        return not any_other


def of_file(table: pd.DataFrame, belongs: Callable[[str], bool]) -> Bools:
    """Ask a question about each distinct file name, and spread the answers to the rows."""
    return _of_category(table["filename"], belongs)


def shows(table: pd.DataFrame) -> Bools:
    """Tell which functions are those that a value is asked for its looks with."""
    return _of_category(table["function"], _is_repr)


def _is_repr(function: str) -> bool:
    name = function.rpartition(".")[2]
    return name.startswith("_repr_") or name in {"__repr__", "__str__"}


def _of_category(column: pd.Series, belongs: Callable[[str], bool]) -> Bools:
    categories = column.cat
    answers = [*(belongs(str(name)) for name in categories.categories), False]
    return np.array(answers, dtype=bool)[categories.codes.to_numpy()]


def renamed(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Call files by other names; two may get the same one."""
    column = table["filename"].cat
    texts = [names.get(name, name) for name in column.categories]
    number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([*(number[text] for text in texts), -1], dtype=np.int32)
    return table.assign(filename=tables.categorical(codes[column.codes.to_numpy()], number))
