"""Small conversions that several modules share: text, JSON, and files written whole."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pystack_nb.errors import ExportPathError


if TYPE_CHECKING:
    from collections.abc import Iterator

_FORMATS = {
    ".json": "json",
    ".pftrace": "perfetto",
    ".perfetto-trace": "perfetto",
    "": "parquet",
}
_TABLES = ("samples", "stacks", "events", "calls", "counts")
_RECORDING_FILES = frozenset({"info.json", *(f"{x}.parquet" for x in _TABLES)})


def printable(text: str) -> str:
    r"""Write lone surrogates as ``\udcff``, so that any encoder takes the text."""
    return text.encode("utf-8", "backslashreplace").decode()


def to_jsonable(value: object) -> Any:
    """Turn a value into what strict JSON can hold.

    Mappings get string keys, NumPy scalars and arrays become Python's, NaN and infinities
    become ``None``, text loses lone surrogates, and anything else becomes its `str`.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {printable(str(x)): to_jsonable(y) for x, y in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(x) for x in value]
    if callable(tolist := getattr(value, "tolist", None)):
        return to_jsonable(tolist())
    return printable(str(value))


def export_format(path: str | os.PathLike[str]) -> str:
    """Tell the format that a path's suffix stands for.

    Returns
    -------
    str
        ``"json"``, ``"perfetto"``, or ``"parquet"`` for what becomes a folder: a path without a
        suffix, with one that starts with a digit (``v3.12.1``), or with a ``/`` at its end.

    Raises
    ------
    ExportPathError
        For any other suffix.
    """
    text, suffix = os.fspath(path), Path(path).suffix.lower()
    if text.endswith("/") or suffix[1:2].isdigit():
        return "parquet"
    if suffix not in _FORMATS:
        known = ", ".join(x for x in _FORMATS if x)
        raise ExportPathError(
            f"{text}: no format has the suffix {suffix!r}; "
            f"end the path in {known}, or for a folder of Parquet files in no suffix or in /"
        )
    return _FORMATS[suffix]


def check_export_path(path: str | os.PathLike[str]) -> str:
    """Find out whether a recording can be written to a path, before there is one.

    A file is made beside the path for a moment, since permission bits alone do not tell
    of read-only file systems and quotas.

    Parameters
    ----------
    path : path-like
        A file with a known suffix, or a folder without one.

    Returns
    -------
    str
        The format, as from `export_format`.

    Raises
    ------
    ExportPathError
        If the suffix is unknown or nothing can be written there.
    """
    kind = export_format(path)
    target = Path(path)
    if kind == "parquet":
        check_replaceable_folder(target)
    else:
        check_replaceable_file(target)
    probe = _beside(target)
    with writing(target):
        probe.touch(exist_ok=False)
        probe.unlink()
    return kind


def check_replaceable_file(file: Path) -> None:
    """Raise `ExportPathError` if something else than a regular file stands at `file`."""
    if file.is_dir():
        raise ExportPathError(f"{file} is a folder; name a file in it")
    if file.exists() and not file.is_file():
        raise ExportPathError(f"{file} is a device or a pipe; name a regular file")


def check_replaceable_folder(folder: Path) -> None:
    """Raise `ExportPathError` unless `folder` is free, empty or a saved recording alone.

    What a user has put beside a recording is not ours to remove.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportPathError(f"{folder} is a file; name a folder for the Parquet files")
    with writing(folder):
        others = {x.name for x in folder.iterdir()} - _RECORDING_FILES
    if others:
        raise ExportPathError(
            f"{folder} holds other files than a recording's, such as {min(others)}; "
            "name a new folder, or one with nothing but a recording"
        )


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what goes wrong in writing `target` into an `ExportPathError`."""
    try:
        yield
    except ExportPathError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportPathError(
            f"can't write {target}: {reason}; "
            "name a place in an existing folder that you may write to, with room left"
        ) from error


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file for writing that appears under its name only when it is whole.

    Parameters
    ----------
    path : path-like
        The file; one that is there is replaced at the end, in one step.

    Raises
    ------
    ExportPathError
        If it can't be written.  Nothing half-written is left then, nor after any other
        exception in the block.
    """
    target = Path(path)
    check_replaceable_file(target)
    temporary = _beside(target)
    try:
        with writing(target):
            with temporary.open("xb") as file:
                yield file
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder that appears under its name only when it is whole.

    A recording that is there already is replaced.  Errors as in `atomic_file`.
    """
    target = Path(path).resolve()  # a link to a folder stays one
    check_replaceable_folder(target)
    temporary, old = _beside(target), _beside(target)
    try:
        with writing(target):
            temporary.mkdir()
            yield temporary
            check_replaceable_folder(target)  # writing took its time
            if target.exists():
                target.replace(old)
            try:
                temporary.replace(target)
            except OSError:
                if old.exists():
                    old.replace(target)
                raise
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _beside(target: Path) -> Path:
    return target.absolute().parent / f".{target.name[:200]}.{secrets.token_hex(6)}.tmp"
