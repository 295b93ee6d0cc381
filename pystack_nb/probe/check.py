"""Whether the probe sees each kind of call in this very interpreter.

A patch release may take another way around the evaluator, as 3.13.0 does for ``__init__``; so
each kind is tried when the probe is loaded, often enough for the interpreter to specialise it.
"""

from __future__ import annotations

import collections
import contextlib
import glob
import os
import struct
import sys
import threading

from typing import TYPE_CHECKING

from pystack_nb.errors import ProbeError


if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_ROUNDS = 40  # the interpreter specialises within a few
_TIME_BITS, _OPERAND, _KIND_SHIFT = 40, (1 << 22) - 1, 62
_ENTER, _LEAVE, _RESUME, _ = range(4)
_WORD_TIME, _WORD_CODE = 0, 1
_OWN = glob.escape((lambda: None).__code__.co_filename)  # other threads may be busy meanwhile


def not_recorded() -> None:
    """Be called, from another file."""


class _Simple:
    def __init__(self, value: int) -> None:
        self.value = value

    def method(self) -> int:
        return self.value

    @property
    def attribute(self) -> int:
        return self.value

    @classmethod
    def of_class(cls) -> int:
        return 1

    @staticmethod
    def static() -> int:
        return 1

    def __call__(self) -> int:
        return self.value

    def __getitem__(self, key: int) -> int:
        return key

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return 1

    def __del__(self) -> None:
        pass

    def __enter__(self) -> int:
        return 1

    def __exit__(self, *_: object) -> None:
        pass


class _Dynamic:
    def __getattr__(self, name: str) -> int:
        return 1


def _function(value: int, other: int = 2) -> int:
    return value + other


def _raises() -> None:
    raise KeyError


def _generator() -> Iterator[int]:
    yield 1
    yield 2


async def _coroutine() -> int:
    return 1


def _every_kind(rounds: int) -> None:
    for number in range(rounds):
        simple = _Simple(number)
        simple.method()
        simple.attribute  # noqa: B018
        _Simple.of_class()
        _Simple.static()
        simple()
        simple[number]
        simple == number  # noqa: B015
        hash(simple)
        with simple:
            pass
        _Dynamic().missing  # noqa: B018
        _function(number)
        _function(value=number, other=number)
        _function(*(number, number))
        for _ in _generator():
            pass
        with contextlib.suppress(KeyError):
            _raises()
        with contextlib.suppress(StopIteration):
            _coroutine().send(None)
        del simple


# How often each is called in a round; a generator once for each time that it goes on.
_CALLS = {
    "_Simple.__init__": 1,
    "_Simple.method": 1,
    "_Simple.attribute": 1,
    "_Simple.of_class": 1,
    "_Simple.static": 1,
    "_Simple.__call__": 1,
    "_Simple.__getitem__": 1,
    "_Simple.__eq__": 1,
    "_Simple.__hash__": 1,
    "_Simple.__del__": 1,
    "_Simple.__enter__": 1,
    "_Simple.__exit__": 1,
    "_Dynamic.__getattr__": 1,
    "_function": 3,
    "_generator": 3,
    "_raises": 1,
    "_coroutine": 1,
}


def check(module: ModuleType, *, init: bool) -> None:
    """Try every kind of call.

    Parameters
    ----------
    module
        The C extension.
    init
        Whether ``__init__`` is watched by `sys.monitoring`.

    Raises
    ------
    ProbeError
        When a call is missing, or one too many is there.
    """
    counts, unpaired = _count(_record(module, init=init))
    expected = {name: times * _ROUNDS for name, times in _CALLS.items()}
    wrong = {name: counts.get(name, 0) for name in expected if counts.get(name) != expected[name]}
    if wrong or unpaired:
        told = ", ".join(f"{name}: {n} of {expected[name]}" for name, n in wrong.items())
        raise ProbeError(
            f"the probe does not see every call in this interpreter ({told or 'unpaired'}): use "
            "--mode sample, and report this with the output of `pystack-nb doctor`."
        )


def sees_init(module: ModuleType) -> bool | None:
    """Tell whether the evaluator alone sees ``__init__`` however it is called.

    None: it did, but a tool was there that keeps the interpreter from specialising calls.
    """
    watched = _is_watched()
    counts, _ = _count(_record(module, init=False))
    if counts.get("_Simple.__init__") != _ROUNDS:
        return False
    return None if watched or _is_watched() else True


def _is_watched() -> bool:
    """Whether any tool gets events of all code, on whatever thread it was set."""
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is None:
        return False  # 3.11, where tools leave the code as it is
    # Not documented, but the profile and the trace function have no id to be asked about.
    events = getattr(monitoring, "_all_events", None)
    return events is None or bool(events())


def _record(module: ModuleType, *, init: bool) -> bytes:
    with memory(module.SHARED_SIZE) as fd, memory() as spool:
        module.prepare(fd, False)
        module.start(fd, spool, init=init, include=(_OWN,))
        try:
            _every_kind(_ROUNDS)
        finally:
            module.stop()
            module.close()
        return os.pread(spool, os.fstat(spool).st_size, 0)


@contextlib.contextmanager
def memory(size: int = 0) -> Iterator[int]:
    """Make a file in memory."""
    fd = os.memfd_create("pystack_nb-check", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


# As bpf/pystack_time.h declares them: `wire` says the same, but needs NumPy; a test compares.
_BLOCK = struct.Struct("<IIQII")  # with the one size that follows
_RECORD = struct.Struct("<IHH")
_CALLS_RECORD = 9
_TID_AT, _WORDS_AT = 52, 96


def _count(data: bytes) -> tuple[collections.Counter[str], bool]:
    """Count the calls by qualified name, and tell whether some do not pair."""
    ids: collections.Counter[int] = collections.Counter()
    names: dict[int, str] = {}
    depth, unpaired = 0, False
    words = _words(data)
    for word in words:
        kind, operand = word >> _KIND_SHIFT, word >> _TIME_BITS & _OPERAND
        if kind in (_ENTER, _RESUME):
            ids[operand] += 1
            depth += 1
        elif kind == _LEAVE:
            depth -= 1
            unpaired |= depth < 0
        elif operand & 15 == _WORD_TIME:
            next(words)
        elif operand & 15 == _WORD_CODE:
            text = b"".join(next(words).to_bytes(8, "little") for _ in range(operand >> 4))
            names[word & _OPERAND] = text.split(b"\0")[1].decode(errors="replace")
    counts: collections.Counter[str] = collections.Counter()
    for number, count in ids.items():
        counts[names.get(number, "")] += count
    return counts, unpaired or depth != 0


def _words(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        size = _BLOCK.unpack_from(data, at)[2]
        at += _BLOCK.size
        tid, count = struct.unpack_from("<II", data, at + _TID_AT)
        if _RECORD.unpack_from(data, at)[1] == _CALLS_RECORD and tid == threading.get_native_id():
            yield from struct.unpack_from(f"<{count}Q", data, at + _WORDS_AT)
        at += size
