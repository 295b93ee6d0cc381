"""Names of this process's threads, as `threading` knows them.

The kernel knows a thread by the program's name alone, before Python 3.14.
"""

from __future__ import annotations

import threading


def living() -> dict[str, str]:
    """Name the threads that there are, by the number that the kernel gives each, as text."""
    return {str(thread.native_id): thread.name for thread in threading.enumerate()}


def ended() -> dict[str, str]:
    """Name the threads that have ended, as far as their objects live.

    `threading` has no list of them but the one that its own tests use.
    """
    ids = {thread.native_id for thread in threading.enumerate()}
    known = list(getattr(threading, "_dangling", ()))
    return {str(x.native_id): x.name for x in known if x.native_id and x.native_id not in ids}
