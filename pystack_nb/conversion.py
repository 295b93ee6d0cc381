"""The command line that the modules have which turn one file into another."""

from __future__ import annotations

import sys

from typing import TYPE_CHECKING

from pystack_nb.errors import PystackError


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
        convert(*paths)
    except PystackError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0
