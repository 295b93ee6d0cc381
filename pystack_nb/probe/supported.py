"""The interpreters that the probe is made for, said here alone.

As a program, it says why there is no probe for the interpreter that runs it, or nothing:
``CMakeLists.txt`` and ``native.mk`` ask it before they build one. Nothing of the package is
imported here. A version more needs a look at ``frames.h`` too.
"""

from __future__ import annotations

import platform
import sys
import sysconfig


VERSIONS = ((3, 11), (3, 12), (3, 13))
MACHINE = "x86_64"


def why_not() -> str | None:
    """Say why there can be no probe for this interpreter; None: there can."""
    version, name = sys.version_info[:2], platform.python_implementation()
    known = ", ".join(f"{major}.{minor}" for major, minor in VERSIONS)
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if (
        name == "CPython"
        and version in VERSIONS
        and not free_threaded
        and platform.machine() == MACHINE
    ):
        return None
    kind = "free-threaded " if free_threaded else ""
    return (
        f"there is no probe for {kind}{name} {version[0]}.{version[1]} on {platform.machine()}, "
        f"only for CPython {known} with a GIL on {MACHINE}"
    )


if __name__ == "__main__":
    sys.stdout.write(why_not() or "")
