"""Where the parts that the collector needs lie: on the notebook's side, before it is started."""

from __future__ import annotations

import shlex
import sys

from pathlib import Path

from pystack_nb.errors import CollectorUnavailableError


LIBRARY = "libpystack_time.so"

_SOURCE = "pystack_time.bpf.c"


def bpf_folder() -> Path:
    """Return the folder of the BPF source and its stub headers.

    Raises
    ------
    CollectorUnavailableError
        When the installation has none.
    """
    return _find(_SOURCE).parent


def library() -> Path:
    """Return the path of the C library that drains the ring buffer.

    Raises
    ------
    CollectorUnavailableError
        When it has not been built.
    """
    return _find(LIBRARY)


def command_as_root(*arguments: str) -> str:
    """Return what a user types to run ``pystack-nb`` as root.

    The name alone would not do: it lies in a virtual environment, and sudo looks only where the
    system's programs are.
    """
    return shlex.join(["sudo", sys.executable, "-m", "pystack_nb", *arguments])


def _find(name: str) -> Path:
    # An editable install has two package folders: the sources', and the one for what was built.
    packages = [Path(folder) for folder in sys.modules["pystack_nb"].__path__]
    checkout = Path(__file__).parents[2] / "bpf"
    folders = [*(package / "bpf" for package in packages), checkout, checkout / ".output"]
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise CollectorUnavailableError(
        f"this installation of pystack_nb lacks {name}: run `make setup` in its checkout, or "
        "install the package again."
    )
