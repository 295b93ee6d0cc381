"""Names of kernel functions; the kernel's table of them is read on a thread of its own."""

from __future__ import annotations

import threading

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Callable


class KernelNames:
    """What is at a kernel address.

    Parameters
    ----------
    resolve
        Gives the name at an address, which may be empty; the first call reads all of
        ``/proc/kallsyms``, which takes 0.2 s, and lets other threads run meanwhile.
    """

    def __init__(self, resolve: Callable[[int], bytes]) -> None:
        self._resolve = resolve
        self._reader: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Whether `name` answers at once."""
        return self._reader is not None and not self._reader.is_alive()

    def begin(self) -> None:
        """Begin to read the table, unless that was begun before."""
        if self._reader is None:
            reader = threading.Thread(target=self._resolve, args=(0,), daemon=True)
            reader.start()  # where there is no room for a thread, the next one tries again
            self._reader = reader

    def wait(self) -> None:
        """Return when the table has been read."""
        self.begin()
        if self._reader:
            self._reader.join()

    def name(self, address: int) -> bytes:
        """Name the function at an address, when the table has been read."""
        self.wait()
        return self._resolve(address) or b"[unknown]"
