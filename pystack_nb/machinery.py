"""What of a recording belongs to IPython and the magic, rather than to the cell.

Nothing but the standard library is imported: a recorded cell may import NumPy itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Iterable


GENERATED = "<string>"  # the methods of dataclasses and of named tuples


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
        What stands between the cell's code and what it has called, such as another magic; its
        own time belongs to whatever called it.
    threads : tuple of str
        How the names of its threads that run no Python begin.
    display : tuple of str
        What shows the value of the cell's last expression, which is no work of the cell's ...
    renderers : tuple of str
        ... but for the functions of the value that these ask for its looks.
    library : tuple of str
        Python's own library: where what is `inside` calls it, it is part of the machinery.
    shell : tuple of str
        What runs the cell: on its thread, nothing outside of this is the cell's.
    waits : tuple of str
        Of the `others`, what every event loop waits in, the user's own ones, too.
    """

    carriers: tuple[str, ...]
    others: tuple[str, ...]
    inside: tuple[str, ...]
    threads: tuple[str, ...]
    display: tuple[str, ...] = ()
    renderers: tuple[str, ...] = ()
    library: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()

    def is_other(self, file: str) -> bool:
        """Tell whether what a function of this file calls is part of the machinery."""
        return file.startswith(self.others) and not file.startswith(self.carriers)

    def is_help(self, file: str) -> bool:
        """Tell whether a function of this file, called by what is `inside`, is its work, too."""
        if file.startswith((*self.others, *self.carriers)) or file == GENERATED:
            return True
        installed = "/site-packages/" in file or "/dist-packages/" in file
        return file.startswith(self.library) and not installed

    def runs_users_code(self, files: Iterable[str]) -> bool:
        """Tell whether a stack, outermost first, has code that the user called, or may call it."""
        called_by_other = any_other = False
        for file in files:
            other = self.is_other(file)
            if not other and not file.startswith(self.carriers):
                return not called_by_other
            called_by_other = other
            any_other |= other and not file.startswith(self.waits or "\0")
        return not any_other
