"""Perfetto's message classes: every name of the package ``perfetto``'s generated module.

``perfetto_trace_pb2.Trace().ParseFromString(data)`` reads a file that
`pystack_nb.convert_to_perfetto` wrote.
"""

from __future__ import annotations

from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as _generated


def __getattr__(name: str) -> Any:
    # The classes are made when the generated module is imported, so no list of them can be
    # kept here.
    value = getattr(_generated, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [name for name in dir(_generated) if not name.startswith("_")]
