"""A recording as one JSON file, streamed: see ``docs/json-format.md``.

``python -m pystack_nb.convert_to_json IN OUT`` converts a saved recording.
"""

from __future__ import annotations

import json
import sys

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.conversion import run
from pystack_nb.errors import RecordingFormatError
from pystack_nb.recording import Recording, from_traces, load, trace_list
from pystack_nb.util import atomic_file, to_jsonable


if TYPE_CHECKING:
    import os

    from collections.abc import Iterable, Iterator
    from pathlib import Path

VERSION = 2
_TABLES = {"samples": tables.SAMPLES, "frames": tables.FRAMES, "events": tables.EVENTS}
_CALL_TABLES = {"calls": tables.CALLS, "counts": tables.COUNTS}
_CHUNK = 65536


def convert_to_json(x: Recording | Iterable[dict[str, Any]]) -> str:
    """Convert a recording to JSON.

    Parameters
    ----------
    x : Recording, or iterable of dict
        The dicts as ``get_stack_traces()`` gives them.

    Returns
    -------
    str
        Strict JSON in ASCII, as `Recording.to_json` writes it.

    Raises
    ------
    RecordingFormatError
        If `x` is neither.
    """
    return "".join(_pieces(x if isinstance(x, Recording) else from_traces(trace_list(x))))


def write_json(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write a recording to a JSON file, a piece at a time.

    Raises
    ------
    ExportPathError
        If it can't be written; nothing half-written is left.
    """
    with atomic_file(path) as file:
        for piece in _pieces(recording):
            file.write(piece.encode("ascii"))


def read_json(path: Path) -> Recording:
    """Read what `write_json` wrote.

    Raises
    ------
    RecordingFormatError
        If the file is cut short or no such recording.
    """
    try:
        document = json.loads(path.read_bytes())
        tables.check_format(document, VERSION)
        strings = document["strings"]
        if not all(isinstance(x, str) for x in strings):
            raise ValueError("its strings are not all text")  # noqa: TRY301
        wanted = _TABLES if document["version"] == 1 else _TABLES | _CALL_TABLES
        read = {x: _table(document[x], columns, strings) for x, columns in wanted.items()}
        return Recording(**read, info=document["info"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RecordingFormatError(
            f"{path} holds no whole recording ({str(error) or type(error).__name__}); "
            "give a file that Recording.to_json wrote, or write it again"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Convert the saved recording IN to the JSON file OUT; return the exit status."""
    return run(
        "pystack_nb.convert_to_json", lambda source, out: load(source).to_json(out), arguments
    )


def _pieces(recording: Recording) -> Iterator[str]:
    written = {x: getattr(recording, x) for x in _TABLES | _CALL_TABLES}
    names = sorted(
        {
            name
            for table in written.values()
            for column in table.columns
            if isinstance(table[column].dtype, pd.CategoricalDtype)
            for name in table[column].cat.categories
        }
    )
    number = {name: n for n, name in enumerate(names)}
    yield f'{{"format":"pystack_nb","version":{VERSION},\n"info":{_dumps(recording.info)},\n'
    yield f'"strings":{_dumps(names)}'
    for table_name, table in written.items():
        yield f',\n"{table_name}":{{'
        for n, column in enumerate(table.columns):
            yield f'{"," if n else ""}\n"{column}":['
            yield from _array(table[column], number)
            yield "]"
        yield "}"
    yield "}\n"


def _array(column: pd.Series, number: dict[str, int]) -> Iterator[str]:
    objects = column.dtype == object
    values = column.to_numpy() if objects else _numbers(column, number)
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK].tolist()
        text = _dumps(chunk) if objects else json.dumps(chunk, separators=(",", ":"))
        yield ("," if start else "") + text[1:-1]


def _numbers(column: pd.Series, number: dict[str, int]) -> np.ndarray[Any, Any]:
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return column.to_numpy()
    to_number = np.array([*(number[x] for x in column.cat.categories), -1], np.int64)
    return to_number[column.cat.codes.to_numpy()]


def _dumps(value: object) -> str:
    return json.dumps(to_jsonable(value), allow_nan=False, separators=(",", ":"))


def _table(document: dict[str, list[Any]], columns: dict[str, str], strings: list[str]) -> Any:
    lengths = {len(document[x]) for x in columns}
    if len(lengths) != 1:
        raise ValueError("its columns have different lengths")
    table: dict[str, Any] = {}
    for name, dtype in columns.items():
        values = document[name]
        if dtype == "object":
            if not all(isinstance(x, dict) for x in values):
                raise ValueError(f"{name} is not all objects")
            table[name] = pd.Series(values, dtype="object")
        else:
            table[name] = _numbers_of(name, values, "b" if dtype == "bool" else "i")
        if dtype == "category":
            codes = table[name]
            if codes.min(initial=-1) < -1 or codes.max(initial=-1) >= len(strings):
                raise ValueError(f"{name} names strings that are not there")
            table[name] = tables.categorical(codes, strings)
    return pd.DataFrame(table)


def _numbers_of(name: str, values: list[Any], kind: str) -> np.ndarray[Any, Any]:
    array = np.array(values) if values else np.zeros(0, np.bool_ if kind == "b" else np.int64)
    if array.ndim != 1 or array.dtype.kind != kind:
        raise ValueError(f"{name} is not all {'booleans' if kind == 'b' else 'integers'}")
    return array


if __name__ == "__main__":
    sys.exit(main())
