"""Run a notebook cell under eBPF probes, and see what it really did.

In a notebook::

    %load_ext pystack_nb

    %%pystack
    work()

and in a program::

    with pystack_nb.PyStackProfiler() as profiler:
        work()
    profiler.recording.functions()

What a program says of itself is recorded with the rest::

    with pystack_nb.mark("load data", rows=10):
        load()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pystack_nb.quiet import quiet


if TYPE_CHECKING:
    from pystack_nb import errors, faults, marks
    from pystack_nb.core import PyStackProfiler, last, recover
    from pystack_nb.magics import load_ipython_extension, unload_ipython_extension
    from pystack_nb.marks import mark
    from pystack_nb.recording import Recording, load

    __version__: str

__all__ = [
    "PyStackProfiler",
    "Recording",
    "__version__",
    "errors",
    "faults",
    "last",
    "load",
    "load_ipython_extension",
    "mark",
    "marks",
    "recover",
    "unload_ipython_extension",
]

# A name's module is imported when the name is first asked for: a program that only records
# waits neither for matplotlib nor for IPython.
_MODULE_OF = {
    "PyStackProfiler": "core",
    "Recording": "recording",
    "last": "core",
    "load": "recording",
    "load_ipython_extension": "magics",
    "mark": "marks",
    "recover": "core",
    "unload_ipython_extension": "magics",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - costs 10 ms, rarely asked for

        value: Any = version("pystack-nb")
    elif name in {"errors", "faults", "marks"}:
        value = import_module(f"pystack_nb.{name}")
    elif name in _MODULE_OF:
        with quiet():
            value = getattr(import_module(f"pystack_nb.{_MODULE_OF[name]}"), name)
    else:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
