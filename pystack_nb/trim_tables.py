"""Questions about the files and functions of a table, asked once for each distinct one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pystack_nb import tables


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]


_RUN = {"run_code", "run_ast_nodes", "run_cell_async"}


def of_file(table: pd.DataFrame, belongs: Callable[[str], bool]) -> Bools:
    """Ask a question about the file of each row."""
    return of_category(table["filename"], belongs)


def shows_value(table: pd.DataFrame, display: tuple[str, ...]) -> Bools:
    """Tell which functions of the display show a value; `print` asks others there."""
    in_display = of_file(table, lambda name: name.startswith(display or "\0"))
    return in_display & of_category(table["function"], lambda name: name.endswith("__call__"))


def runs_code(table: pd.DataFrame, shell: tuple[str, ...]) -> Bools:
    """Tell which functions of the shell run the user's code, or wait for those that do."""
    in_shell = of_file(table, lambda name: name.startswith(shell or "\0"))
    return in_shell & of_category(table["function"], lambda name: _last(name) in _RUN)


def shows(table: pd.DataFrame) -> Bools:
    """Tell which functions are those that a value is asked for its looks with."""
    return of_category(table["function"], _is_repr)


def _is_repr(function: str) -> bool:
    name = _last(function)
    return name.startswith("_repr_") or name in {"__repr__", "__str__"}


def _last(function: str) -> str:
    return function.rpartition(".")[2]


def of_category(column: pd.Series, belongs: Callable[[str], bool]) -> Bools:
    """Ask a question about each distinct text, and spread the answers to the rows."""
    array: pd.Categorical = column.array
    answers = [*(belongs(name) for name in array.categories.tolist()), False]
    spread: Bools = np.array(answers, dtype=bool)[array.codes]
    return spread


def renamed(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Call files by other names; two may get the same one."""
    array: pd.Categorical = table["filename"].array
    before = array.categories.tolist()
    texts = [names.get(name, name) for name in before]
    if texts == before:
        return table
    number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([*(number[text] for text in texts), -1], dtype=np.int32)
    return table.assign(filename=tables.categorical(codes[array.codes], number))
