"""The columns of a recording's tables, and how any table is brought to them.

Strings are categoricals in one canonical form, used values only and sorted, so that two
recordings of the same contents have equal tables wherever they came from.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb.errors import RecordingFormatError


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

SAMPLES = {
    "ts_ns": "int64",
    "pid": "int32",
    "tid": "int32",
    "comm": "category",
    "cpu": "int16",
    "state": "category",
    "weight_ns": "int64",
    "stack_id": "int32",
    "function": "category",
    "filename": "category",
    "line_number": "int32",
}
FRAMES = {
    "stack_id": "int32",
    "depth": "int16",
    "kind": "category",
    "function": "category",
    "filename": "category",
    "line_number": "int32",
    "first_line": "int32",
}
EVENTS = {
    "ts_ns": "int64",
    "dur_ns": "int64",
    "pid": "int32",
    "tid": "int32",
    "kind": "category",
    "name": "category",
    "args": "object",
}
CALLS = {
    "ts_ns": "int64",
    "dur_ns": "int64",
    "self_ns": "int64",
    "pid": "int32",
    "tid": "int32",
    "depth": "int32",
    "parent": "int64",
    "function": "category",
    "filename": "category",
    "line_number": "int32",
    "complete": "bool",
    "kind": "category",
}
COUNTS = {
    "function": "category",
    "filename": "category",
    "line_number": "int32",
    "ncalls": "int64",
    "total_ns": "int64",
}
ON_CPU = "on-cpu"
CALL, RESUME, CONTINUED, C_CALL = "call", "resume", "continued", "c-call"
CALL_KINDS = (CALL, RESUME, CONTINUED, C_CALL)

# A small recording takes longer to make tables of than to read: so many texts are looked up.
_FEW = 64


def categorical(codes: NDArray[np.integer], values: Iterable[str]) -> pd.Categorical:
    """Make a canonical categorical of indices into `values`.

    Parameters
    ----------
    codes : numpy.ndarray of int, shape (n,)
        Index of each entry's value; -1 for none.
    values : iterable of str
        All distinct, in any order.

    Returns
    -------
    pandas.Categorical
        Its categories are the values used, sorted.
    """
    names = list(values)
    used = np.zeros(len(names) + 1, bool)
    used[codes] = True  # -1 falls on the extra last place
    order = sorted(np.flatnonzero(used[:-1]).tolist(), key=names.__getitem__)
    new_code = np.full(len(names) + 1, -1, np.int32)
    new_code[order] = np.arange(len(order), dtype=np.int32)
    dtype = _dtype(tuple(names[x] for x in order))
    return pd.Categorical.from_codes(new_code[codes], dtype=dtype, validate=False)


def _dtype(names: tuple[str, ...]) -> pd.CategoricalDtype:
    """Make the dtype of these categories, which are sorted and distinct."""
    # A view: whoever gives the index a name gives it to no other one.
    return pd.CategoricalDtype(_known(names).view() if len(names) <= _FEW else _index(names))


def _index(names: tuple[str, ...]) -> pd.Index:
    return pd.Index(names, dtype="str")


_known = lru_cache(maxsize=256)(_index)


def texts(column: pd.Series) -> list[str | None]:
    """List the texts of a column; None where there is none.

    Parameters
    ----------
    column : pandas.Series
        Categorical, as all texts of a recording's tables are.
    """
    array: pd.Categorical = column.array
    # A list of the few categories, indexed, is much quicker than Series.tolist(); the None
    # at its end is what code -1 reaches.
    names = [*array.categories.tolist(), None]
    return [names[x] for x in array.codes.tolist()]


def is_text(column: pd.Series, text: str) -> NDArray[np.bool_]:
    """Tell which rows of such a column have this text."""
    array: pd.Categorical = column.array
    names = array.categories.tolist()
    rows: NDArray[np.bool_] = array.codes == (names.index(text) if text in names else len(names))
    return rows


def conform(
    table: pd.DataFrame, columns: Mapping[str, str], order: list[str], name: str
) -> pd.DataFrame:
    """Bring a table to its columns, dtypes and order.

    Parameters
    ----------
    table : pandas.DataFrame
        With at least the columns asked for.
    columns : mapping of str to str
        dtype of each column, such as `SAMPLES`.
    order : list of str
        Columns that the rows are sorted by; equal rows keep their order.
    name : str
        Of the table, for the error message.

    Returns
    -------
    pandas.DataFrame
        With a `RangeIndex`.  The argument itself is never changed.

    Raises
    ------
    RecordingFormatError
        If a column is missing or can't have its dtype.
    """
    if not len(table) and list(table.columns) == list(columns):
        return empty(columns)
    if not _has_columns(table, columns):
        table = _with_columns(table, columns, name)
    keys = [table[x].to_numpy() for x in order]
    if not _is_sorted(keys):
        return table.take(np.lexsort(keys[::-1])).reset_index(drop=True)
    return table.copy(deep=False)


def conform_calls(table: pd.DataFrame) -> pd.DataFrame:
    """Bring a table of calls to its columns, dtypes and order, and its ``parent`` along.

    Raises
    ------
    RecordingFormatError
        As `conform`, and if a call does not stand behind the one that it says called it.
    """
    calls = conform(table, CALLS, [], "calls")
    ts_ns, parent = calls["ts_ns"].to_numpy(), calls["parent"].to_numpy()
    if len(calls) and (parent.min() < -1 or parent.max() >= len(calls)):
        raise _not_nested()
    if not _is_sorted([ts_ns]):
        order = np.argsort(ts_ns, kind="stable")
        place = np.empty(len(order) + 1, np.int64)
        place[order] = np.arange(len(order))
        place[-1] = -1
        parent = place[parent[order]]
        calls = calls.take(order).reset_index(drop=True).assign(parent=parent)
    if (parent >= np.arange(len(calls))).any():
        raise _not_nested()
    return calls


def empty(columns: Mapping[str, str]) -> pd.DataFrame:
    """Make a table of no rows that has these columns and dtypes."""
    return _empty(tuple(columns.items())).copy()


@lru_cache(maxsize=16)
def _empty(columns: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    nothing = pd.Series([], dtype="object")
    return pd.DataFrame({x: _column(nothing, dtype) for x, dtype in columns})


def check_format(about: Any, version: int) -> None:
    """Raise ValueError unless a JSON value is that of a recording up to this version."""
    if not isinstance(about, dict) or about.get("format") != "pystack_nb":
        raise ValueError("it does not say that it is a recording of pystack_nb")
    if about.get("version") not in range(1, version + 1):
        raise ValueError(
            f"it has version {about.get('version')!r} and this pystack_nb reads up to {version}"
        )
    if not isinstance(about.get("info"), dict):
        raise ValueError("its info is missing")  # noqa: TRY004  (a bad file, not a bad argument)


def _has_columns(table: pd.DataFrame, columns: Mapping[str, str]) -> bool:
    """Whether a table has these columns and dtypes already, as those of a recording do."""
    if table.columns.tolist() != list(columns) or not table.index.equals(pd.RangeIndex(len(table))):
        return False
    # The columns themselves take their time to get at: only those of texts are looked into.
    for (name, wanted), dtype in zip(columns.items(), table.dtypes.tolist(), strict=True):
        if isinstance(dtype, pd.CategoricalDtype) != (wanted == "category"):
            return False
        if wanted == "category":
            array = table[name].array
            if not _is_canonical(array.codes, array.categories):
                return False
        elif dtype != wanted:
            return False
    return True


def _with_columns(table: pd.DataFrame, columns: Mapping[str, str], name: str) -> pd.DataFrame:
    missing = [x for x in columns if x not in table.columns]
    if missing:
        raise RecordingFormatError(
            f"the table {name!r} has no column {', '.join(missing)}; "
            "give a table with all the columns of a Recording"
        )
    try:
        return pd.DataFrame(
            {x: _column(table[x], dtype) for x, dtype in columns.items()}, copy=False
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordingFormatError(
            f"the table {name!r} holds values that its columns can't have ({error}); "
            "make the recording or the file again"
        ) from error


def _not_nested() -> RecordingFormatError:
    return RecordingFormatError(
        "the table 'calls' has a parent that is not the number of a row before; "
        "make the recording or the file again"
    )


def _is_sorted(keys: list[NDArray[np.integer]]) -> bool:
    if not keys or len(keys[0]) < 2:
        return True
    rising = np.zeros(len(keys[0]) - 1, bool)
    equal = ~rising
    for key in keys:
        rising |= equal & (key[1:] > key[:-1])
        equal &= key[1:] == key[:-1]
    return bool((rising | equal).all())


def _column(values: pd.Series, dtype: str) -> object:
    if dtype == "category":
        return _canonical(values)
    if dtype == "object":
        return values.to_numpy(dtype=object)
    given = values.to_numpy()
    column = given.astype(dtype, copy=False)
    if given.dtype != column.dtype and not np.array_equal(given, column):
        raise ValueError(f"{values.name} does not fit {dtype}")
    return column


def _canonical(values: pd.Series) -> pd.Categorical:
    array = values.array
    if isinstance(array, pd.Categorical):
        codes, categories = array.codes, array.categories
        if _is_canonical(codes, categories):
            return array
    else:
        codes, categories = pd.factorize(values)
    wrong = [x for x in categories if not isinstance(x, str)]
    if wrong:
        raise TypeError(f"{values.name} holds {wrong[0]!r}, which is no text")
    return categorical(codes, categories)


def _is_canonical(codes: NDArray[np.integer], categories: pd.Index) -> bool:
    used = np.zeros(len(categories) + 1, bool)
    used[codes] = True
    return (
        categories.dtype == "str" and bool(used[:-1].all()) and categories.is_monotonic_increasing
    )
