"""A recording as a folder of Parquet files and ``info.json``.

Any tool that reads Parquet can read the tables: ``samples.parquet``, ``stacks.parquet``
(one row per frame of a distinct stack, ``first_line`` included), ``events.parquet``, whose
``args`` are JSON texts, ``calls.parquet`` and ``counts.parquet``.  Version 1 had not these two.
"""

from __future__ import annotations

import json

from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from pystack_nb.errors import RecordingFormatError
from pystack_nb.recording import Recording
from pystack_nb.tables import check_format
from pystack_nb.util import atomic_folder, to_jsonable


if TYPE_CHECKING:
    import os

    from pathlib import Path

VERSION = 2
_FILES = {"samples": "samples", "frames": "stacks", "events": "events"}
_CALL_FILES = {"calls": "calls", "counts": "counts"}


def save_folder(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write a recording as a folder; one that is there already is replaced.

    Raises
    ------
    ExportPathError
        If it can't be written, or the folder holds something else than a recording.
    """
    written = {
        "samples": recording.samples,
        "frames": recording.frames,
        "events": recording.events.assign(
            args=pd.Series([_text(x) for x in recording.events["args"]], dtype="str")
        ),
        "calls": recording.calls,
        "counts": recording.counts,
    }
    files = _FILES | _CALL_FILES
    about = {
        "format": "pystack_nb",
        "version": VERSION,
        "rows": {files[x]: len(written[x]) for x in written},
        "info": to_jsonable(recording.info),
    }
    with atomic_folder(path) as folder:
        for name, table in written.items():
            table.to_parquet(folder / f"{files[name]}.parquet", index=False)
        (folder / "info.json").write_text(_text(about, indent=1) + "\n", encoding="ascii")


def load_folder(folder: Path) -> Recording:
    """Read what `save_folder` wrote.

    Raises
    ------
    RecordingFormatError
        If a file is missing, cut short or not what it should be.
    """
    try:
        about = json.loads((folder / "info.json").read_bytes())
        check_format(about, VERSION)
        files = _FILES if about["version"] == 1 else _FILES | _CALL_FILES
        read = {x: pd.read_parquet(folder / f"{file}.parquet") for x, file in files.items()}
        for name, table in read.items():
            if len(table) != about["rows"][files[name]]:
                raise ValueError(f"{files[name]}.parquet is of another recording")  # noqa: TRY301
        events = read["events"]
        events["args"] = pd.Series([json.loads(x) for x in events["args"]], dtype="object")
        return Recording(**read, info=about["info"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise RecordingFormatError(
            f"{folder} holds no whole recording ({str(error) or type(error).__name__}); "
            "give a folder that Recording.save wrote, or save the recording again"
        ) from error


def _text(value: object, indent: int | None = None) -> str:
    return json.dumps(to_jsonable(value), allow_nan=False, indent=indent)
