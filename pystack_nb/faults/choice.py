"""Which bits of an element a fault strikes."""

from __future__ import annotations

import math
import operator

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits


if TYPE_CHECKING:
    import torch

    from numpy.typing import NDArray

    from pystack_nb.faults.bits import Masks

_FIELDS = ("sign", "exponent", "mantissa", "magnitude")


@dataclass(frozen=True)
class Choice:
    """The four parameters of `BitFlip` and `StuckAt` that choose bits."""

    bits: int
    bit: int | tuple[int, ...] | None
    field: str | None
    burst: bool

    def check(self) -> None:
        """Raise a FaultError if no type has such bits."""
        try:
            count, chosen = operator.index(self.bits), [operator.index(b) for b in self._chosen]
        except TypeError:
            raise FaultError(f"bits={self.bits!r}, bit={self.bit!r}: give whole numbers") from None
        if count < 1:
            raise FaultError(f"a fault can't strike {count} bits: give 1 or more")
        if any(bit < 0 for bit in chosen) or len({*chosen}) < len(chosen):
            raise FaultError(f"bit={self.bit!r}: give distinct numbers from 0 on")
        if self.field is not None and self.field not in _FIELDS:
            raise FaultError(f"there is no field {self.field!r}: give one of {_FIELDS}")
        if self.bit is None:
            return
        if self.field is not None:
            raise FaultError("bit and field are both given: choose the bits by one of them")
        if not chosen or (self.burst and not isinstance(self.bit, int | np.integer)):
            raise FaultError(f"bit={self.bit!r}: give one bit, or several without burst")
        if not self.burst and count not in {1, len(chosen)}:
            raise FaultError(
                f"bits={count} and bit={self.bit!r} disagree: leave bits away, or burst=True"
            )

    def candidates(self, dtype: torch.dtype) -> tuple[int, ...]:
        """Give the bits of a type that may be struck, ascending."""
        if self.bit is not None:
            low = min(self._chosen)
            chosen = range(low, low + self.bits) if self.burst else sorted(self._chosen)
            return tuple(bits.check_bit(bit, dtype) for bit in chosen)
        if self.field is None:
            found = range(bits.width(dtype))
        else:
            found = bits.fields(dtype).get(self.field, range(0))
        if len(found) < self.bits:
            raise FaultError(
                f"{self.field or 'the whole'} of {dtype} has {len(found)} bits and not"
                f" {self.bits}: choose fewer, or one of its fields {[*bits.fields(dtype)]}"
            )
        return tuple(found)

    def count(self, dtype: torch.dtype) -> int:
        """Give the number of different choices in a type."""
        found = len(self.candidates(dtype))
        if self.bit is not None:
            return 1
        return found - self.bits + 1 if self.burst else math.comb(found, self.bits)

    def masks(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Masks:
        """Draw masks of the bits struck, each choice as likely as another: shape (count,)."""
        found = self.candidates(dtype)
        if self.bit is not None:
            return np.full(count, sum(1 << bit for bit in found), np.uint64)
        ones = np.left_shift(np.uint64(1), np.array(found, np.uint64))
        if self.bits == 1:
            one: Masks = ones[rng.integers(len(found), size=count)]
            return one
        if self.burst:
            start = rng.integers(len(found) - self.bits + 1, size=count)
            run: Masks = ones[start] * np.uint64((1 << self.bits) - 1)
            return run
        rank: NDArray[np.int64] = rng.random((count, len(found))).argsort(axis=1)
        several: Masks = np.bitwise_or.reduce(ones[rank[:, : self.bits]], axis=1)
        return several

    @property
    def _chosen(self) -> tuple[int, ...]:
        if self.bit is None:
            return ()
        return self.bit if isinstance(self.bit, tuple) else (self.bit,)
