"""Addresses of native and kernel frames into what may leave the collector.

Native frames go out as (file, offset in it): the client looks the names up in files that it can
read itself.  Kernel frames go out as names, never as addresses.
"""

from __future__ import annotations

import os
import time

from bisect import bisect_right
from typing import TYPE_CHECKING

from .drain import PST_KERNEL, PST_MODULE, Symbol


if TYPE_CHECKING:
    from collections.abc import Iterable

    from .drain import Addresses, Drain
    from .kernel_names import KernelNames

_MAX_SYMBOL = 4096
_MAX_MAPS = 32 << 20  # bytes of /proc/PID/maps; vm.max_map_count allows about 8 MiB
_PIECE = 1 << 20
_LOWEST, _USER_SPACE = 1 << 16, 1 << 56  # addresses that code may have
_REST = 50  # after a look at the mappings, as a multiple of the time that it took
_MAX_WAITING = 1000  # stacks


class Symbols:
    """What the stacks of one recording stand for.

    Parameters
    ----------
    drain
        Where symbols and stacks are appended.
    maps
        The target's ``/proc/PID/maps``, open; it stays the caller's. What it shows is of the
        program that was running then, and of no other that takes its place.
    kernel_names
        Names of the kernel's functions.
    """

    def __init__(self, drain: Drain, maps: int, kernel_names: KernelNames) -> None:
        self._drain = drain
        self._maps = maps
        self._kernel_names = kernel_names
        self._ids: dict[Symbol, int] = {}
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._files: list[tuple[int, Symbol]] = []
        self._waiting: list[Addresses] = []
        self._waiting_kernel: list[Addresses] = []
        self._next_look = 0.0
        self.refresh()

    def follow(self, maps: int, stacks: Iterable[Addresses]) -> None:
        """Go on with the memory map of another program that the target executes.

        Parameters
        ----------
        maps
            As for the class.
        stacks
            Those up to now: of the former program, and, since it takes some milliseconds to see
            that there is another one, the first of this.
        """
        self._sort_in(stacks)
        self._tell_known()
        self._maps = maps
        self._next_look = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Read the target's executable mappings again; those of an ended program are kept."""
        text = self._read()
        lines = [line for line in text.split(b"\n")[:-1] if b"x" in line.split(b" ", 2)[1]]
        executable = [line.split(None, 5) for line in lines]
        if not executable:  # the program has ended, or another one has taken its place
            return
        ranges = [tuple(int(end, 16) for end in fields[0].split(b"-")) for fields in executable]
        self._starts = [start for start, _ in ranges]
        self._ends = [end for _, end in ranges]
        self._files = [
            (start - int(fields[2], 16), _module(fields))
            for (start, _), fields in zip(ranges, executable, strict=True)
        ]

    def _read(self) -> bytes:
        text = bytearray()
        try:
            while len(text) < _MAX_MAPS and (piece := os.pread(self._maps, _PIECE, len(text))):
                text += piece
        except ProcessLookupError:
            return b""
        return bytes(text[:_MAX_MAPS])

    def tell(self, stacks: Iterable[Addresses], *, last: bool = False) -> None:
        """Append what each of `stacks` stands for.

        Those with an address that is unknown wait until the mappings may be read again, or until
        `last`; a library that was loaded meanwhile is found then. Those of the kernel wait until
        its names have been read.
        """
        self._sort_in(stacks)
        self._tell_known()
        begun = time.monotonic()
        if self._waiting and (last or begun >= self._next_look):
            self.refresh()
            now = time.monotonic()
            self._next_look = now + _REST * (now - begun)
            last = True
        if last or len(self._waiting) > _MAX_WAITING:
            waiting, self._waiting = self._waiting, []
            for stack in waiting:
                self._append_native(stack)

    def tell_kernel(self) -> None:
        """Append what the kernel's stacks stand for, whose names are waited for."""
        waiting, self._waiting_kernel = self._waiting_kernel, []
        for stack in waiting:
            names = [self._kernel_names.name(a)[:_MAX_SYMBOL] for a in stack.addresses]
            frames = [(0, self._id(Symbol(PST_KERNEL, name))) for name in names]
            self._drain.append_stack(stack.stack_id, stack.kind, frames)

    def _sort_in(self, stacks: Iterable[Addresses]) -> None:
        for stack in stacks:
            kernel = stack.kind == PST_KERNEL
            (self._waiting_kernel if kernel else self._waiting).append(stack)

    def _tell_known(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stack in waiting:
            if self._is_unknown(stack):
                self._waiting.append(stack)
            else:
                self._append_native(stack)
        if self._kernel_names.ready:
            self.tell_kernel()

    def _append_native(self, stack: Addresses) -> None:
        self._drain.append_stack(stack.stack_id, stack.kind, self._native(stack.addresses))

    def _is_unknown(self, stack: Addresses) -> bool:
        for depth, address in enumerate(stack.addresses):
            if self._find(address - (depth > 0)) < 0:
                return _LOWEST <= address < _USER_SPACE  # else no code will ever be there
        return False

    def _native(self, addresses: tuple[int, ...]) -> list[tuple[int, int]]:
        frames = []
        for depth, address in enumerate(addresses):
            # All but the innermost are return addresses: the call stands before.
            at = self._find(address - (depth > 0))
            if at < 0:
                # Code without frame pointers led the walk astray; what is further out is noise.
                break
            base, module = self._files[at]
            frames.append((address - (depth > 0) - base, self._id(module)))
        return frames

    def _find(self, address: int) -> int:
        at = bisect_right(self._starts, address) - 1
        return at if at >= 0 and address < self._ends[at] else -1

    def _id(self, symbol: Symbol) -> int:
        if symbol not in self._ids:
            self._ids[symbol] = len(self._ids) + 1
            self._drain.append_symbol(self._ids[symbol], symbol)
        return self._ids[symbol]


def _module(fields: list[bytes]) -> Symbol:
    """Make a symbol of a line of ``/proc/PID/maps``: range, rights, offset, device, inode, path."""
    if len(fields) < 6:
        return Symbol(PST_MODULE, b"[anonymous]")
    major, minor = (int(number, 16) for number in fields[3].split(b":"))
    return Symbol(PST_MODULE, fields[5][:_MAX_SYMBOL], int(fields[4]), major, minor)
