"""What faults change in weights, and how it is put back in whatever order they end."""

from __future__ import annotations

import threading

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits
from pystack_nb.faults.layers import OwnSlot


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pystack_nb.faults.bits import Masks
    from pystack_nb.faults.layers import Slot

    _Torn = tuple[torch.Tensor, NDArray[np.int64], Masks, list[tuple["Patch", Masks]]]

# All that faults hold in weights, in the order of time, of any model and context: those that
# meet in an element must know of each other.
_held: list[Patch] = []
# How to put back what is being changed: what an interrupt broke off is still here.
_torn: dict[Patch, _Torn] = {}
_lock = threading.RLock()
_NOTHING = np.array([], np.int64)
_FAR_OFF = np.iinfo(np.int64).max


def _mend() -> None:
    """Put back what was broken off, before anything else is done."""
    for patch in [*_torn]:
        patch.mend()


class Patch:
    """What one fault does to elements of one weight.

    Attributes
    ----------
    before, after : numpy.ndarray of uint64, shape (n,)
        Each element's stored bits without the fault and with it.
    """

    before: Masks
    after: Masks

    def __init__(self, slot: Slot, tensor: torch.Tensor, positions: NDArray[np.int64]) -> None:
        self._slot = slot
        self._aim(tensor, positions)

    def strike(self, tensor: torch.Tensor, change: Callable[[], None]) -> None:
        """Let ``change`` change the tensor that was opened, and remember what it was."""
        with _lock:
            self.before = bits.read(tensor, self._positions)
            self.after = self.before.copy()
            _held.append(self)
            with self._changing(tensor, self._positions, self.before, [(self, self.after)]):
                change()
                self._slot.close(tensor)
                # Packing may round.
                packed = not isinstance(self._slot, OwnSlot)
                self.after = bits.read(self._slot.open() if packed else tensor, self._positions)

    def force(
        self, tensor: torch.Tensor, positions: NDArray[np.int64], change: Callable[[], None]
    ) -> str:
        """Do it again to what the program has written since, and remember that instead.

        Returns
        -------
        str
            As of `undo`; a tensor that the program has put in the place of another one is
            struck as that was.
        """
        with _lock:
            _mend()
            # A patch that an interrupt kept from being put there again is held no more.
            if self not in _held or self._memory_of(tensor) != self._memory:
                exchanged, complaint = tensor is not self._tensor, self.undo()
                self._aim(tensor, positions)
                self.strike(tensor, change)
                return "" if exchanged else complaint
            tops = [*self._tops()]
            current = bits.read(tensor, positions)
            for top, mine, its in tops:
                written = current[mine] != top.after[its]
                top.before[its[written]] = current[mine][written]
            with self._changing(tensor, positions, current, [(top, top.after) for top, *_ in tops]):
                change()
                made = bits.read(tensor, positions)
                for top, mine, its in tops:
                    # Another array: the one that is there may have to be put back.
                    top.after = top.after.copy()
                    top.after[its] = made[mine]
            return ""

    def undo(self) -> str:
        """Put the elements back that still hold what the fault made of them.

        It may be called again, after it was interrupted or not.

        Returns
        -------
        str
            Why the weight of the model is not what it was; empty if it is.
        """
        with _lock:
            _mend()
            if self not in _held:
                return ""
            free, complaint = self._hand_over(), ""
            if isinstance(self._slot, OwnSlot):
                self._put_back(self._view, free)
                complaint = self._follow(free)
            else:
                tensor = self._slot.open()
                self._put_back(tensor, free)
                self._slot.close(tensor)
            _held.remove(self)
            return complaint

    def mend(self) -> None:
        """Put back what was broken off.  It may be called again, after it was interrupted."""
        if self not in _torn:
            return
        tensor, positions, stored, afters = _torn[self]
        bits.write(tensor, positions, stored)
        self._slot.close(tensor)
        for patch, after in afters:
            patch.after = after
        del _torn[self]

    @contextmanager
    def _changing(
        self,
        tensor: torch.Tensor,
        positions: NDArray[np.int64],
        stored: Masks,
        afters: list[tuple[Patch, Masks]],
    ) -> Iterator[None]:
        """Put elements and what patches know of them back, unless all of it was changed."""
        _torn[self] = tensor, positions, stored, afters
        try:
            yield
            del _torn[self]
        except BaseException:
            self.mend()
            raise

    def _aim(self, tensor: torch.Tensor, positions: NDArray[np.int64]) -> None:
        self._tensor = tensor
        self._positions = positions
        # Holds the memory, whatever becomes of the parameter, so that no other one gets it.
        self._view = tensor.data
        self._memory = self._memory_of(tensor)
        self._elements = positions
        if isinstance(self._slot, OwnSlot):
            # Tied weights may be other views of one memory.
            axes = np.unravel_index(positions, tuple(tensor.shape)) if tensor.dim() else ()
            self._elements = np.full(len(positions), tensor.storage_offset())
            for axis, step in zip(axes, tensor.stride(), strict=True):
                self._elements += axis * step
        least, most = self._elements.min(initial=_FAR_OFF), self._elements.max(initial=-1)
        self._ends = int(least), int(most)

    def _memory_of(self, tensor: torch.Tensor) -> tuple[object, ...]:
        if isinstance(self._slot, OwnSlot):
            return tensor.device, tensor.untyped_storage().data_ptr(), tensor.dtype
        return id(self._slot.module), self._slot.name

    def _tops(self) -> Iterator[tuple[Patch, NDArray[np.int64], NDArray[np.int64]]]:
        """Give the last patch of each element: which of the elements here, and which of its."""
        free = np.ones(len(self._elements), np.bool_)
        for top in reversed(_held[_held.index(self) :]):
            mine, its = self._shared(top, free)
            if len(mine):
                free[mine] = False
                yield top, mine, its

    def _hand_over(self) -> NDArray[np.int64]:
        """Let the next patch of each element know; give the elements that have none."""
        free = np.ones(len(self._elements), np.bool_)
        for later in _held[_held.index(self) + 1 :]:
            mine, its = self._shared(later, free)
            if not len(mine):
                continue
            free[mine] = False
            on_top = later.before[its] == self.after[mine]
            later.before[its[on_top]] = self.before[mine[on_top]]
        return np.flatnonzero(free)

    def _shared(
        self, other: Patch, among: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        (first, last), (others_first, others_last) = self._ends, other._ends
        # Most of many patches have nothing to do with each other.
        if other._memory != self._memory or first > others_last or others_first > last:
            return _NOTHING, _NOTHING
        _, mine, its = np.intersect1d(
            self._elements, other._elements, assume_unique=True, return_indices=True
        )
        return mine[among[mine]], its[among[mine]]

    def _put_back(self, tensor: torch.Tensor, rows: NDArray[np.int64]) -> None:
        # What the program has written in the meantime is the program's.
        rows = rows[bits.read(tensor, self._positions[rows]) == self.after[rows]]
        bits.write(tensor, self._positions[rows], self.before[rows])

    def _follow(self, rows: NDArray[np.int64]) -> str:
        """Put back what was moved elsewhere with the fault in it."""
        tensor = self._tensor
        try:
            held = self._slot.open()
        except FaultError:
            held = None
        if held is not tensor:
            # To assign a buffer is how models write to it.
            return (
                "was exchanged for another one while a fault was in it, which the fault then did"
                " not strike: exchange or load weights outside of inject, or write to them in"
                " place"
                if isinstance(tensor, torch.nn.Parameter)
                else ""
            )
        if tensor.dtype != self._view.dtype or tensor.shape != self._view.shape:
            return (
                f"of {self._view.dtype} became one of {tensor.dtype} and shape"
                f" {tuple(tensor.shape)} while a fault was in it, and can't be restored: load it"
                " anew, and convert the model outside of inject"
            )
        if self._memory_of(tensor) != self._memory:
            self._put_back(tensor, rows)
        return ""
