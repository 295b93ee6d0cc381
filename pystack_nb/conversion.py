"""The command line that the modules have which turn one file into another."""

from __future__ import annotations

import sys

from pathlib import Path
from typing import TYPE_CHECKING

from pystack_nb.errors import ExportPathError, PystackError, RecordingFormatError


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What such a module writes, and how the path of it ends; one that is not here goes by the suffix.
_SUFFIXES = {
    "pystack_nb.convert_to_json": (".json",),
    "pystack_nb.convert_to_perfetto": (".pftrace", ".perfetto-trace"),
}
_TRACES = _SUFFIXES["pystack_nb.convert_to_perfetto"]


def run(
    module: str, convert: Callable[[str, str], None], arguments: Sequence[str] | None = None
) -> int:
    """Convert IN to OUT.

    Parameters
    ----------
    module
        What stands behind ``python -m``.
    convert
        Takes the two paths.
    arguments
        IN and OUT; None: those of this process.

    Returns
    -------
    int
        The exit status: 0; 1 after an error, which is one line on standard error; 2 after a
        mistake in the arguments.
    """
    paths = sys.argv[1:] if arguments is None else arguments
    if len(paths) != 2:
        sys.stderr.write(f"usage: python -m {module} IN OUT\n")
        return 2
    try:
        _check(module, *paths)
        convert(*paths)
    except PystackError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


def refuse_trace(source: str) -> None:
    """Raise `RecordingFormatError` if a recording is to be read from a Perfetto trace."""
    if Path(source).suffix.lower() in _TRACES and Path(source).is_file():
        raise RecordingFormatError(
            f"{source} is a Perfetto trace, which can't be read back: open it in "
            "https://ui.perfetto.dev; give the folder of Parquet files or the .json file of the "
            "same recording"
        )


def _check(module: str, source: str, out: str) -> None:
    refuse_trace(source)
    known = _SUFFIXES.get(module)
    if known and Path(out).suffix.lower() not in known:
        raise ExportPathError(
            f"{out}: {module} writes {' and '.join(known)}; end the path in that, or use "
            "`pystack-nb convert`, which goes by the suffix"
        )
